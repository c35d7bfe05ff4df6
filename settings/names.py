"""Every name that this deployment has on the Docker host, made in one place.

The program and the operations share it: a data volume outlives its state and carries no label, so its name is
all that anyone can find it by.
"""

import hashlib
import re
from typing import Literal, get_args

from pydantic.alias_generators import to_camel

PROJECT = "mlflow"
LOCAL_REGISTRY = "localhost"
"""Of the images that are built here. No registry answers to it: what is missing is built, never a stranger's."""
ObjectStoreKind = Literal["minio", "seaweedfs"]
OBJECT_STORES: tuple[ObjectStoreKind, ...] = get_args(ObjectStoreKind)
COPY = "copy-artifacts"
"""The job between two of them."""
RESTORE = "restore"
"""The container of a restore, which `make restore` makes and removes."""
STACK_LABEL = "mlflow.stack"
SERVICE_LABEL = "mlflow.service"
ROLE_LABEL = "mlflow.role"
"""service, job or files: what the container is for."""
AUTHENTICATION_LABEL = "mlflow.authentication"
"""Of the server and of the stack's own Traefik: the setting of that name. The policy pack reads it."""
SINGLE_SIGN_ON_LABEL = "mlflow.single-sign-on"
"""Of the server: the middleware that authenticates, where it is one of an operator's Traefik."""
FILES_LABEL = "mlflow.files"
"""Of a volume of files: a hash of their names."""
CONFIG_LABEL = "mlflow.config"
"""Of a writer of files and of a job, for each file that is no secret: a hash of its content."""


def make(verb: str, stack: str) -> str:
    """Return a verb of this project as a person types it for a stack."""
    return f"make {verb} STACK={stack}"


def physical(stack: str, service: str) -> str:
    """Return the name of a container, network or volume: `mlflow-dev-postgres`."""
    return f"{PROJECT}-{stack}-{service}"


def postgres_volume(stack: str, major: int) -> str:
    """Return the name of the data volume of one Postgres major: `mlflow-dev-postgres-18-data`."""
    return physical(stack, f"postgres-{major}-data")


def object_store_volume(stack: str, kind: ObjectStoreKind) -> str:
    """Return the name of an object store's data volume: `mlflow-dev-minio-data`."""
    return physical(stack, f"{kind}-data")


def backup_volume(stack: str, folder: str | None = None) -> str:
    """Return the name of the volume of the backups: `mlflow-dev-backup-repository`; another for each host's folder."""
    if folder is None:
        return physical(stack, "backup-repository")
    # Docker would hand back a volume of the same name, whichever folder it is of.
    return physical(stack, f"backup-folder-{hashlib.sha256(folder.encode()).hexdigest()[:8]}")


def certificates_volume(stack: str) -> str:
    """Return the name of the volume of the bundled Traefik's certificates: `mlflow-prod-traefik-certificates`."""
    return physical(stack, "traefik-certificates")


def history_volume(stack: str) -> str:
    """Return the name of the volume of the bundled Prometheus' history: `mlflow-prod-prometheus-history`."""
    return physical(stack, "prometheus-history")


def is_backup_volume(stack: str, volume: str) -> bool:
    """Whether `volume` holds the backups of a stack, which outlive it."""
    return volume == backup_volume(stack) or volume.startswith(physical(stack, "backup-folder-"))


def object_store(stack: str, volume: str) -> ObjectStoreKind | None:
    """Return the kind of object store whose data are in `volume`, or None if it is no such volume of this stack."""
    return next((kind for kind in OBJECT_STORES if volume == object_store_volume(stack, kind)), None)


def postgres_major(stack: str, volume: str) -> int | None:
    """Return the Postgres major whose data are in `volume`, or None if it is no such volume of this stack."""
    match = re.fullmatch(re.escape(physical(stack, "postgres-")) + r"(\d+)-data", volume)
    return int(match.group(1)) if match else None


def survives_down(stack: str, volume: str) -> bool:
    """Whether `volume` outlives a stack that is stopped, for `make destroy` to delete."""
    return is_data_volume(stack, volume) or volume in (certificates_volume(stack), history_volume(stack))


def is_data_volume(stack: str, volume: str) -> bool:
    """Whether `volume` holds what nobody can make again."""
    return object_store(stack, volume) is not None or postgres_major(stack, volume) is not None


GENERATOR = "random:index/randomPassword:RandomPassword"
"""Type of the resource that makes a value. Its name is the credential's key, see `key_of`."""
DATA_KEY = "mlflow:components:DataKey"
"""Type of the resource that keeps a data key in the state. Its name is the same."""
SAVES = "MLFLOW_SECRETS_ARE_SAVED"
"""Variable of whoever runs the program and saves what it generated once all of it works, as `make up` does."""


def key_of(generator: str) -> str:
    """Return the key of what a resource has generated: `postgres-password` has made the `postgresPassword`."""
    return to_camel(generator.replace("-", "_"))


TYPE = "mlflow:components:Monitoring"
"""Type of the component. Its output `scrape` is what `make scrape` prints."""
