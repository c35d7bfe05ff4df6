"""The ingress in the tests: a real Traefik, and a stand-in for a single sign-on."""

import base64
import http.client
import io
import json
import os
import ssl
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from offline import build
from runtime.address import resolve_host
from runtime.daemon import Daemon
from settings import packages
from settings.images import DEFAULTS
from settings.names import STACK_LABEL
from tests.stack.deployment import ROOT, Deployment, free_port

HOSTNAME = "mlflow.example.com"
PAGE = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
"""Headers that a browser sends to request a page."""
COOKIE = {"Cookie": "session=alice"}
SEARCH = "/api/2.0/mlflow/experiments/search?max_results=1"
READINESS_SECONDS = 30
BESIDE = "mlflow.tests.beside"
"""Label of test containers that run beside a stack and are not part of it."""


def image(name: str) -> str:
    """Return an image that is on the host: the official one, or the packages image, built if missing."""
    daemon = Daemon(resolve_host())
    if daemon.has_image(DEFAULTS[name]["ref"]):
        return DEFAULTS[name]["ref"]
    recipe = packages.RECIPE_BY_IMAGE[name]
    build.build(daemon, [recipe], [])
    return packages.ref(recipe)


def basic(user: str, password: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()}


ALICE = basic("alice", "alice-secret-password")


@dataclass(frozen=True)
class Answer:
    status: int
    headers: http.client.HTTPMessage
    body: bytes


