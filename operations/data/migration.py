"""The job `migrate` of a deployed stack, run again after its database was replaced."""

from operations.common.console import StopError, make, progress
from operations.common.stack import Stack
from settings import names


def exists(stack: Stack) -> bool:
    """Return whether the container of the job is there. It may have been pruned."""
    return stack.daemon.inspect(names.docker_name(stack.name, "migrate")) is not None


def migrate(stack: Stack) -> None:
    """Migrate the database to the schema of the stack's MLflow; raise `StopError` if that fails."""
    name = names.docker_name(stack.name, "migrate")
    if not exists(stack):
        raise StopError(f"there is no container {name}; type: {make('up', stack.name)}")
    progress("migrating the database if it is from an older MLflow")
    stack.daemon.start(name)
    if code := stack.daemon.api.wait(name, timeout=None)["StatusCode"]:
        raise StopError(f"{name} exited with code {code}:\n{stack.daemon.logs(name)}")
