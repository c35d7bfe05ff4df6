"""Test the server as a Swarm service: hardening, files, placement, updates, networks, monitoring."""

import base64
import json
from typing import Any

import pytest

from policy.rules import RULES, SERVICE
from policy.rules import Resource as Checked
from tests.graph.conftest import bundled, watched
from tests.graph.mocked import Graph, Resource, build, values_of

NAME = "mlflow-prod-server"
SECRET, CONTAINER, NETWORK = (
    "docker:index/secret:Secret",
    "docker:index/container:Container",
    "docker:index/network:Network",
)
ON_SWARM = {"mlflow:runtime": "swarm"}


def on_swarm(values: dict[str, Any], **server: object) -> dict[str, Any]:
    return (
        values
        | ON_SWARM
        | {
            "mlflow:server": {**values.get("mlflow:server", {}), "replicas": 3, **server},
            "mlflow:postgres": {**values.get("mlflow:postgres", {}), "maxConnections": 500},
        }
    )


@pytest.fixture(scope="module", params=["bundled", "existing"])
def graph(request: pytest.FixtureRequest) -> Graph:
    # A plan, because the readiness checks of an update would ask a cluster.
    return build("prod", values=on_swarm(bundled() if request.param == "bundled" else values_of("prod")), preview=True)


@pytest.fixture(scope="module")
def monitored() -> Graph:
    secrets = {"alertWebhookUrl": "http://alerts.example.com/x"}
    return build("prod", values=on_swarm(watched()), secrets=secrets, preview=True)


def service(graph: Graph) -> Resource:
    return graph.named(SERVICE, "server")


def container(graph: Graph) -> dict[str, Any]:
    found: dict[str, Any] = service(graph).plain["taskSpec"]["containerSpec"]
    return found


def test_all_replicas_are_tasks_of_one_service(graph: Graph) -> None:
    assert service(graph).plain["mode"] == {"replicated": {"replicas": 3}}
    assert service(graph).plain["name"] == NAME
    assert not any(name.startswith("server") for name in graph.services), "there is a container beside the tasks"


def test_a_task_is_hardened_as_a_container_is(graph: Graph) -> None:
    found = service(graph)
    checked = Checked(type=SERVICE, name="server", stack="prod", props=found.plain)
    assert {rule.name: list(rule.broken(checked)) for rule in RULES if rule.type == SERVICE} == {
        rule.name: [] for rule in RULES if rule.type == SERVICE
    }
    assert container(graph)["commands"] == ["setpriv", "--no-new-privs", "docker-entrypoint.sh"]
    assert container(graph)["args"] == ["server"]
    assert found.plain["taskSpec"]["resources"]["limits"] == {"memoryBytes": 4096 * 2**20, "nanoCpus": 2_000_000_000}


def test_a_task_has_the_environment_of_a_replica_on_one_host() -> None:
    there = build("prod", values=on_swarm(bundled()) | {"mlflow:runtime": "container"}).services["server"].envs
    ours = container(build("prod", values=on_swarm(bundled()), preview=True))["env"]
    assert {key: value for key, value in ours.items() if key not in ("STACK_REVISION", "HEALTHCHECK_LIVENESS")} == there


def test_the_image_is_named_so_that_every_node_knows_it(graph: Graph) -> None:
    assert (
        container(graph)["image"] == graph.named("docker:index/remoteImage:RemoteImage", "mlflow-image").plain["name"]
    )


def test_each_secret_is_a_file_of_the_cluster_at_the_same_path(graph: Graph) -> None:
    paths = {entry["fileName"]: entry for entry in container(graph)["secrets"]}
    files = {entry["file"] for entry in graph.writers["server-files"].plain["uploads"]}
    assert set(paths) == files >= {"/run/secrets/pgpass", "/run/secrets/aws-credentials"}
    assert {(entry["fileUid"], entry["fileGid"], entry["fileMode"]) for entry in paths.values()} == {("0", "0", 0o444)}


def test_a_secret_of_the_cluster_is_secret_in_the_state_and_equal_to_the_file(graph: Graph) -> None:
    uploads = {
        entry["file"].rpartition("/")[2]: entry["content"] for entry in graph.writers["server-files"].plain["uploads"]
    }
    for secret in graph.of(SECRET):
        assert base64.b64decode(secret.plain["data"]).decode() in uploads.values()
        assert secret.inputs["data"] != secret.plain["data"], "in the state in plain text"
        assert "name" not in secret.plain, (
            "a fixed name could not exist twice, and the old one is used until the update"
        )
        assert len(secret.name) <= 56


