"""Other data keys of MLflow: the rows in the database are encrypted with them while no server runs.

`make rotate` needs it for new data keys, `make restore` for a backup from before a rotation.
"""

import base64
from collections.abc import Collection, Mapping

from docker.errors import DockerException

from operations.common.checkout import ROOT
from operations.common.console import StopError, make, progress
from operations.common.stack import Stack
from operations.engine.engine import Engine
from operations.host.once import backend, run_once
from operations.host.servers import Servers, servers
from preconditions import host as preconditions
from settings import names
from settings.secrets import FERNET_KEY_LENGTH, NEXT_KEYS

FILES = "/run/rotation"
"""Folder of the scripts and values in the containers of a rotation."""
LOCKED = ("python", "/opt/mlflow-stack/locked.py", names.ROTATE)


UNCHANGED = 3
"""Exit code of assets/rotation/data_keys.py: it has changed no row, and no earlier run has."""


class UnchangedError(StopError):
    """Nothing was encrypted with new data keys, so they need not be kept."""


def prepare(engine: Engine, values: Mapping[str, str]) -> dict[str, str]:
    """Write the new values of data keys into the stack file, beside the old ones, and return them.

    An interrupted rotation has written others already: then the data may be encrypted with those, so they are returned.
    """
    known = engine.secrets()
    found = {}
    for key, value in values.items():
        found[key] = known.get(NEXT_KEYS[key]) or value
        if NEXT_KEYS[key] not in known:
            engine.call("config", "set", "--secret", NEXT_KEYS[key], stdin=value)
    return found


def discard(engine: Engine, keys: Collection[str]) -> None:
    """Remove new values with which nothing was encrypted."""
    for key in keys:
        engine.call("config", "rm", NEXT_KEYS[key])


def interrupted(engine: Engine) -> list[str]:
    """Return the data keys whose rotation was interrupted."""
    return [key for key, following in NEXT_KEYS.items() if following in engine.configured]


def encrypt(stack: Stack, old: Mapping[str, str], new: Mapping[str, str]) -> None:
    """Stop the server and encrypt the data with the new data keys.

    Raises `StopError` if that fails, `UnchangedError` if it is certain that no row was changed. The server then runs
    again.
    """
    deployed = servers(stack)
    _require_values(old, new)
    wait_for_lock(stack)
    progress("stopping the server")
    try:
        # For good: a server with the old data keys must not start when the rows have the new ones.
        deployed.stop(for_good=True)
    except (StopError, DockerException) as error:
        deployed.resume()
        raise UnchangedError(
            f"the server could not be stopped: {error}\n  the data keys were not rotated; to rotate them, type: "
            f"{make('rotate', stack.name)}"
        ) from None
    code = None
    try:
        code = encrypt_rows(stack, deployed, old, new)
    except StopError:
        # The container was not even started.
        code = UNCHANGED
        raise
    finally:
        if code and not is_running(stack):
            deployed.resume()
            progress("the server was started again")
    if code:
        raise (UnchangedError if code == UNCHANGED else StopError)(
            "the data keys were not rotated; the reason is above\n"
            f"  fix the cause, then type: {make('rotate', stack.name)}"
        )


def wait_for_lock(stack: Stack) -> None:
    """Wait while a backup or another operation runs, with the server up; raise `UnchangedError` if it takes too long.

    Nothing is encrypted then.
    """
    if _run(stack, servers(stack), ["true"], {}):
        raise UnchangedError(f"the data keys were not rotated; type again: {make('rotate', stack.name)}")


def is_running(stack: Stack) -> bool:
    """Return whether the encryption goes on, although the command that started it has lost it."""
    return preconditions.is_running(stack.daemon, stack.name, names.ROTATE)


def adopt(engine: Engine, keys: Collection[str], new: Mapping[str, str]) -> None:
    """Make the new values those in use. In this order, so that an interruption loses none."""
    for key in keys:
        engine.call("config", "set", "--secret", key, stdin=new[key])
        engine.call("config", "rm", NEXT_KEYS[key])


def encrypt_rows(stack: Stack, deployed: Servers, old: Mapping[str, str], new: Mapping[str, str]) -> int:
    """Encrypt the data with the new data keys, while no server runs. Return 0, or another exit code if it fails."""
    _require_values(old, new)
    files = {"data_keys.py": (ROOT / "assets" / "rotation" / "data_keys.py").read_text()}
    for key, value in new.items():
        files |= {f"{key}.old": as_used(key, old[key]), f"{key}.new": as_used(key, value)}
    return _run(stack, deployed, ["python", f"{FILES}/data_keys.py"], files)


def _require_values(old: Mapping[str, str], new: Mapping[str, str]) -> None:
    """Raise `UnchangedError` if a data key has no value."""
    for key, value in new.items():
        if not old[key] or not value:
            raise UnchangedError(f"mlflow:{key}: a value is empty; nothing was changed")


def _run(stack: Stack, deployed: Servers, command: list[str], more: Mapping[str, str]) -> int:
    """Run a command with files and access to the database, under the exclusive lock; return its exit code."""
    environment = {
        key: value for key, value in deployed.environment.items() if key in ("MLFLOW_BACKEND_STORE_URI", "PGSSLMODE")
    }
    files = {f"{FILES}/{name}": content for name, content in more.items()}
    files[f"{FILES}/pgpass"] = secret_of(deployed, "pgpass")
    if deployed.scheme == "https":
        environment["PGSSLROOTCERT"] = f"{FILES}/{names.AUTHORITY_FILE}"
        files[f"{FILES}/{names.AUTHORITY_FILE}"] = secret_of(deployed, names.AUTHORITY_FILE)
    return run_once(
        stack,
        names.ROTATE,
        image=deployed.images[0],
        command=[*LOCKED, *command],
        environment={**environment, "PGPASSFILE": f"{FILES}/pgpass", "FILES": FILES, "HOME": "/tmp"},  # noqa: S108
        files=files,
        networks=backend(stack),
    )


def secret_of(deployed: Servers, name: str) -> str:
    """Return a secret file of the server; raise `StopError` if it is lost."""
    found = deployed.secret(name)
    if found is None:
        raise StopError(f"the server has no secret file {name}; type: {make('up', deployed.stack.name)}")
    return found.decode()


def as_used(key: str, value: str) -> str:
    """Return a value as MLflow gets it: Fernet's keys are encoded."""
    if key != "webhookEncryptionKey" or len(value) == FERNET_KEY_LENGTH:
        return value
    return base64.urlsafe_b64encode(value.encode()).decode()
