"""The Swarm service of a stack on a cluster, as `make status` shows it."""

from collections import Counter
from typing import Any

from operations.common.stack import Stack
from runtime.cluster import Cluster
from runtime.tasks import FAILED, replicas_of, revision_of
from settings import names

UPDATES = {
    "updating": "; an update is not finished",
    "paused": "; an update has stopped",
    "rollback_started": "; an update is being rolled back",
    "rollback_paused": "; the rollback of an update has stopped",
    "rollback_completed": "; the last update was rolled back",
}
"""What Swarm says about the last update, in words."""


def service(stack: Stack) -> dict[str, Any] | None:
    """Return the name, state and tasks of the server's Swarm service; None if there is none."""
    cluster, name = Cluster(stack.daemon), names.docker_name(stack.name, names.SERVER)
    found = cluster.inspect(name)
    if found is None:
        return None
    wanted, tasks = replicas_of(found), cluster.tasks(name)
    current = revision_of(found["Spec"]["TaskTemplate"]["ContainerSpec"])
    ready = [task for task in tasks if task.runs and task.revision == current]
    image = found["Spec"]["TaskTemplate"]["ContainerSpec"]["Image"]
    state = "stopped" if wanted == 0 else "healthy" if len(ready) >= wanted else "starting" if ready else "unhealthy"
    return {
        "name": name,
        "state": state,
        "section": "server",
        "image": image.partition("@")[0],
        "wanted": wanted,
        "update": (found.get("UpdateStatus") or {}).get("State", ""),
        "tasks": [
            {
                "node": task.node,
                "state": task.state,
                "ready": task.runs,
                "since": task.since[:19] + "Z",
                "error": task.error,
            }
            for task in tasks
            if (task.lives and not task.lost) or task.state in FAILED
        ],
    }


def detail(entry: dict[str, Any]) -> str:
    """Return how many tasks are ready, on which nodes, and the last failure if any are missing."""
    running = Counter(task["node"] for task in entry["tasks"] if task["ready"])
    where = ", ".join(node + (f" ({number})" if number > 1 else "") for node, number in sorted(running.items()))
    told = f"{sum(running.values())} of {entry['wanted']} tasks" + (f" on {where}" if where else "")
    errors = [f"{task['node'] or 'no node'}: {task['error']}" for task in entry["tasks"] if task["error"]]
    told += UPDATES.get(entry["update"], "")
    return told + (f"; {errors[0]}" if errors and entry["state"] != "healthy" else "")


def problems(stack: Stack) -> list[str]:
    """Return the nodes that are down. Swarm runs their tasks on other nodes meanwhile."""
    if not stack.settings.on_swarm:
        return []
    cluster = Cluster(stack.daemon)
    if problem := cluster.problem():
        return [f"mlflow:runtime is swarm: {problem}; docs/operations/swarm.md#without-the-cluster"]
    down = [node.name for node in cluster.nodes() if not node.ready]
    if not down:
        return []
    return [
        f"nodes of the cluster are down: {', '.join(down)}; their tasks run on the other nodes\n"
        f"  start Docker there; for a node that will not come back, type: docker node rm --force {down[0]}"
    ]
