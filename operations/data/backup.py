"""`make backup`, `make backups`, `make drill`: run the backup program in its container."""

import json
from typing import Any

from operations.common.console import StopError, output, progress, relay_output
from operations.common.stack import Stack
from settings import names

PROGRAM = ("python3", "/run/config/main.py")
NO_BACKUP_MESSAGE = "there is no backup at"
"""Start of the backup program's message where the backup repository is empty."""


def backup(stack: Stack) -> None:
    """Take a backup now."""
    in_container(stack, "backup")


def backups(stack: Stack) -> None:
    """Print every backup. Times are in UTC."""
    require_container(stack)
    output(_run_and_capture(stack, "list"))
    progress("times are in UTC")


def drill(stack: Stack) -> None:
    """Run a restore test of the newest backup now."""
    in_container(stack, "drill")


def require_container(stack: Stack) -> None:
    """Raise `StopError` if backup is off, or its container does not run."""
    if not stack.settings.backup.enabled:
        raise StopError(
            f"backup is off for {stack.name}\n  set mlflow:backup: {{enabled: true}} in {stack.path.name}, then type: "
            f"make up STACK={stack.name}"
        )
    container = stack.daemon.inspect(names.docker_name(stack.name, "backup"))
    if container is None or not container["State"]["Running"]:
        raise StopError(f"the backup container of {stack.name} does not run\n  type: make up STACK={stack.name}")


def in_container(stack: Stack, verb: str) -> None:
    """Run a command of the backup program; raise `StopError` if it fails."""
    require_container(stack)
    if stack.daemon.show(names.docker_name(stack.name, "backup"), [*PROGRAM, verb], relay_output):
        what = {"safety": "backup", "drill": "restore test"}.get(verb, verb)
        raise StopError(f"the {what} of {stack.name} failed; the reason is above, after 'error:'")


def _run_and_capture(stack: Stack, *arguments: str) -> str:
    """Return the output of a command of the backup program; raise `StopError` with that output if it fails."""
    printed: list[str] = []
    if stack.daemon.show(names.docker_name(stack.name, "backup"), [*PROGRAM, *arguments], printed.append):
        raise StopError("".join(printed).strip().removeprefix("error: "))
    return "".join(printed).strip()


def data_key(stack: Stack, snapshot: str, name: str) -> str:
    """Return one of MLflow's data keys from a backup, by the name of its file. Never print it."""
    return _run_and_capture(stack, "key", snapshot, name)


def restore_plan(stack: Stack, wanted: str) -> dict[str, Any]:
    """Return the plan of a restore of a backup, `latest` or an id; raise `StopError` if there is no such backup."""
    plan: dict[str, Any] = json.loads(_run_and_capture(stack, "plan", wanted).splitlines()[-1])
    return plan
