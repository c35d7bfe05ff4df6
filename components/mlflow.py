"""MLflow: the migration of its database, the tracking server."""

from dataclasses import dataclass
from typing import Literal

import pulumi
import pulumi_docker as docker
from pydantic import Field

from components import names, traefik
from components.credentials import Credential, fernet_key
from components.object_store import CLIENT_ENVIRONMENT, ObjectStore
from components.platform import Platform
from components.postgres import Postgres
from components.runtime import Files, HealthCheck, Job, Limits, Publish, Service, Workload, predecessor_gone
from components.settings import Address, Cpus, Port, Settings
from components.traefik import TraefikSettings

PORT = 5000
DEFAULT_PUBLISHED_PORT = 5000
UID = 10001
POOL_SIZE, MAX_OVERFLOW = 5, 10
"""Connections to Postgres of one worker: kept, and on top at most. SQLAlchemy's defaults, made explicit."""
BASE_MB, WORKER_MB, JOBS_MB = 256, 256, 1536
"""What the server needs: measured 535 MiB with two workers at rest, and 1.3 GiB more with job execution."""


class ServerSettings(Settings):
    """What an operator may set under `mlflow:server`."""

    workers: int = Field(default=2, ge=1, le=32, description="Server processes. As many as it has processors.")
    memory_mb: int = Field(
        default=1536,
        ge=512,
        le=1_048_576,
        description="Memory limit. At least 256 and 256 for each worker, and 1536 more with `jobs`. "
        "Uploads pass through a volume on disk, not through memory.",
    )
    cpus: Cpus = Field(default=2.0, description="Processors that it may use.")
    port: Port | None = Field(
        default=None,
        description="Publish the server on this port of the host. Without Traefik, 5000 unless told otherwise.",
    )
    bind_address: Address = Field(
        default="127.0.0.1",
        description="The host's address on which `port` is published. Anyone who reaches it can read and write "
        "everything: there is no password in front of it.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(default="info", description="Of MLflow's log.")
    jobs: bool = Field(
        default=False, description="Server-side jobs: judges, scorers, trace archival. Costs 1.3 GiB of memory."
    )
    telemetry: bool = Field(default=False, description="Whether MLflow may report its usage to its makers.")


@dataclass(frozen=True, kw_only=True)
class Route:
    """How the server is reached: through Traefik by name, or on a port of the host."""

    traefik: TraefikSettings
    hostname: str | None

    def published_port(self, settings: ServerSettings) -> int | None:
        """Return the port of the host on which the server is published, if it is."""
        return settings.port or (DEFAULT_PUBLISHED_PORT if self.traefik.mode == "off" else None)

    def url(self, settings: ServerSettings) -> str:
        """Return the URL that a browser shows. No trailing slash: it is the browser's Origin, too."""
        if self.traefik.mode == "existing" and self.hostname:
            return f"{'https' if self.traefik.tls else 'http'}://{self.hostname}"
        loopback = settings.bind_address == "127.0.0.1"
        host = "127.0.0.1" if loopback else self.hostname or settings.bind_address
        return f"http://{host}:{self.published_port(settings)}"


class Mlflow(pulumi.ComponentResource):
    """The tracking server and its migration. Keeps nothing itself: Postgres and the object store do.

    Artifacts pass through the server, so a client needs no key of the object store. Presigned transfers stay off:
    they would send clients to an object store that they cannot reach.
    """

    url: str
    """Where a person opens it, and a client's `MLFLOW_TRACKING_URI`."""
    service: Service
    """The server."""
    credentials: list[Credential]
    """The keys of what MLflow encrypts in the database."""
    data_keys: dict[str, pulumi.Output[str]]
    """The same as files: name to content. Secret."""

    def __init__(
        self,
        name: str,
        settings: ServerSettings,
        *,
        platform: Platform,
        database: Postgres,
        artifacts: ObjectStore,
        route: Route,
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        """Check the data keys, migrate the database, then serve."""
        super().__init__("mlflow:components:Mlflow", name, None, opts)
        child = pulumi.ResourceOptions(parent=self)
        stack = pulumi.get_stack()
        self.kek_passphrase = Credential("crypto-kek-passphrase", "cryptoKekPassphrase", kind="data key", parent=self)
        self.webhook_key = Credential("webhook-encryption-key", "webhookEncryptionKey", kind="data key", parent=self)
        published = route.published_port(settings)
        self.url = route.url(settings)

        image = platform.images.mlflow
        data_keys = self.data_keys = {
            "crypto-kek-passphrase": self.kek_passphrase.value,
            "webhook-encryption-key": self.webhook_key.value.apply(fernet_key),
        }
        pgpass = {"pgpass": database.pgpass}

        def job(role: str, files: Files, after: pulumi.Output[docker.Container]) -> Job:
            return Job(
                role,
                Workload(
                    image=image,
                    limits=Limits(memory_mb=768, cpus=1.0),
                    networks=[platform.networks.backend],
                    command=[role],
                    env={"MLFLOW_BACKEND_STORE_URI": database.uri},
                    files=[files],
                    tmpfs=_private_tmpfs(),
                ),
                platform=platform,
                after=[after],
                opts=child,
            )

        def secrets(
            consumer: str, contents: dict[str, pulumi.Output[str]], *after: pulumi.Output[docker.Container]
        ) -> Files:
            return Files(f"{consumer}-secrets", "/run/secrets", contents, image=image, parent=self, after=after)

        # Alone and first: a key that does not open the data stops everything while the old server still runs. New
        # files for the others would end it, since the engine deletes a consumer before it replaces its writer.
        verified = job("verify-data-keys", secrets("verify-data-keys", pgpass | data_keys), database.service.ready)
        migrate_secrets = secrets("migrate", pgpass, verified.done)
        alone = predecessor_gone("server", image=image, once=migrate_secrets.writer, platform=platform)
        migrated = job("migrate", migrate_secrets, alone)

        scratch = docker.Volume(
            "server-scratch",
            name=names.physical(stack, "server-scratch"),
            labels=[{"label": names.STACK_LABEL, "value": stack}],
            opts=child,
        )
        self.service = Service(
            "server",
            Workload(
                image=image,
                limits=Limits(memory_mb=settings.memory_mb, cpus=settings.cpus),
                networks=[platform.networks.backend, platform.networks.edge],
                command=["server"],
                env=_environment(settings, database, artifacts)
                | {
                    "MLFLOW_SERVER_ALLOWED_HOSTS": ",".join(
                        allowed_hosts(names.physical(stack, "server"), route.hostname, settings.bind_address)
                    ),
                    "MLFLOW_SERVER_CORS_ALLOWED_ORIGINS": self.url,
                },
                files=[
                    secrets(
                        "server",
                        pgpass | data_keys | {"aws-credentials": artifacts.credentials_file},
                        verified.done,
                        # Until the artifacts are where it will look for them, the old one shows where they were.
                        artifacts.ready,
                    )
                ],
                data={"/scratch": scratch.name},
                tmpfs=_private_tmpfs(),
                labels=traefik.labels(
                    route.traefik,
                    router=names.physical(stack, "server"),
                    hostname=route.hostname,
                    port=PORT,
                    network=platform.networks.edge_name,
                ),
            ),
            HealthCheck(
                command=["python", "-I", "-S", "/opt/mlflow-stack/healthcheck.py"],
                interval_s=5,
                start_period_s=120,
                ready_within_s=180,
            ),
            platform=platform,
            # Longer than the server's own limit for requests in flight, below.
            grace_s=GRACE_SECONDS + 10,
            publish=[Publish(port=published, target=PORT, address=settings.bind_address)] if published else [],
            after=[migrated.done, artifacts.ready],
            # A new image migrates the database, and never under the old server.
            replaced_with=[migrated.container],
            opts=child,
        )
        self.credentials = [self.kek_passphrase, self.webhook_key]
        self.register_outputs({"url": self.url})


GRACE_SECONDS = 20
"""How long a request in flight may take after a stop was asked for."""


def allowed_hosts(service: str, hostname: str | None, bind_address: str) -> list[str]:
    """Return the Host headers that the server answers to. It compares the whole string, so each name comes twice."""
    hosts = [hostname, service, "localhost", "127.0.0.1"]
    if bind_address not in ("0.0.0.0", "127.0.0.1"):  # noqa: S104
        hosts.append(bind_address)
    return [pattern for host in hosts if host for pattern in (host, f"{host}:*")]


def _environment(settings: ServerSettings, database: Postgres, artifacts: ObjectStore) -> dict[str, str]:
    return CLIENT_ENVIRONMENT | {
        "MLFLOW_BACKEND_STORE_URI": database.uri,
        "MLFLOW_ARTIFACTS_DESTINATION": f"s3://{artifacts.bucket}/artifacts",
        "MLFLOW_S3_ENDPOINT_URL": artifacts.endpoint,
        "MLFLOW_HOST": "0.0.0.0",  # noqa: S104 - inside the container
        "MLFLOW_PORT": str(PORT),
        "MLFLOW_WORKERS": str(settings.workers),
        "MLFLOW_SQLALCHEMYSTORE_POOL_SIZE": str(POOL_SIZE),
        "MLFLOW_SQLALCHEMYSTORE_MAX_OVERFLOW": str(MAX_OVERFLOW),
        "MLFLOW_LOGGING_LEVEL": settings.log_level.upper(),
        "MLFLOW_UVICORN_OPTS": f"--timeout-graceful-shutdown {GRACE_SECONDS} --log-level {settings.log_level}",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": str(settings.jobs).lower(),
        "MLFLOW_DISABLE_TELEMETRY": str(not settings.telemetry).lower(),
        # The catalogue of models would be fetched from GitHub.
        "MLFLOW_MODEL_CATALOG_URI": "",
        "HOME": "/tmp",  # noqa: S108 - inside the container
        # A whole artifact is spooled here before it goes on to the object store.
        "TMPDIR": "/scratch",
    }


def _private_tmpfs() -> dict[str, str]:
    return {
        "/tmp": "size=64m,mode=1777",  # noqa: S108 - inside the container
        "/run/mlflow": f"size=16m,uid={UID},gid={UID},mode=0700",
    }
