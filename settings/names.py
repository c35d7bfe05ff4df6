"""All names of this deployment on the Docker host.

The program and the operations share this module: a data volume outlives the state and has no label, so it can be found
by its name only.
"""

import hashlib
import os
import re
from typing import Literal, get_args

from pydantic.alias_generators import to_camel

PROJECT = "mlflow"
LOCAL_REGISTRY = "localhost"
"""Registry in the names of local builds. It does not exist, so a missing image is built, and never pulled."""
ObjectStoreKind = Literal["minio", "seaweedfs"]
OBJECT_STORES: tuple[ObjectStoreKind, ...] = get_args(ObjectStoreKind)
COPY = "copy-artifacts"
"""The job that copies the artifacts from one object store to another."""
RESTORE = "restore"
"""The container of a restore. `make restore` creates and removes it."""
EXPORT = "export"
"""The container of an export. `make export` creates and removes it."""
IMPORT = "import"
"""The containers of an import. `make import` creates and removes them."""
UPGRADE = "upgrade-postgres"
"""The container that moves the database to another Postgres. `make upgrade-postgres` creates and removes it."""
INTERNAL_CERTIFICATE_FILE = "internal-certificate.pem"
"""Secret file of a service that speaks TLS: its certificate."""
AUTHORITY_FILE = "authority.pem"
"""Secret file of every client: the authority of the certificates of the stack's services."""
ROTATE = "rotate"
"""The containers of a rotation. `make rotate` creates and removes them."""
ENCRYPT = "encrypt"
"""The container that encrypts artifacts. `make encrypt` creates and removes it."""
STACK_LABEL = "mlflow.stack"
SERVICE_LABEL = "mlflow.service"
ROLE_LABEL = "mlflow.role"
"""The role of a container: service, job or files."""
AUTHENTICATION_LABEL = "mlflow.authentication"
"""On the server and the bundled Traefik: the value of `mlflow:authentication`. The policy reads it."""
SINGLE_SIGN_ON_LABEL = "mlflow.single-sign-on"
"""On the server: the middleware of an existing Traefik that authenticates."""
TOGETHER_LABEL = "mlflow.together"
"""On each of several replicas: a hash of what replicas that run at the same time must have in common."""
OBSERVES = {"HEALTHCHECK_OBSERVES": "1"}
"""Environment of a health check that is not run by Docker: it does not take away the failure that Docker has to see
(mlflow/healthcheck.py)."""
REVISION_VARIABLE = "STACK_REVISION"
"""Environment variable of the tasks of a Swarm service: a hash of what they were created from."""
TASK_LABEL = "com.docker.swarm.task.id"
"""Docker's own label on the container of a task."""
IMAGE_LABEL = "mlflow.image"
"""On a Swarm service: the id of their image on the manager."""
FILES_LABEL = "mlflow.files"
"""On a volume of files: a hash of the file names."""
CONFIG_LABEL = "mlflow.config"
"""On a container that writes files and on a job: for each file that is not secret, a hash of its content."""


def nothing_encrypts() -> bool:
    """Return whether this process has no engine that could encrypt secrets: in a copy, or without the engine."""
    return os.environ.get(REQUEST_ENGINELESS) == "1" or is_copy()


def is_copy() -> bool:
    """Return whether this process plans a copy of the stack, without its secrets, its state and its Docker host."""
    return os.environ.get(COPY_VARIABLE) == IN_COPY


def make_command(verb: str, stack: str) -> str:
    """Return the command that runs a make target for a stack."""
    return f"make {verb} STACK={stack}"


def docker_name(stack: str, service: str) -> str:
    """Return the name of a container, network or volume: `mlflow-dev-postgres`."""
    return f"{PROJECT}-{stack}-{service}"


NETWORKS_OF_THE_SERVER = ("backend", "edge", "monitoring")
"""The networks to which the server is attached. On a cluster, they are on all its nodes."""


NetworkKind = Literal["", "overlay", "encrypted"]
"""On one host, on all nodes of a cluster, on all nodes and encrypted."""


SERVER = "server"
"""The service of the tracking server, and the first of its replicas."""


