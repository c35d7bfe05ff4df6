"""After a deployment that failed: the old server serves again, if its database is as it was.

A server of another schema is stopped before the migration. MLflow migrates each of its schemas in one transaction, so
a migration that failed or was killed has changed a schema completely or not at all. If it has changed none, the old
server can use the database.
"""

from collections.abc import Sequence

from operations.common.console import StopError, progress
from operations.common.stack import Stack
from operations.host.servers import servers
from runtime.daemon import UNREACHABLE_ERRORS
from settings import names
from settings.server import SCHEMA_FILES, USERS_TABLE


def serves(stack: Stack) -> bool:
    """Return whether a server of the stack runs, so that a failed deployment has something to go back to."""
    return servers(stack).running


def fall_back(stack: Stack) -> None:
    """Start the servers again that were stopped for a migration that changed nothing. Raises nothing.

    On a cluster, the old tasks are no longer known: Swarm has the new service, without tasks.
    """
    try:
        deployed = servers(stack)
        if stack.settings.on_swarm or not deployed.deployed or deployed.running or _has_migrated(stack):
            return
        if not all(_is_unchanged(stack, deployed.deployed, *schema) for schema in SCHEMA_FILES.items()):
            return
        progress("the migration changed nothing; starting the old server again")
        deployed.resume()
        deployed.start()
        progress(f"the old server of {stack.name} serves again")
    except (StopError, *UNREACHABLE_ERRORS) as error:
        progress(f"the old server was not started again: {error}")


def _has_migrated(stack: Stack) -> bool:
    """Return whether the migration runs or has succeeded. It may not exist: Docker could not create it, for example."""
    state = stack.daemon.state(names.docker_name(stack.name, "migrate"))
    return state is not None and state.status != "created" and (state.running or state.exit_code == 0)


def _is_unchanged(stack: Stack, containers: Sequence[str], table: str, file: str) -> bool:
    """Return whether a schema of the database is that of the containers. False if the database does not answer."""
    if table == USERS_TABLE and _asked(stack, f"SELECT to_regclass('{table}')") == "":
        return True
    revision = _asked(stack, f"SELECT version_num FROM {table}")  # noqa: S608 - a constant
    return revision is not None and {stack.daemon.read_file(name, file) for name in containers} == {
        f"{revision}\n".encode()
    }


def _asked(stack: Stack, query: str) -> str | None:
    """Return the answer of the database, or None if there is none."""
    command = ["psql", "-U", "postgres", "-d", "mlflow", "-Atc", query]
    code, printed = stack.daemon.run(names.docker_name(stack.name, "postgres"), command)
    return printed if code == 0 else None
