"""Every name that this deployment has on the Docker host, made in one place.

The program and the operations share it: a data volume outlives its state and carries no label, so its name is
all that anyone can find it by.
"""

import re

PROJECT = "mlflow"

STACK_LABEL = "mlflow.stack"
SERVICE_LABEL = "mlflow.service"
ROLE_LABEL = "mlflow.role"
"""service, job or files: what the container is for."""


def physical(stack: str, service: str) -> str:
    """Return the name of a container, network or volume: `mlflow-dev-postgres`."""
    return f"{PROJECT}-{stack}-{service}"


def postgres_volume(stack: str, major: int) -> str:
    """Return the name of the data volume of one Postgres major: `mlflow-dev-postgres-18-data`."""
    return physical(stack, f"postgres-{major}-data")


def minio_volume(stack: str) -> str:
    """Return the name of the object store's data volume: `mlflow-dev-minio-data`."""
    return physical(stack, "minio-data")


def postgres_major(stack: str, volume: str) -> int | None:
    """Return the Postgres major whose data are in `volume`, or None if it is no such volume of this stack."""
    match = re.fullmatch(re.escape(physical(stack, "postgres-")) + r"(\d+)-data", volume)
    return int(match.group(1)) if match else None


def is_data_volume(stack: str, volume: str) -> bool:
    """Whether `volume` holds what nobody can make again."""
    return volume == minio_volume(stack) or postgres_major(stack, volume) is not None
