"""The replicas of the server that are deployed, which may be others than those in the settings."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from operations.common.stack import Stack
from settings import names


def servers(stack: Stack) -> list[str]:
    """Return the names of the containers of all replicas, running or not: mlflow-dev-server, mlflow-dev-server-2."""
    deployed = stack.daemon.services(stack.name, stopped=True)
    found = [container for service, container in deployed.items() if names.is_replica(service)]
    return sorted(found, key=lambda name: (len(name), name))


def running_server(stack: Stack) -> str:
    """Return the name of the first replica's container that runs; of the first replica if none does."""
    found = servers(stack)
    states = ((server, stack.daemon.state(server)) for server in found)
    running = next((server for server, state in states if state and state.status == "running"), None)
    return running or names.docker_name(stack.name, names.SERVER)


def each(action: Callable[[str], None], containers: Sequence[str]) -> None:
    """Run `action` for all containers at the same time; raise the first error when all have ended."""
    with ThreadPoolExecutor(max(1, len(containers))) as threads:
        # The results are taken only when every one has ended.
        for done in [threads.submit(action, container) for container in containers]:
            done.result()
