"""Which servers of an earlier version may run beside new ones. All others stop before the database is migrated."""

import asyncio
import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pulumi
import pulumi_docker as docker

from runtime.docker_host import DockerHost
from runtime.readiness import POLL_SECONDS, PROBE_SECONDS, call, failure_message
from runtime.tasks import label_of, lost_problem
from settings import names

STOP_TIMEOUT_SECONDS = 120


@dataclass(frozen=True, kw_only=True)
class Compatible:
    """Which earlier containers of a service may run beside new ones."""

    files: Sequence[str]
    """Files of the image that must be the same in both."""
    label: str
    """A label that must have the same value on both."""
    value: pulumi.Input[str]
    """The value on the new containers; empty if they do not have the label."""


def incompatible_stopped(
    is_of_service: Callable[[str], bool],
    compatible: Compatible,
    *,
    new: str,
    once: pulumi.Output[docker.Container],
    platform: DockerHost,
) -> pulumi.Output[docker.Container]:
    """Return `once` when every running container of a service is compatible with the new ones. Stops the others.

    `new` is the name of a job that has the new image. `is_of_service` tells which services are meant.
    """
    stack = pulumi.get_stack()
    fresh = names.docker_name(stack, new)

    async def check(values: list[Any]) -> docker.Container:
        container: docker.Container = values[0]
        if not pulumi.runtime.is_dry_run():
            running = await call(platform.daemon.services, stack)
            old = [name for service, name in running.items() if is_of_service(service)]
            await asyncio.gather(*(_until_compatible(platform, name, (fresh, values[1]), compatible) for name in old))
            for service, name in (await call(platform.cluster.services, stack)).items():
                if is_of_service(service):
                    await _until_tasks_compatible(platform, name, (fresh, values[1]), compatible)
        return container

    return pulumi.Output.all(once, compatible.value).apply(check)


async def _until_compatible(platform: DockerHost, name: str, new: tuple[str, str], compatible: Compatible) -> None:
    """Stop the container `name`, unless it may run beside the new ones, and wait until it has stopped."""
    daemon = platform.daemon
    new_name, new_label = new

    async def runs() -> bool:
        state = await call(daemon.state, name)
        return state is not None and state.running

    async def differs() -> bool:
        found = await call(daemon.inspect, name)
        if found is None or (found["Config"]["Labels"] or {}).get(compatible.label, "") != new_label:
            return True
        for path in compatible.files:
            theirs, ours = await call(daemon.read_file, name, path), await call(daemon.read_file, new_name, path)
            if theirs is None or theirs != ours:
                return True
        return False

    if not await runs() or not await differs():
        return
    # For good: a migration of a large database takes hours, and Docker may be restarted meanwhile.
    await call(functools.partial(daemon.stop, for_good=True), name)
    deadline = time.monotonic() + STOP_TIMEOUT_SECONDS
    while await runs():
        if time.monotonic() > deadline:
            reason = f"still running after {STOP_TIMEOUT_SECONDS} s, and the new container must not start beside it"
            raise pulumi.RunError(failure_message(name, reason, await call(daemon.logs, name)))
        await asyncio.sleep(POLL_SECONDS)


async def _until_tasks_compatible(
    platform: DockerHost, name: str, new: tuple[str, str], compatible: Compatible
) -> None:
    """Stop the tasks of the Swarm service `name`, unless they may run beside the new ones, and wait for their end."""
    daemon, cluster = platform.daemon, platform.cluster
    service, fresh = await call(cluster.inspect, name), await call(daemon.inspect, new[0])
    if service is None or fresh is None:
        return
    if not any(task.lives for task in await call(cluster.tasks, name)):
        return
    if not await _tasks_differ(platform, service, fresh, new, compatible):
        return
    if reason := lost_problem(name, await call(cluster.tasks, name)):
        raise pulumi.RunError(f"{name}: {reason}\n  nothing was changed")
    await call(cluster.scale, name, 0)
    grace = service["Spec"]["TaskTemplate"]["ContainerSpec"].get("StopGracePeriod", 0) / 1e9
    deadline = time.monotonic() + grace + STOP_TIMEOUT_SECONDS
    while left := [task for task in await call(cluster.tasks, name) if task.lives]:
        if time.monotonic() > deadline:
            nodes = ", ".join(sorted({task.node for task in left}))
            raise pulumi.RunError(
                f"{name}: tasks still run on {nodes}, and new ones must not start beside them\n"
                f"  to see them, type: docker service ps {name}; then: {names.make_command('up', pulumi.get_stack())}"
            )
        await asyncio.sleep(PROBE_SECONDS)


async def _tasks_differ(
    platform: DockerHost, service: dict[str, Any], fresh: dict[str, Any], new: tuple[str, str], compatible: Compatible
) -> bool:
    """Return whether the tasks of a service may not run beside new ones, whose image the container `fresh` has."""
    new_name, new_label = new
    if label_of(service, compatible.label) != new_label:
        return True
    # By its id: another image may have its name by now.
    image = label_of(service, names.IMAGE_LABEL)
    if image == fresh["Image"]:
        return False
    for path in compatible.files:
        theirs = await call(platform.cluster.read_image_file, image, path)
        if theirs is None or theirs != await call(platform.daemon.read_file, new_name, path):
            return True
    return False
