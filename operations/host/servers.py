"""The replicas of the server that are deployed, which may be others than those in the settings."""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from operations.common.console import StopError
from operations.common.stack import Stack
from runtime.cluster import Cluster
from runtime.daemon import Daemon
from runtime.tasks import label_of, lost_problem, replicas_of
from settings import names
from settings.server import PORT

READY_SECONDS = 300
SECRETS = "/run/secrets"
VERSION_FILE = "/opt/mlflow/version"
"""File of the MLflow image with MLflow's version."""
POLL_SECONDS = 1


class Servers(ABC):
    """All replicas of a stack's server: containers on the Docker host, or tasks on a cluster."""

    def __init__(self, stack: Stack, deployed: list[str]) -> None:
        """Store the names of the containers, or of the Swarm service."""
        self.stack = stack
        self.deployed = deployed

    @property
    @abstractmethod
    def running(self) -> bool:
        """Whether at least one replica runs."""

    @property
    @abstractmethod
    def images(self) -> list[str]:
        """The ids of their images."""

    @property
    @abstractmethod
    def environment(self) -> dict[str, str]:
        """The environment variables of the first one. None is secret."""

    @property
    @abstractmethod
    def version(self) -> str | None:
        """MLflow's version, or None if it is unknown."""

    @property
    @abstractmethod
    def address(self) -> str:
        """The URL of the server for `show`."""

    @property
    def scheme(self) -> str:
        """The scheme of the server's URL on the networks of the stack."""
        return "https" if "AUTHORITY" in self.environment else "http"

    @abstractmethod
    def secret(self, name: str) -> bytes | None:
        """Return a secret file of the server, or None if it is lost."""

    @property
    def stop_problem(self) -> str | None:
        """Why it is not certain that `stop` stops all; None if nothing is known that prevents it."""
        return None

    @abstractmethod
    def stop(self, *, for_good: bool = False) -> None:
        """Stop all, each with its stop grace period. Docker may start them again unless they are stopped for good."""

    @abstractmethod
    def restart(self) -> None:
        """Start again what ran before `stop`, also if the stop was interrupted."""

    @abstractmethod
    def resume(self) -> None:
        """Start all, as they were before any stop: Docker starts them again when the daemon restarts."""

    @abstractmethod
    def start(self) -> None:
        """Start all, and wait until they are ready. Raises `StopError` if they are not in time."""

    @abstractmethod
    def show(self, command: list[str], tell: Callable[[str], None], environment: Mapping[str, str]) -> int:
        """Run a command of the image as the server would, pass its output to `tell`, and return its exit code."""


class Containers(Servers):
    """The replicas on one Docker host."""

    def __init__(self, stack: Stack, deployed: list[str]) -> None:
        """Store the names of the containers."""
        super().__init__(stack, deployed)
        self._ran = deployed

    @property
    def running(self) -> bool:
        """Whether at least one container runs."""
        return any(state and state.running for state in map(self.stack.daemon.state, self.deployed))

    @property
    def images(self) -> list[str]:
        """The ids of the images of all containers."""
        found = (self.stack.daemon.inspect(name) for name in self.deployed)
        return [container["Image"] for container in found if container]

    @property
    def environment(self) -> dict[str, str]:
        """The environment variables of the first container."""
        found = self.stack.daemon.api.inspect_container(self._first)
        return dict(entry.partition("=")[::2] for entry in found["Config"]["Env"])

    @property
    def version(self) -> str | None:
        """MLflow's version, from a container that runs."""
        script = "import importlib.metadata as m; print(m.version('mlflow'))"
        code, printed = self.stack.daemon.run(self._first, ["python", "-c", script])
        return printed if code == 0 else None

    @property
    def address(self) -> str:
        """The URL of the server in its own container."""
        return f"{self.scheme}://127.0.0.1:{PORT}"

    @property
    def _first(self) -> str:
        """The first container that runs; the first one if none does."""
        states = ((name, self.stack.daemon.state(name)) for name in self.deployed)
        running = next((name for name, state in states if state and state.status == "running"), None)
        return running or names.docker_name(self.stack.name, names.SERVER)

    def secret(self, name: str) -> bytes | None:
        """Return a secret file of a container."""
        return self.stack.daemon.read_file(self._first, f"{SECRETS}/{name}")

    def stop(self, *, for_good: bool = False) -> None:
        """Stop all containers at the same time."""
        states = ((name, self.stack.daemon.state(name)) for name in self.deployed)
        self._ran = [name for name, state in states if state and state.running]
        _each(lambda name: self.stack.daemon.stop(name, for_good=for_good), self.deployed)

    def restart(self) -> None:
        """Start the containers again that ran when they were stopped. The others stay stopped, as they were before."""
        _each(self.stack.daemon.resume, self._ran)
        for name in set(self.deployed) - set(self._ran):
            self.stack.daemon.api.update_container(name, restart_policy={"Name": "always"})

    def resume(self) -> None:
        """Start all containers, also those that an interrupted command had stopped for good."""
        _each(self.stack.daemon.resume, self.deployed)

    def start(self) -> None:
        """Start all containers at the same time."""
        _each(self._start, self.deployed)

    def _start(self, name: str) -> None:
        daemon = self.stack.daemon
        daemon.start(name)
        check = daemon.api.inspect_container(name)["Config"]["Healthcheck"]["Test"][1:]
        deadline = time.monotonic() + READY_SECONDS
        while daemon.run(name, check, names.OBSERVES)[0]:
            if time.monotonic() > deadline:
                raise StopError(f"{name} is not ready after {READY_SECONDS} s:\n{daemon.logs(name)}")
            time.sleep(POLL_SECONDS)

    def show(self, command: list[str], tell: Callable[[str], None], environment: Mapping[str, str]) -> int:
        """Run the command in a container that runs."""
        return self.stack.daemon.show(self._first, command, tell, environment=environment)


