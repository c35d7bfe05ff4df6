"""Postgres: holds all of MLflow's data except the artifacts."""

import re
from pathlib import Path

import pulumi
import pulumi_docker as docker

from components.internal_tls import CERTIFICATE, KEY_FILE
from components.platform import Platform
from runtime.credentials import Credential
from runtime.service import Service
from runtime.workload import Files, HealthCheck, Limits, Publish, Workload
from settings import names
from settings.postgres import UID, PostgresSettings

PORT = 5432
DATABASE = USER = "mlflow"
BACKUP_ROLE = "mlflow_backup"
"""Role of the backup: reads every table and writes none."""
MONITORING_ROLE = "mlflow_monitoring"
"""Role of the exporter: reads Postgres' statistics, and counts rows."""
ASSETS = Path(__file__).parent.parent / "assets" / "postgres"
HEALTH_CHECK = f"PATH=/usr/lib/postgresql/$PG_MAJOR/bin:$PATH; exec pg_isready -h 127.0.0.1 -U {USER} -d {DATABASE}"
"""Over TCP: the temporary server that start.sh runs first listens on the socket only.

Not the `pg_isready` on the PATH of Debian's images: that one starts Perl, which takes 50 ms of CPU time.
"""
CRASH_RECOVERY_SECONDS = 600
SOCKETS = "/var/run/postgresql"
"""A tmpfs that only the user `postgres` writes: the sockets, and with `mlflow:tls.internal` the key."""


class Postgres(pulumi.ComponentResource):
    """One Postgres server with one database, on the internal network. Stateful.

    Creates the data volume, one password for each role, and the service `postgres`.

    The superuser deliberately has no password: `postgres` can log in only through the socket in the container
    (`docker exec -it mlflow-dev-postgres psql -U postgres`), where the operating system authenticates it.
    """

    service: Service
    """The Postgres server. Its clients wait for it to be ready."""
    volume: str
    """Docker name of the data volume."""
    credentials: list[Credential]
    """The passwords of its roles."""

    def __init__(
        self,
        name: str,
        settings: PostgresSettings,
        *,
        platform: Platform,
        major: int,
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        """Run Postgres on the data volume of the version `major`. Pulumi never deletes that volume."""
        super().__init__("mlflow:components:Postgres", name, None, opts)
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
        passwords = {
            "mlflow-password": self.password,
            "backup-password": self.backup_password,
            "monitoring-password": self.monitoring_password,
        }
        self.credentials = [credential for credential in passwords.values() if credential]
        self.service = self._server(
            name,
            settings,
            platform,
            data,
            Files(
                secrets={
                    **{file: credential.value for file, credential in passwords.items() if credential},
                    **platform.tls.identity(name),
                },
                config={file.name: file.read_text() for file in sorted(ASSETS.iterdir())}
                | ({"pg_hba.conf": tls_only((ASSETS / "pg_hba.conf").read_text())} if platform.tls else {}),
            ),
        )
        self.register_outputs({"uri": self.uri, "volume": data.name})

    def _server(
        self, name: str, settings: PostgresSettings, platform: Platform, data: docker.Volume, files: Files
    ) -> Service:
        """Run the server on its data volume."""
        return Service(
            name,
            Workload(
                image=platform.images.postgres,
                limits=Limits(memory_mb=settings.memory_mb, cpus=settings.cpus),
                networks=platform.networks.data_service_networks(published=settings.port is not None),
                entrypoint=["bash", "/run/config/start.sh"],
                command=_parameters(settings, tls=bool(platform.tls)),
                # Otherwise the history files of psql and the shell would be in the data volume.
                env={"HOME": "/tmp"},  # noqa: S108 - inside the container
                files=files,
                data={"/var/lib/postgresql": data.name},
                # For sockets only: data in a tmpfs would count as memory.
                tmpfs={
                    "/tmp": "size=64m,mode=1777",  # noqa: S108 - inside the container
                    SOCKETS: f"size=1m,uid={UID},gid={UID},mode=0775",
                },
                user=f"{UID}:{UID}",
                shm_mb=max(64, settings.memory_mb // 4),
            ),
            HealthCheck(
                command=["sh", "-c", HEALTH_CHECK],
                start_period_s=CRASH_RECOVERY_SECONDS,
                ready_within_s=CRASH_RECOVERY_SECONDS,
            ),
            platform=platform,
            # A checkpoint of a large cache takes time, and SIGKILL would cause a crash recovery at the next start.
            grace_s=90,
            publish=[Publish(port=settings.port, target=PORT)] if settings.port else [],
            opts=pulumi.ResourceOptions(parent=self),
        )

    @property
    def uri(self) -> str:
        """The SQLAlchemy URL, without the password, which is in `pgpass`.

        It names the driver because SQLAlchemy 2.1 changed the default driver.
        """
        return f"postgresql+psycopg2://{USER}@{self.service.host}:{PORT}/{DATABASE}"

    @property
    def pgpass(self) -> pulumi.Output[str]:
        """The line for libpq's password file. Secret."""
        return self._pgpass(USER, self.password)

    @property
    def backup_pgpass(self) -> pulumi.Output[str]:
        """The same for the role of the backup. Secret. Raises `ValueError` if the stack has no backup."""
        if self.backup_password is None:
            raise ValueError("Platform.backed_up is false, so there is no role for the backup")
        return self._pgpass(BACKUP_ROLE, self.backup_password)

    def _pgpass(self, role: str, password: Credential) -> pulumi.Output[str]:
        return pulumi.Output.concat(f"{self.service.host}:{PORT}:{DATABASE}:{role}:", password.value, "\n")


def tls_only(rules: str) -> str:
    """Return the access rules of `pg_hba.conf` for TLS only: a connection in plaintext matches none of them."""
    return re.sub(r"(?m)^host ", "hostssl ", rules)


def _parameters(settings: PostgresSettings, *, tls: bool) -> list[str]:
    """Return the server's parameters, derived from its memory by the rules of thumb in Postgres' documentation.

    A quarter is for shared buffers, three quarters are assumed to be cache, the rest is for sorting; see
    https://www.postgresql.org/docs/18/runtime-config-resource.html.
    """
    memory = settings.memory_mb
    values = {
        "listen_addresses": "*",
        "hba_file": "/run/config/pg_hba.conf",
        "max_connections": settings.max_connections,
        # Lets the role of the exporter report the number of connections when all others are in use.
        "reserved_connections": 2,
        "shared_buffers": f"{memory // 4}MB",
        "effective_cache_size": f"{memory * 3 // 4}MB",
        "maintenance_work_mem": f"{max(16, memory // 16)}MB",
        "work_mem": "4MB",
        "wal_compression": "on",
        "password_encryption": "scram-sha-256",
        "log_line_prefix": "%m [%p] %q%u@%d ",
        # start.sh copies the key: Postgres refuses one that other users can read.
        **({"ssl": "on", "ssl_cert_file": CERTIFICATE, "ssl_key_file": f"{SOCKETS}/{KEY_FILE}"} if tls else {}),
    }
    return [argument for key, value in values.items() for argument in ("-c", f"{key}={value}")]
