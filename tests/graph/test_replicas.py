"""Test the replicas of the server: what is equal, what is their own, and how a change reaches them."""

import json
from typing import Any

import pytest

from tests.graph.conftest import bundled
from tests.graph.mocked import Graph, build, values_of
from tests.graph.test_program import depends

REPLICAS = ("server", "server-2", "server-3")
OWN = {"MLFLOW_SERVER_ALLOWED_HOSTS"}
"""Variables that name the replica."""
NAME = "mlflow-prod-server"


def with_replicas(values: dict[str, Any], number: int = 3, **server: object) -> dict[str, Any]:
    return values | {
        "mlflow:server": {**values.get("mlflow:server", {}), "replicas": number, **server},
        "mlflow:postgres": {**values.get("mlflow:postgres", {}), "maxConnections": 500},
    }


@pytest.fixture(scope="module", params=["bundled", "existing"])
def graph(request: pytest.FixtureRequest) -> Graph:
    found = build("prod", values=with_replicas(bundled() if request.param == "bundled" else values_of("prod")))
    found.proxied = request.param == "existing"
    return found


def environment(graph: Graph, name: str) -> dict[str, str]:
    return dict(entry.partition("=")[::2] for entry in graph.services[name].plain["envs"])


def routes(graph: Graph) -> dict[str, Any]:
    uploads = graph.writers["traefik-files"].plain["uploads"]
    content = next(entry["content"] for entry in uploads if entry["file"].endswith("routes.yml"))
    found: dict[str, Any] = json.loads(content)["http"]
    return found


def test_there_is_a_service_for_each_replica(graph: Graph) -> None:
    assert {name for name in graph.services if name.startswith("server")} == set(REPLICAS)


def files(graph: Graph, replica: str) -> dict[str, str]:
    """Return the files of a replica, except the certificate for its own name and its key."""
    uploads = graph.writers[f"{replica}-files"].plain["uploads"]
    return {entry["file"]: entry["content"] for entry in uploads if "/internal-" not in entry["file"]}


@pytest.mark.parametrize("name", REPLICAS[1:])
def test_the_replicas_have_the_same_keys_image_and_configuration(graph: Graph, name: str) -> None:
    first, other = graph.services["server"].plain, graph.services[name].plain
    for key in ("image", "command", "memory", "cpus", "healthcheck", "stopTimeout", "tmpfs", "user"):
        assert first.get(key) == other.get(key), key
    ours, theirs = environment(graph, "server"), environment(graph, name)
    assert {key: value for key, value in ours.items() if key not in OWN} == {
        key: value for key, value in theirs.items() if key not in OWN
    }
    assert files(graph, "server") == files(graph, name)


def test_each_replica_accepts_its_own_name_only(graph: Graph) -> None:
    """A list of all names would replace every replica when their number changes."""
    for name in REPLICAS:
        allowed = environment(graph, name)["MLFLOW_SERVER_ALLOWED_HOSTS"].split(",")
        assert [host for host in allowed if host.startswith(NAME) and ":" not in host] == [f"mlflow-prod-{name}"]


def test_the_replicas_share_no_volume(graph: Graph) -> None:
    used = [entry["volumeName"] for name in REPLICAS for entry in graph.services[name].plain["volumes"]]
    assert len(used) == len(set(used))


@pytest.mark.parametrize(("later", "earlier"), [("server-2", "server"), ("server-3", "server-2")])
def test_a_replica_and_its_files_change_when_the_one_before_serves_again(
    graph: Graph, later: str, earlier: str
) -> None:
    assert depends(graph, later, earlier)
    assert depends(graph, f"{later}-files", earlier)
    # A volume is replaced, and its containers deleted first, if the names of the files change.
    volume = next(found for found in graph.resources if found.name == f"{later}-secrets")
    assert graph.services[earlier].urn in volume.request.dependencies


def test_traefik_restarts_when_every_replica_is_ready() -> None:
    """Its files come last as well: a change of them deletes the old Traefik."""
    graph = build("prod", values=with_replicas(bundled()))
    assert depends(graph, "traefik", "server-3")
    assert depends(graph, "traefik-files", "server-3")


def test_a_replica_that_stops_leaves_the_balance_first(graph: Graph) -> None:
    """In this time, the proxy has sent at least one health check that failed."""
    for name in REPLICAS:
        leave = int(environment(graph, name)["LEAVE_SECONDS"])
        assert leave >= 2 + 4, "shorter than the interval and the time-out of the proxy's health check"
        assert graph.services[name].plain["stopTimeout"] == leave + 20 + 10


def test_a_single_server_stops_at_once() -> None:
    graph = build("prod", values=bundled())
    assert "LEAVE_SECONDS" not in environment(graph, "server")
    assert graph.services["server"].plain["stopTimeout"] == 20 + 10


def test_requests_in_flight_have_the_time_that_is_set() -> None:
    graph = build("prod", values=with_replicas(bundled(), drainSeconds=900))
    traefik = graph.services["traefik"].plain
    assert traefik["stopTimeout"] == 900 + 10, "Traefik would cut off what the server waits for"
    assert "--timeout-graceful-shutdown 900" in environment(graph, "server-2")["MLFLOW_UVICORN_OPTS"]
    assert graph.services["server-2"].plain["stopTimeout"] == 6 + 900 + 10