class Tasks(Servers):
    """The replicas as tasks of a Swarm service. Stopped means: the service has no tasks."""

    _before: int | None = None
    """The number of tasks before `stop`."""

    @property
    def cluster(self) -> Cluster:
        """The cluster of the stack's Docker host."""
        return Cluster(self.stack.daemon)

    @property
    def running(self) -> bool:
        """Whether at least one task may be running."""
        return any(task.lives for task in self.cluster.tasks(self._name))

    @property
    def images(self) -> list[str]:
        """The id of the service's image on the manager."""
        return [label_of(self._service, names.IMAGE_LABEL)]

    @property
    def environment(self) -> dict[str, str]:
        """The environment variables of every task."""
        return dict(entry.partition("=")[::2] for entry in self._container.get("Env") or [])

    @property
    def version(self) -> str | None:
        """MLflow's version, from the image on the manager."""
        found = self.cluster.read_image_file(self.images[0], VERSION_FILE)
        return found.decode().strip() if found else None

    @property
    def address(self) -> str:
        """The URL of all tasks on their networks."""
        return f"{self.scheme}://{self._name}:{PORT}"

    @property
    def _name(self) -> str:
        return self.deployed[0]

    @property
    def _service(self) -> dict[str, Any]:
        found = self.cluster.inspect(self._name)
        if found is None:
            raise StopError(f"{self._name} was removed by hand; type: make up STACK={self.stack.name}")
        return found

    @property
    def _container(self) -> dict[str, Any]:
        found: dict[str, Any] = self._service["Spec"]["TaskTemplate"]["ContainerSpec"]
        return found

    def secret(self, name: str) -> bytes | None:
        """Return a secret file, from the copy of the files on the manager."""
        writer = names.docker_name(self.stack.name, f"{names.SERVER}-files")
        return self.stack.daemon.read_file(writer, f"{SECRETS}/{name}")

    @property
    def stop_problem(self) -> str | None:
        """The tasks on a node that is down: they may still run."""
        return lost_problem(self._name, self.cluster.tasks(self._name))

    def stop(self, *, for_good: bool = False) -> None:  # noqa: ARG002 - Docker starts no task of a service without
        """Scale the service to zero, and wait until every task has ended. Raises `StopError` if one does not."""
        if problem := self.stop_problem:
            raise StopError(f"{problem}\n  the server was not stopped")
        self._before = replicas_of(self._service)
        self.cluster.scale(self._name, 0)
        grace = self._container.get("StopGracePeriod", 0) / 1e9
        deadline = time.monotonic() + grace + READY_SECONDS
        while left := [task for task in self.cluster.tasks(self._name) if task.lives]:
            if time.monotonic() > deadline:
                nodes = ", ".join(sorted({task.node for task in left}))
                raise StopError(f"tasks of {self._name} still run on {nodes}; type: docker service ps {self._name}")
            time.sleep(POLL_SECONDS)

    def restart(self) -> None:
        """Scale the service to the number of tasks that it had before `stop`."""
        if self._before is not None:
            self.cluster.scale(self._name, self._before)

    def resume(self) -> None:
        """Scale the service to the number of replicas in the settings."""
        self.cluster.scale(self._name, self.stack.settings.server.replicas)

    def start(self) -> None:
        """Scale the service to the number of replicas in the settings, and wait until every task is ready."""
        self.cluster.scale(self._name, self.stack.settings.server.replicas)
        deadline = time.monotonic() + READY_SECONDS
        while sum(task.runs for task in self.cluster.tasks(self._name)) < replicas_of(self._service):
            if time.monotonic() > deadline:
                log = self.cluster.logs(self._name, 15)
                raise StopError(f"{self._name} is not ready after {READY_SECONDS} s:\n{log}")
            time.sleep(POLL_SECONDS)

    def show(self, command: list[str], tell: Callable[[str], None], environment: Mapping[str, str]) -> int:
        """Run the command in a container of its own on the manager: the tasks may all run on other nodes."""
        daemon, name = self.stack.daemon, names.docker_name(self.stack.name, "command")
        limits = self._service["Spec"]["TaskTemplate"]["Resources"]["Limits"]
        tmpfs = [mount["Target"] for mount in self._container["Mounts"] if mount["Type"] == "tmpfs"]
        body = {
            "Image": self.images[0],
            "Entrypoint": ["sleep", "infinity"],
            "Cmd": [],
            "Env": [f"{key}={value}" for key, value in self.environment.items()],
            "HostConfig": {
                "CapDrop": ["ALL"],
                "SecurityOpt": ["no-new-privileges:true"],
                "ReadonlyRootfs": True,
                "Init": True,
                "Memory": limits["MemoryBytes"],
                "MemorySwap": limits["MemoryBytes"],
                "NanoCpus": limits["NanoCPUs"],
                "Tmpfs": dict.fromkeys(tmpfs, "size=64m,mode=1777"),
                "Binds": [f"{names.docker_name(self.stack.name, f'{names.SERVER}-secrets')}:{SECRETS}:ro"],
                "NetworkMode": self._network,
            },
        }
        # Without the volume of a task, in which it buffers uploads.
        variables = {"TMPDIR": "/tmp", **environment}  # noqa: S108 - inside the container
        # The container itself has no environment with a password: `docker inspect` would show it.
        with _idle(daemon, name, body) as container:
            return daemon.show(container, command, tell, environment=variables)

    @property
    def _network(self) -> str:
        """The network of the database."""
        found = self.stack.daemon.api.inspect_container(names.docker_name(self.stack.name, "postgres"))
        return next(str(name) for name in found["NetworkSettings"]["Networks"] if "-backend" in name)


