"""Other data keys of MLflow: the rows in the database are encrypted with them while no server runs.

`make rotate` needs it for new data keys, `make restore` for a backup from before a rotation.
"""

from collections.abc import Collection, Mapping

from operations.common.checkout import ROOT
from operations.common.console import StopError, make, progress
from operations.common.stack import Stack
from operations.engine.engine import Engine
from operations.host.once import backend, run_once
from operations.host.servers import Servers, servers
from settings import names
from settings.secrets import FERNET_KEY_LENGTH, NEXT_KEYS

FILES = "/run/rotation"
"""Folder of the scripts and values in the containers of a rotation."""
LOCKED = ("python", "/opt/mlflow-stack/locked.py", names.ROTATE, "python")


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


def interrupted(engine: Engine) -> list[str]:
    """Return the data keys whose rotation was interrupted."""
    return [key for key, following in NEXT_KEYS.items() if following in engine.configured]


def encrypt(stack: Stack, old: Mapping[str, str], new: Mapping[str, str]) -> None:
    """Stop the server and encrypt the data with the new data keys. Raises `StopError`, with the server as before."""
    deployed = servers(stack)
    progress("stopping the server")
    complete = False
    try:
        deployed.stop(for_good=True)
        complete = encrypt_rows(stack, deployed, old, new)
    finally:
        if not complete:
            deployed.restart()
    if not complete:
        raise StopError(
            "the data keys were not rotated; the reason is above, and the server was started again\n"
            f"  fix the cause, then type: {make('rotate', stack.name)}"
        )


def adopt(engine: Engine, keys: Collection[str], new: Mapping[str, str]) -> None:
    """Make the new values those in use. In this order, so that an interruption loses none."""
    for key in keys:
        engine.call("config", "set", "--secret", key, stdin=new[key])
        engine.call("config", "rm", NEXT_KEYS[key])


def encrypt_rows(stack: Stack, deployed: Servers, old: Mapping[str, str], new: Mapping[str, str]) -> bool:
    """Encrypt the data with the new data keys, while no server runs. Return False, with all rows unchanged, if not."""
    environment = {
        key: value for key, value in deployed.environment.items() if key in ("MLFLOW_BACKEND_STORE_URI", "PGSSLMODE")
    }
    files = {
        f"{FILES}/data_keys.py": (ROOT / "assets" / "rotation" / "data_keys.py").read_text(),
        f"{FILES}/pgpass": _secret(deployed, "pgpass"),
    }
    if deployed.scheme == "https":
        environment["PGSSLROOTCERT"] = f"{FILES}/{names.AUTHORITY_FILE}"
        files[f"{FILES}/{names.AUTHORITY_FILE}"] = _secret(deployed, names.AUTHORITY_FILE)
    for key, value in new.items():
        files |= {f"{FILES}/{key}.old": _as_used(key, old[key]), f"{FILES}/{key}.new": _as_used(key, value)}
    code = run_once(
        stack,
        names.ROTATE,
        image=deployed.images[0],
        command=[*LOCKED, f"{FILES}/data_keys.py"],
        environment={**environment, "PGPASSFILE": f"{FILES}/pgpass", "FILES": FILES, "HOME": "/tmp"},  # noqa: S108
        files=files,
        networks=backend(stack),
    )
    return code == 0


def _secret(deployed: Servers, name: str) -> str:
    found = deployed.secret(name)
    if found is None:
        raise StopError(f"the server has no secret file {name}; type: {make('up', deployed.stack.name)}")
    return found.decode()


def _as_used(key: str, value: str) -> str:
    """Return a value as MLflow gets it: Fernet's keys are encoded."""
    # Imported here: the other commands do not need it.
    import base64  # noqa: PLC0415

    if key != "webhookEncryptionKey" or len(value) == FERNET_KEY_LENGTH:
        return value
    return base64.urlsafe_b64encode(value.encode()).decode()
