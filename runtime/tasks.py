"""The tasks of a Swarm service and the nodes of its cluster, as the checks of an update and the operations see them."""

from dataclasses import dataclass
from typing import Any

from settings import names

RUNNING, SHUTDOWN = "running", "shutdown"
FAILED = ("failed", "rejected")
"""States of a task that ended with an error, or that its node refused."""
ENDED = (*FAILED, SHUTDOWN, "complete", "orphaned", "remove")


@dataclass(frozen=True, kw_only=True)
class Task:
    """One task of a service: a container that Swarm has placed on a node."""

    id: str
    node: str
    """Host name of its node; empty while it has none."""
    state: str
    wanted: str
    """The state that Swarm wants it to have: running, or shutdown for a task that is being replaced."""
    error: str
    since: str
    """When it reached its state, in UTC."""
    created: str
    lost: bool
    """Whether its node is down. Swarm goes on reporting the last state of its tasks, for a day, and the container may
    run as well: the manager gets no heartbeat, which tells nothing about the database's network."""
    revision: str
    """What the task was created from: `names.REVISION_VARIABLE`."""

    @property
    def runs(self) -> bool:
        """Whether its container runs, is healthy, and is to stay."""
        return self.state == RUNNING and self.wanted == RUNNING and not self.lost

    @property
    def lives(self) -> bool:
        """Whether its container may still be running, such as one that drains, or one on a node that is down."""
        return self.state not in ENDED


@dataclass(frozen=True, kw_only=True)
class ClusterNode:
    """A machine of the cluster."""

    name: str
    ready: bool
    active: bool
    """Whether it accepts tasks: it is neither paused nor drained."""
    manager: bool


def lost_problem(name: str, tasks: list[Task]) -> str | None:
    """Return why the end of all tasks of the service `name` cannot be waited for, with the command; None if it can."""
    nodes = sorted({task.node for task in tasks if task.lives and task.lost})
    if not nodes:
        return None
    return (
        f"{', '.join(nodes)} of the cluster is down, and the tasks of {name} there may still write\n"
        f"  switch that machine off, then type: docker node rm --force {' '.join(nodes)}"
    )


def replicas_of(service: dict[str, Any]) -> int:
    """Return the number of tasks that a service is to have."""
    return int(service["Spec"]["Mode"]["Replicated"]["Replicas"])


def label_of(service: dict[str, Any], label: str) -> str:
    """Return a label of a service; empty if it does not have it."""
    found: str = (service["Spec"].get("Labels") or {}).get(label, "")
    return found


def revision_of(container: dict[str, Any]) -> str:
    """Return the revision of a service or a task, from the specification of its container; empty if it has none."""
    prefix = f"{names.REVISION_VARIABLE}="
    found = (entry.removeprefix(prefix) for entry in container.get("Env") or [] if entry.startswith(prefix))
    return next(found, "")