@dataclass(frozen=True)
class Listener:
    """A host port on which a Traefik listens with TLS."""

    port: int
    address: str = "127.0.0.1"

    @property
    def url(self) -> str:
        return f"https://{HOSTNAME}:{self.port}"

    def ask(
        self, path: str, method: str = "GET", body: bytes | None = None, over_seconds: int = 0, /, **headers: str
    ) -> Answer:
        """Send one request without following redirects, with `Accept: */*` unless `headers` has another value.

        With `over_seconds`, sending the body takes that many seconds.
        """
        connection = http.client.HTTPSConnection(
            self.address,
            self.port,
            timeout=30,
            context=ssl._create_unverified_context(),  # noqa: S323 - Traefik's own certificate
        )
        try:
            connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
            length = {"Content-Length": str(len(body))} if body is not None else {}
            for name, value in ({"Host": HOSTNAME, "Accept": "*/*"} | length | headers).items():
                connection.putheader(name, value)
            connection.endheaders()
            size = len(body or b"") // (over_seconds or 1) + 1
            for start in range(0, len(body or b""), size):
                connection.send((body or b"")[start : start + size])
                time.sleep(1 if over_seconds else 0)
            response = connection.getresponse()
            return Answer(response.status, response.headers, response.read())
        finally:
            connection.close()

    def client(self, script: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a Python script whose MLflow client reaches this port under the hostname."""
        named = (
            "import runpy, socket, sys; found = socket.getaddrinfo; socket.getaddrinfo = lambda host, *more, **named: "
            f"found({self.address!r} if host == {HOSTNAME!r} else host, *more, **named); sys.argv = sys.argv[1:]; "
            "runpy.run_path(sys.argv[0], run_name='__main__')"
        )
        return subprocess.run(
            [sys.executable, "-W", "ignore", "-c", named, script, *arguments],
            env={
                **os.environ,
                "MLFLOW_TRACKING_URI": self.url,
                "MLFLOW_TRACKING_INSECURE_TLS": "true",
                "MLFLOW_DISABLE_TELEMETRY": "true",
                **environment,
            },
            capture_output=True,
            text=True,
            check=False,
        )


def until(condition: Callable[[], bool], seconds: float = READINESS_SECONDS) -> float:
    """Wait for a condition and return how many seconds it took."""
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < seconds, f"the condition was not met within {seconds} s"
        time.sleep(0.2)
    return time.monotonic() - started


def a_certificate(folder: Path) -> tuple[Path, Path]:
    """Create a self-signed certificate for the hostname; return the paths of the certificate and its key."""
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "30", "-subj", f"/CN={HOSTNAME}"]
    options = ["-addext", f"subjectAltName=DNS:{HOSTNAME}", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run([*command, *options], check=True, capture_output=True)
    return certificate, key


@contextmanager
def single_sign_on(deployment: Deployment, network: str, *, alias: str = "authelia", port: int = 9091) -> Iterator[str]:
    """Run the stand-in for Authelia on `network`, with the middlewares of an existing Traefik; yield its name."""
    name = deployment.name("sso")
    server = f"http://{name}:{port}"
    middlewares = "traefik.http.middlewares"
    echo = "traefik.http.routers.echo"
    container = deployment.api.create_container(
        image("python"),
        command=["python3", "/single_sign_on.py", str(port)],
        name=name,
        labels={
            BESIDE: deployment.stack,
            "traefik.enable": "true",
            "traefik.docker.network": network,
            f"{middlewares}.authelia.forwardauth.address": f"{server}/api/authz/forward-auth",
            f"{middlewares}.authelia.forwardauth.authResponseHeaders": "Remote-User",
            f"{middlewares}.rude.forwardauth.address": f"{server}/rude",
            f"{middlewares}.secureHeaders.headers.contentTypeNosniff": "true",
            # An upstream behind the middlewares of the stack, which returns the headers that reach it.
            f"{echo}.rule": "Host(`echo.example.com`)",
            f"{echo}.tls": "true",
            f"{echo}.middlewares": f"{deployment.name('server')}-forged,{deployment.name('server')}-private",
            "traefik.http.services.echo.loadbalancer.server.port": str(port),
        },
        host_config=deployment.api.create_host_config(network_mode=network),
        networking_config=deployment.api.create_networking_config(
            {network: deployment.api.create_endpoint_config(aliases=[alias])}  # type: ignore[arg-type]  # as documented
        ),
    )["Id"]
    put(deployment, container, "/", {"single_sign_on.py": (ROOT / "tests/stack/single_sign_on.py").read_bytes()})
    deployment.api.start(container)
    try:
        yield name
    finally:
        deployment.api.remove_container(container, force=True)


OWN_CERTIFICATE = {"tls": {"certificates": [{"certFile": "/certificate.pem", "keyFile": "/key.pem"}]}}
"""The dynamic configuration of the existing Traefik."""


def trust_the_authority(deployment: Deployment, *, authority: str | None = None) -> None:
    """Let the existing Traefik trust the authority of the stack, as docs/operations/tls.md says, or another one."""
    name = deployment.name("operators-traefik")
    named = deployment.values["mlflow:traefik"]["serversTransport"].partition("@")[0]
    transport = {"rootCAs": ["/mlflow-authority.pem"], "serverName": deployment.name("server")}
    files = {
        "certificates.yml": json.dumps(OWN_CERTIFICATE | {"http": {"serversTransports": {named: transport}}}).encode(),
        "mlflow-authority.pem": (authority or deployment.make("authority").stdout).encode(),
    }
    # Traefik watches the file, so it is written last.
    put(deployment, name, "/", dict(reversed(files.items())))


@contextmanager
def operators_traefik(deployment: Deployment, network: str) -> Iterator[Listener]:
    """Run an existing Traefik: with Docker labels, one entry point with TLS, a certificate, and its API."""
    port = free_port()
    certificate, key = a_certificate(deployment.folder)
    container = deployment.api.create_container(
        image("traefik"),
        entrypoint=["traefik"],
        command=[
            "--providers.docker=true",
            "--providers.docker.exposedbydefault=false",
            # Other containers on this daemon have such labels, too.
            "--providers.docker.constraints="
            + " || ".join(f"Label(`{label}`,`{deployment.stack}`)" for label in (STACK_LABEL, BESIDE)),
            "--entrypoints.websecure.address=:443",
            "--api.insecure=true",
            "--providers.file.filename=/certificates.yml",
            "--entryPoints.websecure.transport.respondingTimeouts.readTimeout=12h",
        ],
        name=deployment.name("operators-traefik"),
        labels={BESIDE: deployment.stack},
        ports=[443],
        host_config=deployment.api.create_host_config(
            network_mode=network,
            port_bindings={443: ("127.0.0.1", port)},
            binds=["/var/run/docker.sock:/var/run/docker.sock:ro"],
        ),
    )["Id"]
    files = {
        "certificates.yml": json.dumps(OWN_CERTIFICATE).encode(),
        "certificate.pem": certificate.read_bytes(),
        "key.pem": key.read_bytes(),
    }
    put(deployment, container, "/", files)
    deployment.api.start(container)
    try:
        yield Listener(port)
    finally:
        deployment.api.remove_container(container, force=True)


def put(deployment: Deployment, container: str, folder: str, files: Mapping[str, bytes], mode: int = 0o755) -> None:
    """Copy files into a container that is not started yet."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), mode
            archive.addfile(entry, io.BytesIO(content))
    deployment.api.put_archive(container, folder, packed.getvalue())


def reached(answer: Answer) -> dict[str, str]:
    """Return the headers that reached an upstream which returns them, with their names in lower case."""
    found: dict[str, Any] = json.loads(answer.body)
    return {name.lower(): value for name, value in found.items()}


CLIENT_DAY = str(ROOT / "tests" / "stack" / "client_day.py")
SCRIPTS = [
    ("POST", "/api/2.0/mlflow/runs/create"),
    ("GET", SEARCH),
    ("PUT", "/api/2.0/mlflow-artifacts/artifacts/0/x"),
    ("POST", "/ajax-api/2.0/mlflow/experiments/search"),
    ("GET", "/ajax-api/2.0/mlflow/get-trace-artifact?request_id=x"),
    ("POST", "/graphql"),
    ("GET", "/graphql"),
    ("GET", "/get-artifact?path=x&run_uuid=y"),
    ("GET", "/model-versions/get-artifact?path=x&name=y&version=1"),
    ("GET", "/gateway/x/mlflow/invocations"),
    ("POST", "/v1/traces"),
    ("GET", "/v1/traces"),
    ("HEAD", "/"),
    ("POST", "/"),
]
"""Requests of programs and of the scripts of a page, which must never be redirected."""
HIDDEN = (
    *("/metrics", "//metrics", "/%6detrics", "/./metrics", "/x/../metrics", "/metrics/", "/METRICS/../metrics"),
    *("/%2Fmetrics", "/%2f%2Fmetrics", "/%2F%6detrics", "/x/..%2Fmetrics"),
    *("/ajax-api/3.0/mlflow/assistant", "/ajax-api/3.0/mlflow/assistant/config", "/ajax-api/3.0/mlflow//assistant"),
    *("/ajax-api%2F3.0/mlflow/assistant/config", "/ajax-api/3.0/mlflow%2Fassistant/config"),
    "/ajax-api%2f3.0%2fmlflow%2f%61ssistant%2fproviders",
)
"""Paths that must not be reachable, in every spelling that the server understands, and in some that it does not."""


@dataclass(frozen=True)
class Edge:
    deployment: Deployment
    listener: Listener
    network: str
    """The network of Traefik and the single sign-on."""

    def change(self, authentication: str, **traefik: object) -> None:
        """Deploy another authentication and its Traefik settings."""
        self.deployment.set("authentication", authentication)
        self.deployment.set("traefik", traefik)
        self.deployment.make("up")
        self.opened()

    def opened(self) -> None:
        """Wait until Traefik routes to the server, which depends on Docker's health check or on that of Traefik."""
        until(lambda: self.listener.ask("/health").status not in (404, 503))

    @property
    def password(self) -> str:
        return self.deployment.printed("password").strip()


def asked_to_log_in(answer: Answer) -> bool:
    return answer.status == 302 and answer.headers["Location"].startswith("https://auth.example.com/")


def let_in(edge: Edge, **headers: str) -> None:
    """Check that a client with these headers gets the web interface, and can write as a browser does."""
    page = edge.listener.ask("/", **PAGE, **headers)
    assert page.status == 200
    assert b"<title>MLflow</title>" in page.body
    # A browser sends the origin with requests to the same origin, too.
    origin = {"Origin": edge.deployment.make("url").stdout.strip(), "Content-Type": "application/json"}
    made = edge.listener.ask(
        "/ajax-api/2.0/mlflow/experiments/create",
        "POST",
        f'{{"name": "{time.monotonic_ns()}"}}'.encode(),
        **origin,
        **headers,
    )
    assert made.status == 200, made.body


def nobody_is_redirected(listener: Listener, **headers: str) -> None:
    """Check that every request but one for a page gets 401, whatever it accepts."""
    for method, path in SCRIPTS:
        for accept in ("*/*", "application/json", PAGE["Accept"]):
            answer = listener.ask(path, method, b"{}" if method != "GET" else None, Accept=accept, **headers)
            assert answer.status == 401, (method, path, accept, answer.status)


def fails_at_the_first_call(listener: Listener, **environment: str) -> None:
    done = listener.client(CLIENT_DAY, "1", **environment)
    assert done.returncode != 0
    assert "401" in done.stderr
    assert ": " not in done.stdout, f"a step succeeded: {done.stdout}"


def logs_a_run(listener: Listener, user: str, password: str) -> None:
    done = listener.client(CLIENT_DAY, "20", MLFLOW_TRACKING_USERNAME=user, MLFLOW_TRACKING_PASSWORD=password)
    assert done.returncode == 0, done.stdout + done.stderr


ARTIFACT_NAME, ARTIFACT = "notes.txt", "an artifact for a browser, with ümlauts\n".encode()


def a_run_with_an_artifact(listener: Listener, password: str, points: int) -> tuple[str, str]:
    """Create a run with a metric `loss` of `points` points and an artifact; return the IDs of it and its experiment."""
    mine = basic("mlflow", password) | {"Content-Type": "application/json"}

    def post(path: str, **body: object) -> dict[str, Any]:
        answer = listener.ask(f"/api/2.0/mlflow/{path}", "POST", json.dumps(body).encode(), **mine)
        assert answer.status == 200, answer.body
        found: dict[str, Any] = json.loads(answer.body)
        return found

    experiment = post("experiments/create", name=f"browser-{time.monotonic_ns()}")["experiment_id"]
    run = post("runs/create", experiment_id=experiment)["run"]["info"]
    metrics = [{"key": "loss", "value": 1 / (1 + step), "timestamp": step, "step": step} for step in range(points)]
    post("runs/log-batch", run_id=run["run_id"], metrics=metrics)
    folder = run["artifact_uri"].removeprefix("mlflow-artifacts:")
    stored = f"/api/2.0/mlflow-artifacts/artifacts{folder}/{ARTIFACT_NAME}"
    assert listener.ask(stored, "PUT", ARTIFACT, **basic("mlflow", password)).status == 200
    return run["run_id"], experiment


def nothing_hidden_is_shown(edge: Edge, **headers: str) -> None:
    for path in HIDDEN:
        assert edge.listener.ask(path, **headers).status == 404, path


def users_of_its_own(edge: Edge) -> None:
    listener, password = edge.listener, edge.password
    for method, path in SCRIPTS[:4]:
        answer = listener.ask(path, method, b"{}" if method != "GET" else None)
        assert answer.status == 401, path
        assert answer.headers["WWW-Authenticate"].startswith("Basic")
    assert listener.ask(SEARCH, **basic("admin", "wrong")).status == 401
    logs_a_run(listener, "admin", password)
    # Another user, with fewer permissions.
    as_admin = basic("admin", password) | {"Content-Type": "application/json"}
    user = f"bob{time.monotonic_ns()}"
    body = f'{{"username": "{user}", "password": "bob-secret-password"}}'.encode()
    made = listener.ask("/api/2.0/mlflow/users/create", "POST", body, **as_admin)
    assert made.status == 200, made.body
    assert listener.ask(SEARCH, **basic(user, "bob-secret-password")).status == 200
    delete = b'{"experiment_id": "0"}'
    bob = basic(user, "bob-secret-password") | {"Content-Type": "application/json"}
    assert listener.ask("/api/2.0/mlflow/experiments/delete", "POST", delete, **bob).status == 403
    # Each worker hashes a correct password once and then caches it. A wrong password is always hashed.
    right = cpu_seconds_of(edge, 200, **bob)
    wrong = cpu_seconds_of(edge, 401, **basic(user, "another-password"))
    assert right < wrong / 2, (right, wrong)


def cpu_seconds_of(edge: Edge, status: int, **headers: str) -> float:
    """Return how many CPU seconds the server takes for ten requests. Unlike elapsed time, this ignores other load."""

    def used() -> float:
        stats = edge.deployment.api.stats(edge.deployment.name("server"), stream=False)
        return float(stats["cpu_stats"]["cpu_usage"]["total_usage"]) / 1e9

    before = used()
    for _ in range(10):
        assert edge.listener.ask(SEARCH, **headers).status == status
    return used() - before
