"""`make up`: a deployment that brings another MLflow, which may migrate the database, takes a backup first."""

from docker.errors import NotFound

from components import names
from operations import backup, deploy, preflight
from operations.checkout import Stack
from operations.console import StopError, flag, say


def up(stack: Stack) -> None:
    """Back up what a migration cannot undo, then deploy. `SAFETY=0` spares the backup."""
    if flag("SAFETY", default=True) and stack.settings.backup.enabled:
        preflight.require_docker(stack)
        if _brings_another_mlflow(stack):
            _back_up(stack)
    deploy.up(stack)


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
