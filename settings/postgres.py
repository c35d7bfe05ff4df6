"""The settings of Postgres."""

from pydantic import Field

from settings.base import Cpus, Port, Settings


class PostgresSettings(Settings):
    """What an operator may set under `mlflow:postgres`."""

    memory_mb: int = Field(default=512, ge=256, le=1_048_576, description="Memory limit. A quarter is shared buffers.")
    cpus: Cpus = Field(default=1.0, description="Processors that it may use.")
    max_connections: int = Field(
        default=100, ge=20, le=5000, description="Must cover 15 for each of the server's workers, and 25 beside them."
    )
    port: Port | None = Field(
        default=None,
        description="Publish Postgres on this port of the host's loopback address, for a person with psql: user and "
        "database `mlflow`, the password by `pulumi config get postgresPassword`.",
    )
