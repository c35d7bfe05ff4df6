"""After a deployment that failed: the old server serves again, if its database is as it was.

A server of another schema is stopped before the migration. MLflow migrates each of its schemas in one transaction, so
a migration that failed or was killed has changed a schema completely or not at all. If it has changed none, the old
server can use the database.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

from operations.common.console import StopError, progress
from operations.common.stack import Stack
from operations.host.servers import servers
from runtime.daemon import UNREACHABLE_ERRORS
from settings import names
from settings.server import SCHEMA_FILES, USERS_TABLE


@dataclass(frozen=True)
class Before:
    """What was there before a deployment, so that a failed one has something to go back to."""

    servers: Mapping[str, str]
    """The ids of the containers of the server, by name. Empty if none ran: then there is nothing to go back to."""
    migrated_at: str | None
    """When the migration was last started, or None."""

    @classmethod
    def of(cls, stack: Stack) -> Self:
        """Look at the host."""
        deployed = servers(stack)
        return cls(_ids(stack, deployed.deployed) if deployed.running else {}, _migrated_at(stack))


def fall_back(stack: Stack, before: Before) -> None:
    """Start the servers again that were stopped for a migration that changed nothing. Raises nothing.

    On a cluster, the old tasks are no longer known: Swarm has the new service, without tasks.
    """
    try:
        deployed = servers(stack)
        if stack.settings.on_swarm or deployed.running or _has_migrated(stack, before):
            return
        if not before.servers or _ids(stack, deployed.deployed) != before.servers:
            return
        users = "MLFLOW_AUTH_CONFIG_PATH" in deployed.environment
        schemas = [(table, file) for table, file in SCHEMA_FILES.items() if users or table != USERS_TABLE]
        if not all(_is_unchanged(stack, deployed.deployed, *schema) for schema in schemas):
            return
        progress("the migration changed nothing; starting the old server again")
        deployed.resume()
        deployed.start()
        progress(f"the old server of {stack.name} serves again")
    except (StopError, *UNREACHABLE_ERRORS) as error:
        progress(f"the old server was not started again: {error}")


def _ids(stack: Stack, containers: Sequence[str]) -> dict[str, str]:
    found = {name: stack.daemon.inspect(name) for name in containers}
    return {name: container["Id"] for name, container in found.items() if container}


def _migrated_at(stack: Stack) -> str | None:
    state = stack.daemon.state(names.docker_name(stack.name, "migrate"))
    return state.started_at if state else None


def _has_migrated(stack: Stack, before: Before) -> bool:
    """Return whether the migration runs or has succeeded since `before`.

    It may also not have begun: another part of the deployment failed first, or Docker could not create its container.
    """
    state = stack.daemon.state(names.docker_name(stack.name, "migrate"))
    if state is None or state.status == "created" or state.started_at == before.migrated_at:
        return False
    return state.running or state.exit_code == 0


def _is_unchanged(stack: Stack, containers: Sequence[str], table: str, file: str) -> bool:
    """Return whether a schema of the database is that of the containers. False if the database does not answer."""
    query = f"SELECT version_num FROM {table}"  # noqa: S608 - a constant
    command = ["psql", "-U", "postgres", "-d", "mlflow", "-Atc", query]
    code, revision = stack.daemon.run(names.docker_name(stack.name, "postgres"), command)
    theirs = {stack.daemon.read_file(name, file) for name in containers}
    return code == 0 and theirs == {f"{revision}\n".encode()}
