"""Postgres: everything that MLflow knows, but for the artifacts."""

from pathlib import Path

import pulumi
import pulumi_docker as docker

from components.platform import Platform
from runtime.credentials import Credential
from runtime.service import Service
from runtime.workload import Files, HealthCheck, Limits, Publish, Workload
from settings import names
from settings.postgres import PostgresSettings

PORT = 5432
DATABASE = USER = "mlflow"
BACKUP_ROLE = "mlflow_backup"
"""Reads every table and writes none."""
MONITORING_ROLE = "mlflow_monitoring"
"""Reads the server's own figures, and counts."""
UID = 999
"""The user `postgres` of the official image's Debian variant. Alpine's is 70, and cannot take over its data."""
ASSETS = Path(__file__).parent.parent / "assets" / "postgres"
CRASH_RECOVERY_SECONDS = 600


class Postgres(pulumi.ComponentResource):
    """One Postgres server with one database, on the internal network. Stateful.

    Deliberately without a password for its superuser: `postgres` is let in through the socket inside the container
    only (`docker exec -it mlflow-dev-postgres psql -U postgres`), where the operating system vouches for it.
    """

    service: Service
    """The server; clients wait for it to be ready."""
    volume: str
    """Physical name of the volume of its data."""
    credentials: list[Credential]
    """What guards it."""

    def __init__(
        self,
        name: str,
        settings: PostgresSettings,
        *,
        platform: Platform,
        major: int,
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        """Run the server on the data volume of `major`, which is never deleted by Pulumi."""
        super().__init__("mlflow:components:Postgres", name, None, opts)
        child = pulumi.ResourceOptions(parent=self)
        image = platform.images.postgres
        self.password = Credential(f"{name}-password", "postgresPassword", parent=self)
        self.volume = names.postgres_volume(pulumi.get_stack(), major)
        data = docker.Volume(
            f"{name}-data",
            name=self.volume,
            opts=pulumi.ResourceOptions(parent=self, retain_on_delete=True, protect=platform.protect_data),
        )
        self.backup_password = (
            Credential(f"{name}-backup-password", "postgresBackupPassword", parent=self) if platform.backed_up else None
        )
        self.monitoring_password = (
            Credential(f"{name}-monitoring-password", "postgresMonitoringPassword", parent=self)
            if platform.monitored
            else None
        )
        passwords = {"mlflow-password": self.password.value}
        if self.backup_password:
            passwords["backup-password"] = self.backup_password.value
        if self.monitoring_password:
            passwords["monitoring-password"] = self.monitoring_password.value
        files = Files(
            secrets=passwords,
            config={file.name: file.read_text() for file in sorted(ASSETS.iterdir())},
        )
        self.service = Service(
            name,
            Workload(
                image=image,
                limits=Limits(memory_mb=settings.memory_mb, cpus=settings.cpus),
                networks=platform.networks.backend_and(published=settings.port is not None),
                entrypoint=["bash", "/run/config/start.sh"],
                command=_parameters(settings),
                # What a person's psql and shell remember would be in the volume of the data.
                env={"HOME": "/tmp"},  # noqa: S108 - inside the container
                files=files,
                data={"/var/lib/postgresql": data.name},
                # Sockets and nothing else: data in a tmpfs would count as memory.
                tmpfs={
                    "/tmp": "size=64m,mode=1777",  # noqa: S108 - inside the container
                    "/var/run/postgresql": f"size=1m,uid={UID},gid={UID},mode=0775",
                },
                user=f"{UID}:{UID}",
                shm_mb=max(64, settings.memory_mb // 4),
            ),
            HealthCheck(
                # By TCP: the server that start.sh runs first listens on the socket only.
                command=["pg_isready", "-h", "127.0.0.1", "-U", USER, "-d", DATABASE],
                start_period_s=CRASH_RECOVERY_SECONDS,
                ready_within_s=CRASH_RECOVERY_SECONDS,
            ),
            platform=platform,
            # A checkpoint of a large cache takes a while; SIGKILL would mean a crash recovery at the next start.
            grace_s=90,
            publish=[Publish(port=settings.port, target=PORT)] if settings.port else [],
            opts=child,
        )
        guards = [self.password, self.backup_password, self.monitoring_password]
        self.credentials = [guard for guard in guards if guard]
        self.register_outputs({"uri": self.uri, "volume": data.name})

    @property
    def uri(self) -> str:
        """SQLAlchemy URL without a password; that is in `pgpass`.

        The driver is named, since SQLAlchemy 2.1 made another one the default.
        """
        return f"postgresql+psycopg2://{USER}@{self.service.host}:{PORT}/{DATABASE}"

    @property
    def pgpass(self) -> pulumi.Output[str]:
        """The line of libpq's password file. Secret."""
        return self._pgpass(USER, self.password)

    @property
    def backup_pgpass(self) -> pulumi.Output[str]:
        """The same of the role that only reads; raises `ValueError` where there is no backup. Secret."""
        if self.backup_password is None:
            raise ValueError("Platform.backed_up was false, so no role reads for a backup")
        return self._pgpass(BACKUP_ROLE, self.backup_password)

    def _pgpass(self, role: str, password: Credential) -> pulumi.Output[str]:
        return pulumi.Output.concat(f"{self.service.host}:{PORT}:{DATABASE}:{role}:", password.value, "\n")


def _parameters(settings: PostgresSettings) -> list[str]:
    """Return the server's parameters, from its memory by the rules of thumb of Postgres' own documentation.

    A quarter for shared buffers, three quarters taken to be cache, the rest for sorting; see
    https://www.postgresql.org/docs/18/runtime-config-resource.html.
    """
    memory = settings.memory_mb
    values = {
        "listen_addresses": "*",
        "hba_file": "/run/config/pg_hba.conf",
        "max_connections": settings.max_connections,
        # For the role that tells how many there are, when there is no other left.
        "reserved_connections": 2,
        "shared_buffers": f"{memory // 4}MB",
        "effective_cache_size": f"{memory * 3 // 4}MB",
        "maintenance_work_mem": f"{max(16, memory // 16)}MB",
        "work_mem": "4MB",
        "wal_compression": "on",
        "password_encryption": "scram-sha-256",
        "log_line_prefix": "%m [%p] %q%u@%d ",
    }
    return [argument for key, value in values.items() for argument in ("-c", f"{key}={value}")]