def test_new_tasks_start_before_old_ones_stop_and_a_broken_update_is_rolled_back(graph: Graph) -> None:
    update = service(graph).plain["updateConfig"]
    assert (update["order"], update["failureAction"], update["parallelism"]) == ("start-first", "rollback", 1)
    assert service(graph).plain["rollbackConfig"]["failureAction"] == "pause"


def test_tasks_are_found_by_name_without_the_ingress_network(graph: Graph) -> None:
    assert service(graph).plain["endpointSpec"] == {"mode": "dnsrr"}


def test_a_task_that_stops_still_serves_until_no_more_requests_come() -> None:
    env = container(build("prod", values=on_swarm(bundled()), preview=True))
    assert (env["env"]["LEAVE_SECONDS"], env["stopGracePeriod"]) == ("6", "36s")
    assert "STAY_SECONDS" not in env["env"], "the bundled Traefik finds a new task by its name at once"


def test_behind_an_existing_traefik_it_serves_until_traefik_has_asked_for_the_tasks_again() -> None:
    """Traefik's Swarm provider asks every 15 s."""
    env = container(build("prod", values=on_swarm(values_of("prod")), preview=True))
    assert int(env["env"]["STAY_SECONDS"]) > 15
    assert env["stopGracePeriod"] == "52s", "16 + 6 + 20 + 10"


def test_a_task_that_was_ready_once_is_not_stopped_because_the_database_is_away(graph: Graph) -> None:
    """Swarm stops a task that is not healthy. A container on one host is only marked."""
    assert container(graph)["env"]["HEALTHCHECK_LIVENESS"] == "1"
    assert "HEALTHCHECK_LIVENESS" not in build("prod", values=bundled()).services["server"].envs


def test_a_node_takes_no_more_tasks_than_its_memory_holds(graph: Graph) -> None:
    resources = service(graph).plain["taskSpec"]["resources"]
    assert resources["reservation"]["memoryBytes"] == resources["limits"]["memoryBytes"] == 4096 * 2**20


def test_the_networks_of_the_tasks_are_on_every_node_and_encrypted(graph: Graph) -> None:
    for network in graph.of(NETWORK):
        assert (network.plain["driver"], network.plain["attachable"]) == ("overlay", True)
        assert network.plain["options"] == {"encrypted": ""}


def test_the_networks_of_the_other_runtime_are_other_resources_with_other_names(graph: Graph) -> None:
    """A network is in use until the old servers are deleted, which is last. The new one must exist before."""
    here = {(network.name, network.plain["name"]) for network in graph.of(NETWORK)}
    there = {(network.name, network.plain["name"]) for network in build("prod", values=bundled()).of(NETWORK)}
    assert ("backend-encrypted", "mlflow-prod-backend-encrypted") in here
    assert ("backend", "mlflow-prod-backend") in there
    assert not {name for pair in here for name in pair} & {name for pair in there for name in pair}


def test_a_network_with_another_subnet_is_another_resource() -> None:
    """Docker refuses to remove a network that a Swarm service uses, and Pulumi would remove it first."""
    values = on_swarm(bundled()) | {"mlflow:networks": {"subnets": {"backend": "10.214.0.0/26"}}}
    graph = build("prod", values=values, preview=True)
    network = next(found for found in graph.of(NETWORK) if found.name.startswith("backend"))
    assert network.name == "backend-encrypted-10-214-0-0-26"
    assert network.plain["name"] == "mlflow-prod-backend-encrypted-10-214-0-0-26"
    here = build("prod", values=bundled() | {"mlflow:networks": {"subnets": {"backend": "10.214.0.0/26"}}})
    assert "mlflow-prod-backend" in {found.plain["name"] for found in here.of(NETWORK)}


def test_a_network_that_no_task_uses_stays_on_one_host(monitored: Graph) -> None:
    across = {network.name for network in monitored.of(NETWORK) if network.plain.get("driver") == "overlay"}
    assert across == {"backend-encrypted", "edge-encrypted", "monitoring-encrypted"}
    assert {network.name for network in monitored.of(NETWORK)} - across == {"access", "egress"}


def test_the_network_of_an_existing_traefik_is_named_by_its_id() -> None:
    """With the name, the provider replaces the service after each refresh: all tasks stop first."""
    graph = build("prod", values=on_swarm(values_of("prod")), preview=True)
    ids = {network["id"] for network in service(graph).plain["taskSpec"]["networksAdvanceds"]}
    assert ids == {"backend-encrypted-id", "shared-network-id"}


def test_a_copy_of_a_stack_is_planned_without_a_docker_daemon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COPY", "made")
    graph = build("prod", values=on_swarm(values_of("prod")), preview=True)
    ids = {network["id"] for network in service(graph).plain["taskSpec"]["networksAdvanceds"]}
    assert ids == {"backend-encrypted-id", "shared-network"}


