"""Test the ingress by the bundled Traefik: authentication, hardening, TLS, certificates."""

import http.client
import os
import re
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest

from components.traefik import HTTPS_PORT
from tests.stack.browser import CHROMIUM, Place, tab
from tests.stack.deployment import Deployment, free_port
from tests.stack.edge import (
    ALICE,
    ARTIFACT,
    ARTIFACT_NAME,
    COOKIE,
    HOSTNAME,
    PAGE,
    SEARCH,
    Edge,
    Listener,
    a_certificate,
    a_run_with_an_artifact,
    asked_to_log_in,
    basic,
    fails_at_the_first_call,
    image,
    let_in,
    logs_a_run,
    nobody_is_redirected,
    nothing_hidden_is_shown,
    reached,
    single_sign_on,
    until,
    users_of_its_own,
)
from tests.stack.probes import CONNECT, from_network

pytestmark = pytest.mark.ci


@pytest.fixture(scope="module")
def bundled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Edge]:
    """Deploy a stack with the bundled Traefik and the generated password."""
    deployment = Deployment(tmp_path_factory.mktemp("bundled"), "dev")
    network = deployment.name("sso")
    port = free_port()
    deployment.set("hostname", HOSTNAME)
    deployment.set("server", {"workers": 2, "memoryMb": 1024})
    deployment.set("authentication", "password")
    deployment.set(
        "traefik", {"mode": "bundled", "bindAddress": "127.0.0.1", "httpPort": free_port(), "httpsPort": port}
    )
    deployment.use(deployment.any_store)
    deployment.set("images.traefik", {"ref": image("traefik")})
    deployment.api.create_network(network)
    try:
        deployment.make("up")
        edge = Edge(deployment, Listener(port), network)
        edge.opened()
        yield edge
    finally:
        deployment.remove()
        deployment.api.remove_network(network)


def test_the_bundled_traefik_requires_the_generated_password(bundled: Edge) -> None:
    listener, password = bundled.listener, bundled.password
    for headers in ({}, PAGE, COOKIE, basic("mlflow", "wrong"), basic("admin", password)):
        answer = listener.ask("/", **headers)
        assert answer.status == 401
        assert answer.headers["WWW-Authenticate"] == 'Basic realm="MLflow"'
    mine = basic("mlflow", password)
    assert listener.ask("/", **PAGE, **mine).status == 200
    assert bundled.deployment.make("url").stdout.strip() == listener.url
    origin = {"Origin": listener.url, "Content-Type": "application/json"}
    search = "/ajax-api/2.0/mlflow/experiments/search"
    assert listener.ask(search, "POST", b'{"max_results": 1}', **origin, **mine).status == 200
    fails_at_the_first_call(listener)
    logs_a_run(listener, "mlflow", password)
    nothing_hidden_is_shown(bundled, **mine)


def test_the_bundled_traefik_is_hardened_and_exposes_no_dashboard(bundled: Edge) -> None:
    found = bundled.deployment.inspect("traefik")
    assert found["Config"]["User"] == "65532:65532"
    assert found["HostConfig"]["CapDrop"] == ["ALL"]
    assert not any("docker.sock" in mount["Source"] for mount in found["Mounts"])
    mine = basic("mlflow", bundled.password)
    for path in ("/dashboard/", "/api/rawdata", "/ping"):
        assert bundled.listener.ask(path, **mine, Host="traefik").status == 404
    networks = [*found["NetworkSettings"]["Networks"]]
    assert networks == [bundled.deployment.name("edge")]
    targets = [f"{bundled.deployment.name('traefik')}:{port}" for port in (8000, 8443, 8080, 8082, 80)]
    said = from_network(bundled.deployment, networks[0], CONNECT, *targets).split()
    assert said == ["open", "open", "closed", "closed", "closed"]


def test_the_bundled_traefik_compresses_scripts_and_secures_pages(bundled: Edge) -> None:
    mine = basic("mlflow", bundled.password)
    page = bundled.listener.ask("/", **PAGE, **mine)
    assert page.headers["Strict-Transport-Security"] == "max-age=31536000"
    assert page.headers["X-Frame-Options"] == "SAMEORIGIN"
    script = re.search(rb'src="(?:\./|/)?(static-files/[^"]*main[^"]*\.js)"', page.body)
    assert script, page.body
    path = f"/{script[1].decode()}"
    plain = bundled.listener.ask(path, **mine)
    packed = bundled.listener.ask(path, **mine, **{"Accept-Encoding": "gzip"})
    assert packed.headers["Content-Encoding"] == "gzip"
    assert len(packed.body) < len(plain.body) / 2


