"""The settings of the backup."""

from typing import Literal

from pydantic import Field

from settings.base import BackupTarget, Cpus, Cron, Settings

UID = 999
TARGET_VOLUME = "volume"


class BackupSettings(Settings):
    """The settings under `mlflow:backup`."""

    enabled: bool = Field(
        default=False, description="Whether the stack is backed up. The stack files of staging and prod turn it on."
    )
    target: BackupTarget = Field(
        default=TARGET_VOLUME,
        description="The backup target: `volume`, a Docker volume on the same disk as the data, which is lost with "
        "that disk; a folder on the Docker host such as `/srv/backup`; or a bucket elsewhere, such as "
        "`s3:https://s3.example.com/bucket/path`. Each stack needs its own.",
    )
    access_key_id: str | None = Field(
        default=None,
        description="The access key of an S3 target; required for one. Set the secret key with "
        "`pulumi config set --secret backupTargetSecretKey`.",
    )
    deletes: bool = Field(
        default=True,
        description="Whether backups that the retention policy does not keep are deleted. Set `false` for a target "
        "that permits no deletion; see docs/operations/backup.md#a-target-that-deletes-nothing.",
    )
    # The defaults are valid, and validating them would import the cron parser in every preview.
    schedule: Cron = Field(
        default="17 3 * * *", validate_default=False, description="When the backup runs: a cron expression, in UTC."
    )
    drill_schedule: Cron = Field(
        default="17 5 * * 0",
        validate_default=False,
        description="When the restore test runs, which restores the newest backup into a throw-away database: a cron "
        "expression, in UTC.",
    )
    keep_daily: int = Field(
        default=7,
        ge=1,
        le=3650,
        description="Retention policy: the number of days whose last backup is kept. Only with `deletes: true`.",
    )
    keep_weekly: int = Field(
        default=4,
        ge=0,
        le=520,
        description="Retention policy: the number of weeks whose last backup is kept. Only with `deletes: true`.",
    )
    keep_monthly: int = Field(
        default=12,
        ge=0,
        le=120,
        description="Retention policy: the number of months whose last backup is kept. Only with `deletes: true`.",
    )
    memory_mb: int = Field(
        default=768, ge=512, le=1_048_576, description="Memory limit of the backup container, in MB."
    )
    cpus: Cpus = Field(default=1.0, description="The number of CPUs that the backup container may use.")

    @property
    def where(self) -> Literal["volume", "folder", "s3"]:
        """The kind of the backup target."""
        if self.target == TARGET_VOLUME:
            return "volume"
        return "s3" if self.target.startswith("s3:") else "folder"

    @property
    def needs_egress(self) -> bool:
        """Whether the backup connects to a target outside the host."""
        return self.enabled and self.where == "s3"
