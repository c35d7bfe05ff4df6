"""A Swarm of several nodes on this machine: one Docker daemon for each, in a network namespace of its own."""

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import docker
from requests.exceptions import RequestException

BRIDGE, PREFIX = "mlflow-nodes", "10.213.77"
ACCEPT = ("-i", BRIDGE, "-o", BRIDGE, "-j", "ACCEPT")
START_SECONDS = 60


def problem() -> str | None:
    """Return why there can be no cluster on this machine, or None."""
    missing = [name for name in ("dockerd", "ip", "iptables", "nsenter") if shutil.which(name) is None]
    if missing:
        return f"not installed: {', '.join(missing)}"
    # Another process may try the same at this moment, as the workers of a test run do.
    name, number = f"mlf-{os.getpid()}", os.getpid() % 2**24
    for what, make, remove in (
        ("network namespaces", f"netns add {name}", f"netns delete {name}"),
        ("overlay networks", f"link add {name} type vxlan id {number} dstport 4789", f"link delete {name}"),
    ):
        tried = subprocess.run(["ip", *make.split()], check=False, capture_output=True, text=True)
        subprocess.run(["ip", *remove.split()], check=False, capture_output=True)
        if tried.returncode:
            return f"cannot create {what}: {tried.stderr.strip()}"
    return None


PROBLEM = problem()


def run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@dataclass
class Node:
    """A Docker daemon in a network namespace."""

    number: int
    folder: Path
    daemon: subprocess.Popen[bytes] | None = field(default=None, init=False)

    @property
    def name(self) -> str:
        return f"node-{self.number}"

    @property
    def address(self) -> str:
        return f"{PREFIX}.{10 + self.number}"

    @property
    def host(self) -> str:
        return f"unix://{self.folder}/docker.sock"

    @property
    def url(self) -> str:
        """The address of the daemon as that of another machine, on which its containers publish their ports."""
        return f"tcp://{self.address}:2375"

    @property
    def api(self) -> docker.APIClient:
        return docker.APIClient(base_url=self.host, version="auto", timeout=120)

    def plug_in(self) -> None:
        """Create the network namespace, on the bridge that is the nodes' network."""
        self.folder.mkdir(parents=True, exist_ok=True)
        space, inside, outside = f"mlflow-{self.name}", "eth0", f"mlf-{self.number}"
        # Left by tests that were killed.
        for left in (("ip", "link", "delete", outside), ("ip", "netns", "delete", space)):
            subprocess.run(left, check=False, capture_output=True)
        run("ip", "netns", "add", space)
        run("ip", "link", "add", outside, "type", "veth", "peer", "name", inside, "netns", space)
        run("ip", "link", "set", outside, "master", BRIDGE, "up")
        for words in (f"address add {self.address}/24 dev {inside}", f"link set {inside} up", "link set lo up"):
            run("ip", "-n", space, *words.split())
        run("ip", "-n", space, "route", "add", "default", "via", f"{PREFIX}.1")

    def start(self) -> None:
        """Start the daemon, and wait until it answers."""
        (self.folder / "docker.pid").unlink(missing_ok=True)
        # A host name of its own: it is the node's name in the cluster.
        script = f"hostname {self.name} && exec dockerd -H {self.host} -H {self.url} --data-root {self.folder}/data"
        script += f" --exec-root {self.folder}/exec --pidfile {self.folder}/docker.pid"
        # Experimental before Docker 24.
        script += f" --experimental --metrics-addr {self.address}:9323"
        with (self.folder / "daemon.log").open("ab") as log:
            self.daemon = subprocess.Popen(
                # Not `ip netns exec`: it hides the control groups from the daemon.
                ["nsenter", f"--net=/run/netns/mlflow-{self.name}", "unshare", "--uts", "sh", "-c", script],
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                if self.api.ping():
                    return
            except (docker.errors.DockerException, RequestException):
                if time.monotonic() > deadline:
                    raise AssertionError((self.folder / "daemon.log").read_text()[-2000:]) from None
                time.sleep(0.5)

    def stop(self) -> None:
        """Stop the daemon with its containers, as a shutdown of the node does."""
        if self.daemon:
            self.daemon.terminate()
            self.daemon.wait(60)
            self.daemon = None

    def kill(self) -> None:
        """Cut the node off, and end its daemon and its containers at once, as a loss of power does."""
        run("ip", "link", "set", f"mlf-{self.number}", "down")
        assert self.daemon is not None
        for process in [*self._of_node(), self.daemon.pid]:
            with suppress(ProcessLookupError):
                subprocess.run(["kill", "-9", str(process)], check=False, capture_output=True)
        self.daemon.wait(60)
        self.daemon = None

    def come_back(self) -> None:
        run("ip", "link", "set", f"mlf-{self.number}", "up")
        self.start()

    def unplug(self) -> None:
        with suppress(docker.errors.DockerException, RequestException):
            for container in self.api.containers(all=True):
                self.api.remove_container(container["Id"], force=True)
        self.stop()
        for process in self._of_node():
            subprocess.run(["kill", "-9", str(process)], check=False, capture_output=True)
        subprocess.run(["ip", "netns", "delete", f"mlflow-{self.name}"], check=False)
        for mount in reversed(Path("/proc/mounts").read_text().splitlines()):
            if str(self.folder) in mount:
                subprocess.run(["umount", "-l", mount.split()[1]], check=False, capture_output=True)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _of_node(self) -> list[int]:
        """Return the processes of the node: those that name its folder, and the containers below them."""
        found, parents = set(), {}
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError, IndexError):
                parents[int(process.name)] = int((process / "stat").read_text().rpartition(")")[2].split()[1])
                if str(self.folder).encode() in (process / "cmdline").read_bytes():
                    found.add(int(process.name))
        grown = True
        while grown:
            more = {child for child, parent in parents.items() if parent in found} - found
            found |= more
            grown = bool(more)
        return sorted(found - {os.getpid()})

    def load(self, *images: str, source: str) -> None:
        """Copy images of the daemon `source` to this node."""
        command = f"docker -H {source} save {' '.join(images)} | docker -H {self.host} load"
        subprocess.run(["bash", "-o", "pipefail", "-c", command], check=True, capture_output=True)


@contextmanager
def cluster(folder: Path, number: int = 3) -> Iterator[list[Node]]:
    """Run a Swarm of `number` nodes. The first one is its manager."""
    nodes = [Node(index + 1, folder / f"node-{index + 1}") for index in range(number)]
    subprocess.run(["ip", "link", "delete", BRIDGE], check=False, capture_output=True)
    run("ip", "link", "add", BRIDGE, "type", "bridge")
    try:
        run("ip", "address", "add", f"{PREFIX}.1/24", "dev", BRIDGE)
        run("ip", "link", "set", BRIDGE, "up")
        # Docker on this machine drops what a bridge forwards that is not its own.
        run("iptables", "-I", "FORWARD", *ACCEPT)
        for node in nodes:
            node.plug_in()
            node.start()
        manager = nodes[0]
        manager.api.init_swarm(advertise_addr=manager.address, listen_addr=f"{manager.address}:2377")
        token = manager.api.inspect_swarm()["JoinTokens"]["Worker"]
        for node in nodes[1:]:
            node.api.join_swarm(
                [f"{manager.address}:2377"], token, listen_addr=f"{node.address}:2377", advertise_addr=node.address
            )
        yield nodes
    finally:
        with ThreadPoolExecutor() as threads:
            list(threads.map(Node.unplug, nodes))
        subprocess.run(["iptables", "-D", "FORWARD", *ACCEPT], check=False, capture_output=True)
        run("ip", "link", "delete", BRIDGE)