@contextmanager
def _idle(daemon: Daemon, name: str, body: dict[str, Any]) -> Iterator[str]:
    """Run a container in which commands can be run, and remove it at the end."""
    if daemon.inspect(name):
        # An earlier call was killed.
        daemon.api.remove_container(name, v=True, force=True)
    container: str = daemon.api.create_container_from_config(body, name)["Id"]  # type: ignore[no-untyped-call]
    try:
        daemon.start(container)
        yield container
    finally:
        daemon.api.remove_container(container, v=True, force=True)


def servers(stack: Stack) -> Servers:
    """Return the replicas that are deployed, running or not."""
    if tasks := [
        name for service, name in Cluster(stack.daemon).services(stack.name).items() if service == names.SERVER
    ]:
        return Tasks(stack, tasks)
    deployed = stack.daemon.services(stack.name, stopped=True)
    found = [container for service, container in deployed.items() if names.is_replica(service)]
    return Containers(stack, sorted(found, key=lambda name: (len(name), name)))


def _each(action: Callable[[str], None], containers: Sequence[str]) -> None:
    """Run `action` for all containers at the same time; raise the first error when all have ended."""
    with ThreadPoolExecutor(max(1, len(containers))) as threads:
        # The results are taken only when every one has ended.
        for done in [threads.submit(action, container) for container in containers]:
            done.result()
