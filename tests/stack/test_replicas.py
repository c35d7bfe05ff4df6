"""Test replicas under a steady load: a change, a kill and a pause cost no request but those in flight."""

import json
import time
from collections.abc import Iterator

import pytest

from components.route import HEALTH_CHECK_SECONDS
from components.server import IN_BALANCE
from operations.engine import cli
from tests.stack.deployment import Deployment, free_port
from tests.stack.edge import HOSTNAME, SEARCH, Edge, Listener, basic, image, operators_traefik, until
from tests.stack.load import Load
from tests.stack.rotations import UNTRIED, proofs
from tests.stack.writer import Writer

# The certificates of the tests are self-signed.
pytestmark = [pytest.mark.ci, pytest.mark.filterwarnings("ignore:Unverified HTTPS request")]
SERVERS = ("server", "server-2")
START_SECONDS = 180
"""How long a server may take to start beside the load, as in components/server.py."""
KILL_ALL = "import os; os.kill(-1, 9)"
"""Kills every process of a container but its first, which ends with them."""


def replicated(deployment: Deployment, **server: object) -> Edge:
    """Set two replicas behind the bundled Traefik."""
    port = free_port()
    deployment.set("hostname", HOSTNAME)
    deployment.set("server", {"replicas": 2, "workers": 2, "memoryMb": 1024, **server})
    deployment.set("authentication", "password")
    deployment.set(
        "traefik", {"mode": "bundled", "bindAddress": "127.0.0.1", "httpPort": free_port(), "httpsPort": port}
    )
    deployment.use(deployment.any_store)
    deployment.set("images.traefik", {"ref": image("traefik")})
    return Edge(deployment, Listener(port), "")


@pytest.fixture(scope="module")
def edge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Edge]:
    deployment = Deployment(tmp_path_factory.mktemp("replicas"), "dev")
    found = replicated(deployment)
    try:
        deployment.make("up")
        found.opened()
        yield found
    finally:
        deployment.remove()


@pytest.fixture(scope="module")
def proxied(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Edge]:
    """Deploy two replicas behind an existing Traefik, which finds them by their labels."""
    deployment = Deployment(tmp_path_factory.mktemp("labelled"), "dev")
    network = deployment.name("proxy")
    replicated(deployment)
    deployment.set("traefik", {"mode": "existing", "network": network})
    deployment.api.create_network(network)
    try:
        with operators_traefik(deployment, network) as listener:
            deployment.make("up")
            found = Edge(deployment, listener, network)
            found.opened()
            yield found
    finally:
        deployment.remove()
        deployment.api.remove_network(network)


def load(edge: Edge, *, light: int = 3, heavy: int = 1) -> Load:
    return Load(edge.listener.port, HOSTNAME, edge.password, upload_mb=10, light=light, heavy=heavy)


def ids(edge: Edge) -> list[str]:
    return [edge.deployment.inspect(server)["Id"] for server in SERVERS]


def in_balance(edge: Edge, server: str) -> bool:
    return edge.deployment.run(server, "sh", "-c", IN_BALANCE)[0] == 0


def pid(edge: Edge, server: str) -> int:
    found: int = edge.deployment.inspect(server)["State"]["Pid"]
    return found


def test_a_change_replaces_one_replica_after_another_without_a_failed_request(edge: Edge) -> None:
    before = ids(edge)
    with load(edge) as sent:
        sent.until(100, 30)
        edge.deployment.set("server.logLevel", "warning")
        edge.deployment.make("up")
        sent.until(100, 30)
    assert not set(before) & set(ids(edge)), "a replica was not replaced, so this test has tested nothing"
    assert sent.failures == []
    assert sent.counts["log batch"] > 50
    assert sent.counts["upload"] > 0
    assert sent.lost() == []
    assert all(in_balance(edge, server) for server in SERVERS)


