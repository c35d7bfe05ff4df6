"""Test what the operations do with a server that is a Swarm service: status, stop, start, the image on every node."""

from types import SimpleNamespace
from typing import Any

import pytest
from docker.errors import APIError, NotFound

from operations.common.console import StopError
from operations.host import nodes, servers
from operations.observe import cluster as observed
from operations.observe import logs
from preconditions import host as preconditions
from runtime.cluster import Cluster
from runtime.daemon import Daemon
from settings import names
from settings.parsing import parse_settings
from settings.traefik import TraefikSettings

NAME = "mlflow-prod-server"
NODES = {"1": "node-1", "2": "node-2", "3": "node-3"}
NOT_A_MANAGER = APIError("no", SimpleNamespace(status_code=503, reason=""), "this node is not a swarm manager")  # type: ignore[arg-type]


def task(
    number: str, state: str = "running", wanted: str = "running", error: str = "", revision: str = "now"
) -> dict[str, Any]:
    return {
        "ID": f"task{number}",
        "NodeID": number,
        "DesiredState": wanted,
        "CreatedAt": f"2026-05-06T00:00:0{number}Z",
        "Spec": {"ContainerSpec": {"Env": ["B=c", f"{names.REVISION_VARIABLE}={revision}"]}},
        "Status": {"State": state, "Timestamp": "2026-05-06T00:00:00.123Z", **({"Err": error} if error else {})},
    }


class AnApi:
    """The API of a manager with one service."""

    def __init__(self, *moments: list[dict[str, Any]], down: tuple[str, ...] = ()) -> None:
        self.moments = list(moments)
        self.down = down
        self.sent: list[tuple[str, Any]] = []
        self.service: dict[str, Any] = {
            "ID": "id",
            "Version": {"Index": 7},
            "Spec": {
                "Name": NAME,
                "Labels": {names.IMAGE_LABEL: "sha256:there", names.STACK_LABEL: "prod", names.SERVICE_LABEL: "server"},
                "Mode": {"Replicated": {"Replicas": 2}},
                "UpdateConfig": {"Order": "start-first"},
                "RollbackConfig": {"Order": "start-first"},
                "EndpointSpec": {"Mode": "dnsrr"},
                "TaskTemplate": {
                    "ForceUpdate": 1,
                    "ContainerSpec": {
                        "Image": "localhost/mlflow-server:1",
                        "Env": ["A=b", f"{names.REVISION_VARIABLE}=now"],
                        "StopGracePeriod": 0,
                    },
                },
            },
        }

    def services(self, filters: dict[str, str]) -> list[dict[str, Any]]:
        assert filters == {"label": "mlflow.stack=prod"}
        return [self.service]

    def info(self) -> dict[str, Any]:
        return {"Swarm": {"ControlAvailable": True}}

    def inspect_service(self, name: str) -> dict[str, Any]:
        assert name == NAME
        return self.service

    def tasks(self, filters: dict[str, str]) -> list[dict[str, Any]]:
        assert filters == {"service": NAME}
        return self.moments.pop(0) if len(self.moments) > 1 else self.moments[0]

    def nodes(self) -> list[dict[str, Any]]:
        return [
            {
                "ID": key,
                "Description": {"Hostname": name},
                "Status": {"State": "down" if name in self.down else "ready"},
                "Spec": {"Availability": "active", "Role": "worker"},
            }
            for key, name in NODES.items()
        ]

    def update_service(self, service: str, version: int, **spec: Any) -> None:  # noqa: ANN401
        assert (service, version) == ("id", 7)
        self.sent.append(("update", spec))

    def service_logs(self, _name: str, **_: object) -> list[bytes]:
        told = (
            "2026-05-06T00:00:0{1}Z com.docker.swarm.node.id={0},com.docker.swarm.service.id=s,"
            "com.docker.swarm.task.id=task{0} line of {0}\n"
        )
        # One task after another, and not in order of time.
        return [told.format(number, 9 - int(number)).encode() for number in NODES]


