"""What `pulumi up` waits for where a workload is a Swarm service, and the error when it waits in vain."""

import asyncio
import time
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import pulumi

from runtime.docker_host import DockerHost
from runtime.readiness import UNREADY_LOG_LINES, call, since_start
from runtime.tasks import FAILED, RUNNING, Task, replicas_of, revision_of

POLL_SECONDS = 0.5
PENDING_SECONDS = 60
"""How long a task may wait for a node. A node that restarts comes back in this time."""
MAX_FAILURES = 3
"""Failed tasks of a new service after which `up` gives up. An update of a service that runs is rolled back by Swarm at
the first one."""
ADVICE = (
    "  fix the cause, then type: make up STACK={stack} (or pulumi up --refresh)\n"
    "  the data is unchanged; to see every task: docker service ps --no-trunc {name}"
)


@dataclass(frozen=True, kw_only=True)
class Converged:
    """What a Swarm service must have come to."""

    revision: str
    """The value of `names.REVISION_VARIABLE` on its tasks."""
    tasks: int
    within_s: int
    prepares: str | None
    """As in `Workload`."""


async def until_converged(platform: DockerHost, name: str, wanted: Converged) -> None:
    """Wait until the service `name` has the wanted number of ready tasks of the wanted revision, and no others run.

    Raises `RunError` if Swarm has rolled the update back, if new tasks keep failing, or if it takes too long.
    """
    revision, tasks = wanted.revision, wanted.tasks
    cluster = platform.cluster
    begun = time.monotonic()
    made = await call(platform.daemon.volume_created_at, wanted.prepares) if wanted.prepares else None
    known = await call(cluster.tasks, name)
    if made and any(task.runs and _older(task, made) for task in known):
        await call(cluster.restart, name)
    # Failures from before this update do not matter, such as those while the database was down.
    begun_at = await call(platform.daemon.clock) - since_start()
    past = {task.id for task in known if task.state in FAILED and _older(task, begun_at)}
    service = await call(cluster.inspect, name)
    if (
        service
        and revision_of(service["Spec"]["TaskTemplate"]["ContainerSpec"]) == revision
        and replicas_of(service) != tasks
    ):
        # It was stopped, by a restore or by hand, and the plan did not see it.
        await call(cluster.scale, name, tasks)
    while True:
        service = await call(cluster.inspect, name)
        if service is None:
            raise pulumi.RunError(f"{name}: it was removed by hand\n{_advice(name)}")
        # A task on a node that is down is reported for a day.
        found = [task for task in await call(cluster.tasks, name) if task.id not in past and not task.lost]
        new = [task for task in found if task.revision == revision and not (made and _older(task, made))]
        ready = sum(task.runs for task in new)
        others = sum(task.lives and not (task in new and task.wanted == RUNNING) for task in found)
        update = (service.get("UpdateStatus") or {}).get("State", "")
        if (
            revision_of(service["Spec"]["TaskTemplate"]["ContainerSpec"]) == revision
            and ready == tasks
            and not others
            and update != "updating"
        ):
            return
        waited = time.monotonic() - begun
        if reason := _failure(service, found, revision, update, waited, wanted.within_s):
            raise pulumi.RunError(await _message(platform, name, reason, found, revision))
        await asyncio.sleep(POLL_SECONDS)


def _failure(
    service: dict[str, Any], tasks: list[Task], revision: str, update: str, waited: float, within_s: int
) -> str | None:
    """Return why the service cannot converge, or None if it still can."""
    ours = [task for task in tasks if task.revision == revision]
    if update in ("paused", "rollback_paused"):
        return f"the update has stopped: {service['UpdateStatus'].get('Message', update)}"
    if revision_of(service["Spec"]["TaskTemplate"]["ContainerSpec"]) != revision and update != "rollback_started":
        told = (service.get("UpdateStatus") or {}).get("Message", "")
        serves = any(task.runs and task.revision != revision for task in tasks)
        # After a change that stopped all tasks first, there are no previous ones.
        now = "the previous tasks serve" if serves else "no previous task runs"
        return f"Swarm has rolled the update back, and {now}" + (f" ({told})" if told else "")
    failed = [task for task in ours if task.state in FAILED]
    if len(failed) >= MAX_FAILURES and update != "updating" and not any(task.runs for task in ours):
        return "its tasks keep failing"
    pending = next((task for task in ours if task.state == "pending" and task.error), None)
    if pending and waited > PENDING_SECONDS:
        return f"no node takes a task: {pending.error}"
    if waited > within_s:
        ready = sum(task.runs for task in ours)
        return f"after {within_s} s, {ready} of {replicas_of(service)} tasks are ready"
    return None


async def _message(platform: DockerHost, name: str, reason: str, tasks: list[Task], revision: str) -> str:
    """Return the message: the failed tasks, the last lines of their logs, and the command to type."""
    failed = [task for task in tasks if task.revision == revision and (task.error or not task.runs)]
    lines = [f"{name}: {reason}"]
    lines += list(
        dict.fromkeys(f"  on {task.node or 'no node'}: {task.state} {task.error}".rstrip() for task in failed)
    )
    log = await call(platform.cluster.logs, name, UNREADY_LOG_LINES, [task.id for task in failed])
    lines += ["  its last lines:", *(f"    {line}" for line in log.splitlines() or ["(it printed nothing)"])]
    return "\n".join([*lines, _advice(name)])


def _advice(name: str) -> str:
    return ADVICE.format(stack=pulumi.get_stack(), name=name)


def _older(task: Task, moment: datetime) -> bool:
    """Return whether a task was created before `moment`. If that is when a volume was made, its work there is lost."""
    return datetime.fromisoformat(task.created) < moment