def test_encryption_can_be_left_to_the_network_below() -> None:
    values = on_swarm(bundled()) | {"mlflow:swarm": {"encrypted": False}}
    graph = build("prod", values=values, preview=True)
    assert all("options" not in network.plain for network in graph.of(NETWORK))
    # The provider does not see a change of the options.
    assert {network.name for network in graph.of(NETWORK)} == {"backend-overlay", "edge-overlay"}


def test_constraints_place_the_tasks_only() -> None:
    values = on_swarm(bundled()) | {"mlflow:swarm": {"constraints": ["node.labels.mlflow==true"]}}
    graph = build("prod", values=values, preview=True)
    assert service(graph).plain["taskSpec"]["placement"] == {"constraints": ["node.labels.mlflow==true"]}


def test_the_service_moves_after_the_migration(graph: Graph) -> None:
    found = service(graph)
    assert any("migrate" in urn for urn in found.request.dependencies)
    secrets = graph.of(SECRET)
    assert secrets
    assert all(secret.urn in found.request.dependencies for secret in secrets)


def test_the_bundled_traefik_sends_to_the_name_of_all_tasks() -> None:
    """A health check of one name would take all tasks out of the balance when one drains."""
    graph = build("prod", values=on_swarm(bundled()), preview=True)
    uploads = graph.writers["traefik-files"].plain["uploads"]
    content = next(entry["content"] for entry in uploads if entry["file"].endswith("routes.yml"))
    balancer = json.loads(content)["http"]["services"][NAME]["loadBalancer"]
    assert balancer["servers"] == [{"url": f"https://{NAME}:5000"}]
    assert "healthCheck" not in balancer


def test_an_existing_traefik_reads_the_labels_of_the_service_not_of_its_tasks() -> None:
    """So no two tasks define a router differently, which Traefik would drop."""
    graph = build("prod", values=on_swarm(values_of("prod")), preview=True)
    labels = service(graph).labels
    assert labels["traefik.enable"] == "true"
    assert labels["traefik.swarm.network"] == "shared-network"
    assert "traefik.docker.network" not in labels, "Traefik skips a service with both"
    assert labels[f"traefik.http.services.{NAME}.loadbalancer.server.port"] == "5000"
    assert not any(entry["label"].startswith("traefik") for entry in container(graph)["labels"])


def test_nothing_that_changes_is_a_label_of_a_task(graph: Graph) -> None:
    """The provider replaces a service if a label of its tasks changes: every task would stop first."""
    assert {entry["label"] for entry in container(graph)["labels"]} == {"mlflow.stack", "mlflow.service", "mlflow.role"}


def test_prometheus_scrapes_every_task(monitored: Graph) -> None:
    uploads = monitored.writers["prometheus-files"].plain["uploads"]
    content = {entry["file"].rpartition("/")[2]: entry["content"] for entry in uploads}
    job = next(
        entry
        for entry in json.loads(content["prometheus.yml"])["scrape_configs"]
        if entry["job_name"] == "mlflow-prod-mlflow"
    )
    assert job["dns_sd_configs"] == [{"names": [f"tasks.{NAME}"], "type": "A", "port": 5001, "refresh_interval": "15s"}]
    assert {entry["target_label"]: entry["replacement"] for entry in job["relabel_configs"]} == {
        "stack": "prod",
        "job": "mlflow",
    }
    assert '"expr": "vector(3)", "labels": {"stack": "prod"}' in content["alerts.yml"]


def test_prometheus_reads_the_metrics_of_the_managers_docker_daemon_if_it_is_told_where() -> None:
    values = on_swarm(watched()) | {"mlflow:swarm": {"metrics": "172.17.0.1:9323"}}
    graph = build("prod", values=values, secrets={"alertWebhookUrl": "http://alerts.example.com/x"}, preview=True)
    uploads = graph.writers["prometheus-files"].plain["uploads"]
    rendered = json.loads(next(entry["content"] for entry in uploads if entry["file"].endswith("prometheus.yml")))
    job = next(entry for entry in rendered["scrape_configs"] if entry["job_name"] == "mlflow-prod-docker")
    assert job["static_configs"][0]["targets"] == ["172.17.0.1:9323"]
    # Its other networks are internal: nothing outside is reachable from them.
    assert "egress-id" in graph.services["prometheus"].networks


def test_on_one_host_no_rule_records_the_number_of_replicas() -> None:
    secrets = {"alertWebhookUrl": "http://alerts.example.com/x"}
    graph = build("prod", values=watched(), secrets=secrets, preview=True)
    assert not any(
        'mlflow_replicas", "expr' in entry["content"] for entry in graph.writers["prometheus-files"].plain["uploads"]
    )