@pytest.fixture(autouse=True)
def with_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    """Undo the fixture of the other tests: here, the methods of `Cluster` are tested."""
    monkeypatch.undo()
    monkeypatch.setattr(servers, "POLL_SECONDS", 0)
    monkeypatch.setattr(nodes, "POLL_SECONDS", 0)


def a_stack(api: Any, **values: object) -> Any:  # noqa: ANN401
    settings = {
        "runtime": "swarm",
        "hostname": "mlflow.example.com",
        "authentication": "password",
        "traefik": {"mode": "bundled"},
        "server": {"replicas": 2},
        "postgres": {"maxConnections": 300},
        **values,
    }
    daemon = Daemon("unix:///nowhere")
    daemon_class: Any = type("ADaemon", (Daemon,), {"api": property(lambda _: api)})
    daemon.__class__ = daemon_class
    return SimpleNamespace(
        name="prod",
        daemon=daemon,
        settings=parse_settings(settings, stack="prod"),
        path=SimpleNamespace(name="Pulumi.prod.yaml"),
    )


def test_a_daemon_that_is_no_manager_has_no_services() -> None:
    def refuse(*_: object, **__: object) -> None:
        raise NOT_A_MANAGER

    cluster = Cluster(a_stack(SimpleNamespace(services=refuse, inspect_service=refuse, secrets=refuse)).daemon)
    assert cluster.services("prod") == {}
    assert cluster.inspect(NAME) is None
    assert cluster.secrets("prod") == {}


def test_a_locked_manager_is_not_taken_for_a_daemon_without_a_cluster() -> None:
    """Otherwise a restore would find no server, and would not stop any."""
    told = 'Swarm is encrypted and needs to be unlocked before it can be used. Please use "docker swarm unlock"'

    def refuse(*_: object, **__: object) -> None:
        raise APIError("locked", SimpleNamespace(status_code=503, reason=""), told)  # type: ignore[arg-type]

    api = SimpleNamespace(services=refuse, info=lambda: {"Swarm": {"LocalNodeState": "locked"}})
    cluster = Cluster(a_stack(api).daemon)
    with pytest.raises(APIError):
        cluster.services("prod")
    assert "docker swarm unlock" in str(cluster.problem())


def test_a_job_that_tries_the_image_is_no_service_of_the_stack() -> None:
    api = AnApi([])
    api.service["Spec"]["Labels"] = {names.STACK_LABEL: "prod"}
    assert Cluster(a_stack(api).daemon).services("prod") == {}


def test_another_error_of_the_cluster_is_not_hidden() -> None:
    def fail(*_: object, **__: object) -> None:
        raise APIError("x", SimpleNamespace(status_code=500, reason=""), "no quorum")  # type: ignore[arg-type]

    cluster = Cluster(a_stack(SimpleNamespace(services=fail, inspect_service=fail)).daemon)
    for ask in (lambda: cluster.services("prod"), lambda: cluster.inspect(NAME)):
        with pytest.raises(APIError):
            ask()


def test_scaling_keeps_everything_else_of_the_service() -> None:
    """Docker replaces the whole specification."""
    api = AnApi([])
    Cluster(a_stack(api).daemon).scale(NAME, 0)
    (_, sent), spec = api.sent[0], api.service["Spec"]
    assert dict(sent.pop("mode")) == {"replicated": {"Replicas": 0}}
    assert sent == {
        "name": NAME,
        "labels": spec["Labels"],
        "task_template": spec["TaskTemplate"],
        "update_config": spec["UpdateConfig"],
        "rollback_config": spec["RollbackConfig"],
        "endpoint_spec": spec["EndpointSpec"],
    }


def test_a_restart_changes_only_a_counter() -> None:
    api = AnApi([])
    Cluster(a_stack(api).daemon).restart(NAME)
    template = api.sent[0][1]["task_template"]
    assert template == api.service["Spec"]["TaskTemplate"] | {"ForceUpdate": 2}
    assert api.sent[0][1]["mode"] == {"Replicated": {"Replicas": 2}}


