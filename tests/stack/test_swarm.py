"""Test the server on a cluster of three nodes: updates, scaling, a broken image, a lost node, secrets, commands.

Each node is a Docker daemon in a network namespace of this machine. The kernel of a test machine may lack what the
encryption of overlay networks needs, so it is off here.
"""

import json
import re
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import urllib3

from runtime.address import resolve_host
from runtime.cluster import Cluster
from runtime.daemon import Daemon
from settings.parsing import parse_settings
from tests.stack.cluster import PROBLEM, Node, cluster
from tests.stack.deployment import ROOT, Deployment
from tests.stack.edge import HOSTNAME, Listener, until
from tests.stack.laptop import MAP, laptop
from tests.stack.load import Load
from tests.stack.rotations import UNTRIED, proofs
from tests.stack.writer import Writer

pytestmark = [
    pytest.mark.ci,
    pytest.mark.engine,
    pytest.mark.filterwarnings("ignore:Unverified HTTPS request"),
    pytest.mark.skipif(bool(PROBLEM), reason=f"needs a cluster on this machine: {PROBLEM}"),
]
HTTPS = 443


class OnCluster:
    """A deployment on the manager of a cluster."""

    def __init__(self, deployment: Deployment, nodes: list[Node]) -> None:
        self.deployment = deployment
        self.nodes = nodes
        self.cluster = Cluster(Daemon(resolve_host(deployment.host)))
        self.service = deployment.name("server")

    @property
    def password(self) -> str:
        return self.deployment.printed("password").strip()

    def load(self, *, light: int = 3) -> Load:
        return Load(HTTPS, HOSTNAME, self.password, address=self.nodes[0].address, upload_mb=10, light=light)

    def running(self) -> dict[str, str]:
        """Return the tasks that run: id to node."""
        return {task.id: task.node for task in self.cluster.tasks(self.service) if task.runs}

    def status(self, *, ok: bool | None = True) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.deployment.make("status", ok=ok, JSON="1").stdout)
        return found

    def inventory(self, *arguments: str) -> str:
        """Run inventory.py with an MLflow client that reaches the manager under the host name; return its output."""
        listener = Listener(HTTPS, self.nodes[0].address)
        script = str(ROOT / "tests" / "stack" / "inventory.py")
        done = listener.client(
            script, *arguments, MLFLOW_TRACKING_USERNAME="mlflow", MLFLOW_TRACKING_PASSWORD=self.password
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def status_of(self, password: str) -> int:
        """Return the HTTP status of a request with this password; 0 without an answer."""
        pool = urllib3.HTTPSConnectionPool(self.nodes[0].address, HTTPS, cert_reqs="CERT_NONE", retries=False)
        login = urllib3.make_headers(basic_auth=f"mlflow:{password}")
        try:
            return pool.request("GET", "/version", headers={"Host": HOSTNAME, **login}, timeout=5).status
        except urllib3.exceptions.HTTPError:
            return 0

    def answers(self) -> bool:
        return self.status_of(self.password) == 200


def images(deployment: Deployment) -> list[str]:
    """Return the images of the deployment."""
    prefix = "mlflow:"
    values = {key.removeprefix(prefix): value for key, value in deployment.values.items() if key.startswith(prefix)}
    settings = parse_settings(values)
    return [image.name for image in settings.pulled_images]


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Node]]:
    with cluster(tmp_path_factory.mktemp("nodes")) as found:
        yield found