# MLflow's page asks for these in every deployment. The first two are the assistant, which Traefik hides; the third
# exists only with MLflow's own users.
MISSING_BY_DESIGN = ("3.0/mlflow/assistant/config", "3.0/mlflow/assistant/providers", "2.0/mlflow/users/current")


@pytest.mark.skipif(CHROMIUM is None, reason="needs a browser: no chromium on the PATH")
def test_a_browser_shows_a_run_its_chart_and_its_artifact(bundled: Edge) -> None:
    listener, password = bundled.listener, bundled.password
    points = 20
    run, experiment = a_run_with_an_artifact(listener, password, points)
    place = Place(bundled.deployment.inspect("traefik")["NetworkSettings"]["SandboxKey"], HTTPS_PORT)
    with tab(place, HOSTNAME, "mlflow", "wrong") as refused:
        answer = refused.page.goto(f"{listener.url}/")
        assert answer is not None
        assert answer.status == 401
    with tab(place, HOSTNAME, "mlflow", password) as opened:
        page = opened.page
        of_the_run = f"{listener.url}/#/experiments/{experiment}/runs/{run}"
        page.goto(of_the_run)
        page.get_by_text(run).first.wait_for()
        page.goto(f"{of_the_run}/model-metrics")
        page.locator(".js-plotly-plot .point").first.wait_for()
        assert page.locator(".js-plotly-plot .point").count() == points
        page.goto(f"{of_the_run}/artifacts")
        page.get_by_text(ARTIFACT_NAME).click()
        page.get_by_text(ARTIFACT.decode().strip()).wait_for()
        with page.expect_download() as download:
            page.locator("button[data-component-id*=artifactview]").click()
        assert download.value.path().read_bytes() == ARTIFACT
    expected = [f"404 {listener.url}/ajax-api/{path}" for path in MISSING_BY_DESIGN]
    assert sorted(set(opened.answers)) == sorted(expected)
    assert opened.errors == [], opened.errors


def test_plain_http_is_redirected_to_https(bundled: Edge) -> None:
    port = bundled.deployment.values["mlflow:traefik"]["httpPort"]
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("GET", "/x?y=z", headers={"Host": HOSTNAME})
    answer = connection.getresponse()
    connection.close()
    assert (answer.status, answer.headers["Location"]) == (301, f"{bundled.listener.url}/x?y=z")


@pytest.mark.long
def test_an_upload_of_more_than_a_minute_arrives(bundled: Edge) -> None:
    mine = basic("mlflow", bundled.password)
    content = os.urandom(1 << 20)
    path = "/api/2.0/mlflow-artifacts/artifacts/slow/artifact.bin"
    assert bundled.listener.ask(path, "PUT", content, 63, **mine).status == 200
    assert bundled.listener.ask(path, **mine).body == content


def test_the_bundled_traefik_drops_identity_headers_of_a_client(bundled: Edge) -> None:
    deployment, mine = bundled.deployment, basic("mlflow", bundled.password)
    server = deployment.name("server")
    edge = deployment.name("edge")
    # Replace the server, under its name, by an upstream that returns the headers that reach it.
    deployment.api.disconnect_container_from_network(server, edge)
    try:
        with single_sign_on(deployment, edge, alias=server, port=5000):
            told = until_told(bundled, mine)
    finally:
        deployment.api.connect_container_to_network(server, edge)
    bundled.opened()
    assert told["x-control"] == "here"
    assert not [name for name in told if name.startswith(("remote-", "remote_"))]
    # The server needs neither the password nor the cookies of the whole domain.
    assert not {"authorization", "cookie"} & set(told)


def until_told(edge: Edge, mine: dict[str, str]) -> dict[str, str]:
    claimed = {"Remote-User": "evil", "Remote_User": "evil", "rEmOtE_gRoUpS": "admins", "X-Control": "here"} | COOKIE

    def tells() -> bool:
        answer = edge.listener.ask("/", **claimed, **mine)
        return answer.status == 200 and b"x-control" in answer.body.lower()

    until(tells)
    return reached(edge.listener.ask("/", **claimed, **mine))


def test_the_bundled_traefik_routes_only_to_a_healthy_server(bundled: Edge) -> None:
    mine = basic("mlflow", bundled.password)
    postgres = bundled.deployment.name("postgres")
    bundled.deployment.api.pause(postgres)
    try:
        until(lambda: bundled.listener.ask("/", **PAGE, **mine).status == 503, 60)
    finally:
        bundled.deployment.api.unpause(postgres)
    until(lambda: bundled.listener.ask("/", **PAGE, **mine).status == 200, 60)