def test_a_stop_waits_for_the_end_of_every_task() -> None:
    api = AnApi([task("1", wanted="shutdown")], [task("1", "shutdown", "shutdown")])
    found = servers.servers(a_stack(api))
    assert isinstance(found, servers.Tasks)
    found.stop()
    assert dict(api.sent[0][1]["mode"]) == {"replicated": {"Replicas": 0}}
    assert len(api.moments) == 1


def test_nothing_is_stopped_while_a_task_on_a_node_that_is_down_may_still_write() -> None:
    api = AnApi([task("1"), task("2", wanted="shutdown")], down=("node-2",))
    said = r"(?s)node-2 of the cluster is down.*docker node rm --force node-2.*the server was not stopped"
    with pytest.raises(StopError, match=said):
        servers.servers(a_stack(api)).stop()
    assert api.sent == []


def test_a_restart_after_a_failure_restores_the_number_of_tasks_before() -> None:
    """A service that was stopped for good, by an export, stays stopped."""
    api = AnApi([task("1", "shutdown", "shutdown")])
    found = servers.servers(a_stack(api, server={"replicas": 3}))
    found.restart()
    assert api.sent == [], "nothing was stopped"
    found.stop()
    found.restart()
    assert [dict(spec["mode"])["replicated"] for _, spec in api.sent] == [{"Replicas": 0}, {"Replicas": 2}]


def test_a_task_that_does_not_stop_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servers, "READY_SECONDS", -1)
    with pytest.raises(
        StopError, match=r"tasks of mlflow-prod-server still run on node-2; type: docker service ps mlflow-"
    ):
        servers.servers(a_stack(AnApi([task("2", wanted="shutdown")]))).stop()


def test_a_start_waits_until_every_task_is_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    api = AnApi([task("1"), task("2", "starting")], [task("1"), task("2")])
    servers.servers(a_stack(api)).start()
    assert dict(api.sent[0][1]["mode"]) == {"replicated": {"Replicas": 2}}
    assert len(api.moments) == 1
    monkeypatch.setattr(servers, "READY_SECONDS", -1)
    with pytest.raises(StopError, match=r"(?s)not ready after.*node-1: line of 1"):
        servers.servers(a_stack(AnApi([task("1")]))).start()


