"""The checks of the server's settings against each other and against the database's."""

from collections.abc import Iterator

from settings import names
from settings.base import NO_DIGEST
from settings.server import BASE_MB, JOBS_MB, MAX_OVERFLOW, POOL_SIZE, WORKER_MB
from settings.stack import StackConfig

SPARE_CONNECTIONS = 25
"""Connections beside those of the workers: migration, psql, backup, exporter, and Postgres' own reserve of three."""


def server_contradictions(config: StackConfig) -> Iterator[tuple[set[str], str]]:
    """Yield the problems: the sections involved, and the message."""
    server = config.server
    needed = BASE_MB + WORKER_MB * server.workers + (JOBS_MB if server.jobs else 0)
    if server.memory_mb < needed:
        with_jobs = " and jobs" if server.jobs else ""
        yield (
            {"server"},
            f"mlflow:server.memoryMb: must be at least {needed} for {server.workers} workers{with_jobs}, "
            f"got {server.memory_mb}; raise it, or lower mlflow:server.workers",
        )
    yield from _connection_problems(config)
    if config.on_swarm:
        yield from _swarm_problems(config)
        return
    if server.replicas == 1:
        return
    without_port = " and remove mlflow:server.port" if server.port else ""
    if config.traefik.mode == "off":
        yield (
            {"server", "traefik"},
            f"mlflow:server.replicas: {server.replicas} replicas need Traefik, which distributes the requests, and "
            f"mlflow:traefik.mode is off; set it to bundled or existing{without_port}, or replicas to 1; "
            "docs/operations/replicas.md#turn-it-on",
        )
    elif config.route.published_port:
        yield (
            {"server", "traefik"},
            f"mlflow:server.port: a host port reaches one server, and mlflow:server.replicas is {server.replicas}; "
            "remove the port: requests pass through Traefik to all replicas",
        )
    if server.jobs:
        yield (
            {"server"},
            f"mlflow:server.jobs: runs in one server only, and mlflow:server.replicas is {server.replicas}: each "
            "replica would start the jobs of the others again; set replicas to 1, or jobs to false",
        )


def _swarm_problems(config: StackConfig) -> Iterator[tuple[set[str], str]]:
    """Yield the problems of a stack on a Docker Swarm cluster."""
    server, page = config.server, "docs/operations/swarm.md#turn-it-on"
    if config.traefik.mode == "off":
        yield (
            {"runtime", "traefik"},
            "mlflow:runtime: swarm needs Traefik, which distributes the requests among the tasks, and "
            f"mlflow:traefik.mode is off; set it to bundled or existing; {page}",
        )
    elif config.route.published_port:
        yield (
            {"runtime", "server", "traefik"},
            "mlflow:server.port: a host port reaches one server, and mlflow:runtime is swarm; remove the port: "
            "requests pass through Traefik to all tasks",
        )
    yield from _image_problems(config)
    if server.jobs:
        yield (
            {"runtime", "server"},
            "mlflow:server.jobs: runs in one server only, and mlflow:runtime is swarm, where a new task starts before "
            "the old one stops; set jobs to false, or runtime to container",
        )


def _image_problems(config: StackConfig) -> Iterator[tuple[set[str], str]]:
    """Yield the problem if the nodes could run different images under one name."""
    image = config.images.mlflow
    if image and image.digest == NO_DIGEST and not image.ref.startswith(f"{names.LOCAL_REGISTRY}/"):
        yield (
            {"runtime", "images"},
            "mlflow:images.mlflow.digest: is required with mlflow:runtime swarm, so that every node runs the same "
            "image; set it to the digest in the registry. Only an image that you copy to every node needs none; its "
            f"name begins with {names.LOCAL_REGISTRY}/, got {image.ref!r}",
        )


def _connection_problems(config: StackConfig) -> Iterator[tuple[set[str], str]]:
    """Yield the problem if all workers together may open more connections than Postgres accepts."""
    server, by_mlflow = config.server, config.route.by_mlflow
    # MLflow's own users have a second connection pool.
    pools = 2 if by_mlflow else 1
    # On a cluster, all new tasks may have started before the first old one has finished its requests.
    servers = server.replicas * (2 if config.on_swarm else 1)
    connections = pools * (POOL_SIZE + MAX_OVERFLOW) * server.workers * servers + SPARE_CONNECTIONS
    if config.postgres.max_connections >= connections:
        return
    with_replicas = f" and mlflow:server.replicas {server.replicas}" if server.replicas > 1 else ""
    with_replicas += " with mlflow:runtime swarm (twice as many tasks during an update)" if config.on_swarm else ""
    with_users = " with mlflow:authentication mlflow" if by_mlflow else ""
    yield (
        {"server", "postgres", "authentication"},
        f"mlflow:postgres.maxConnections: must be at least {connections} for mlflow:server.workers "
        f"{server.workers}{with_replicas}{with_users}, got {config.postgres.max_connections}; raise it, or lower the "
        f"{'replicas or the ' if server.replicas > 1 else ''}workers",
    )
