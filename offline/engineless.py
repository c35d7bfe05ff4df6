"""Engine-less deployment of dev, and the handover to the engine once it is available."""

import json
import os
from contextlib import AbstractContextManager
from typing import Any

import yaml

from offline.engineless_state import credentials, generated_secrets, passwords_of
from offline.host import Host
from operations.common.checkout import ROOT
from operations.common.console import StopError, confirmed, flag, make, progress, require_confirmation
from operations.common.lock import exclusive
from operations.common.stack import Stack
from operations.engine.engine import Engine
from operations.engine.write_back import report_kept_backups
from operations.host import containers
from settings import names
from settings.names import REQUEST_ENGINELESS
from settings.stack import DEV

BACKUP_PASSWORD = "backup-password"  # noqa: S105 - its name
"""Data key of the backups; exists if the stack has had backups."""


def is_requested() -> bool:
    """Return whether ENGINELESS=1 requests an engine-less deployment, of any stack that does not protect its data."""
    return flag(REQUEST_ENGINELESS)


def up(stack: Stack, reason: str) -> None:
    """Deploy without the engine, because of `reason`; raise `StopError` with everything that went wrong."""
    if stack.settings.protect_data:
        raise StopError(
            f"{reason}\n  (not deployed without the engine: mlflow:protectData is true for {stack.name}, and a stack "
            "with protected data always needs the engine)"
        )
    if stack.name != DEV and not is_requested():
        raise StopError(
            f"{reason}\n  to deploy {stack.name} without the engine, type: ENGINELESS=1 {make('up', stack.name)}"
        )
    if stack.settings.on_swarm:
        raise StopError(
            f"{reason}\n  not deployed without the engine: mlflow:runtime is swarm, and the small deployer of this "
            "project creates containers only; set it to container"
        )
    if encrypted := [key for key, value in stack.values.items() if isinstance(value, dict) and "secure" in value]:
        raise StopError(
            f"{reason}\n  not deployed without the engine: {stack.path.name} has secrets that only Pulumi can read: "
            f"{', '.join(encrypted)}\n  to deploy a stack of your own, type: make init STACK=mine && "
            "ENGINELESS=1 make up STACK=mine"
        )
    passwords = passwords_of(stack)
    progress(
        f"\n*** DEPLOYING WITHOUT THE PULUMI ENGINE: {reason.splitlines()[0]}\n"
        "*** A small deployer of this project runs the same program and creates the same containers. It has no plan,\n"
        f"*** no state and no drift detection. The generated secrets are in {passwords.path}, readable\n"
        "*** only by you: keep a copy. Without them, the next make up cannot use the data. Not for production.\n"
        f"*** When the Pulumi CLI is available, `{make('up', stack.name)}` hands the stack over to it, with its data.\n"
    )
    with _exclusive_lock(stack):
        host = Host(stack.daemon, stack.name, ROOT)
        _require_own_deployment(stack, host)
        os.chdir(ROOT)
        # Imported late: it imports Pulumi's SDK, which takes 0.4 s, and this module is part of every `make up`.
        from offline.monitor import run  # noqa: PLC0415

        problems = run(
            ROOT / "__main__.py",
            host=host,
            passwords=passwords,
            project=str(yaml.safe_load((ROOT / "Pulumi.yaml").read_text())["name"]),
            config={key: _encode_value(value) for key, value in stack.values.items()},
            say=progress,
        )
        if problems:
            raise StopError(
                f"the engine-less deployment of {stack.name} did not complete\n"
                + "\n".join(f"  {problem}" for problem in problems)
                + "\n  no data is lost, and services without changes keep running"
                + f"\n  fix the cause, or undo your change, then type: make up STACK={stack.name}"
            )
        host.prune()


def _require_own_deployment(stack: Stack, host: Host) -> None:
    """Raise `StopError` if Pulumi or another user deployed this stack, before any password is generated."""
    if foreign := host.foreign_resources():
        raise StopError(
            f"{stack.name} exists already, and was deployed with the engine: {', '.join(foreign[:5])}\n"
            "  put pulumi on the PATH to continue with that deployment; nothing was changed"
        )
    data = [volume for volume in stack.daemon.volumes() if names.is_data_volume(stack.name, volume)]
    if data and not stack.is_engineless:
        raise StopError(
            f"{stack.name} has data, but you do not have its secrets: {', '.join(sorted(data))}\n"
            f"  get them from the user who deployed it on this host, and put them into {passwords_of(stack).path} "
            "(mode 0600)\n"
            "  to deploy a stack of your own instead, type: make init STACK=mine && ENGINELESS=1 make up STACK=mine\n"
            "  nothing was changed"
        )


