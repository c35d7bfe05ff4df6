"""Test the export to a Postgres and an S3 elsewhere, as a cluster has them, and a plain MLflow server on the copy."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from runtime.address import resolve_host
from runtime.daemon import Daemon
from settings import packages
from settings.images import DEFAULTS
from tests.stack.backups import INVENTORY, told
from tests.stack.deployment import Deployment, free_port
from tests.stack.edge import BESIDE

pytestmark = pytest.mark.long

SOCKET = "/tmp"  # noqa: S108 - inside the container
PASSWORD, KEY = "it's a: password", "a-secret-key-of-its-own"
POSTGRES = (
    'printf %s "$WORD" >/tmp/word && initdb -D /tmp/pg -U postgres --auth-host=scram-sha-256 --auth-local=trust '
    "--pwfile=/tmp/word >/dev/null && echo 'host all all all scram-sha-256' >>/tmp/pg/pg_hba.conf && "
    "exec postgres -D /tmp/pg -k /tmp -c listen_addresses='*'"
)
OBJECTS = (
    'echo "$IDENTITIES" >/tmp/identities.json && exec weed server -dir=/data -s3 -ip.bind=0.0.0.0 '
    "-s3.config=/tmp/identities.json -master.volumeSizeLimitMB=64"
)
IDENTITY = {
    "name": "cluster",
    "credentials": [{"accessKey": "cluster", "secretKey": KEY}],
    "actions": ["Admin", "Read", "Write", "List"],
}


@dataclass
class Elsewhere:
    """A Postgres and an S3 beside a stack, as a chart would be given them."""

    deployment: Deployment
    postgres: str
    objects: str

    def address(self, container: str) -> str:
        found: str = self.deployment.api.inspect_container(container)["NetworkSettings"]["IPAddress"]
        return found

    def sql(self, database: str, query: str) -> str:
        command = ["psql", "-h", SOCKET, "-U", "postgres", "-d", database, "-Atc", query]
        code, said = Daemon(resolve_host()).run(self.postgres, command)
        assert code == 0, said
        return said

    def file(self, **changes: str | None) -> Path:
        values: dict[str, str | None] = {
            "PGHOST": self.address(self.postgres),
            "PGDATABASE": "mlflow",
            "PGUSER": "owner",
            "PGPASSWORD": f'"{PASSWORD}"',
            "S3_ENDPOINT_URL": f"http://{self.address(self.objects)}:8333",
            "S3_BUCKET": "elsewhere",
            "AWS_ACCESS_KEY_ID": "cluster",
            "AWS_SECRET_ACCESS_KEY": KEY,
        }
        path = self.deployment.folder / "target.env"
        lines = [f"{key}={value}" for key, value in (values | changes).items() if value is not None]
        path.write_text("# the cluster\n" + "\n".join(lines) + "\n")
        return path


def started(deployment: Deployment, image: str, script: str, user: str = "", **environment: str) -> str:
    container: str = deployment.api.create_container(
        image,
        user=user,
        entrypoint=["bash", "-c"],
        command=[script],
        environment=environment,
        labels={BESIDE: deployment.stack},
        host_config=deployment.api.create_host_config(tmpfs={"/data": "mode=1777"}),
    )["Id"]
    deployment.api.start(container)
    return container


def until(ready: Callable[[], bool], log: Callable[[], bytes] = bytes) -> None:
    """Wait for a condition; if it is not met, fail with a container's log."""
    deadline = time.monotonic() + 60
    while not ready():
        assert time.monotonic() < deadline, log().decode()
        time.sleep(0.5)


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Elsewhere]:
    deployment = Deployment(tmp_path_factory.mktemp("export"), "dev")
    deployment.set("server.port", free_port())
    deployment.use(deployment.any_store)
    daemon = Daemon(resolve_host())
    try:
        deployment.make("up")
        environment = {**os.environ, "MLFLOW_TRACKING_URI": deployment.url, "MLFLOW_DISABLE_TELEMETRY": "true"}
        filled = [sys.executable, "-W", "ignore", str(INVENTORY), "fill", "10", "2000", "20", "20"]
        subprocess.run(filled, env=environment, check=True, capture_output=True)
        weed = next(filter(daemon.has_image, (DEFAULTS["seaweedfs"]["ref"], packages.ref("seaweedfs"))))
        found = Elsewhere(
            deployment,
            started(deployment, deployment.inspect("postgres")["Image"], POSTGRES, "999:999", WORD=PASSWORD),
            started(deployment, weed, OBJECTS, IDENTITIES=json.dumps({"identities": [IDENTITY]})),
        )
        until(lambda: daemon.run(found.postgres, ["pg_isready", "-h", SOCKET])[0] == 0)
        quoted = PASSWORD.replace("'", "''")
        found.sql("postgres", f"CREATE ROLE owner LOGIN PASSWORD '{quoted}'")
        found.sql("postgres", "CREATE DATABASE mlflow OWNER owner")
        signed = f"curl -sf -o /dev/null --aws-sigv4 aws:amz:us-east-1:s3 --user cluster:{KEY}"
        until(lambda: daemon.run(found.objects, ["sh", "-c", f"{signed} -X PUT localhost:8333/elsewhere"])[0] == 0)
        yield found
    finally:
        for container in deployment.api.containers(all=True, filters={"label": f"{BESIDE}={deployment.stack}"}):
            deployment.api.remove_container(container["Id"], force=True, v=True)
        deployment.remove()