def replicas(number: int) -> tuple[str, ...]:
    """Return the services of the server's replicas: server, server-2, server-3."""
    return (SERVER, *(f"{SERVER}-{index}" for index in range(2, number + 1)))


def is_replica(service: str) -> bool:
    """Return whether a service is a replica of the server."""
    return re.fullmatch(rf"{SERVER}(-\d+)?", service) is not None


def postgres_volume(stack: str, major: int) -> str:
    """Return the name of the data volume of one Postgres major: `mlflow-dev-postgres-18-data`."""
    return docker_name(stack, f"postgres-{major}-data")


def object_store_volume(stack: str, kind: ObjectStoreKind) -> str:
    """Return the name of an object store's data volume: `mlflow-dev-minio-data`."""
    return docker_name(stack, f"{kind}-data")


def backup_volume(stack: str, folder: str | None = None) -> str:
    """Return the name of the backup repository's volume: `mlflow-dev-backup-repository`, or one for each `folder`."""
    if folder is None:
        return docker_name(stack, "backup-repository")
    # With a fixed name, Docker would reuse the volume that is bound to another folder.
    return docker_name(stack, f"backup-folder-{hashlib.sha256(folder.encode()).hexdigest()[:8]}")


def certificates_volume(stack: str) -> str:
    """Return the name of the volume with the bundled Traefik's certificates: `mlflow-prod-traefik-certificates`."""
    return docker_name(stack, "traefik-certificates")


def history_volume(stack: str) -> str:
    """Return the name of the volume with the bundled Prometheus' data: `mlflow-prod-prometheus-history`."""
    return docker_name(stack, "prometheus-history")


def is_backup_volume(stack: str, volume: str) -> bool:
    """Return whether `volume` holds the backup repository of a stack. `make down` and `make destroy` keep it."""
    return volume == backup_volume(stack) or volume.startswith(docker_name(stack, "backup-folder-"))


def object_store(stack: str, volume: str) -> ObjectStoreKind | None:
    """Return the kind of the object store whose data volume is `volume`, or None if this stack has no such volume."""
    return next((kind for kind in OBJECT_STORES if volume == object_store_volume(stack, kind)), None)


def postgres_major(stack: str, volume: str) -> int | None:
    """Return the Postgres major version whose data volume is `volume`, or None if this stack has no such volume."""
    match = re.fullmatch(re.escape(docker_name(stack, "postgres-")) + r"(\d+)-data", volume)
    return int(match.group(1)) if match else None


def survives_down(stack: str, volume: str) -> bool:
    """Return whether `volume` outlives a `pulumi destroy` of the stack. `make destroy` deletes it."""
    return is_data_volume(stack, volume) or volume in (certificates_volume(stack), history_volume(stack))


def is_data_volume(stack: str, volume: str) -> bool:
    """Return whether `volume` is a data volume: its content cannot be recreated."""
    return object_store(stack, volume) is not None or postgres_major(stack, volume) is not None


GENERATOR = "random:index/randomPassword:RandomPassword"
"""Type of the resource that generates a value. `key_of` converts its name into the secret's key."""
DATA_KEY = "mlflow:components:DataKey"
"""Type of the resource that keeps a data key in the state. It has the same name as the generator."""
REQUEST_ENGINELESS = "ENGINELESS"
"""Environment variable: 1 requests an engine-less deployment."""
COPY_VARIABLE, IN_COPY = "COPY", "made"
"""Environment variable, and its value where a plan runs in a copy of the checkout without secrets."""
SAVES = "MLFLOW_SECRETS_ARE_SAVED"
"""Environment variable: the caller saves the generated secrets after the deployment, as `make up` does."""


def key_of(generator: str) -> str:
    """Return the key of the secret of a generator: `postgresPassword` for `postgres-password`."""
    return to_camel(generator.replace("-", "_"))


def generator_of(key: str) -> str:
    """Return the generator of the secret of a key: `postgres-password` for `postgresPassword`."""
    return re.sub(r"[A-Z]", lambda letter: f"-{letter[0].lower()}", key)


MONITORING_TYPE = "mlflow:components:Monitoring"
"""Type of the component. Its output `scrape` is what `make scrape` prints."""
