"""Containers that stand in the way of an update: paused, foreign, or of a restore."""

from collections.abc import Collection

from operations.common.console import StopError
from runtime import preconditions
from runtime.daemon import Daemon
from settings import names


def paused(daemon: Daemon, stack: str) -> list[str]:
    """Return the containers of a stack that somebody has paused. Pulumi's provider takes them for running."""
    ours = {"label": f"{names.STACK_LABEL}={stack}", "status": "paused"}
    return sorted(container["Names"][0].lstrip("/") for container in daemon.api.containers(all=True, filters=ours))


def paused_problems(daemon: Daemon, stack: str) -> list[str]:
    """Return the paused containers of a stack as a problem with its command."""
    # Each would be waited for until it answers.
    found = paused(daemon, stack)
    return [f"somebody has paused {', '.join(found)}\n    type: docker unpause {' '.join(found)}"] if found else []


def require_no_restore(daemon: Daemon, stack: str) -> None:
    """Remove what a restore that was killed left; raise `StopError` where one is at work."""
    name = names.physical(stack, names.RESTORE)
    if preconditions.restore_is_running(daemon, stack):
        raise StopError(
            f"a restore of {stack} is at work; nothing was changed\n"
            f"  see how far it is: docker logs -f {name}; to end it, which loses nothing: docker kill {name}"
        )
    if daemon.inspect(name):
        daemon.api.remove_container(name, v=True)


def require_no_foreign_containers(daemon: Daemon, stack: str, *, kept: Collection[str] = ()) -> None:
    """Raise `StopError` with every container of somebody else's on a network that is to go: Docker would keep it."""
    ours = {"label": f"{names.STACK_LABEL}={stack}"}
    known = {container["Id"] for container in daemon.api.containers(all=True, filters=ours)}
    lines = [
        f"  docker network disconnect {network['Name']} {container['Name']}"
        for network in daemon.api.networks(filters=ours)
        if network["Name"] not in {names.physical(stack, service) for service in kept}
        for key, container in daemon.api.inspect_network(network["Id"])["Containers"].items()
        if key not in known
    ]
    if lines:
        raise StopError(
            f"networks of {stack} are in use by containers that are not its own, and could not be removed; nothing was "
            "changed\n" + "\n".join(lines)
        )
