"""The settings of the backup."""

from typing import Literal

from pydantic import Field

from settings.base import BackupTarget, Cpus, Cron, Settings

UID = 999
ON_THIS_DISK = "volume"


class BackupSettings(Settings):
    """What an operator may set under `mlflow:backup`."""

    enabled: bool = Field(default=False, description="Whether there is one. On in the files of staging and prod.")
    target: BackupTarget = Field(
        default=ON_THIS_DISK,
        description="Where it goes: `volume`, a Docker volume beside the data, which does not survive their disk; a "
        "folder of the Docker host such as `/srv/backup`; or a bucket elsewhere, "
        "`s3:https://s3.example.com/bucket/path`. One for each stack.",
    )
    access_key_id: str | None = Field(
        default=None,
        description="Access key of an S3 target. Its secret key: `pulumi config set --secret backupTargetSecretKey`.",
    )
    deletes: bool = Field(
        default=True,
        description="Whether backups that the retention does not keep are deleted. False for a target that lets "
        "nothing be deleted; see docs/operations/backup.md#a-target-that-deletes-nothing.",
    )
    # The defaults are known to be right, and to check them costs a preview the import of a parser.
    schedule: Cron = Field(default="17 3 * * *", validate_default=False, description="When, as in cron, in UTC.")
    drill_schedule: Cron = Field(
        default="17 5 * * 0",
        validate_default=False,
        description="When the newest backup is restored into a throw-away database, in UTC.",
    )
    keep_daily: int = Field(default=7, ge=1, le=3650, description="Backups to keep: the last of so many days,")
    keep_weekly: int = Field(default=4, ge=0, le=520, description="the last of so many weeks,")
    keep_monthly: int = Field(default=12, ge=0, le=120, description="and the last of so many months.")
    memory_mb: int = Field(default=768, ge=512, le=1_048_576, description="Memory limit.")
    cpus: Cpus = Field(default=1.0, description="Processors that it may use.")

    @property
    def where(self) -> Literal["volume", "folder", "s3"]:
        """What kind of target it is."""
        if self.target == ON_THIS_DISK:
            return "volume"
        return "s3" if self.target.startswith("s3:") else "folder"

    @property
    def leaves(self) -> bool:
        """Whether it needs a way out of the internal network."""
        return self.enabled and self.where == "s3"
