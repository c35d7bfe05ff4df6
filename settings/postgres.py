"""The settings of Postgres."""

from pydantic import Field

from settings.base import Cpus, Port, Settings

UID = 999
"""UID of the user `postgres` in the Debian variant of the official image. In the Alpine variant it is 70, so that
variant cannot take over the data."""


class PostgresSettings(Settings):
    """The settings under `mlflow:postgres`."""

    memory_mb: int = Field(
        default=512, ge=256, le=1_048_576, description="Memory limit in MB. A quarter of it becomes shared buffers."
    )
    cpus: Cpus = Field(default=1.0, description="The number of CPUs that Postgres may use.")
    max_connections: int = Field(
        default=100,
        ge=20,
        le=5000,
        description="The maximum number of connections. The minimum is 25, plus 15 for each worker of each of the "
        "server's replicas (30 with `mlflow:authentication: mlflow`); with `mlflow:runtime: swarm`, for twice as many "
        "replicas.",
    )
    port: Port | None = Field(
        default=None,
        description="Publish Postgres on this port of the host's loopback address, for psql. User and database are "
        "`mlflow`; `pulumi config get postgresPassword` prints the password.",
    )