@pytest.fixture(scope="module")
def swarm(dev: Deployment, nodes: list[Node], tmp_path_factory: pytest.TempPathFactory) -> Iterator[OnCluster]:
    """Deploy two tasks. The images are those of this machine: `dev` has built them."""
    deployment = Deployment(tmp_path_factory.mktemp("swarm"), "dev", host=nodes[0].url)
    built = next(name for name in dev.make("images").stdout.split() if "/mlflow-server:" in name)
    deployment.set("runtime", "swarm")
    deployment.set("swarm", {"encrypted": False})
    deployment.set("tls.internal", value=True)
    deployment.set("hostname", HOSTNAME)
    deployment.set("authentication", "password")
    deployment.set("traefik", {"mode": "bundled", "httpPort": 80, "httpsPort": HTTPS, "bindAddress": "0.0.0.0"})
    deployment.set("server", {"replicas": 2, "workers": 1, "memoryMb": 1024})
    deployment.set("postgres.maxConnections", 200)
    deployment.set("backup.enabled", value=True)
    # Those that this machine can build, because the nodes reach no registry and no package index.
    deployment.use("seaweedfs")
    deployment.set("images.source", "packages")
    deployment.set("images.mlflow", {"ref": built, "digest": "none"})
    local, others = resolve_host(), [built]
    with ThreadPoolExecutor() as threads:
        wanted = [(nodes[0], images(deployment)), *((node, others) for node in nodes[1:])]
        list(threads.map(lambda one: one[0].load(*one[1], source=local), wanted))
    found = OnCluster(deployment, nodes)
    try:
        deployment.make("up")
        yield found
    finally:
        deployment.make("destroy", CONFIRM=deployment.stack)


def test_the_tasks_are_on_several_nodes_and_a_client_uses_them(swarm: OnCluster) -> None:
    assert len(set(swarm.running().values())) == 2
    with swarm.load(light=2) as sent:
        sent.until(200, 30)
    assert sent.failures == []
    assert sent.lost() == []


def test_a_second_plan_is_empty_in_three_ways(swarm: OnCluster) -> None:
    for arguments in (["--expect-no-changes"], ["--refresh", "--expect-no-changes"]):
        swarm.deployment.pulumi("preview", *arguments)
    swarm.deployment.pulumi("refresh", "--yes", "--skip-preview")
    swarm.deployment.pulumi("preview", "--expect-no-changes")


def test_secrets_are_readable_in_their_tasks_only(swarm: OnCluster) -> None:
    """Neither in the service as Docker shows it, nor in the environment of a task or on the disk of its node."""
    key = swarm.deployment.credentials()["cryptoKekPassphrase"]
    assert key not in json.dumps(swarm.cluster.inspect(swarm.service))
    tasks = 0
    for node in swarm.nodes:
        for found in node.api.containers(filters={"label": "com.docker.swarm.task.id"}):
            name = found["Names"][0].lstrip("/")
            daemon = Daemon(node.host)
            assert daemon.run(name, ["cat", "/run/secrets/crypto-kek-passphrase"]) == (0, key)
            assert daemon.run(name, ["stat", "-fc", "%T", "/run/secrets/crypto-kek-passphrase"])[1] == "tmpfs"
            assert key not in json.dumps(daemon.inspect(name))
            tasks += 1
    assert tasks == len(swarm.running())
    for node in swarm.nodes[1:]:
        # Without the file systems that are mounted there: those in memory.
        folders = [str(node.folder / "data" / name) for name in ("containers", "swarm")]
        assert all(any(Path(folder).iterdir()) for folder in folders)
        found = subprocess.run(
            ["find", *folders, "-xdev", "-type", "f", "-exec", "grep", "-lF", key, "{}", "+"],
            check=False,
            capture_output=True,
            text=True,
        )
        assert found.stdout == ""


def test_a_task_has_no_new_privileges_and_no_capabilities(swarm: OnCluster) -> None:
    node = next(node for node in swarm.nodes if node.name in swarm.running().values())
    (found, *_) = node.api.containers(filters={"label": "com.docker.swarm.task.id"})
    status = Daemon(node.host).run(found["Id"], ["sh", "-c", "cat /proc/[0-9]*/status"])[1]
    processes = [part for part in status.split("Name:") if re.match(r"\s*(python|uvicorn|bash|mlflow)", part)]
    own = [part for part in processes if "docker-init" not in part]
    assert own
    # The command of this check itself is started by Docker, beside the entry point.
    assert sum("NoNewPrivs:\t1" in part for part in own) >= 1
    assert all(re.search(r"CapEff:\s*0+\n", part) for part in own)


def test_an_update_fails_no_request(swarm: OnCluster) -> None:
    before = swarm.running()
    with swarm.load() as sent:
        sent.until(100, 30)
        swarm.deployment.set("server.logLevel", "warning")
        swarm.deployment.make("up")
        sent.until(100, 30)
    assert not before.keys() & swarm.running().keys(), "a task was not replaced, so this test has tested nothing"
    assert len(swarm.running()) == 2
    assert sent.failures == []
    assert sent.counts["log batch"] > 50
    assert sent.lost() == []