@pytest.mark.long
@pytest.mark.engine
def test_a_second_plan_with_the_bundled_traefik_is_empty(bundled: Edge) -> None:
    bundled.deployment.pulumi("preview", "--expect-no-changes")
    bundled.deployment.pulumi("preview", "--expect-no-changes", "--refresh")


@pytest.mark.long
def test_the_bundled_traefik_uses_single_sign_on(bundled: Edge) -> None:
    with single_sign_on(bundled.deployment, bundled.network) as name:
        sso = bundled_settings(bundled) | {
            "forwardAuth": f"http://{name}:9091/api/authz/forward-auth",
            "forwardAuthNetwork": bundled.network,
        }
        bundled.change("singleSignOn", **sso)
        listener = bundled.listener
        assert asked_to_log_in(listener.ask("/", **PAGE))
        let_in(bundled, **COOKIE)
        nobody_is_redirected(listener)
        assert listener.ask("/", **PAGE, **basic("alice", "wrong")).status == 401
        fails_at_the_first_call(listener)
        logs_a_run(listener, "alice", "alice-secret-password")
        nothing_hidden_is_shown(bundled, **COOKIE)
        bundled.change("singleSignOnAndPassword", **sso)
        assert asked_to_log_in(listener.ask("/", **PAGE))
        let_in(bundled, **COOKIE)
        nobody_is_redirected(listener)
        assert listener.ask(SEARCH, **ALICE).status == 401
        logs_a_run(listener, "mlflow", bundled.password)


@pytest.mark.long
def test_mlflow_users_authenticate_behind_the_bundled_traefik(bundled: Edge) -> None:
    bundled.change("mlflow", **bundled_settings(bundled))
    users_of_its_own(bundled)
    old = bundled.password
    bundled.deployment.set_secret("adminPassword", "another-password-of-the-admin")
    bundled.deployment.make("up")
    bundled.opened()
    # A worker remembers a correct password for 60 s, as docs/operations/rotate.md says.
    until(lambda: bundled.listener.ask(SEARCH, **basic("admin", old)).status == 401, 70)
    assert bundled.listener.ask(SEARCH, **basic("admin", "another-password-of-the-admin")).status == 200
    # An unreachable database stops the routing, although the server still answers 401 without credentials.
    postgres = bundled.deployment.name("postgres")
    bundled.deployment.api.pause(postgres)
    try:
        until(lambda: bundled.listener.ask("/").status == 503, 60)
    finally:
        bundled.deployment.api.unpause(postgres)
    bundled.opened()


def bundled_settings(edge: Edge) -> dict[str, object]:
    keys = ("mode", "bindAddress", "httpPort", "httpsPort")
    return {key: edge.deployment.values["mlflow:traefik"][key] for key in keys}


@pytest.mark.long
def test_the_bundled_traefik_can_store_acme_certificates(bundled: Edge) -> None:
    # An unreachable certificate authority is sufficient: Traefik opens its certificate store before the first request.
    acme = {"certificate": "acme", "acmeEmail": "ops@example.com", "acmeServer": "https://127.0.0.1:9/directory"}
    bundled.deployment.set_secret("acmeDnsToken", "no-token-of-cloudflare")
    bundled.change("password", **bundled_settings(bundled), **acme)
    log = bundled.deployment.make("logs", SERVICE="traefik").stdout
    assert "permission denied" not in log
    assert "nonexistent certificate resolver" not in log
    assert bundled.deployment.inspect("traefik")["HostConfig"]["CapDrop"] == ["ALL"]


@pytest.mark.long
def test_the_bundled_traefik_serves_a_configured_certificate(bundled: Edge, tmp_path: Path) -> None:
    certificate, key = a_certificate(tmp_path)
    bundled.deployment.set_secret("tlsCertificate", certificate.read_text())
    bundled.deployment.set_secret("tlsKey", key.read_text())
    bundled.change("password", **bundled_settings(bundled), certificate="own")
    context = ssl.create_default_context(cafile=str(certificate))
    with (
        socket.create_connection(("127.0.0.1", bundled.listener.port)) as plain,
        context.wrap_socket(plain, server_hostname=HOSTNAME) as secured,
    ):
        assert secured.version() == "TLSv1.3"
    assert "INSECURE" not in bundled.deployment.make("client").stdout
