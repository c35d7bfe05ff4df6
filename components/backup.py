"""The backup: scheduled backups of database and artifacts, and the restore test."""

from pathlib import Path

import pulumi
import pulumi_docker as docker

from components.internal_tls import AUTHORITY, CERTIFICATE, KEY, InternalTls
from components.mlflow import Mlflow
from components.object_store import REGION, ObjectStore
from components.platform import Platform
from components.postgres import BACKUP_ROLE, DATABASE, Postgres
from components.scrape import Target
from runtime.credentials import Credential, InUse, is_configured, provided_secret
from runtime.service import Service
from runtime.workload import Files, HealthCheck, Limits, Metrics, Workload
from settings import names
from settings.backup import UID, BackupSettings
from settings.secrets import TARGET_SECRET
from settings.server import PORT as SERVER_PORT

ASSETS = Path(__file__).parent.parent / "assets" / "backup"
METRICS_PORT = 9110
PASSWORD_FILE = "repository-password"  # noqa: S105 - a name


class Backup(pulumi.ComponentResource):
    """One container that backs up the database and the artifacts. It can read both, and write only its own volumes.

    Creates the backup password (a data key), the volume `backup-staging`, the volume of the backup repository unless
    the target is S3, and the service `backup`. Once a stack has had a backup, the password stays even if the backup is
    turned off.

    The logic is in `assets/backup`: it dumps the database, mirrors the artifacts into the staging volume, and passes
    both to restic, which encrypts, deduplicates and keeps the history.
    """

    credentials: list[Credential]
    """The password of the backup repository. Without it, backups cannot be decrypted."""
    targets: list[Target]
    """The scrape target with the results of the last backup and restore test."""

    def __init__(
        self,
        name: str,
        settings: BackupSettings,
        *,
        platform: Platform,
        database: Postgres,
        store: ObjectStore,
        server: Mlflow,
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        """Run the scheduler if the backup is enabled.

        The backup includes the server's data keys, without which a restored database cannot be decrypted, and its
        version.
        """
        super().__init__("mlflow:components:Backup", name, None, opts)
        self.targets = []
        in_use = InUse(platform=platform, container=f"{name}-files", file=PASSWORD_FILE)
        repository = Credential("backup-password", "backupPassword", kind="data key", in_use=in_use, parent=self)
        self.credentials = [repository]
        if settings.enabled:
            self._run(name, settings, platform, database, store, server, repository)
        self.register_outputs({"target": settings.target if settings.enabled else None})

    @staticmethod
    def exists(settings: BackupSettings) -> bool:
        """Return whether the stack has or had a backup. The data key stays when a backup is turned off."""
        return settings.enabled or is_configured("backupPassword")

    def _run(
        self,
        name: str,
        settings: BackupSettings,
        platform: Platform,
        database: Postgres,
        store: ObjectStore,
        server: Mlflow,
        repository: Credential,
    ) -> None:
        child = pulumi.ResourceOptions(parent=self)
        data: dict[str, pulumi.Input[str]] = {"/staging": self._staging(name).name}
        if settings.where != "s3":
            data["/repository"] = self._local_target(name, settings).name
        service = Service(
            name,
            Workload(
                image=platform.images.backup,
                limits=Limits(memory_mb=settings.memory_mb, cpus=settings.cpus),
                networks=platform.networks.backup_networks(outward=settings.needs_egress),
                env=_environment(settings, database, store, server) | _tls_environment(platform.tls),
                files=Files(
                    secrets={
                        PASSWORD_FILE: repository.value,
                        "pgpass": database.backup_pgpass,
                        "store-credentials": store.backup_credentials_file,
                        **_target_credentials(settings),
                        **platform.tls.identity(name),
                        **{f"data-keys/{key}": value for key, value in {**server.data_keys, **store.data_keys}.items()},
                    },
                    config={file.name: file.read_text() for file in sorted(ASSETS.glob("*.py"))},
                ),
                data=data,
                tmpfs={"/tmp": "size=64m,mode=1777"},  # noqa: S108 - inside the container
                user=f"{UID}:{UID}",
            ),
            HealthCheck(command=["python3", "/run/config/main.py", "alive"]),
            platform=platform,
            metrics=Metrics(port=METRICS_PORT, scheme=platform.tls.scheme),
            # An interrupted run leaves earlier backups intact.
            grace_s=30,
            after=[database.service.ready, store.ready],
            opts=child,
        )
        self.targets = [
            Target(
                job="backup",
                instance="backup",
                address=f"{service.host}:{METRICS_PORT}",
                every_s=30,
                tls=bool(platform.tls),
            )
        ]

    def _staging(self, name: str) -> docker.Volume:
        """Return the volume of the mirror and of temporary files."""
        stack = pulumi.get_stack()
        return docker.Volume(
            f"{name}-staging",
            name=names.docker_name(stack, f"{name}-staging"),
            labels=[{"label": names.STACK_LABEL, "value": stack}],
            opts=pulumi.ResourceOptions(parent=self),
        )

    def _local_target(self, name: str, settings: BackupSettings) -> docker.Volume:
        """Return the volume of the backup repository: a Docker volume, or one bound to a folder of the host."""
        bind = {"type": "none", "o": "bind", "device": settings.target} if settings.where == "folder" else None
        return docker.Volume(
            f"{name}-repository",
            name=names.backup_volume(pulumi.get_stack(), settings.target if bind else None),
            driver_opts=bind,
            # Not protected: a new target replaces the resource. The volume itself always stays.
            opts=pulumi.ResourceOptions(parent=self, retain_on_delete=True),
        )


def _environment(settings: BackupSettings, database: Postgres, store: ObjectStore, server: Mlflow) -> dict[str, str]:
    """Return what the backup program, libpq, rclone and restic read from environment variables. No secret."""
    return {
        "STACK": pulumi.get_stack(),
        "TARGET": settings.target,
        "SCHEDULE": settings.schedule,
        "DRILL_SCHEDULE": settings.drill_schedule,
        "KEEP_DAILY": str(settings.keep_daily),
        "KEEP_WEEKLY": str(settings.keep_weekly),
        "KEEP_MONTHLY": str(settings.keep_monthly),
        "DELETES": str(int(settings.deletes)),
        "SERVER": f"{server.scheme}://{server.replicas[names.SERVER].host}:{SERVER_PORT}",
        "KEYS": "/run/secrets/data-keys",
        "HOME": "/tmp",  # noqa: S108 - inside the container
        # Restic writes its packs there first: too much for a tmpfs.
        "TMPDIR": "/staging/tmp",
        "PGHOST": database.service.host,
        "PGUSER": BACKUP_ROLE,
        "PGDATABASE": DATABASE,
        "PGPASS": "/run/secrets/pgpass",
        "PGCONNECT_TIMEOUT": "10",
        "BUCKET": store.bucket,
        "RCLONE_CONFIG": "/dev/null",
        "RCLONE_CONFIG_STORE_TYPE": "s3",
        "RCLONE_CONFIG_STORE_PROVIDER": "Other",
        "RCLONE_CONFIG_STORE_ENDPOINT": store.endpoint,
        "RCLONE_CONFIG_STORE_REGION": REGION,
        "RCLONE_CONFIG_STORE_ENV_AUTH": "true",
        "RCLONE_CONFIG_STORE_NO_CHECK_BUCKET": "true",
        "RCLONE_CONFIG_STORE_SHARED_CREDENTIALS_FILE": "/run/secrets/store-credentials",
        "RESTIC_REPOSITORY": settings.target if settings.where == "s3" else "/repository",
        "RESTIC_PASSWORD_FILE": f"/run/secrets/{PASSWORD_FILE}",
        "RESTIC_CACHE_DIR": "/staging/cache",
        "RESTIC_PROGRESS_FPS": "0.1",
        "AWS_SHARED_CREDENTIALS_FILE": "/run/secrets/target-credentials",
        # A large repository's index fills the memory. Collect garbage before the kernel kills.
        "GOMEMLIMIT": f"{settings.memory_mb * 6 // 10}MiB",
    }


def _tls_environment(tls: InternalTls) -> dict[str, str]:
    """Return the variables by which the backup program, libpq and rclone trust the authority of the stack."""
    if not tls:
        return {}
    ours = {"AUTHORITY": AUTHORITY, "CERTIFICATE": CERTIFICATE, "KEY": KEY}
    return {**ours, "RCLONE_CA_CERT": AUTHORITY, **tls.libpq()}


def _target_credentials(settings: BackupSettings) -> dict[str, pulumi.Output[str]]:
    """Return the AWS credentials file of an S3 target, by file name; empty for other targets. Secret."""
    if settings.where != "s3":
        return {}
    content = pulumi.Output.concat(
        f"[default]\naws_access_key_id = {settings.access_key_id}\naws_secret_access_key = ",
        provided_secret(TARGET_SECRET),
        "\n",
    )
    return {"target-credentials": content}