def test_a_node_without_the_image_is_named_before_anything_changes(swarm: OnCluster) -> None:
    here = swarm.deployment.values["mlflow:images"]["mlflow"]["ref"]
    swarm.nodes[0].api.tag(here, "localhost/mlflow-server", "elsewhere")
    before = swarm.running()
    swarm.deployment.set("images.mlflow", {"ref": "localhost/mlflow-server:elsewhere", "digest": "none"})
    try:
        said = swarm.deployment.make("up", ok=False).stderr
    finally:
        swarm.deployment.set("images.mlflow", {"ref": here, "digest": "none"})
    assert "nothing was changed: 2 of 3 nodes cannot start the image of the server" in said
    for node in swarm.nodes[1:]:
        assert f"docker save localhost/mlflow-server:elsewhere | ssh {node.name} docker load" in said
    assert swarm.running() == before
    left = swarm.nodes[0].api.services()  # type: ignore[no-untyped-call]
    assert [found["Spec"]["Name"] for found in left] == [swarm.service]
    check = {"name": swarm.deployment.name("image-check")}
    until(lambda: not any(node.api.containers(all=True, filters=check) for node in swarm.nodes), 60)


@pytest.mark.long
def test_scaling_fails_no_request(swarm: OnCluster) -> None:
    with swarm.load() as sent:
        for number in (1, 4, 2):
            swarm.deployment.set("server.replicas", number)
            swarm.deployment.make("up")
            assert len(swarm.running()) == number
    assert sent.failures == []
    assert sent.lost() == []


@pytest.mark.long
def test_a_broken_image_is_rolled_back_and_the_old_tasks_serve(swarm: OnCluster) -> None:
    good = swarm.deployment.values["mlflow:images"]["mlflow"]["ref"]
    before = swarm.running()
    # The jobs of this image work, its server ends at once.
    program = "raise SystemExit('broken on purpose')"
    recipe = f'FROM {good}\nUSER 0\nRUN echo "{program}" >/opt/mlflow-stack/serve.py\nUSER 10001:10001\n'
    command = ["docker", "-H", swarm.nodes[0].host, "build", "-q", "-t", "localhost/mlflow-server:broken", "-"]
    subprocess.run(command, input=recipe.encode(), check=True, capture_output=True)
    for node in swarm.nodes[1:]:
        node.load("localhost/mlflow-server:broken", source=swarm.nodes[0].host)
    with swarm.load() as sent:
        swarm.deployment.set("images.mlflow", {"ref": "localhost/mlflow-server:broken", "digest": "none"})
        said = swarm.deployment.make("up", ok=False)
    assert "Swarm has rolled the update back, and the previous tasks serve" in said.stdout + said.stderr
    assert "broken on purpose" in said.stdout + said.stderr
    assert sent.failures == []
    assert len(set(swarm.running()) & set(before)) >= 1, "no old task was kept"
    swarm.deployment.set("images.mlflow", {"ref": good, "digest": "none"})
    swarm.deployment.make("up")
    assert swarm.status()["problems"] == []


@pytest.mark.long
def test_a_lost_node_is_named_and_its_tasks_move(swarm: OnCluster) -> None:
    lost = next(node for node in swarm.nodes[1:] if node.name in swarm.running().values())
    lost.kill()
    killed = time.monotonic()
    try:
        until(swarm.answers, 30)
        until(lambda: len([node for node in swarm.running().values() if node != lost.name]) == 2, 90)
        took = time.monotonic() - killed
        found = swarm.status(ok=False)
        assert any(f"nodes of the cluster are down: {lost.name}" in problem for problem in found["problems"])
        assert took < 90
        with swarm.load(light=2) as sent:
            sent.until(200, 30)
        assert sent.failures == []
    finally:
        lost.come_back()
    until(lambda: all(node.ready for node in swarm.cluster.nodes()), 60)
    assert swarm.status()["problems"] == []


@pytest.mark.long
def test_the_stack_serves_again_after_a_restart_of_the_managers_daemon(swarm: OnCluster) -> None:
    manager = swarm.nodes[0]
    manager.stop()
    manager.start()
    until(swarm.answers, 120)
    until(lambda: swarm.status(ok=None)["problems"] == [], 120)


