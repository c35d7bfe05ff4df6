"""The project's own requests about Docker Swarm services. Only a manager of the cluster answers them."""

import re
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from docker.errors import APIError, NotFound
from docker.types import ServiceMode

from runtime.daemon import Daemon
from runtime.tasks import ClusterNode, Task, revision_of
from settings import names

NOT_A_MANAGER = 503
"""Status of Docker's answer about a cluster if the daemon is no manager of one."""


class Cluster:
    """The Docker Swarm cluster that a daemon belongs to."""

    def __init__(self, daemon: Daemon) -> None:
        """Store the daemon. The first request connects."""
        self.daemon = daemon

    def problem(self) -> str | None:
        """Return why the daemon cannot manage a cluster, with the command, or None if it can."""
        found = self.daemon.api.info().get("Swarm") or {}
        if found.get("ControlAvailable"):
            return None
        if found.get("LocalNodeState") == "locked":
            return f"the cluster of {self.daemon.host} is locked\n    on that host, type: docker swarm unlock"
        return (
            f"{self.daemon.host} is no manager of a Docker Swarm cluster\n"
            "    on that host, type: docker swarm init --advertise-addr <its address in the network of the nodes>"
        )

    def nodes(self) -> list[ClusterNode]:
        """Return the machines of the cluster, by name."""
        found = [
            ClusterNode(
                name=node["Description"]["Hostname"],
                ready=node["Status"]["State"] == "ready",
                active=node["Spec"]["Availability"] == "active",
                manager=node["Spec"]["Role"] == "manager",
            )
            for node in self.daemon.api.nodes()
        ]
        return sorted(found, key=lambda node: node.name)

    def services(self, stack: str) -> dict[str, str]:
        """Return the services of a stack: name to name in the cluster. Empty if the daemon is no manager."""
        try:
            found = self.daemon.api.services(  # type: ignore[no-untyped-call]
                filters={"label": f"{names.STACK_LABEL}={stack}"}
            )
        except APIError as error:
            if _is_no_manager(error):
                return {}
            raise
        labelled = ((entry["Spec"]["Labels"].get(names.SERVICE_LABEL), entry["Spec"]["Name"]) for entry in found)
        # The service by which `make up` tries the image has no such label.
        return {service: name for service, name in labelled if service}

    def inspect(self, name: str) -> dict[str, Any] | None:
        """Return a service as Docker reports it, or None if there is none."""
        try:
            return self._found(name)
        except NotFound:
            return None
        except APIError as error:
            if _is_no_manager(error):
                return None
            raise

    def _found(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = self.daemon.api.inspect_service(name)  # type: ignore[no-untyped-call]
        return found

    def tasks(self, name: str) -> list[Task]:
        """Return the tasks of a service, the newest first. Those that ended some time ago are forgotten by Docker."""
        nodes = self.daemon.api.nodes()
        hosts = {node["ID"]: node["Description"]["Hostname"] for node in nodes}
        down = {node["ID"] for node in nodes if node["Status"]["State"] == "down"}
        found = [
            Task(
                id=task["ID"],
                node=hosts.get(task.get("NodeID", ""), ""),
                state=task["Status"]["State"],
                wanted=task["DesiredState"],
                error=task["Status"].get("Err", ""),
                since=task["Status"]["Timestamp"],
                created=task["CreatedAt"],
                lost=task.get("NodeID") in down,
                revision=revision_of(task["Spec"]["ContainerSpec"]),
            )
            for task in self.daemon.api.tasks(filters={"service": name})  # type: ignore[no-untyped-call]
        ]
        return sorted(found, key=lambda task: task.created, reverse=True)

    def scale(self, name: str, number: int) -> None:
        """Set the number of tasks of a service. Nothing else of it changes, and no task is replaced."""
        self._update(name, mode=ServiceMode("replicated", number))

    def restart(self, name: str) -> None:
        """Replace every task of a service, one after another."""
        found = self._found(name)["Spec"]["TaskTemplate"]
        self._update(name, task_template={**found, "ForceUpdate": found.get("ForceUpdate", 0) + 1})

    def _update(self, name: str, **changes: object) -> None:
        service = self._found(name)
        spec = service["Spec"]
        # Docker replaces the whole specification, so that what is left out would be lost.
        kept = {
            "name": spec["Name"],
            "labels": spec.get("Labels"),
            "mode": spec["Mode"],
            "task_template": spec["TaskTemplate"],
            "update_config": spec.get("UpdateConfig"),
            "rollback_config": spec.get("RollbackConfig"),
            "endpoint_spec": spec.get("EndpointSpec"),
        }
        self.daemon.api.update_service(service["ID"], service["Version"]["Index"], **{**kept, **changes})

    def logs(self, name: str, lines: int, tasks: Sequence[str] = ()) -> str:
        """Return the last log lines of the tasks of a service, in order of time, each with the name of its node."""
        hosts = {node["ID"]: node["Description"]["Hostname"] for node in self.daemon.api.nodes()}
        raw = b""
        with suppress(APIError, NotFound):
            # Docker counts the lines of each task.
            found = self.daemon.api.service_logs(
                name,
                details=True,
                stdout=True,
                stderr=True,
                timestamps=True,
                tail=str(lines),
                follow=False,
                is_tty=False,
            )
            raw = found if isinstance(found, bytes) else b"".join(found)
        told = []
        # Docker sends the lines of one task after another. Each begins with its time.
        for line in sorted(raw.decode(errors="replace").splitlines()):
            details, _, words = line.partition(" ")[2].partition(" ")
            about = dict(re.findall(r"com\.docker\.swarm\.(node|task)\.id=(\w+)", details))
            if about and (not tasks or about.get("task") in tasks):
                told.append(f"{hosts.get(about.get('node', ''), '?')}: {words}")
        return "\n".join(told[-lines:])

    def secrets(self, stack: str) -> dict[str, str]:
        """Return the secrets of a stack: name to id. Empty if the daemon is no manager."""
        try:
            found = self.daemon.api.secrets(filters={"label": f"{names.STACK_LABEL}={stack}"})
        except APIError as error:
            if _is_no_manager(error):
                return {}
            raise
        return {entry["Spec"]["Name"]: entry["ID"] for entry in found}

    def remove(self, stack: str, name: str) -> None:
        """Remove the service or the secret `name` of a stack, if there is one."""
        api = self.daemon.api
        if name in self.services(stack).values():
            api.remove_service(name)  # type: ignore[no-untyped-call]
        elif found := self.secrets(stack).get(name):
            api.remove_secret(found)

    def remove_all(self, prefix: str) -> None:
        """Remove the services whose names begin with `prefix`. Does nothing if the daemon is no manager."""
        with suppress(APIError):
            for found in self.daemon.api.services(filters={"name": prefix}):  # type: ignore[no-untyped-call]
                if found["Spec"]["Name"].startswith(prefix):
                    self.daemon.api.remove_service(found["ID"])  # type: ignore[no-untyped-call]

    def read_image_file(self, image: str, path: str) -> bytes | None:
        """Return a file of an image on the manager, or None if the image or the file is not there."""
        try:
            container = self.daemon.api.create_container(image)["Id"]
        except (NotFound, APIError):
            return None
        try:
            return self.daemon.read_file(container, path)
        finally:
            self.daemon.api.remove_container(container, v=True)


def _is_no_manager(error: APIError) -> bool:
    """Return whether a daemon refuses a question because it is no manager. A locked one must not be taken for one."""
    return error.status_code == NOT_A_MANAGER and "unlock" not in str(error.explanation)