def test_the_server_keeps_idle_connections_longer_than_traefik(graph: Graph) -> None:
    """Otherwise a request that Traefik sends while the server closes the connection fails."""
    options = environment(graph, "server")["MLFLOW_UVICORN_OPTS"].split()
    assert int(options[options.index("--timeout-keep-alive") + 1]) > 90


def test_the_bundled_traefik_balances_between_all_replicas() -> None:
    balancer = routes(build("prod", values=with_replicas(bundled())))["services"][f"{NAME}-ready"]["loadBalancer"]
    assert [server["url"] for server in balancer["servers"]] == [
        f"https://mlflow-prod-{name}:5000" for name in REPLICAS
    ]
    check = balancer["healthCheck"]
    assert (check["interval"], check["timeout"], check["hostname"]) == ("2s", "4s", "localhost")
    assert check["headers"] == {"X-Health-Check": "proxy"}


def test_a_slow_health_check_during_a_change_does_not_take_the_last_replica_away() -> None:
    """Traefik answers HTTP 503 itself if its health check finds no server ready."""
    services = routes(build("prod", values=with_replicas(bundled())))["services"]
    assert services[NAME] == {"failover": {"service": f"{NAME}-ready", "fallback": f"{NAME}-all"}}
    every, ready = (services[f"{NAME}-{which}"]["loadBalancer"] for which in ("all", "ready"))
    assert every["servers"] == ready["servers"]
    assert "healthCheck" not in every
    assert every["serversTransport"] == ready["serversTransport"]


def test_traefik_tries_another_replica_after_it_has_authenticated() -> None:
    """A request without a connection has reached no server; as the last middleware, it repeats no other's answer."""
    found = routes(build("prod", values=with_replicas(bundled())))
    assert found["middlewares"][f"{NAME}-retry"]["retry"]["attempts"] > 16, "there may be so many replicas"
    for router in found["routers"].values():
        assert router["middlewares"][-1] == f"{NAME}-retry"


def test_a_single_server_has_no_retries() -> None:
    found = routes(build("prod", values=bundled()))
    assert f"{NAME}-retry" not in found["middlewares"]
    assert found["services"][NAME]["loadBalancer"]["healthCheck"]["interval"] == "5s"


def test_an_existing_traefik_finds_the_same_routes_on_every_replica() -> None:
    """It drops a router that two containers define differently."""
    graph = build("prod", values=with_replicas(values_of("prod")))
    labels = [
        {key: value for key, value in graph.services[name].labels.items() if key.startswith("traefik.")}
        for name in REPLICAS
    ]
    assert labels[0] == labels[1] == labels[2]
    check = f"traefik.http.services.{NAME}.loadbalancer.healthcheck"
    assert labels[0][f"{check}.interval"] == "2s"
    assert labels[0][f"{check}.headers.X-Health-Check"] == "proxy"


def test_other_routes_have_another_label() -> None:
    def label(**traefik: object) -> str:
        values = values_of("prod")
        values["mlflow:traefik"] = {**values["mlflow:traefik"], **traefik}
        found: str = build("prod", values=with_replicas(values)).services["server-2"].labels["mlflow.together"]
        return found

    assert label() == label() != label(entryPoint="other")


def test_what_replicas_must_have_in_common_has_another_label_behind_the_bundled_traefik() -> None:
    def label(secrets: dict[str, str] | None = None, values: dict[str, Any] | None = None) -> str:
        graph = build("prod", values=with_replicas(bundled() | (values or {})), secrets=secrets or {})
        found: str = graph.services["server-2"].labels["mlflow.together"]
        return found

    own_users = {"mlflow:authentication": "mlflow"}
    another_password = {"minioPassword": "another-password-of-the-object-store"}
    to_the_database = {"postgresPassword": "another-password-of-the-database"}
    # The health check expects another answer, and the object store and the database accept one password each.
    assert len({label(), label(values=own_users), label(another_password), label(to_the_database)}) == 4
    warning = {"mlflow:server": {"logLevel": "warning"}}
    assert label() == label(values=warning)


def test_a_single_server_has_no_such_label() -> None:
    assert "mlflow.together" not in build("prod", values=bundled()).services["server"].labels


def test_every_replica_is_monitored() -> None:
    graph = build(
        "prod",
        values=with_replicas(bundled() | {"mlflow:monitoring": {"mode": "bundled", "webhook": True}}),
        secrets={"alertWebhookUrl": "http://alerts.example.com/x"},
    )
    uploads = graph.writers["prometheus-files"].plain["uploads"]
    content = next(entry["content"] for entry in uploads if entry["file"].endswith("prometheus.yml"))
    scraped = json.loads(content)["scrape_configs"]
    names = [entry["job_name"] for entry in scraped]
    assert len(names) == len(set(names)), "Prometheus refuses two jobs with one name"
    for job in ("mlflow", "readiness"):
        found = [entry["static_configs"][0]["labels"] for entry in scraped]
        assert [labels["instance"] for labels in found if labels["job"] == job] == list(REPLICAS)