def test_requests_are_served_although_every_health_check_fails(edge: Edge) -> None:
    """As on a host so busy that the only replica that is not being replaced answers a health check too late."""
    draining = "/run/mlflow/draining"
    try:
        for server in SERVERS:
            edge.deployment.run(server, "touch", draining)
        time.sleep(3 * HEALTH_CHECK_SECONDS)
        with load(edge) as sent:
            sent.until(100, 30)
    finally:
        for server in SERVERS:
            edge.deployment.run(server, "rm", draining)
    assert sent.failures == []
    until(lambda: all(in_balance(edge, server) for server in SERVERS), 30)


@pytest.mark.long
def test_a_new_image_without_a_migration_is_a_rolling_change(edge: Edge) -> None:
    before = ids(edge)
    script = edge.deployment.checkout / "mlflow" / "healthcheck.py"
    script.write_text(script.read_text() + "\n# another image\n")
    with load(edge) as sent:
        edge.deployment.make("up")
    assert not set(before) & set(ids(edge))
    assert sent.failures == []
    assert sent.lost() == []


@pytest.mark.long
def test_a_replica_that_does_not_start_leaves_the_others_serving(edge: Edge) -> None:
    script = edge.deployment.checkout / "mlflow" / "serve.py"
    works = script.read_text()
    script.write_text('raise SystemExit("broken on purpose")\n')
    before = ids(edge)
    with load(edge) as sent:
        said = edge.deployment.make("up", ok=False)
        sent.until(50, 30)
    assert "broken on purpose" in said.stdout + said.stderr
    assert ids(edge)[1] == before[1], "the second replica was replaced before the first one was ready"
    assert sent.failures == []
    script.write_text(works)
    with load(edge) as sent:
        edge.deployment.make("up")
    assert sent.failures == []
    edge.deployment.make("status")


@pytest.mark.long
def test_a_killed_replica_costs_the_requests_in_flight_only(edge: Edge) -> None:
    with load(edge) as sent:
        sent.until(100, 30)
        before = pid(edge, "server-2")
        edge.deployment.run("server-2", "python", "-c", KILL_ALL)
        until(lambda: pid(edge, "server-2") not in (0, before), START_SECONDS)
        until(lambda: in_balance(edge, "server-2"), START_SECONDS)
        sent.until(100, 30)
    assert len(sent.failures) <= 3 + 1, "more requests failed than were in flight"
    assert sent.lost() == []


@pytest.mark.long
def test_a_paused_replica_leaves_the_balance(edge: Edge) -> None:
    api, paused = edge.deployment.api, edge.deployment.name("server-2")
    with load(edge, heavy=0) as sent:
        sent.until(50, 30)
        api.pause(paused)
        try:
            # One health check every two seconds, with a time-out of four.
            time.sleep(8)
            # The requests that hang in the paused replica hold as many threads of the client.
            quick = load(edge, light=2, heavy=0)
            with quick:
                quick.until(100, 30)
        finally:
            api.unpause(paused)
        sent.until(50, 30)
    assert quick.failures == []
    assert max(seconds for kind in quick.times.values() for seconds in kind) < 10
    assert sent.failures == [], "a request that the replica has is answered when it goes on"
    assert sent.lost() == []


def test_a_second_plan_with_replicas_is_empty(edge: Edge) -> None:
    if cli.find_cli() is None:
        pytest.skip("needs the engine: no pulumi on the PATH")
    assert edge.deployment.plan() == {}
    edge.deployment.pulumi("preview", "--refresh", "--expect-no-changes")


def test_status_and_logs_show_every_replica(edge: Edge) -> None:
    found = json.loads(edge.deployment.make("status", JSON="1").stdout)
    states = {entry["name"]: entry["state"] for entry in found["services"]}
    assert [states[edge.deployment.name(server)] for server in SERVERS] == ["healthy", "healthy"]
    printed = edge.deployment.make("logs").stdout
    assert all(f"==> {edge.deployment.name(server)}\n" in printed for server in SERVERS)


