"""MLflow: the jobs that check the data keys and migrate the database, and the tracking server."""

import base64
from collections.abc import Mapping
from typing import Any

import pulumi
import pulumi_docker as docker

from components.mlflow_credentials import ServerCredentials, secret_file
from components.object_store import CLIENT_ENVIRONMENT, ObjectStore
from components.platform import Platform
from components.postgres import Postgres
from components.route import labels
from components.scrape import Target
from components.traefik import Upstream
from runtime.credentials import Credential
from runtime.job import JOB_TIMEOUT_SECONDS, Job
from runtime.readiness import previous_stopped
from runtime.service import Service
from runtime.workload import Files, HealthCheck, Limits, Metrics, Publish, Workload
from settings import names
from settings.ingress import Route
from settings.server import ADMIN, MAX_OVERFLOW, METRICS_PORT, POOL_SIZE, PORT, READINESS_PATH, ServerSettings

UID = 10001
METRICS_MB, METRICS_WORKER_MB = 16, 4
"""Size of the tmpfs for the workers' metrics: fixed, and for each worker. Each worker has its own files; a killed
worker leaves them behind."""
MIGRATION_TIMEOUT_SECONDS = 6 * 3600
"""A migration that rewrites a table of a large database takes hours."""


class Mlflow(pulumi.ComponentResource):
    """The MLflow tracking server, with its migration. Stateless: Postgres and the object store hold the data.

    Creates the data keys and passwords, the job `verify-data-keys`, the job `migrate`, the volume `server-scratch`, and
    the service `server`.

    Artifacts pass through the server, so clients need no credentials of the object store. Presigned transfers stay off:
    clients cannot reach the object store.
    """

    url: str
    """The URL for a browser, and a client's `MLFLOW_TRACKING_URI`."""
    service: Service
    """The server."""
    credentials: list[Credential]
    """The data keys, and the credentials of users and clients."""
    data_keys: dict[str, pulumi.Output[str]]
    """The data keys as files: name to content. Secret."""

    def __init__(
        self,
        name: str,
        settings: ServerSettings,
        *,
        platform: Platform,
        database: Postgres,
        store: ObjectStore,
        route: Route,
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        """Check the data keys, migrate the database, then start the server."""
        super().__init__("mlflow:components:Mlflow", name, None, opts)
        self.url = route.url
        self._platform, self._database, self._route = platform, database, route
        self._secrets = ServerCredentials.create(route, parent=self)
        self.credentials = self._secrets.all
        self.data_keys = self._secrets.data_keys
        self._pgpass = {"pgpass": database.pgpass}
        self._users = {"auth.ini": _users(settings, database)} if route.by_mlflow else {}

        # First, while the old server still runs: a key that does not decrypt the data stops the update here.
        verified = self._job("verify-data-keys", self._pgpass | self.data_keys, database.service.ready)
        alone = previous_stopped("server", image=platform.images.mlflow, once=verified.done, platform=platform)
        migrated = self._job(
            "migrate",
            {**self._pgpass, **self._users, **secret_file("admin-password", self._secrets.admin_password)},
            alone,
            prepares=database.volume,
            timeout_s=MIGRATION_TIMEOUT_SECONDS,
        )
        self.service = self._server(settings, store, verified, migrated)
        self.register_outputs({"url": self.url})

    def _job(
        self,
        role: str,
        secrets: Mapping[str, pulumi.Input[str]],
        after: pulumi.Output[docker.Container],
        *,
        prepares: str | None = None,
        timeout_s: int = JOB_TIMEOUT_SECONDS,
    ) -> Job:
        """Run a command of the MLflow image to its end, with access to the database."""
        return Job(
            role,
            Workload(
                image=self._platform.images.mlflow,
                limits=Limits(memory_mb=768, cpus=1.0),
                networks=[self._platform.networks.backend],
                command=[role],
                env=self._database_environment,
                files=Files(secrets=secrets),
                tmpfs=_private_tmpfs(),
                user=f"{UID}:{UID}",
                prepares=prepares,
            ),
            platform=self._platform,
            timeout_s=timeout_s,
            after=[after],
            opts=pulumi.ResourceOptions(parent=self),
        )

    def _server(self, settings: ServerSettings, store: ObjectStore, verified: Job, migrated: Job) -> Service:
        """Run the server once the database has the schema of its version."""
        platform, route = self._platform, self._route
        return Service(
            "server",
            Workload(
                image=platform.images.mlflow,
                limits=Limits(memory_mb=settings.memory_mb, cpus=settings.cpus),
                networks=[platform.networks.backend, platform.networks.edge],
                command=["server"],
                env=self._server_environment(settings, store),
                files=Files(
                    secrets={
                        **self._pgpass,
                        **self.data_keys,
                        "aws-credentials": store.credentials_file,
                        **self._users,
                        **secret_file("flask-secret-key", self._secrets.flask_key),
                    },
                    # The old server stays until the artifacts are complete: it shows which object store has them.
                    after=[verified.done, store.ready],
                ),
                data={"/scratch": self._scratch_volume()},
                tmpfs=_private_tmpfs() | {"/run/metrics": _tmpfs(METRICS_MB + METRICS_WORKER_MB * settings.workers)},
                # The server creates the default experiment in the database.
                prepares=self._database.volume,
                labels=self._server_labels(),
            ),
            HealthCheck(
                command=["python", "-I", "-S", "/opt/mlflow-stack/healthcheck.py"],
                # An existing Traefik routes by Docker's health. The bundled one sends its own requests.
                interval_s=5 if route.traefik.mode == "existing" else HealthCheck.interval_s,
                start_period_s=120,
                ready_within_s=180,
            ),
            platform=platform,
            metrics=Metrics(port=METRICS_PORT),
            # Longer than GRACE_SECONDS, the server's own limit for requests in flight.
            grace_s=GRACE_SECONDS + 10,
            publish=[
                Publish(port=port, target=PORT, address=settings.bind_address)
                for port in [route.published_port]
                if port
            ],
            after=[migrated.done, store.ready],
            # A new image migrates the database; the old server must not run meanwhile.
            replaced_with=[migrated.container],
            opts=pulumi.ResourceOptions(parent=self),
        )

    def _scratch_volume(self) -> pulumi.Output[str]:
        """Return the volume in which the server buffers uploads: on disk, so that they take no memory."""
        stack = pulumi.get_stack()
        return docker.Volume(
            "server-scratch",
            name=names.docker_name(stack, "server-scratch"),
            labels=[{"label": names.STACK_LABEL, "value": stack}],
            opts=pulumi.ResourceOptions(parent=self),
        ).name

    @property
    def _database_environment(self) -> dict[str, str]:
        """The environment variables of every container that uses the database."""
        return {"MLFLOW_BACKEND_STORE_URI": self._database.uri} | (_USERS_ENVIRONMENT if self._route.by_mlflow else {})

    def _server_environment(self, settings: ServerSettings, store: ObjectStore) -> dict[str, str]:
        service = names.docker_name(pulumi.get_stack(), "server")
        return (
            settings.environment
            | self._database_environment
            | _environment(settings, store)
            | {
                "MLFLOW_SERVER_ALLOWED_HOSTS": ",".join(
                    allowed_hosts(service, self._route.hostname, settings.bind_address)
                ),
                "MLFLOW_SERVER_CORS_ALLOWED_ORIGINS": self.url,
                **({"METRICS_PORT": str(METRICS_PORT)} if self._platform.monitored else {}),
            }
        )

    def _server_labels(self) -> dict[str, pulumi.Input[str]]:
        """Return the labels that the policy pack and an existing Traefik read."""
        sso = self._route.traefik.single_sign_on
        return {
            names.AUTHENTICATION_LABEL: self._route.authentication,
            **({names.SINGLE_SIGN_ON_LABEL: sso} if sso else {}),
        } | labels(
            self._route,
            name=names.docker_name(pulumi.get_stack(), "server"),
            port=PORT,
            network=self._platform.networks.edge_name,
            password=self._secrets.client_password,
        )

    @property
    def upstream(self) -> Upstream:
        """The server, as Traefik in front of it needs it."""
        probe: dict[str, Any] = {"path": READINESS_PATH}
        if self._route.by_mlflow:
            # A user that does not exist: the 401 proves that MLflow has looked it up in the database.
            nobody = base64.b64encode(b"healthcheck:healthcheck").decode()
            probe |= {"headers": {"Authorization": f"Basic {nobody}"}, "status": 401}
        return Upstream(
            name=self.service.host,
            port=PORT,
            ready=self.service.ready,
            probe=probe,
            password=self._secrets.client_password,
        )

    @property
    def target(self) -> Target:
        """The scrape target of the server."""
        return Target(job="mlflow", instance="server", address=f"{self.service.host}:{METRICS_PORT}")


_USERS_ENVIRONMENT = {
    "MLFLOW_AUTH_CONFIG_PATH": "/run/secrets/auth.ini",
    # A route without a permission check is refused.
    "MLFLOW_BASIC_AUTH_FAIL_CLOSED": "true",
}
AUTH_CACHE_SECONDS = 60
"""How long a worker remembers a correct password. Without it, each request costs 0.19 s of CPU time."""
LOGS = "/opt/mlflow-stack/logs"
GRACE_SECONDS = 20
"""How long a request in flight may take once the server has received the stop signal."""


def allowed_hosts(service: str, hostname: str | None, bind_address: str) -> list[str]:
    """Return the Host headers that the server accepts, each name with and without a port: it compares the whole."""
    hosts = [hostname, service, "localhost", "127.0.0.1"]
    if bind_address not in ("0.0.0.0", "127.0.0.1"):  # noqa: S104
        hosts.append(bind_address)
    return [pattern for host in hosts if host for pattern in (host, f"{host}:*")]


def _users(settings: ServerSettings, database: Postgres) -> str:
    """Return the configuration of MLflow's own users. They are in the database, so a backup contains them."""
    lines = {
        "default_permission": settings.default_permission,
        "database_uri": database.uri,
        "admin_username": ADMIN,
        "authorization_function": "mlflow.server.auth:authenticate_request_basic_auth",
        "auth_cache_ttl_seconds": AUTH_CACHE_SECONDS,
    }
    return "[mlflow]\n" + "".join(f"{key} = {value}\n" for key, value in lines.items())


def _environment(settings: ServerSettings, store: ObjectStore) -> dict[str, str]:
    return CLIENT_ENVIRONMENT | {
        "MLFLOW_ARTIFACTS_DESTINATION": f"s3://{store.bucket}/artifacts",
        "MLFLOW_S3_ENDPOINT_URL": store.endpoint,
        "MLFLOW_HOST": "0.0.0.0",  # noqa: S104 - inside the container
        "MLFLOW_PORT": str(PORT),
        "MLFLOW_WORKERS": str(settings.workers),
        "MLFLOW_SQLALCHEMYSTORE_POOL_SIZE": str(POOL_SIZE),
        "MLFLOW_SQLALCHEMYSTORE_MAX_OVERFLOW": str(MAX_OVERFLOW),
        "MLFLOW_LOGGING_LEVEL": settings.log_level.upper(),
        "MLFLOW_UVICORN_OPTS": " ".join(
            [
                f"--timeout-graceful-shutdown {GRACE_SECONDS} --log-level {settings.log_level}",
                *([f"--log-config {LOGS}/json.yaml"] if settings.log_format == "json" else []),
            ]
        ),
        **({"MLFLOW_CONFIGURE_LOGGING": "false", "PYTHONPATH": LOGS} if settings.log_format == "json" else {}),
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": str(settings.jobs).lower(),
        "MLFLOW_DISABLE_TELEMETRY": str(not settings.telemetry).lower(),
        # Jobs and judges call the server's own gateway. The list of allowed hosts would refuse the address that the
        # server listens on, and the one that a client used.
        "MLFLOW_GATEWAY_URI": f"http://127.0.0.1:{PORT}",
        # By default, MLflow fetches the model catalog from GitHub.
        "MLFLOW_MODEL_CATALOG_URI": "",
        "HOME": "/tmp",  # noqa: S108 - inside the container
        # The server buffers each artifact here before it sends it to the object store.
        "TMPDIR": "/scratch",
    }


def _private_tmpfs() -> dict[str, str]:
    return {
        "/tmp": "size=64m,mode=1777",  # noqa: S108 - inside the container
        "/run/mlflow": _tmpfs(1),
    }


def _tmpfs(size_mb: int) -> str:
    return f"size={size_mb}m,uid={UID},gid={UID},mode=0700"
