"""Backup, drill and restore: what `make` asks of the backup container, and what happens around it."""

import json
from typing import Any

from operations.common.console import StopError, answer, through
from operations.common.stack import Stack
from settings import names

PROGRAM = ("python3", "/run/config/main.py")
NONE_YET = "there is no backup at"
"""How the backup's program begins to say so."""


def backup(stack: Stack) -> None:
    """Take a backup now."""
    in_container(stack, "backup")


def backups(stack: Stack) -> None:
    """Print every backup."""
    require_container(stack)
    answer(_told(stack, "list"))


def drill(stack: Stack) -> None:
    """Restore the newest backup into a throw-away database now."""
    in_container(stack, "drill")


def require_container(stack: Stack) -> None:
    """Raise `StopError` where there is no backup, or it does not run."""
    if not stack.settings.backup.enabled:
        raise StopError(
            f"{stack.name} has no backup\n  in {stack.path.name}: `mlflow:backup: {{enabled: true}}`; then: "
            f"make up STACK={stack.name}"
        )
    found = stack.daemon.inspect(names.physical(stack.name, "backup"))
    if found is None or not found["State"]["Running"]:
        raise StopError(f"the backup of {stack.name} does not run\n  type: make up STACK={stack.name}")


def in_container(stack: Stack, verb: str) -> None:
    """Run a verb of the backup's program; raise `StopError` where it fails."""
    require_container(stack)
    if stack.daemon.show(names.physical(stack.name, "backup"), [*PROGRAM, verb], through):
        what = "backup" if verb == "safety" else verb
        raise StopError(f"the {what} of {stack.name} did not succeed; the reason is above, after 'error:'")


def _told(stack: Stack, *arguments: str) -> str:
    """Return what a verb of the backup's program prints; raise `StopError` with that where it fails."""
    printed: list[str] = []
    if stack.daemon.show(names.physical(stack.name, "backup"), [*PROGRAM, *arguments], printed.append):
        raise StopError("".join(printed).strip().removeprefix("error: "))
    return "".join(printed).strip()


def found(stack: Stack, wanted: str) -> dict[str, Any]:
    """Return what a restore of a backup, `latest` or an id, would find; raise `StopError` where there is none."""
    plan: dict[str, Any] = json.loads(_told(stack, "plan", wanted).splitlines()[-1])
    return plan
