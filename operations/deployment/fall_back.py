"""After a deployment that failed: the old server serves again, if its database is as it was.

A server of another schema is stopped before the migration. MLflow migrates in one transaction, so a migration that
failed or was killed has changed nothing, and the old server can use the database.
"""

from operations.common.console import StopError, progress
from operations.common.stack import Stack
from operations.host.servers import servers
from runtime.daemon import UNREACHABLE_ERRORS
from settings import names

SCHEMA = "/opt/mlflow/schema-revision"
"""File of an MLflow image with the revision of its schema: mlflow/Dockerfile."""
REVISION = "SELECT version_num FROM alembic_version"


def serves(stack: Stack) -> bool:
    """Return whether a server of the stack runs, so that a failed deployment has something to go back to."""
    return servers(stack).running


def fall_back(stack: Stack) -> None:
    """Start the servers again that were stopped for a migration that changed nothing. Raises nothing.

    On a cluster, the old tasks are no longer known: Swarm has the new service, without tasks.
    """
    try:
        deployed = servers(stack)
        if stack.settings.on_swarm or not deployed.deployed or deployed.running or not _migration_failed(stack):
            return
        theirs = {stack.daemon.read_file(name, SCHEMA) for name in deployed.deployed}
        if theirs != {_revision(stack)}:
            return
        progress("the migration changed nothing; starting the old server again")
        deployed.resume()
        deployed.start()
        progress(f"the old server of {stack.name} serves again")
    except (StopError, *UNREACHABLE_ERRORS) as error:
        progress(f"the old server was not started again: {error}")


def _migration_failed(stack: Stack) -> bool:
    state = stack.daemon.state(names.docker_name(stack.name, "migrate"))
    return state is not None and not state.running and state.exit_code != 0


def _revision(stack: Stack) -> bytes | None:
    """Return the revision of the database as the file of an image has it; None if the database does not answer."""
    command = ["psql", "-U", "postgres", "-d", "mlflow", "-Atc", REVISION]
    code, printed = stack.daemon.run(names.docker_name(stack.name, "postgres"), command)
    return f"{printed}\n".encode() if code == 0 else None
