"""The plain set-up: `mlflow server`, Postgres and an object store with their defaults, as a compose file has them."""

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import requests
from docker.errors import NotFound
from docker.types import EndpointConfig

from operations.common.console import StopError
from operations.common.stack import Stack
from runtime.daemon import Daemon
from settings.object_store import ObjectStoreSettings
from settings.postgres import PostgresSettings
from settings.server import ServerSettings

PREFIX = "mlflow-bench-plain"
PASSWORD = "plain-set-up"  # noqa: S105 - of containers that live for minutes
READY_SECONDS = 180
CREATE_BUCKET = (
    "import boto3, os; "
    "boto3.client('s3', endpoint_url=os.environ['MLFLOW_S3_ENDPOINT_URL']).create_bucket(Bucket='mlflow')"
)

ADDED = "/opt/mlflow-stack/plugins"
"""This project's plugins in the image, which the plain set-up does not have."""
WITHOUT_UVLOOP = ["--uvicorn-opts", "--loop asyncio"]
"""uvicorn takes uvloop if it is installed. MLflow does not require it, so a plain image does not have it."""

POSTGRES = """set -e
export PATH=$(echo /usr/lib/postgresql/*/bin):$PATH PGDATA=/tmp/data
[ -s $PGDATA/PG_VERSION ] || initdb --username=mlflow --pwfile=<(echo $POSTGRES_PASSWORD) --auth=scram-sha-256 >/tmp/log
echo host all all all scram-sha-256 >>$PGDATA/pg_hba.conf
exec postgres -k /tmp -c listen_addresses='*'"""
"""Starts Postgres with its own defaults, in every image that has its programs."""


@dataclass(frozen=True)
class SetUp:
    """A deployment that is measured: its server's URL, and its containers."""

    name: str
    url: str
    server: str
    containers: tuple[str, ...]
    prepare: Callable[[requests.Session], None] = lambda _session: None
    """What each HTTP session needs: the password, for example."""

    def session(self) -> requests.Session:
        """Return a new HTTP session, whose connection stays open."""
        session = requests.Session()
        session.trust_env = False
        self.prepare(session)
        return session


def start(stack: Stack, port: int) -> SetUp:
    """Start the plain set-up on `port` of the loopback address, with the images and limits of `stack`.

    The server has the image of `stack`, without this project's plugins and without uvloop. What the image has compiled,
    left out and set for Python's garbage collection is an advantage of the plain set-up as well.
    """
    daemon, settings = stack.daemon, stack.settings
    remove(daemon)
    daemon.api.create_network(PREFIX)
    image = daemon.inspect(f"mlflow-{stack.name}-server")
    if image is None:
        raise StopError(f"{stack.name} is not deployed\n  type: make up STACK={stack.name}")
    _run(
        daemon,
        "postgres",
        settings.images.postgres.name,
        settings.postgres,
        command=["bash", "-c", POSTGRES],
        environment={"POSTGRES_PASSWORD": PASSWORD},
        user="999:999",
    )
    store = {
        "minio": (settings.images.minio.name, ["/usr/bin/silo", "server", "/data"], 9000),
        "seaweedfs": (settings.images.seaweedfs.name, ["/usr/bin/weed", "server", "-dir=/data", "-s3"], 8333),
    }[settings.object_store.kind]
    _run(
        daemon,
        "store",
        store[0],
        settings.object_store,
        command=store[1],
        environment={"MINIO_ROOT_USER": "plain", "MINIO_ROOT_PASSWORD": PASSWORD},
        user="0:0",
    )
    environment = {
        "MLFLOW_S3_ENDPOINT_URL": f"http://{PREFIX}-store:{store[2]}",
        "AWS_ACCESS_KEY_ID": "plain",
        "AWS_SECRET_ACCESS_KEY": PASSWORD,
        "AWS_DEFAULT_REGION": "us-east-1",
        "HOME": "/tmp",  # noqa: S108 - inside the container
    }
    command = ["mlflow", "server", "--host", "0.0.0.0", "--artifacts-destination", "s3://mlflow"]  # noqa: S104
    command += ["--backend-store-uri", f"postgresql+psycopg2://mlflow:{PASSWORD}@{PREFIX}-postgres/postgres"]
    command += WITHOUT_UVLOOP
    # Without a database or a bucket, `mlflow server` ends: compose would start it again, too.
    _until(lambda: daemon.run(f"{PREFIX}-postgres", ["pg_isready", "-h", "127.0.0.1", "-U", "mlflow"])[0] == 0)
    _run(
        daemon,
        "server",
        image["Image"],
        settings.server,
        command=command,
        environment=environment,
        port=port,
        hide=ADDED,
    )
    _until(lambda: daemon.run(f"{PREFIX}-server", ["python", "-c", CREATE_BUCKET])[0] == 0)
    names = tuple(f"{PREFIX}-{part}" for part in ("postgres", "store", "server"))
    return SetUp("plain", f"http://127.0.0.1:{port}", names[-1], names)


def remove(daemon: Daemon) -> None:
    """Remove the plain set-up with its data."""
    for part in ("server", "store", "postgres"):
        with suppress(NotFound):
            daemon.api.remove_container(f"{PREFIX}-{part}", force=True, v=True)
    for network in daemon.api.networks(names=[PREFIX]):
        daemon.api.remove_network(network["Id"])


def _run(
    daemon: Daemon,
    part: str,
    image: str,
    limits: PostgresSettings | ObjectStoreSettings | ServerSettings,
    *,
    command: list[str] | None = None,
    environment: dict[str, str],
    user: str | None = None,
    port: int | None = None,
    hide: str | None = None,
) -> None:
    """Start one container as `docker compose` would: no hardening, no health check. `hide` is a folder of the image."""
    api: Any = daemon.api
    host = api.create_host_config(
        network_mode=PREFIX,
        mem_limit=f"{limits.memory_mb}m",
        memswap_limit=f"{limits.memory_mb}m",
        nano_cpus=int(limits.cpus * 1e9),
        port_bindings={5000: ("127.0.0.1", port)} if port else None,
        restart_policy={"Name": "always"},
        tmpfs={hide: ""} if hide else None,
    )
    created = api.create_container(
        image,
        name=f"{PREFIX}-{part}",
        entrypoint=command[:1] if command else None,
        command=command[1:] if command else None,
        environment=environment,
        user=user,
        ports=[5000] if port else None,
        host_config=host,
        networking_config={"EndpointsConfig": {PREFIX: EndpointConfig(api.api_version)}},
    )
    api.start(created["Id"])


def _until(done: Any) -> None:  # noqa: ANN401 - a question without arguments
    deadline = time.monotonic() + READY_SECONDS
    while not done():
        if time.monotonic() > deadline:
            raise StopError(
                f"the plain set-up is not ready after {READY_SECONDS} s\n  see: docker logs {PREFIX}-server"
            )
        time.sleep(0.5)
