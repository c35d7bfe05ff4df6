"""A replica of the tracking server: its container, with environment, files and health check."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pulumi
import pulumi_docker as docker

from components.internal_tls import AUTHORITY, CERTIFICATE, KEY
from components.object_store import CLIENT_ENVIRONMENT, ObjectStore
from components.platform import Platform
from components.route import HEALTH_CHECK_SECONDS, LEAVE_SECONDS, STAY_SECONDS
from runtime.service import Service
from runtime.swarm import Placement, SwarmService
from runtime.workload import CONFIG, Balance, Files, HealthCheck, Limits, Metrics, Publish, Workload
from settings import names
from settings.ingress import Route
from settings.server import MAX_OVERFLOW, METRICS_PORT, POOL_SIZE, PORT, ServerSettings
from settings.swarm import SwarmSettings

UID = 10001
METRICS_MB, METRICS_WORKER_MB = 16, 4
"""Size of the tmpfs for the workers' metrics: fixed, and for each worker. Each worker has its own files; a killed
worker leaves them behind."""
LOGS = "/opt/mlflow-stack/logs"
ENTRYPOINT = ("docker-entrypoint.sh",)
"""The entry point of the image: mlflow/Dockerfile."""
KEEP_ALIVE_SECONDS = 120
"""How long the server keeps an idle connection. Traefik closes its own after 90 s. If the server were first, a request
that Traefik sends at that moment would fail."""
STOP_MARGIN_SECONDS = 10
"""How much longer Docker waits for the end of a server than the server for its requests in flight."""
IN_BALANCE = 'test -n "$(find /run/mlflow/in-balance -newermt "-15 seconds" 2>/dev/null)"'
"""Succeeds if the proxy has found the replica ready just now: mlflow/plugins/draining.py touches this file then."""


@dataclass(frozen=True, kw_only=True)
class Replicas:
    """What all replicas of a server have in common: keys, configuration and database are the same."""

    settings: ServerSettings
    platform: Platform
    store: ObjectStore
    route: Route
    environment: Mapping[str, str]
    """Where the database is, and what the authentication needs."""
    secrets: Mapping[str, pulumi.Input[str]]
    labels: Mapping[str, pulumi.Input[str]]
    prepares: str
    """The database's volume. The server creates the default experiment in it."""

    def run(
        self, *, swarm: SwarmSettings | None, after: Sequence[pulumi.Input[pulumi.Resource]], parent: pulumi.Resource
    ) -> dict[str, Service | SwarmService]:
        """Run the replicas, as tasks on a cluster with `swarm`. A change replaces one when the one before it serves."""
        if swarm:
            return {names.SERVER: self._tasks(swarm, after=after, parent=parent)}
        started: dict[str, Service | SwarmService] = {}
        for name in names.replicas(self.settings.replicas):
            started[name] = self._container(name, after=after, parent=parent)
            after = [*after, started[name].ready]
        return started

    def _container(
        self, name: str, *, after: Sequence[pulumi.Input[pulumi.Resource]], parent: pulumi.Resource
    ) -> Service:
        """Run the replica `name` when everything in `after` is ready. A change stops it then, and not before."""
        settings, route = self.settings, self.route
        return Service(
            name,
            self._workload(name, scratch=_scratch_volume(name, parent), after=after),
            # An existing Traefik routes by Docker's health. The bundled one sends its own requests.
            self._health(5 if route.traefik.mode == "existing" else HealthCheck.interval_s),
            platform=self.platform,
            metrics=Metrics(port=METRICS_PORT, scheme=self.platform.tls.scheme),
            grace_s=self._grace_s,
            publish=[
                Publish(port=port, target=PORT, address=settings.bind_address)
                for port in [route.published_port]
                if port
            ],
            balance=self._balance(name),
            after=after,
            opts=pulumi.ResourceOptions(parent=parent),
        )

    def _tasks(
        self, swarm: SwarmSettings, *, after: Sequence[pulumi.Input[pulumi.Resource]], parent: pulumi.Resource
    ) -> SwarmService:
        """Run all replicas as tasks of one service, on the nodes of the cluster."""
        return SwarmService(
            names.SERVER,
            self._workload(names.SERVER, scratch="", after=after),
            # Swarm routes to a task, and replaces the next one, when Docker has found it healthy.
            self._health(5),
            platform=self.platform,
            placement=Placement(
                tasks=self.settings.replicas,
                image=self.platform.images.mlflow_name,
                entrypoint=ENTRYPOINT,
                constraints=swarm.constraints,
            ),
            metrics=Metrics(port=METRICS_PORT, scheme=self.platform.tls.scheme),
            grace_s=self._grace_s,
            after=after,
            opts=pulumi.ResourceOptions(parent=parent),
        )

    def _workload(
        self, name: str, *, scratch: pulumi.Input[str], after: Sequence[pulumi.Input[pulumi.Resource]]
    ) -> Workload:
        settings, platform = self.settings, self.platform
        return Workload(
            image=platform.images.mlflow,
            limits=Limits(memory_mb=settings.memory_mb, cpus=settings.cpus),
            networks=[platform.networks.backend, platform.networks.edge],
            command=["server"],
            env=self._environment(names.docker_name(pulumi.get_stack(), name)),
            # An existing Traefik knows all replicas by the name of the first.
            files=Files(secrets={**self.secrets, **platform.tls.identity(*{name: 0, names.SERVER: 0})}, after=after),
            data={"/scratch": scratch},
            tmpfs=private_tmpfs() | {"/run/metrics": _tmpfs(METRICS_MB + METRICS_WORKER_MB * settings.workers)},
            prepares=self.prepares,
            labels=self.labels,
        )

    def _health(self, interval_s: int) -> HealthCheck:
        return HealthCheck(
            command=["python", "-I", "-S", "/opt/mlflow-stack/healthcheck.py"],
            interval_s=interval_s,
            start_period_s=120,
            ready_within_s=180,
        )

    @property
    def _grace_s(self) -> int:
        return self._stay_s + self._leave_s + self.settings.drain_seconds + STOP_MARGIN_SECONDS

    @property
    def _leave_s(self) -> int:
        """How long a replica that stops still accepts requests, until the proxy has stopped sending them."""
        return LEAVE_SECONDS if self.route.balanced else 0

    @property
    def _stay_s(self) -> int:
        """How long a replica that stops serves as before, until the proxy knows the one that replaces it."""
        return STAY_SECONDS if self.route.swarm and self.route.traefik.mode == "existing" else 0

    def _balance(self, name: str) -> Balance | None:
        stack, all_names = pulumi.get_stack(), names.replicas(self.settings.replicas)
        if len(all_names) == 1:
            return None
        return Balance(
            command=["sh", "-c", IN_BALANCE],
            peers=[names.docker_name(stack, peer) for peer in all_names if peer != name],
            listed_in=(names.docker_name(stack, "traefik"), f"{CONFIG}/routes.yml")
            if self.route.traefik.mode == "bundled"
            else None,
            # If another replica hangs, each round of the proxy's health checks takes their time-out longer.
            within_s=15 * HEALTH_CHECK_SECONDS,
        )

    def _environment(self, host: str) -> dict[str, str]:
        settings = self.settings
        allowed = allowed_hosts(host, self.route.hostname, settings.bind_address)
        return {
            **settings.environment,
            **self.environment,
            **_environment(settings, self.store, tls=bool(self.platform.tls)),
            "MLFLOW_SERVER_ALLOWED_HOSTS": ",".join(allowed),
            "MLFLOW_SERVER_CORS_ALLOWED_ORIGINS": self.route.url,
            **({"METRICS_PORT": str(METRICS_PORT)} if self.platform.monitored else {}),
            **({"LEAVE_SECONDS": str(self._leave_s)} if self._leave_s else {}),
            **({"STAY_SECONDS": str(self._stay_s)} if self._stay_s else {}),
            **({"HEALTHCHECK_LIVENESS": "1"} if self.route.swarm else {}),
        }