@pytest.mark.long
def test_the_number_of_replicas_changes_without_touching_the_others(edge: Edge) -> None:
    edge.deployment.set("server.replicas", 3)
    said = edge.deployment.make("up", ok=False)
    assert "mlflow:postgres.maxConnections: must be at least 115" in said.stdout + said.stderr
    edge.deployment.set("server.workers", 1)
    edge.deployment.set("server.replicas", 2)
    edge.deployment.make("up")
    before = ids(edge)
    edge.deployment.set("server.replicas", 3)
    edge.deployment.make("up")
    edge.deployment.set("server.replicas", 2)
    edge.deployment.make("up")
    assert ids(edge) == before
    assert edge.deployment.name("server-3") not in edge.deployment.containers()
    assert not [name for name in edge.deployment.api.volumes()["Volumes"] if "server-3" in name["Name"]]


@pytest.mark.long
@pytest.mark.engine
def test_every_secret_is_rotated_with_replicas_while_a_client_writes(edge: Edge) -> None:
    before = ids(edge)

    def password() -> str:
        return edge.deployment.make("password").stdout.strip()

    with Writer(f"https://127.0.0.1:{edge.listener.port}", HOSTNAME, "mlflow", password) as writer:
        time.sleep(3)
        proved = proofs(edge.deployment.make("rotate").stdout)
        time.sleep(5)
    edge.opened()
    untried = {key for key, found in proved.items() if found[0].startswith("not tried")}
    assert untried == {*UNTRIED, "traefikCertificateKey"}
    assert {proved[key] for key in set(proved) - untried} == {("refused", "accepted")}
    assert {"postgresPassword", "clientPassword"} <= set(proved)
    assert not set(before) & set(ids(edge))
    assert len(writer.runs) > 10
    assert writer.writes, "the client never came back"
    assert writer.lost() == []
    assert sum(end - start for start, end in writer.away) < 180
    assert edge.deployment.plan() == {}


@pytest.mark.long
def test_behind_an_existing_traefik_a_change_and_a_kill_cost_as_little(proxied: Edge) -> None:
    before = ids(proxied)
    with load(proxied) as sent:
        proxied.deployment.set("server.logLevel", "warning")
        proxied.deployment.make("up")
    assert not set(before) & set(ids(proxied))
    assert sent.failures == []
    assert sent.lost() == []
    with load(proxied) as sent:
        sent.until(50, 30)
        proxied.deployment.run("server", "python", "-c", KILL_ALL)
        until(lambda: in_balance(proxied, "server"), START_SECONDS)
        sent.until(50, 30)
    assert len(sent.failures) <= 3 + 1
    assert sent.lost() == []


@pytest.mark.long
def test_another_password_at_an_existing_traefik_replaces_all_replicas_at_once(proxied: Edge) -> None:
    """With two passwords for one router, Traefik would drop the router until the last replica is replaced."""
    old = proxied.password
    proxied.deployment.set_secret("clientPassword", "another-password-of-forty-eight-characters-12345")
    proxied.deployment.make("up")
    proxied.opened()
    assert proxied.listener.ask(SEARCH, **basic("mlflow", old)).status == 401
    new = basic("mlflow", proxied.password)
    until(lambda: all(in_balance(proxied, server) for server in SERVERS), START_SECONDS)
    assert {proxied.listener.ask(SEARCH, **new).status for _ in range(20)} == {200}


@pytest.mark.long
def test_another_form_key_of_mlflows_users_is_a_rolling_change(proxied: Edge) -> None:
    deployment = proxied.deployment
    deployment.set("authentication", "mlflow")
    # Its users have connections of their own.
    deployment.set("server.workers", 1)
    deployment.make("up")
    proxied.opened()
    admin = deployment.credentials()["adminPassword"]
    before = ids(proxied)
    deployment.set_secret("flaskSecretKey", "0123456789abcdef0123456789abcdef0123456789abcdef")
    sent = Load(proxied.listener.port, HOSTNAME, admin, user="admin", upload_mb=10, light=3)
    with sent:
        deployment.make("up")
    assert not set(before) & set(ids(proxied))
    assert sent.failures == []
    assert sent.lost() == []
