"""A new data key of the backups. The repository accepts both keys until the old one is removed."""

import json
from dataclasses import dataclass
from typing import Any

from operations.common.console import StopError, make, progress
from operations.common.stack import Stack
from operations.data.data_keys import FILES
from operations.host.once import networks_of, run_once
from settings import names
from settings.backup import UID

NO_REPOSITORY, WRONG_PASSWORD = 10, 12
"""Exit codes of restic: there is no repository, or the password opens none of its keys (its documentation, section
Scripting; since 0.17)."""
RETRY = ("--retry-lock", "15m")
"""How long restic waits for a running backup."""
MARK = "make-rotate"
"""The user name of the keys that this command adds."""


@dataclass(frozen=True)
class Added:
    """A new key of the repository, beside the one in use."""

    old: str
    """Id of the key in use before."""


def add(stack: Stack, new: str) -> Added | None:
    """Add a key to the repository. Return None if there is no repository yet."""
    code, printed = _restic(stack, ["key", "list", "--json"])
    if code == NO_REPOSITORY:
        return None
    if code == 0:
        old = next(str(key["id"]) for key in _parsed(printed) if key["current"])
        code, printed = _restic(
            stack, ["key", "add", *RETRY, "--user", MARK, "--new-password-file", f"{FILES}/new"], new
        )
    if code:
        raise StopError(f"the backups do not accept a new key; nothing was changed:\n{printed}")
    return Added(old)


def remove_old(stack: Stack, added: Added) -> None:
    """Remove the key that was in use before, and those that interrupted rotations have left. Keep all others."""
    code, printed = _restic(stack, ["key", "list", "--json"])
    if code:
        raise StopError(f"the keys of the backups cannot be listed:\n{printed}\n  type: {make('status', stack.name)}")
    others = [key for key in _parsed(printed) if not key["current"]]
    for key in [key for key in others if added.old.startswith(key["id"]) or key["userName"] == MARK]:
        code, said = _restic(stack, ["key", "remove", *RETRY, key["id"]])
        if code:
            raise StopError(f"an old key of the backups cannot be removed:\n{said}")
        others.remove(key)
    if others:
        progress(f"the backups also accept keys that {MARK} did not add: {', '.join(key['id'] for key in others)}")


def accepts(stack: Stack, value: str) -> bool | None:
    """Return whether the repository opens with a value; None if there is none yet.

    Raises `StopError` if it does not answer.
    """
    code, printed = _restic(stack, ["cat", "config", "--no-lock", "--password-file", f"{FILES}/new"], value)
    if code == NO_REPOSITORY:
        return None
    if code not in (0, WRONG_PASSWORD):
        raise StopError(f"the backups cannot be read:\n{printed}\n  type: {make('status', stack.name)}")
    return code == 0


def require_key_of_backups(stack: Stack, configured: str) -> None:
    """Raise `StopError` if the repository opens with the key of the deployed container, but not with that of the file.

    The stack file may be older than the last rotation. A deployment would forget the only key of the backups.
    """
    container = names.docker_name(stack.name, "backup-files")
    found = stack.daemon.read_file(container, "/run/secrets/repository-password")
    if found is None or found.decode() == configured:
        return
    if accepts(stack, configured) is False and accepts(stack, found.decode()):
        raise StopError(
            f"mlflow:backupPassword: the backups do not open with the value in {stack.path.name}, but with the "
            "deployed one; nothing was changed\n  if somebody has rotated it, get the newest version of the stack file"
        )


def _parsed(printed: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(printed[printed.index("[") :])
    return found


def _restic(stack: Stack, arguments: list[str], new: str = "") -> tuple[int, str]:
    """Run restic as the backup does, with `new` in a file; return its exit code and output."""
    container = stack.daemon.api.inspect_container(names.docker_name(stack.name, "backup"))
    environment = dict(entry.partition("=")[::2] for entry in container["Config"]["Env"])
    said: list[str] = []
    code = run_once(
        stack,
        names.ROTATE,
        image=container["Image"],
        command=["sh", "-c", 'mkdir -p "$TMPDIR" && exec restic "$@"', "restic", *arguments],
        environment=environment,
        files={f"{FILES}/new": new},
        networks=networks_of(stack, "backup"),
        tell=said.append,
        host={"Binds": container["HostConfig"]["Binds"]},
        user=UID,
    )
    return code, "".join(said).strip()