def allowed_hosts(service: str, hostname: str | None, bind_address: str) -> list[str]:
    """Return the Host headers that the server accepts, each name with and without a port: it compares the whole."""
    hosts = [hostname, service, "localhost", "127.0.0.1"]
    if bind_address not in ("0.0.0.0", "127.0.0.1"):  # noqa: S104
        hosts.append(bind_address)
    return [pattern for host in hosts if host for pattern in (host, f"{host}:*")]


def _scratch_volume(name: str, parent: pulumi.Resource) -> pulumi.Output[str]:
    """Return the volume in which a replica buffers uploads: on disk, so that they take no memory."""
    stack = pulumi.get_stack()
    return docker.Volume(
        f"{name}-scratch",
        name=names.docker_name(stack, f"{name}-scratch"),
        labels=[{"label": names.STACK_LABEL, "value": stack}],
        opts=pulumi.ResourceOptions(parent=parent),
    ).name


def _environment(settings: ServerSettings, store: ObjectStore, *, tls: bool) -> dict[str, str]:
    files = {"AUTHORITY": AUTHORITY, "CERTIFICATE": CERTIFICATE, "KEY": KEY} if tls else {}
    return CLIENT_ENVIRONMENT | {
        **files,
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
                f"--log-level {settings.log_level} --timeout-graceful-shutdown {settings.drain_seconds}",
                f"--timeout-keep-alive {KEEP_ALIVE_SECONDS}",
                *([f"--log-config {LOGS}/json.yaml"] if settings.log_format == "json" else []),
                *([f"--ssl-certfile {CERTIFICATE} --ssl-keyfile {KEY}"] if tls else []),
            ]
        ),
        **({"MLFLOW_CONFIGURE_LOGGING": "false", "PYTHONPATH": LOGS} if settings.log_format == "json" else {}),
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": str(settings.jobs).lower(),
        "MLFLOW_DISABLE_TELEMETRY": str(not settings.telemetry).lower(),
        # Jobs and judges call the server's own gateway. The list of allowed hosts would refuse the address that the
        # server listens on, and the one that a client used.
        "MLFLOW_GATEWAY_URI": f"{'https' if tls else 'http'}://127.0.0.1:{PORT}",
        # By default, MLflow fetches the model catalog from GitHub.
        "MLFLOW_MODEL_CATALOG_URI": "",
        "HOME": "/tmp",  # noqa: S108 - inside the container
        # The server buffers each artifact here before it sends it to the object store.
        "TMPDIR": "/scratch",
    }


def private_tmpfs() -> dict[str, str]:
    """Return the tmpfs mounts of every container of the MLflow image."""
    return {
        "/tmp": "size=64m,mode=1777",  # noqa: S108 - inside the container
        "/run/mlflow": _tmpfs(1),
    }


def _tmpfs(size_mb: int) -> str:
    return f"size={size_mb}m,uid={UID},gid={UID},mode=0700"