def _encode_value(value: Any) -> str:  # noqa: ANN401 - YAML
    """Encode a value of the stack file as Pulumi passes it to a program."""
    return value if isinstance(value, str) else json.dumps(value)


def _exclusive_lock(stack: Stack) -> AbstractContextManager[None]:
    """Hold the stack's lock; raise `StopError` if another process holds it."""
    held = f"stack {stack.name} is being changed by another run; wait for it"
    return exclusive(passwords_of(stack).path.with_suffix(".lock"), held)


def down(stack: Stack) -> None:
    """Remove the containers and networks of an engine-less deployment; keep the data volumes and the passwords."""
    with _exclusive_lock(stack):
        Host(stack.daemon, stack.name, ROOT).prune()
    kept = sorted(volume for volume in stack.daemon.volumes() if names.is_data_volume(stack.name, volume))
    progress(
        f"\n{stack.name} is stopped. Its data is kept in {', '.join(kept) or 'no volume'}, and its secrets in "
        f"{passwords_of(stack).path}.\nStart it again: make up STACK={stack.name}\n"
        f"Delete it with all its data: make destroy STACK={stack.name} CONFIRM={stack.name}"
    )


def destroy(stack: Stack) -> None:
    """Delete an engine-less deployment with its data and its passwords."""
    doomed = sorted(volume for volume in stack.daemon.volumes() if names.is_data_volume(stack.name, volume))
    require_confirmation(
        stack.name,
        f"This permanently deletes every run, model and artifact of {stack.name} "
        f"({', '.join(doomed) or 'no data volume'}).",
    )
    with _exclusive_lock(stack):
        Host(stack.daemon, stack.name, ROOT).prune()
        for volume in stack.daemon.volumes():
            if names.survives_down(stack.name, volume):
                stack.daemon.api.remove_volume(volume)
        # Its backups are kept, on this host or in a bucket, and only this file's password decrypts them.
        if BACKUP_PASSWORD not in passwords_of(stack).read():
            passwords_of(stack).path.unlink()
    stack.forget_checkout()
    kept = (
        f"its secrets are kept in {passwords_of(stack).path}" if stack.is_engineless else "its secrets are deleted, too"
    )
    progress(f"{stack.name} is deleted: no container, network or data volume is left; {kept}.")
    report_kept_backups(stack)


def hand_over(engine: Engine, *, approved: bool) -> list[str]:
    """Hand an engine-less deployment over to the engine: write its secrets into the config, remove its containers.

    Asks for approval unless `approved`, because the stack is then down until the engine has deployed it.
    Returns the keys of the generated secrets; an empty list if the stack was not deployed without the engine.
    The data volumes are kept, and the engine uses them. An interrupted handover starts again from the beginning.
    """
    stack = engine.stack
    if not stack.is_engineless:
        return []
    # Every network is created again, even if the settings still have it.
    containers.require_no_foreign_containers(stack.daemon, stack.name)
    progress(f"{stack.name} was deployed without the engine; handing it over to Pulumi")
    secrets = credentials(stack)
    configured = json.loads(engine.call("config", "--json", "--show-secrets"))
    known = {key.removeprefix("mlflow:"): entry.get("value") for key, entry in configured.items()}
    if other := [key for key, value in secrets.items() if known.get(key, value) != value]:
        raise StopError(
            f"{stack.path.name} and the engine-less deployment differ in {', '.join(other)}, so Pulumi cannot use the "
            f"data\n  to keep the data, remove these keys from {stack.path.name}; to delete the data: make destroy "
            f"STACK={stack.name} CONFIRM={stack.name}\n  nothing was changed"
        )
    # Plan before the containers are removed, in case the engine cannot.
    if engine.show("preview", "--suppress-outputs"):
        raise StopError("Pulumi cannot plan this stack; the reason is above. The running deployment is unchanged")
    if not approved and not confirmed("Stop the containers, and let Pulumi create them again with the same data?"):
        raise StopError("nothing was changed")
    with _exclusive_lock(stack):
        # Secrets that the user wrote into the stack file are not reported as generated.
        generated = [key for key, value in generated_secrets(stack).items() if secrets[key] == value]
        for key in secrets.keys() - known.keys():
            engine.call("config", "set", "--secret", key, stdin=secrets[key])
        Host(stack.daemon, stack.name, ROOT).prune()
        passwords_of(stack).path.unlink()
    return generated
