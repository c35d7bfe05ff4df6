"""Test the ingress by an existing Traefik: authentication, redirects, hidden paths, and `make doctor`."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from components.certificates import CertificateAuthority
from tests.stack.deployment import NO_DIGESTS, Deployment
from tests.stack.edge import (
    ALICE,
    BESIDE,
    COOKIE,
    HOSTNAME,
    PAGE,
    SEARCH,
    Edge,
    asked_to_log_in,
    basic,
    fails_at_the_first_call,
    image,
    let_in,
    logs_a_run,
    nobody_is_redirected,
    nothing_hidden_is_shown,
    operators_traefik,
    reached,
    single_sign_on,
    trust_the_authority,
    until,
    users_of_its_own,
)
from tests.stack.probes import CONNECT, from_network
from tests.stack.test_faults import refused

pytestmark = pytest.mark.ci


def existing(edge: Edge, *middlewares: str) -> dict[str, object]:
    ours = {"mode": "existing", "network": edge.network, "serversTransport": "mlflow-prod@file"}
    return {**ours, "middlewares": list(middlewares)}


@pytest.fixture(scope="module")
def proxied(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Edge]:
    """Deploy the settings of prod behind an existing Traefik with single sign-on, as `make up STACK=prod` does."""
    deployment = Deployment(tmp_path_factory.mktemp("edge"), "prod")
    network = deployment.name("proxy")
    deployment.set("traefik.network", network)
    deployment.set("hostname", HOSTNAME)
    deployment.set("images", NO_DIGESTS)
    deployment.set("server", {"workers": 1, "memoryMb": 1024})
    deployment.set("backup.enabled", value=False)
    deployment.set("protectData", "false")
    deployment.use(deployment.any_store)
    deployment.api.create_network(network)
    try:
        with (
            operators_traefik(deployment, network) as listener,
            single_sign_on(deployment, network),
        ):
            deployment.make("up")
            edge = Edge(deployment, listener, network)
            without = listener.ask("/", **ALICE).status, deployment.make("doctor", ok=False).stderr
            trust_the_authority(deployment, authority=CertificateAuthority.derived("other", "x" * 32).certificate)
            until(lambda: listener.ask("/", **ALICE).status == 503)
            with_another = listener.ask("/", **ALICE).status, deployment.make("doctor", ok=False).stderr
            before_trust.extend([without, with_another])
            trust_the_authority(deployment)
            # Not `opened()`: the single sign-on also answers while Traefik still has the earlier file, and Traefik then
            # may read the new one half written, which takes the route away for two seconds.
            until(lambda: listener.ask("/", **ALICE).status == 200)
            yield edge
    finally:
        deployment.remove()
        deployment.api.remove_network(network)


before_trust: list[tuple[int, str]] = []
"""What a client and the doctor got before the existing Traefik trusted the authority of the stack, and with another."""


def test_the_doctor_names_the_transport_that_an_existing_traefik_lacks(proxied: Edge) -> None:
    for status, said in before_trust:
        assert status in (404, 503)
        assert "serversTransport mlflow-prod@file" in said
        assert "docs/operations/tls.md#an-existing-traefik" in said
    assert "serversTransport" not in proxied.deployment.make("doctor", ok=False).stderr


def test_a_browser_is_redirected_to_the_login_page_and_then_admitted(proxied: Edge) -> None:
    assert asked_to_log_in(proxied.listener.ask("/", **PAGE))
    let_in(proxied, **COOKIE)
    assert proxied.listener.ask("/", **PAGE, **basic("alice", "wrong")).status == 401


def test_requests_other_than_pages_get_401_instead_of_the_login_page(proxied: Edge) -> None:
    nobody_is_redirected(proxied.listener)
    # A POST, and a request that does not accept HTML, must not be redirected either.
    assert proxied.listener.ask("/", "POST", b"", **PAGE).status == 401
    assert proxied.listener.ask("/").status == 401


def test_a_client_needs_the_credentials_of_the_single_sign_on(
    proxied: Edge,
) -> None:
    fails_at_the_first_call(proxied.listener)
    fails_at_the_first_call(proxied.listener, MLFLOW_TRACKING_TOKEN="nonsense")
    logs_a_run(proxied.listener, "alice", "alice-secret-password")
    assert "user and password of your single sign-on" in proxied.deployment.make("client").stdout
    assert "has no generated password" in refused(proxied.deployment, "password")


def test_metrics_and_the_assistant_are_not_reachable_through_traefik(proxied: Edge) -> None:
    nothing_hidden_is_shown(proxied, **COOKIE)
    inside = (
        "import ssl, sys, urllib.request as u; "
        "print(u.urlopen(sys.argv[1], context=ssl._create_unverified_context()).status)"
    )
    server = f"https://{proxied.deployment.name('server')}:5000/metrics"
    assert from_network(proxied.deployment, proxied.deployment.name("backend"), inside, server).strip() == "200"


def test_identity_headers_of_a_client_do_not_reach_the_server(proxied: Edge) -> None:
    claimed = {"Remote-User": "evil", "Remote_User": "evil", "rEmOtE_gRoUpS": "admins", "Remote-Email": "e@evil"}
    secrets = COOKIE | basic("alice", "alice-secret-password")
    found = reached(proxied.listener.ask("/", Host="echo.example.com", **{"X-Control": "here"}, **claimed, **secrets))
    assert found["x-control"] == "here"
    assert not {"authorization", "cookie"} & set(found)
    assert not [name for name in found if name.startswith(("remote-", "remote_"))]


@pytest.mark.long
def test_an_existing_traefik_does_not_route_to_an_unhealthy_server(proxied: Edge) -> None:
    postgres = proxied.deployment.name("postgres")
    proxied.deployment.api.pause(postgres)
    try:
        until(lambda: proxied.listener.ask("/", **PAGE, **COOKIE).status == 404, 60)
    finally:
        proxied.deployment.api.unpause(postgres)
    until(lambda: proxied.listener.ask("/", **PAGE, **COOKIE).status == 200, 60)


@pytest.mark.long
def test_only_containers_on_the_network_of_traefik_reach_the_server(proxied: Edge) -> None:
    deployment = proxied.deployment
    server = f"{deployment.name('server')}:5000"
    assert from_network(deployment, proxied.network, CONNECT, server).split() == ["open"]
    # As in docs/security.md: a network with only Traefik and the server. Other containers stay on their network.
    alone = deployment.name("alone")
    deployment.api.create_network(alone)
    deployment.api.connect_container_to_network(deployment.name("operators-traefik"), alone)
    try:
        deployment.set("traefik.network", alone)
        deployment.make("up")
        proxied.opened()
        let_in(proxied, **COOKIE)
        assert from_network(deployment, proxied.network, CONNECT, server).split() == ["closed"]
    finally:
        deployment.set("traefik.network", proxied.network)
        deployment.make("up")
        deployment.api.disconnect_container_from_network(deployment.name("operators-traefik"), alone)
        deployment.api.remove_network(alone)
    proxied.opened()


def test_doctor_checks_the_existing_traefik(proxied: Edge) -> None:
    said = refused(proxied.deployment, "doctor")
    assert "this host does not trust the certificate: self-signed certificate" in said
    trusted = str(proxied.deployment.folder / "certificate.pem")
    done = proxied.deployment.make("doctor", ok=False, SSL_CERT_FILE=trusted)
    said = done.stdout
    # The hostname of these tests is in no DNS. That must be the only problem.
    wrong = done.stderr.partition("error: ")[2]
    assert wrong.startswith("mlflow:hostname: mlflow.example.com does not resolve on this machine")
    assert len(wrong.splitlines()) == 3, wrong
    assert f": {proxied.deployment.name('sso')}; they can bypass Traefik" in said
    assert "http.aliasHeadersStrategy is not set to delete" in said
    # A foreign label opens another route to the server: a request detects it.
    with without_asking(proxied):
        open_door = "accepts requests without credentials, but mlflow:authentication is singleSignOn"
        assert open_door in refused(proxied.deployment, "doctor", SSL_CERT_FILE=trusted)
        # `make up` checks this as well.
        assert open_door in refused(proxied.deployment)


@contextmanager
def without_asking(edge: Edge) -> Iterator[None]:
    """Add a foreign router that leads to the server without authentication, and remove it at the end of the block."""
    deployment = edge.deployment
    router = "traefik.http.routers.open"
    container = deployment.api.create_container(
        image("python"),
        command=["sleep", "600"],
        labels={
            BESIDE: deployment.stack,
            "traefik.enable": "true",
            f"{router}.rule": f"Host(`{HOSTNAME}`)",
            f"{router}.priority": "20000",
            f"{router}.tls": "true",
            f"{router}.service": f"{deployment.name('server')}@docker",
            # Without a port, Traefik ignores all labels of a container.
            "traefik.http.services.open.loadbalancer.server.port": "80",
        },
        host_config=deployment.api.create_host_config(network_mode=edge.network),
    )["Id"]
    deployment.api.start(container)
    try:
        until(lambda: edge.listener.ask(SEARCH).status == 200)
        yield
    finally:
        deployment.api.remove_container(container, force=True)
    until(lambda: edge.listener.ask(SEARCH).status == 401)


@pytest.mark.long
def test_a_single_sign_on_that_always_redirects_loses_no_artifact(proxied: Edge) -> None:
    proxied.change("singleSignOn", **existing(proxied, "rude@docker"), singleSignOn="rude@docker")
    assert asked_to_log_in(proxied.listener.ask("/", **PAGE))
    nobody_is_redirected(proxied.listener)
    fails_at_the_first_call(proxied.listener)
    # The same with a redirecting middleware although mlflow:authentication is anonymous.
    proxied.deployment.set("authentication", "anonymous")
    proxied.deployment.set("traefik", existing(proxied, "authelia@docker"))
    proxied.deployment.make("up")
    until(lambda: proxied.listener.ask(SEARCH).status == 401)
    nobody_is_redirected(proxied.listener)
    fails_at_the_first_call(proxied.listener)


@pytest.mark.long
@pytest.mark.engine
def test_a_second_plan_with_empty_and_secret_labels_is_empty(proxied: Edge) -> None:
    proxied.change("password", **existing(proxied, "secureHeaders@docker"))
    proxied.deployment.pulumi("preview", "--expect-no-changes")
    proxied.deployment.pulumi("preview", "--expect-no-changes", "--refresh")
    assert proxied.listener.ask("/", **PAGE).status == 401
    let_in(proxied, **basic("mlflow", proxied.password))


@pytest.mark.long
def test_a_route_with_a_missing_middleware_answers_404(proxied: Edge) -> None:
    missing = existing(proxied, "authelia@docker", "secureheaders@docker")
    with pytest.raises(AssertionError, match="the condition was not met"):
        proxied.change("singleSignOn", **missing, singleSignOn="authelia@docker")
    for headers in ({}, PAGE, COOKIE, ALICE):
        assert proxied.listener.ask("/", **headers).status == 404
    said = refused(proxied.deployment, "doctor")
    assert "secureheaders@docker" in said
    assert "did you mean secureHeaders@docker?" in said


@pytest.mark.long
def test_clients_with_the_client_password_bypass_single_sign_on(proxied: Edge) -> None:
    middlewares = existing(proxied, "authelia@docker", "secureHeaders@docker")
    proxied.change("singleSignOnAndPassword", **middlewares, singleSignOn="authelia@docker")
    listener, password = proxied.listener, proxied.password
    assert re.fullmatch(r"\w{32}", password)
    assert asked_to_log_in(listener.ask("/", **PAGE))
    let_in(proxied, **COOKIE)
    nobody_is_redirected(listener)
    nobody_is_redirected(listener, **basic("mlflow", "wrong"))
    # The credentials of the single sign-on do not work for clients, and vice versa.
    assert listener.ask(SEARCH, **ALICE).status == 401
    logs_a_run(listener, "mlflow", password)
    fails_at_the_first_call(listener)
    nothing_hidden_is_shown(proxied, **basic("mlflow", password))
    client = proxied.deployment.make("client").stdout
    assert "MLFLOW_TRACKING_USERNAME='mlflow'" in client
    assert password not in client


@pytest.mark.long
def test_mlflow_users_authenticate_to_mlflow(proxied: Edge) -> None:
    proxied.change("mlflow", **existing(proxied, "secureHeaders@docker"))
    users_of_its_own(proxied)
    # `make gc` has to authenticate as well.
    admin = basic("admin", proxied.password) | {"Content-Type": "application/json"}
    made = proxied.listener.ask("/api/2.0/mlflow/runs/create", "POST", b'{"experiment_id": "0"}', **admin)
    run = json.loads(made.body)["run"]["info"]["run_id"]
    deleted = proxied.listener.ask("/api/2.0/mlflow/runs/delete", "POST", json.dumps({"run_id": run}).encode(), **admin)
    assert deleted.status == 200
    proxied.deployment.make("gc", CONFIRM=proxied.deployment.stack, OLDER_THAN="0s")
    assert proxied.listener.ask(f"/api/2.0/mlflow/runs/get?run_id={run}", **admin).status == 404