@pytest.mark.long
def test_a_database_that_is_away_for_a_while_costs_no_task(swarm: OnCluster) -> None:
    """Swarm stops a task that is not healthy: with all tasks, it would also end their uploads."""
    before = swarm.running()
    postgres = swarm.deployment.name("postgres")
    swarm.deployment.api.stop(postgres)
    time.sleep(40)
    swarm.deployment.api.start(postgres)
    until(swarm.answers, 60)
    assert swarm.running() == before


@pytest.mark.long
def test_commands_find_the_server_on_the_cluster(swarm: OnCluster) -> None:
    assert "node-" in swarm.deployment.make("logs", SERVICE="server").stdout
    assert "nothing to delete" in swarm.deployment.make("gc", CONFIRM=swarm.deployment.stack).stderr
    assert "2 of 2 tasks" in swarm.deployment.make("status").stdout
    assert "No changes" in swarm.deployment.make("drift").stdout


@pytest.mark.long
def test_every_secret_is_rotated_on_a_cluster_while_a_client_writes(swarm: OnCluster) -> None:
    deployment, before = swarm.deployment, swarm.running()
    deployment.make("backup")
    old = deployment.credentials()
    url = f"https://{swarm.nodes[0].address}:{HTTPS}"
    with Writer(url, HOSTNAME, "mlflow", lambda: swarm.password) as writer:
        time.sleep(3)
        proved = proofs(deployment.make("rotate").stdout)
        time.sleep(5)
    new = deployment.credentials()
    assert {key for key in old if old[key] == new.get(key)} == set()
    untried = {key for key, found in proved.items() if found[0].startswith("not tried")}
    # The command does not reach Traefik, because for this machine the nodes are other machines; see below.
    assert untried == {*UNTRIED, "certificates", "clientPassword", "traefikCertificateKey"}
    assert {proved[key] for key in set(proved) - untried} == {("refused", "accepted")}
    assert {"postgresPassword", "internalAuthority", "backupPassword"} <= set(proved)
    assert (swarm.status_of(old["clientPassword"]), swarm.status_of(new["clientPassword"])) == (401, 200)
    assert not before.keys() & swarm.running().keys()
    assert len(writer.runs) > 10
    assert writer.writes, "the client never came back"
    assert writer.lost() == []
    assert sum(end - start for start, end in writer.away) < 180
    assert deployment.plan() == {}
    deployment.make("backup")
    assert swarm.status()["problems"] == []


@pytest.mark.long
def test_an_import_replaces_the_data_on_a_cluster(swarm: OnCluster, dev: Deployment, tmp_path: Path) -> None:
    old, deployment = laptop(tmp_path, dev.name("server")), swarm.deployment
    plain = deployment.file.read_text()
    # The file is on this machine, so the manager must be this machine, too.
    deployment.file.write_text(plain.replace(swarm.nodes[0].url, swarm.nodes[0].host))
    try:
        said = deployment.make("import", SOURCE=str(old.database), CONFIRM=deployment.stack, MAP=MAP).stdout
    finally:
        deployment.file.write_text(plain)
    assert re.search(r"\b1 artifacts?\b", said), said
    old.require_equal(Listener(HTTPS, swarm.nodes[0].address), tmp_path, swarm.password)
    assert len(swarm.running()) == 2
    assert deployment.plan() == {}


@pytest.mark.long
def test_a_stack_with_data_moves_from_replicas_to_the_cluster_and_back(swarm: OnCluster) -> None:
    def told() -> str:
        return swarm.inventory("tell")

    swarm.inventory("fill", "12", "20", "12", "6")
    before = told()
    for runtime, number in (("container", 1), ("container", 2), ("swarm", 2)):
        swarm.deployment.set("runtime", runtime)
        swarm.deployment.set("swarm", {"encrypted": False} if runtime == "swarm" else {})
        swarm.deployment.set("server.replicas", number)
        swarm.deployment.make("up")
        assert told() == before
        assert swarm.deployment.plan() == {}
    networks = {network["Name"] for network in swarm.nodes[0].api.networks()}
    assert swarm.deployment.name("backend") not in networks, "the network of the earlier runtime is left"
