"""The settings of the MLflow server."""

from typing import Literal

from pydantic import Field

from settings.base import Address, Cpus, Port, Settings

PORT, METRICS_PORT = 5000, 5001
ADMIN = "admin"
"""MLflow's own user whose password is generated."""
POOL_SIZE, MAX_OVERFLOW = 5, 10
"""Connections of one worker to Postgres: kept open, and the maximum of others. These are SQLAlchemy's defaults."""
BASE_MB, WORKER_MB, JOBS_MB = 256, 256, 1536
"""Minimum memory of the server: fixed, for each worker, for jobs. Measured: 240 MiB with two idle workers, more of each
worker in use, 1.8 GiB with job execution as well."""

READINESS_PATH = "/api/2.0/mlflow/experiments/search?max_results=1"
"""Unlike `/health`, this request needs the database. mlflow/healthcheck.py sends the same."""
USERS_TABLE = "alembic_version_auth"
SCHEMA_FILES = {"alembic_version": "/opt/mlflow/schema-revision", USERS_TABLE: "/opt/mlflow/users-schema-revision"}
"""Files of MLflow's image with the revisions of its database schemas, by the table in which a database has its own. The
second schema is that of MLflow's own users. A server without them does not use it."""


class ServerSettings(Settings):
    """The settings under `mlflow:server`."""

    replicas: int = Field(
        default=1,
        ge=1,
        le=16,
        description="The number of server containers, or tasks with `mlflow:runtime: swarm`. More than one, or any "
        "number of tasks, needs Traefik, which distributes the requests. A change then replaces one after another, "
        "without a failed request: docs/operations/replicas.md. Memory, CPUs and workers are those of each container.",
    )
    workers: int = Field(
        default=2,
        ge=1,
        le=32,
        description="The number of server processes in each container. Recommended: as many as `cpus`.",
    )
    drain_seconds: int = Field(
        default=20,
        ge=1,
        le=900,
        description="How long a server that stops, or the bundled Traefik, waits for its requests in flight, such as "
        "uploads and downloads. What is left then is cut off.",
    )
    memory_mb: int = Field(
        default=2560,
        ge=512,
        le=1_048_576,
        description="Memory limit in MB. The minimum is 256, plus 256 for each worker, plus 1536 with `jobs`. The "
        "default leaves room for one response with 10,000 runs of 90 values: "
        "docs/operations/capacity.md#memory-of-the-server. Uploads pass through a volume on disk, not through memory.",
    )
    cpus: Cpus = Field(default=2.0, description="The number of CPUs that the server may use.")
    port: Port | None = Field(
        default=None,
        description="Publish the server on this host port. Default: 5000 without Traefik; with Traefik, the server "
        "has no host port.",
    )
    bind_address: Address = Field(
        default="127.0.0.1",
        description="The address of the host on which `port` is published. Everybody who reaches it can read and "
        "write everything, unless `mlflow:authentication` is `mlflow`: no other authentication protects this port. "
        "Must be 127.0.0.1 if Traefik authenticates. Refused if the server has no host port.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(default="info", description="Log level of MLflow.")
    log_format: Literal["text", "json"] = Field(
        default="text", description="Log format: `text` for a person, `json` for a log collector, one object per line."
    )
    jobs: bool = Field(
        default=False,
        description="Run server-side jobs: judges, scorers, trace archival. Takes 1.5 GiB of memory. Not with several "
        "`replicas` or `mlflow:runtime: swarm`: each would start the jobs of the others again.",
    )
    telemetry: bool = Field(default=False, description="Whether MLflow may report its usage to its developers.")
    environment: dict[str, str] = Field(
        default={},
        description="Environment variables for MLflow's server, such as "
        '`MLFLOW_GATEWAY_API_BASE_ALLOW_PRIVATE_IPS: "true"` for a model server in your network. '
        "[docs/mlflow-variables.md](mlflow-variables.md) lists the permitted ones. Secrets and variables that the "
        "stack sets are refused.",
    )
    default_permission: Literal["NO_PERMISSIONS", "READ", "USE", "EDIT", "MANAGE"] = Field(
        default="READ",
        description="The permission of a user on another user's experiment or model, unless MLflow grants another "
        "one. Only with `mlflow:authentication: mlflow`.",
    )
