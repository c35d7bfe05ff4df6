"""Containers that stand in the way of an update: paused, foreign, or of a restore or an export."""

from collections.abc import Collection

from operations.common.console import StopError
from preconditions import host as preconditions
from runtime.daemon import Daemon
from settings import names


def paused(daemon: Daemon, stack: str) -> list[str]:
    """Return the paused containers of a stack. Pulumi's provider considers them running."""
    ours = {"label": f"{names.STACK_LABEL}={stack}", "status": "paused"}
    return sorted(container["Names"][0].lstrip("/") for container in daemon.api.containers(all=True, filters=ours))


def paused_problems(daemon: Daemon, stack: str) -> list[str]:
    """Return the paused containers of a stack as a problem with its command."""
    # A deployment would wait in vain for each of them to answer.
    found = paused(daemon, stack)
    return [f"paused containers: {', '.join(found)}\n    type: docker unpause {' '.join(found)}"] if found else []


def require_no_operation(daemon: Daemon, stack: str) -> None:
    """Remove the container of a killed operation, such as a restore; raise `StopError` if one is running."""
    for operation, (what, _) in preconditions.OPERATIONS.items():
        name = names.docker_name(stack, operation)
        if preconditions.is_running(daemon, stack, operation):
            raise StopError(
                f"{what} of {stack} is running; nothing was changed\n"
                f"  to see its progress: docker logs -f {name}; to abort it, without loss of data: docker kill {name}"
            )
        if daemon.inspect(name):
            daemon.api.remove_container(name, v=True)


def remove_ended_operations(daemon: Daemon, stack: str) -> None:
    """Remove the containers that killed operations have left, which have the label of the stack.

    A deployment takes unknown containers with that label for those of another user. It refuses to begin while such an
    operation runs (preconditions/host.py).
    """
    for operation in preconditions.OPERATIONS:
        name = names.docker_name(stack, operation)
        found = daemon.inspect(name)
        if found and not found["State"]["Running"]:
            daemon.api.remove_container(name, v=True)


def require_no_foreign_containers(daemon: Daemon, stack: str, *, kept: Collection[str] = ()) -> None:
    """Raise `StopError` with every foreign container on a network that is to be removed: Docker would keep it.

    `kept` are the Docker names of the networks that stay.
    """
    ours = {"label": f"{names.STACK_LABEL}={stack}"}
    known = {container["Id"] for container in daemon.api.containers(all=True, filters=ours)}
    lines = [
        f"  docker network disconnect {network['Name']} {container['Name']}"
        for network in daemon.api.networks(filters=ours)
        if network["Name"] not in kept
        for key, container in (daemon.api.inspect_network(network["Id"])["Containers"] or {}).items()
        # Docker's own end of a network across nodes has no container.
        if key not in known and not key.startswith("lb-")
    ]
    if lines:
        raise StopError(
            f"foreign containers are connected to networks of {stack}, which could not be removed; nothing was "
            "changed\n"
            "  type these lines, then the same command again; reconnect them with docker network connect:\n"
            + "\n".join(lines)
        )