def test_the_secret_files_come_from_the_copy_on_the_manager(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def read(_self: Daemon, *which: str) -> bytes:
        asked.append(which)
        return b"secret"

    monkeypatch.setattr(Daemon, "read_file", read)
    assert servers.servers(a_stack(AnApi([]))).secret("pgpass") == b"secret"
    assert asked == [("mlflow-prod-server-files", "/run/secrets/pgpass")]


def test_the_status_shows_the_tasks_their_nodes_and_the_last_error() -> None:
    healthy = observed.service(a_stack(AnApi([task("1"), task("3")])))
    assert healthy
    assert (healthy["state"], observed.detail(healthy)) == ("healthy", "2 of 2 tasks on node-1, node-3")
    # One drains, and one is on a node that is down: Swarm reports both as running.
    more = [task("1"), task("1", wanted="shutdown"), task("2", wanted="shutdown"), task("3")]
    moved = observed.service(a_stack(AnApi(more, down=("node-2",))))
    assert moved
    assert observed.detail(moved) == "2 of 2 tasks on node-1, node-3"
    tasks = [task("1"), task("2", "failed", "shutdown", "task: non-zero exit (1)")]
    partly = observed.service(a_stack(AnApi(tasks)))
    assert partly
    assert partly["state"] == "starting"
    assert observed.detail(partly) == "1 of 2 tasks on node-1; node-2: task: non-zero exit (1)"
    none = observed.service(a_stack(AnApi([task("2", "rejected", "shutdown", "No such image")])))
    assert none
    assert (none["state"], observed.detail(none)) == ("unhealthy", "0 of 2 tasks; node-2: No such image")


def test_an_update_that_is_not_finished_is_not_reported_as_healthy() -> None:
    """One new task runs, another finds no node, and one old task serves."""
    error = "no suitable node (insufficient resources on 1 node)"
    api = AnApi([task("1"), task("2", "pending", error=error), task("3", revision="before")])
    api.service["UpdateStatus"] = {"State": "updating"}
    found = observed.service(a_stack(api))
    assert found
    assert found["state"] == "starting"
    assert "an update is not finished" in observed.detail(found)
    assert error in observed.detail(found)


def test_an_update_that_was_rolled_back_is_told() -> None:
    api = AnApi([task("1"), task("2")])
    api.service["UpdateStatus"] = {"State": "rollback_completed"}
    found = observed.service(a_stack(api))
    assert found
    assert found["state"] == "healthy", "the previous tasks serve"
    assert "the last update was rolled back" in observed.detail(found)


def test_the_status_without_the_cluster_says_what_to_type() -> None:
    api = SimpleNamespace(info=lambda: {"Swarm": {"LocalNodeState": "inactive"}})
    (problem,) = observed.problems(a_stack(api))
    assert "docker swarm init --advertise-addr" in problem
    assert "docs/operations/swarm.md#without-the-cluster" in problem


def test_the_status_names_the_nodes_that_are_down() -> None:
    assert observed.problems(a_stack(AnApi([]))) == []
    (problem,) = observed.problems(a_stack(AnApi([], down=("node-2",))))
    assert "nodes of the cluster are down: node-2; their tasks run on the other nodes" in problem
    assert "docker node rm --force node-2" in problem


def test_the_logs_of_the_server_are_those_of_all_its_tasks() -> None:
    assert logs._log(a_stack(AnApi([])), "server", lines=2) == "node-2: line of 2\nnode-1: line of 1"


def test_the_logs_of_single_tasks_can_be_chosen() -> None:
    assert Cluster(a_stack(AnApi([])).daemon).logs(NAME, 10, ["task2"]) == "node-2: line of 2"


def cluster_problems(info: dict[str, Any], network: dict[str, Any] | None = None) -> list[str]:
    daemon: Any = SimpleNamespace(
        host="ssh://far",
        api=SimpleNamespace(info=lambda: {"Swarm": info}, networks=lambda **_: [network] if network else []),
    )
    mode = {"mode": "existing", "network": "proxy"} if network else {"mode": "bundled"}
    return preconditions._cluster_problems(daemon, TraefikSettings.model_validate(mode))


def test_a_host_that_is_no_manager_is_refused_with_the_command() -> None:
    (problem,) = cluster_problems({"LocalNodeState": "inactive", "ControlAvailable": False})
    assert "mlflow:runtime: swarm needs a manager of a Docker Swarm cluster: ssh://far is no manager" in problem
    assert "docker swarm init --advertise-addr" in problem
    assert cluster_problems({"ControlAvailable": True}) == []


@pytest.mark.parametrize(
    ("driver", "attachable", "refused"), [("bridge", True, True), ("overlay", False, True), ("overlay", True, False)]
)
def test_the_network_of_an_existing_traefik_must_reach_every_node(driver: str, attachable: bool, refused: bool) -> None:  # noqa: FBT001
    network = {"Name": "proxy", "Driver": driver, "Attachable": attachable}
    problems = cluster_problems({"ControlAvailable": True}, network)
    assert bool(problems) == refused
    assert all("docker network create --driver overlay --attachable" in problem for problem in problems)


def test_a_command_of_the_image_gets_its_password_by_exec_not_in_its_container(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`docker inspect` shows the environment of a container."""
    bodies, shown = [], []
    api: Any = AnApi([])
    template = api.service["Spec"]["TaskTemplate"]
    template["Resources"] = {"Limits": {"MemoryBytes": 1, "NanoCPUs": 1}}
    template["ContainerSpec"]["Mounts"] = [{"Type": "tmpfs", "Target": "/run/mlflow"}]
    for name in ("remove_container", "start"):
        setattr(api, name, lambda *_, **__: None)

    def create(body: dict[str, Any], _name: str) -> dict[str, str]:
        bodies.append(body)
        return {"Id": "one"}

    def show(_self: Daemon, container: str, command: list[str], _tell: object, *, environment: dict[str, str]) -> int:
        shown.append((container, command, environment))
        return 0

    api.create_container_from_config = create
    api.inspect_container = lambda _: {"NetworkSettings": {"Networks": {"x-backend-encrypted": {}}}}
    monkeypatch.setattr(Daemon, "show", show)
    monkeypatch.setattr(Daemon, "inspect", lambda *_: None)
    found = servers.servers(a_stack(api))
    assert found.show(["gc"], print, {"PASSWORD": "hunter2"}) == 0
    assert shown == [("one", ["gc"], {"TMPDIR": "/tmp", "PASSWORD": "hunter2"})]  # noqa: S108
    assert "hunter2" not in str(bodies)
    assert bodies[0]["HostConfig"]["NetworkMode"] == "x-backend-encrypted"
    assert bodies[0]["HostConfig"]["Binds"] == ["mlflow-prod-server-secrets:/run/secrets:ro"]


class AJob(AnApi):
    """A cluster on which the image check ends as told."""

    def create_service(
        self, template: dict[str, Any], *, name: str, mode: dict[str, Any], labels: dict[str, str]
    ) -> dict[str, str]:
        assert dict(mode) == {"global": {}}
        assert labels == {names.STACK_LABEL: "prod"}
        self.sent.append((name, template))
        return {"ID": "job"}

    def services(self, filters: dict[str, str]) -> list[dict[str, Any]]:
        assert filters == {"name": "mlflow-prod-image-check-"}
        return [{"ID": "killed", "Spec": {"Name": "mlflow-prod-image-check-012345"}}]

    def tasks(self, filters: dict[str, str]) -> list[dict[str, Any]]:
        assert filters == {"service": self.sent[1][0]}
        return self.moments[0]

    def inspect_image(self, name: str) -> dict[str, Any]:
        if name == "localhost/mlflow-server:absent":
            raise NotFound("x")
        return {}

    def remove_service(self, service: str) -> None:
        self.sent.append(("removed", service))


def checked(api: AJob, image: str = "localhost/mlflow-server:1", **values: object) -> None:
    nodes.require_image_on_nodes(a_stack(api, images={"mlflow": {"ref": image, "digest": "none"}}, **values))


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nodes, "CREATED_SECONDS", -1)


@pytest.mark.usefixtures("at_once")
def test_a_node_without_the_image_is_named_with_the_command_that_copies_it() -> None:
    refused = task("2", "rejected", error="No such image: localhost/mlflow-server:1")
    # Swarm tries again, again and again.
    again = [{**refused, "ID": str(number), "CreatedAt": f"2026-05-06T00:01:0{number}Z"} for number in range(9)]
    trying = {**task("2", "starting"), "CreatedAt": "2026-05-06T00:02:00Z"}
    api = AJob([task("1", "complete"), *again, refused, trying])
    with pytest.raises(StopError) as found:
        checked(api)
    said = str(found.value)
    assert said.startswith("nothing was changed: 1 of 2 nodes cannot start the image of the server\n")
    assert "node-2: No such image" in said
    assert "docker save localhost/mlflow-server:1 | ssh node-2 docker load" in said
    assert "node-1" not in said
    assert api.sent[-1] == ("removed", "job"), "the job is left in the cluster"


@pytest.mark.usefixtures("at_once")
def test_the_image_is_tried_on_the_nodes_of_the_server_only() -> None:
    api = AJob([task("1", "complete")])
    checked(api, swarm={"constraints": ["node.labels.mlflow==true"]})
    assert api.sent[0] == ("removed", "killed"), "the job of an earlier check is left in the cluster"
    assert api.sent[1][1]["Placement"] == {"Constraints": ["node.labels.mlflow==true"]}
    assert api.sent[-1] == ("removed", "job")


@pytest.mark.usefixtures("at_once")
def test_constraints_that_no_node_satisfies_are_refused() -> None:
    with pytest.raises(StopError, match=r"mlflow:swarm.constraints: no node satisfies node.labels.x==y"):
        checked(AJob([]), swarm={"constraints": ["node.labels.x==y"]})


def test_on_one_host_no_job_is_started() -> None:
    api = AJob([])
    checked(api, runtime="container")
    assert api.sent == []