def refused(elsewhere: Elsewhere, **changes: str | None) -> str:
    done = elsewhere.deployment.make("export", ok=False, TARGET=str(elsewhere.file(**changes)))
    return done.stdout + done.stderr


def test_a_target_that_cannot_be_used_is_refused_before_anything_stops(elsewhere: Elsewhere) -> None:
    deployment = elsewhere.deployment
    since = deployment.inspect("server")["State"]["StartedAt"]
    said = refused(elsewhere, PGUSER=None, S3_BUCKET=None, PGPASS="x")
    assert "PGUSER: is missing" in said
    assert "S3_BUCKET: is missing" in said
    assert "line 8: PGPASS: unknown" in said
    assert "password authentication failed" in refused(elsewhere, PGPASSWORD="wrong")
    assert "cannot use the database" in refused(elsewhere, PGHOST="192.0.2.1")
    elsewhere.sql("postgres", "CREATE DATABASE used OWNER owner")
    elsewhere.sql("used", "CREATE TABLE there (id int)")
    assert "has 1 tables; set an empty one" in refused(elsewhere, PGDATABASE="used")
    elsewhere.sql("postgres", "CREATE DATABASE foreign_one")
    assert 'ALTER DATABASE "foreign_one" OWNER TO "owner"' in refused(elsewhere, PGDATABASE="foreign_one")
    assert "cannot use the bucket missing" in refused(elsewhere, S3_BUCKET="missing")
    assert "cannot use the bucket elsewhere" in refused(elsewhere, AWS_SECRET_ACCESS_KEY="wrong")
    assert "TARGET= is not set" in deployment.make("export", ok=False).stderr
    assert "No such file" in deployment.make("export", ok=False, TARGET="/nowhere").stderr
    assert deployment.inspect("server")["State"]["StartedAt"] == since


def test_a_dry_run_changes_nothing(elsewhere: Elsewhere) -> None:
    said = elsewhere.deployment.make("export", TARGET=str(elsewhere.file()), DRY_RUN="1").stderr
    assert "nothing was changed" in said
    assert (
        elsewhere.sql("mlflow", "SELECT count(*) FROM information_schema.tables WHERE table_schema = 'public'") == "0"
    )
    assert elsewhere.deployment.inspect("server")["State"]["Running"]


def test_a_plain_server_on_the_copy_shows_the_same(elsewhere: Elsewhere) -> None:
    deployment, api = elsewhere.deployment, elsewhere.deployment.api
    before = told(deployment)
    done = deployment.make("export", TARGET=str(elsewhere.file()))
    assert re.search(r"\d+ tables with \d{3,} rows are equal in both databases", done.stderr)
    assert "is copied, and equal" in done.stdout
    for secret in (PASSWORD, KEY):
        assert secret not in done.stdout + done.stderr
    assert not deployment.inspect("server")["State"]["Running"]
    port = free_port()
    # As both charts start it.
    server = api.create_container(
        deployment.inspect("server")["Image"],
        entrypoint=["mlflow", "server"],
        command=["--host", "0.0.0.0", "--port", "5000", "--artifacts-destination", "s3://elsewhere/artifacts"],
        environment={
            "MLFLOW_BACKEND_STORE_URI": f"postgresql+psycopg2://owner:it%27s%20a%3A%20password@{elsewhere.address(elsewhere.postgres)}/mlflow",
            "MLFLOW_S3_ENDPOINT_URL": f"http://{elsewhere.address(elsewhere.objects)}:8333",
            "AWS_ACCESS_KEY_ID": "cluster",
            "AWS_SECRET_ACCESS_KEY": KEY,
            "HOME": SOCKET,
        },
        ports=[5000],
        labels={BESIDE: deployment.stack},
        host_config=api.create_host_config(port_bindings={5000: ("127.0.0.1", port)}),
    )["Id"]
    api.start(server)
    ask = "import urllib.request; urllib.request.urlopen('http://127.0.0.1:5000/health')"
    until(
        lambda: Daemon(resolve_host()).run(server, ["python", "-c", ask])[0] == 0,
        lambda: bytes(api.logs(server, tail=40)),
    )
    here = deployment.url
    try:
        deployment.set("server.port", port)
        assert told(deployment) == before
    finally:
        deployment.set("server.port", int(here.rpartition(":")[2]))
    deployment.make("up")
    assert told(deployment) == before, "the stack itself has changed"
