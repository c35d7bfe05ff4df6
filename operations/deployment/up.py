"""`make up`: a deployment, and what comes before and after it where there is a backup.

One that brings another MLflow, which may migrate the database, takes a backup first. One that makes a new database
tells of a backup that waits to be restored, and one that begins to back up of a target that does not work.
"""

from docker.errors import NotFound

from operations.common.console import StopError, flag, say
from operations.common.stack import Stack
from operations.data import backup, backup_status
from operations.deployment import deploy
from operations.host import docker_daemon
from runtime.daemon import UNREACHABLE
from settings import names


def up(stack: Stack) -> None:
    """Back up what a migration cannot undo, then deploy. `SAFETY=0` spares the backup."""
    safety = flag("SAFETY", default=True)
    if not stack.settings.backup.enabled:
        deploy.up(stack)
        return
    docker_daemon.require_docker(stack)
    if safety and _brings_another_mlflow(stack):
        _back_up(stack)
    new_data = not any(names.postgres_major(stack.name, volume) for volume in stack.daemon.volumes())
    new_backup = stack.daemon.inspect(names.physical(stack.name, "backup")) is None
    deploy.up(stack)
    if new_data or new_backup:
        _tell_of_a_backup(stack)


def _brings_another_mlflow(stack: Stack) -> bool:
    """Whether a server is there that another image is to replace."""
    server = stack.daemon.inspect(names.physical(stack.name, "server"))
    images = stack.settings.images
    image = images.mlflow or images.built(stack.settings.parts)["mlflow"]
    try:
        wanted = stack.daemon.api.inspect_image(image.name)["Id"]  # type: ignore[no-untyped-call]
    except NotFound:
        wanted = None
    return server is not None and server["Image"] != wanted


def _back_up(stack: Stack) -> None:
    """Take a backup; raise `StopError` saying how to go on without. Where none runs yet, there is none to take."""
    found = stack.daemon.inspect(names.physical(stack.name, "backup"))
    if found is None or not found["State"]["Running"]:
        say("warning: a new MLflow image may migrate the database, and there is no backup yet that could come before")
        return
    say("a new MLflow image may migrate the database, which cannot be undone: first, a backup")
    try:
        backup.backup(stack)
    except StopError as error:
        raise StopError(
            f"{error}\n  nothing was changed; to go on without one, type: make up STACK={stack.name} SAFETY=0"
        ) from None


def _tell_of_a_backup(stack: Stack) -> None:
    """Say where the newest backup has what a new database has not: on a new host, or after a volume was lost.

    And where there could be no backup: its target does not answer or refuses, or what is there is of another key.
    """
    try:
        plan = backup.found(stack, "latest")
    except StopError as error:
        if backup.NONE_YET not in str(error):
            say(f"\nwarning: {error}")
        return
    except UNREACHABLE:
        return
    if plan["stack"] == stack.name and plan["runs"] and not plan["used"]:
        say("\nwarning: " + backup_status.lost(plan["runs"], stack.name))
