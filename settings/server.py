"""The settings of the MLflow server."""

from typing import Literal

from pydantic import Field

from settings.base import Address, Cpus, Port, Settings

PORT, METRICS_PORT = 5000, 5001
ADMIN = "admin"
"""The user of MLflow's own whose password is generated."""
POOL_SIZE, MAX_OVERFLOW = 5, 10
"""Connections to Postgres of one worker: kept, and on top at most. SQLAlchemy's defaults, made explicit."""
BASE_MB, WORKER_MB, JOBS_MB = 256, 256, 1536
"""What the server needs: measured 370 MiB with two workers at rest, and 1.8 GiB with job execution as well."""


class ServerSettings(Settings):
    """What an operator may set under `mlflow:server`."""

    workers: int = Field(default=2, ge=1, le=32, description="Server processes. As many as it has processors.")
    memory_mb: int = Field(
        default=2560,
        ge=512,
        le=1_048_576,
        description="Memory limit. The minimum is 256, plus 256 for each worker, plus 1536 with `jobs`. The default "
        "leaves room for one answer with 10,000 runs of 90 values: docs/operations/capacity.md#memory-of-the-server. "
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
        "everything, unless `mlflow:authentication` is `mlflow`: there is no other password in front of it.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(default="info", description="Of MLflow's log.")
    log_format: Literal["text", "json"] = Field(
        default="text", description="Lines for a person, or an object on each for whoever collects them."
    )
    jobs: bool = Field(
        default=False, description="Server-side jobs: judges, scorers, trace archival. Costs 1.5 GiB of memory."
    )
    telemetry: bool = Field(default=False, description="Whether MLflow may report its usage to its makers.")
    environment: dict[str, str] = Field(
        default={},
        description="Environment variables for MLflow's server, such as "
        '`MLFLOW_GATEWAY_API_BASE_ALLOW_PRIVATE_IPS: "true"` for a model server of your own: '
        "[docs/mlflow-variables.md](mlflow-variables.md) lists those that it takes. No secret, and none that the stack "
        "sets.",
    )
    default_permission: Literal["NO_PERMISSIONS", "READ", "USE", "EDIT", "MANAGE"] = Field(
        default="READ",
        description="With `mlflow:authentication: mlflow`: what a user may do with an experiment or a model of "
        "somebody else, unless told otherwise there.",
    )


READINESS_PATH = "/api/2.0/mlflow/experiments/search?max_results=1"
"""Needs the database, which `/health` does not. mlflow/healthcheck.py asks the same."""
