"""A new data key of the backups. The repository accepts both keys until the old one is removed."""

import json

from operations.common.console import StopError, make
from operations.common.stack import Stack
from operations.data.data_keys import FILES
from operations.host.once import networks_of, run_once
from settings import names
from settings.backup import UID

NO_REPOSITORY = 10
"""Exit code of restic if there is no repository (its documentation, section Scripting; since 0.17)."""
WRONG_PASSWORD = 12
"""The same for a wrong password."""
RETRY = ("--retry-lock", "15m")
"""How long restic waits for a running backup."""


def add(stack: Stack, new: str) -> bool:
    """Add a key to the repository, beside those that it has. Return False if there is no repository yet."""
    code, printed = _restic(stack, ["key", "add", *RETRY, "--new-password-file", f"{FILES}/new"], new=new)
    if code == NO_REPOSITORY:
        return False
    if code:
        raise StopError(f"the backups do not accept the new key; nothing was changed:\n{printed}")
    return True


def remove_others(stack: Stack) -> None:
    """Remove every key but the one in use. Raises `StopError` if one cannot be removed."""
    code, printed = _restic(stack, ["key", "list", "--json"])
    if code:
        raise StopError(f"the keys of the backups cannot be listed:\n{printed}\n  type: {make('status', stack.name)}")
    for key in json.loads(printed[printed.index("[") :]):
        if not key["current"]:
            code, said = _restic(stack, ["key", "remove", *RETRY, key["id"]])
            if code:
                raise StopError(f"an old key of the backups cannot be removed:\n{said}")


def accepts(stack: Stack, value: str) -> bool:
    """Return whether the repository opens with a value. Raises `StopError` if it does not answer."""
    code, printed = _restic(stack, ["cat", "config", "--password-file", f"{FILES}/new"], new=value)
    if code not in (0, WRONG_PASSWORD):
        raise StopError(f"the backups cannot be read:\n{printed}\n  type: {make('status', stack.name)}")
    return code == 0


def _restic(stack: Stack, arguments: list[str], *, new: str = "") -> tuple[int, str]:
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
