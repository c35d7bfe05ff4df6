"""Old deployments of MLflow, with real old servers and clients: a Postgres, an S3, and a server of any version."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import urllib3

from operations.importing.reach import FOLDER
from runtime.address import resolve_host
from runtime.daemon import Daemon
from tests.stack.deployment import free_port

CLIENT = Path(__file__).with_name("old_client.py")
CACHE = Path(os.environ.get("OLD_MLFLOW", Path.home() / ".cache" / "mlflow-old"))
"""Virtual environments with old versions of MLflow, one folder for each."""
NEEDS = ("psycopg2-binary", "boto3", "setuptools<81", "sqlalchemy<2.1", "Flask-WTF")
"""What a server needs besides. MLflow's own users need Flask-WTF, MLflow 1.30 imports pkg_resources, and 2.9 a class
that SQLAlchemy has removed."""
PASSWORD = "it's a: p@ss wörd/%"
KEY, BUCKET = "AKIAOLD", "mlflow"
SECRET_KEY = "an old/secret+key"
POSTGRES = (
    'printf %s "$WORD" >/tmp/word && initdb -D /tmp/pg -U mlflow --auth-host=scram-sha-256 --auth-local=trust '
    "--pwfile=/tmp/word >/dev/null && echo 'host all all all scram-sha-256' >>/tmp/pg/pg_hba.conf && "
    "exec postgres -D /tmp/pg -k /tmp -c listen_addresses='*'"
)
OBJECTS = (
    'echo "$IDENTITIES" >/tmp/identities.json && exec weed server -dir=/data -s3 -s3.port=9000 -ip.bind=0.0.0.0 '
    "-s3.config=/tmp/identities.json -master.volumeSizeLimitMB=64"
)
PINS = {"2.22.1": ("opentelemetry-api<1.31", "opentelemetry-sdk<1.31")}
"""With a later OpenTelemetry, MLflow 2.22 stores no trace, and reports no error."""
READY_SECONDS = 120


def environment_of(version: str) -> Path:
    """Return the folder of a virtual environment with this MLflow. Creates it, which takes a minute."""
    folder = CACHE / version
    if not (folder / "complete").exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        pip = [str(folder / "bin" / "pip"), "install", "-q", "--only-binary", ":all:", f"mlflow=={version}", *NEEDS]
        subprocess.run(pip, check=True, capture_output=True)
        if pins := PINS.get(version):
            subprocess.run([*pip[:3], *pins], check=True, capture_output=True)
        (folder / "complete").touch()
    return folder


def told(url: str, **variables: str) -> Any:  # noqa: ANN401 - JSON
    """Return what a current client finds on a server."""
    return json.loads(client(url, "tell", **variables))


def client(url: str, *arguments: str, **variables: str) -> str:
    """Run a current client against a server; return what it prints."""
    environment = {**os.environ, **variables, "MLFLOW_TRACKING_URI": url, "MLFLOW_DISABLE_TELEMETRY": "true"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(CLIENT), *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


DATA_KEYS = {
    "MLFLOW_CRYPTO_KEK_PASSPHRASE": "the passphrase of an old server's gateway",
    "MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY": "b2xkIHdlYmhvb2sga2V5LCAzMiBieXRlcyBsb25nISE=",
}
GATEWAY_SECRET, WEBHOOK_SECRET = "a key of a provider", "a word for signatures"


def keep_secrets(url: str) -> None:
    """Store a secret of the AI gateway and of two webhooks: the server encrypts each with one of its data keys.

    The second webhook is deleted again. MLflow keeps its row, with the secret.
    """
    secret = {"secret_name": "provider", "provider": "openai", "secret_value": {"api_key": GATEWAY_SECRET}}
    _asked("POST", f"{url}/api/3.0/mlflow/gateway/secrets/create", secret)
    # MLflow resolves the name, and refuses a private address. Off: nothing is ever sent there.
    events = [{"entity": "PROMPT", "action": "CREATED"}]
    webhook = {"url": "https://8.8.8.8/", "events": events, "secret": WEBHOOK_SECRET, "status": "DISABLED"}
    webhooks = f"{url}/api/2.0/mlflow/webhooks"
    _asked("POST", webhooks, {**webhook, "name": "hook"})
    deleted = _asked("POST", webhooks, {**webhook, "name": "deleted"})["webhook"]["webhook_id"]
    _asked("DELETE", f"{webhooks}/{deleted}")


def _asked(method: str, url: str, body: object = None) -> Any:  # noqa: ANN401 - JSON
    # Deriving the first key takes seconds.
    answer = urllib3.request(method, url, json=body, retries=False, timeout=60)
    assert answer.status == 200, answer.data
    return answer.json()


@dataclass
class Services:
    """A Postgres and an S3 in containers with the usual names of a compose file, on a network of their own."""

    network: str
    folder: Path
    """Where its compose file would be. Other tests have services of the same names at the same time."""
    image_of_postgres: str
    image_of_store: str
    containers: list[str] = field(default_factory=list)
    ports: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.daemon = Daemon(resolve_host())

    def start(self) -> None:
        """Start both, published on this host as most compose files do."""
        self.daemon.api.create_network(self.network)
        self._run("postgre", 5432, self.image_of_postgres, POSTGRES, {"WORD": PASSWORD}, "999:999")
        identity = {
            "name": "old",
            "credentials": [{"accessKey": KEY, "secretKey": SECRET_KEY}],
            "actions": ["Admin", "Read", "Write", "List"],
        }
        reader = {
            "name": "lister",
            "credentials": [{"accessKey": "lister", "secretKey": SECRET_KEY}],
            "actions": ["List"],
        }
        identities = json.dumps({"identities": [identity, reader]})
        self._run("minio", 9000, self.image_of_store, OBJECTS, {"IDENTITIES": identities}, "")
        deadline = time.monotonic() + 60
        while self.daemon.run(self.containers[0], ["psql", "-h", "/tmp", "-U", "mlflow", "postgres", "-c", ""])[0]:  # noqa: S108
            assert time.monotonic() < deadline, self.daemon.logs(self.containers[0])
            time.sleep(0.5)
        self.sql("CREATE DATABASE mlflow", database="postgres")
        while True:
            try:
                answer = urllib3.request("GET", f"http://127.0.0.1:{self.ports['minio']}/", retries=False)
            except urllib3.exceptions.HTTPError:
                answer = None
            # 403: it answers, and refuses a request without a signature.
            if answer is not None and answer.status in (200, 403):
                break
            assert time.monotonic() < deadline
            time.sleep(0.5)
        made = f"s3.bucket.create -name {BUCKET}"
        while self.daemon.run(self.containers[1], ["sh", "-c", f"echo '{made}' | weed shell"])[0]:
            assert time.monotonic() < deadline
            time.sleep(0.5)

    def _run(self, alias: str, port: int, image: str, script: str, environment: Mapping[str, str], user: str) -> None:
        api = self.daemon.api
        self.ports[alias] = free_port()
        container = api.create_container(
            image,
            entrypoint=["sh", "-c", script],
            command=[],
            environment=dict(environment),
            user=user,
            ports=[port],
            labels={"tests.old": self.network, FOLDER: str(self.folder)},
            host_config=api.create_host_config(port_bindings={port: ("127.0.0.1", self.ports[alias])}),
            networking_config=api.create_networking_config(
                {self.network: api.create_endpoint_config(aliases=[alias])}  # type: ignore[arg-type]
            ),
        )["Id"]
        self.containers.append(container)
        api.start(container)

    def sql(self, query: str, *, database: str = "mlflow") -> str:
        command = ["psql", "-h", "/tmp", "-U", "mlflow", "-d", database, "-Atc", query]  # noqa: S108
        code, said = self.daemon.run(self.containers[0], command)
        assert code == 0, said
        return said

    def remove(self) -> None:
        for container in self.containers:
            self.daemon.api.remove_container(container, v=True, force=True)
        self.daemon.api.remove_network(self.network)

    @property
    def variables(self) -> dict[str, str]:
        """The variables of a process on this host that uses the store."""
        return {
            "MLFLOW_S3_ENDPOINT_URL": f"http://127.0.0.1:{self.ports['minio']}",
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_DEFAULT_REGION": "us-east-1",
        }


@dataclass
class OldServer:
    """A server of an old MLflow, as a process on this host, and clients of the same version."""

    version: str
    folder: Path
    arguments: list[str]
    variables: dict[str, str]
    port: int = field(default_factory=free_port)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @contextmanager
    def running(self) -> Iterator["OldServer"]:
        """Run the server during the block, in its own folder."""
        home = environment_of(self.version)
        log = (self.folder / "server.log").open("ab")
        command = [str(home / "bin" / "mlflow"), "server", *self.arguments, "--port", str(self.port)]
        environment = {**os.environ, **self.variables, "PATH": f"{home / 'bin'}:{os.environ['PATH']}"}
        # gunicorn's workers belong to its group.
        server = subprocess.Popen(
            command, cwd=self.folder, env=environment, stdout=log, stderr=log, start_new_session=True
        )
        try:
            deadline = time.monotonic() + READY_SECONDS
            while True:
                try:
                    if urllib3.request("GET", f"{self.url}/health", retries=False).status == 200:
                        break
                except urllib3.exceptions.HTTPError:
                    pass
                assert server.poll() is None, (self.folder / "server.log").read_text()[-3000:]
                assert time.monotonic() < deadline
                time.sleep(0.5)
            yield self
        finally:
            with suppress(ProcessLookupError):
                os.killpg(server.pid, 15)
            server.wait(30)
            log.close()

    def client(self, *arguments: str, url: str | None = None, more: Mapping[str, str] | None = None) -> str:
        """Run a client of this version, against this server or another one; return what it prints."""
        environment = {
            **os.environ,
            **self.variables,
            "MLFLOW_TRACKING_URI": url or self.url,
            "MLFLOW_DISABLE_TELEMETRY": "true",
            **(more or {}),
        }
        done = subprocess.run(
            [str(environment_of(self.version) / "bin" / "python"), "-W", "ignore", str(CLIENT), *arguments],
            env=environment,
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    def told(self, url: str | None = None, more: Mapping[str, str] | None = None) -> Any:  # noqa: ANN401 - JSON
        return json.loads(self.client("tell", url=url, more=more))
