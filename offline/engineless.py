"""Deploying dev without the Pulumi engine, and handing over to it once it is there. See rehearsal/."""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import yaml

from offline.host import Host
from offline.monitor import run
from offline.passwords import Passwords
from operations.common.checkout import ROOT, state_home
from operations.common.console import StopError, confirmed, make, require_name, say
from operations.common.stack import Stack
from operations.engine.engine import Engine
from operations.engine.write_back import report_kept_backups
from operations.host import containers
from settings import names
from settings.names import key_of
from settings.stack import DEV, NAMESPACE

BACKUP_PASSWORD = "backup-password"  # noqa: S105 - its name
"""What opens the backups; there once a stack has had any."""
ASKED_FOR = "ENGINELESS"
"""The variable that asks for a rehearsal of a stack with another name, by 1. Never of one that protects its data."""


def asked_for() -> bool:
    """Whether somebody wants a rehearsal, engine or not."""
    return os.environ.get(ASKED_FOR) == "1"


def owns(stack: Stack) -> bool:
    """Whether this stack was last deployed by a rehearsal."""
    return _passwords(stack).path.exists()


def _passwords(stack: Stack) -> Passwords:
    return Passwords(state_home() / "rehearsal" / f"{stack.name}.json")


def _generated(stack: Stack) -> dict[str, str]:
    """Return the generated secrets by their keys in the config."""
    return {key_of(name): value for name, value in _passwords(stack).read().items()}


def credentials(stack: Stack) -> dict[str, str]:
    """Return every secret in clear, by its key: the configured one, else the generated one."""
    written = {key.removeprefix(f"{NAMESPACE}:"): value for key, value in stack.values.items()}
    # What is encrypted there has come since, and Pulumi alone reads it.
    readable = {key: str(value) for key, value in written.items() if not isinstance(value, dict)}
    return {key: readable.get(key, value) for key, value in _generated(stack).items()}


def up(stack: Stack, reason: str) -> None:
    """Deploy by the rehearsal; raise `StopError` with everything that went wrong."""
    if stack.settings.protect_data:
        raise StopError(
            f"{reason}\n  (a rehearsal cannot stand in: mlflow:protectData is true for {stack.name}, and what is "
            "protected is never rehearsed)"
        )
    if stack.name != DEV and not asked_for():
        raise StopError(f"{reason}\n  (a rehearsal stands in for dev alone, or where ENGINELESS=1 asks for it)")
    if encrypted := [key for key, value in stack.values.items() if isinstance(value, dict) and "secure" in value]:
        raise StopError(
            f"{reason}\n  a rehearsal cannot stand in: {stack.path.name} has secrets that only Pulumi reads: "
            f"{', '.join(encrypted)}\n  for a stack of your own: copy it to Pulumi.mine.yaml without encryptionsalt "
            "and `secure:` entries, choose another server.port, and type: ENGINELESS=1 make up STACK=mine"
        )
    passwords = _passwords(stack)
    say(
        f"\n*** A ENGINELESS, NOT PULUMI: {reason.splitlines()[0]}\n"
        "*** The same program makes the same containers, by a small deployer of this project: no plan, no state, no\n"
        f"*** comparison with what is there later. Its secrets are in {passwords.path}, readable by you\n"
        "*** only: keep a copy, without them the data are refused. For dev only.\n"
        f"*** Once the Pulumi CLI can be had, `{make('up', stack.name)}` hands it over to Pulumi, data included.\n"
    )
    with _alone(stack):
        host = Host(stack.daemon, stack.name, ROOT)
        _refuse_others(stack, host)
        os.chdir(ROOT)
        problems = run(
            ROOT / "__main__.py",
            host=host,
            passwords=passwords,
            project=str(yaml.safe_load((ROOT / "Pulumi.yaml").read_text())["name"]),
            config={key: _encoded(value) for key, value in stack.values.items()},
            say=say,
        )
        if problems:
            raise StopError(
                f"the rehearsal of {stack.name} did not complete\n"
                + "\n".join(f"  {problem}" for problem in problems)
                + "\n  no data are lost, and what was not to change runs on"
                + f"\n  mend the cause, or take the change back, then type: make up STACK={stack.name}"
            )
        host.prune()


def _refuse_others(stack: Stack, host: Host) -> None:
    """Raise `StopError` where this stack is Pulumi's, or somebody else's: before a single password is made."""
    if strangers := host.strangers():
        raise StopError(
            f"{stack.name} is there already, and no rehearsal made it: {', '.join(strangers[:5])}\n"
            "  put pulumi on the PATH again to go on with that deployment; nothing of it was changed"
        )
    data = [volume for volume in stack.daemon.volumes() if names.is_data_volume(stack.name, volume)]
    if data and not owns(stack):
        raise StopError(
            f"{stack.name} has data, and what opens them is not here: {', '.join(sorted(data))}\n"
            f"  ask whoever deployed it on this host for the secrets, and put them into {_passwords(stack).path} "
            "(mode 0600)\n"
            f"  or have a stack of your own: copy {stack.path.name} to Pulumi.mine.yaml, choose another server.port, "
            "and type: ENGINELESS=1 make up STACK=mine\n  nothing was changed"
        )


def _encoded(value: Any) -> str:  # noqa: ANN401 - YAML
    """Spell a value of the stack's file as Pulumi hands it to a program."""
    return value if isinstance(value, str) else json.dumps(value)


@contextmanager
def _alone(stack: Stack) -> Iterator[None]:
    """Hold the stack's lock, which ends with the process; raise `StopError` if somebody else does."""
    path = _passwords(stack).path.with_suffix(".lock")
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise StopError(f"stack {stack.name} is being changed by another rehearsal; wait for it") from None
        yield


def down(stack: Stack) -> None:
    """Remove what the rehearsal made; the data volumes and their passwords stay."""
    with _alone(stack):
        Host(stack.daemon, stack.name, ROOT).prune()
    kept = sorted(volume for volume in stack.daemon.volumes() if names.is_data_volume(stack.name, volume))
    say(
        f"\n{stack.name} is stopped. Its data are kept in {', '.join(kept) or 'no volume'}, and what opens them in "
        f"{_passwords(stack).path}.\nStart it again: make up STACK={stack.name}\n"
        f"Delete it with all its data: make destroy STACK={stack.name} CONFIRM={stack.name}"
    )


def destroy(stack: Stack) -> None:
    """Delete what the rehearsal made, the data and the passwords included."""
    doomed = sorted(volume for volume in stack.daemon.volumes() if names.is_data_volume(stack.name, volume))
    require_name(
        stack.name,
        f"This deletes every run, model and artifact of {stack.name} ({', '.join(doomed) or 'no data volume'}), "
        "for ever.",
    )
    with _alone(stack):
        Host(stack.daemon, stack.name, ROOT).prune()
        for volume in stack.daemon.volumes():
            if names.survives_down(stack.name, volume):
                stack.daemon.api.remove_volume(volume)
        # Its backups outlive it, here or in a bucket elsewhere, and nothing else opens them.
        if BACKUP_PASSWORD not in _passwords(stack).read():
            _passwords(stack).path.unlink()
    kept = f"its secrets are in {_passwords(stack).path}" if owns(stack) else "nor a secret"
    say(f"{stack.name} is gone: no container, network or data volume is left; {kept}.")
    report_kept_backups(stack)


def hand_over(engine: Engine, *, approved: bool) -> list[str]:
    """Give the engine a rehearsed stack: its secrets into the config, its containers out of the way.

    Asks first, unless somebody has `approved`: from then on the stack is down until the engine has made it again.
    Returns the keys of what it had generated, if it was one.
    The data volumes stay as they are, and what the engine makes next finds them. A hand-over that was cut off is
    done again from its beginning.
    """
    stack = engine.stack
    if not owns(stack):
        return []
    # Every network is made again, those that the settings keep included.
    containers.require_no_foreign_containers(stack.daemon, stack.name)
    say(f"{stack.name} was deployed by a rehearsal; handing it over to Pulumi")
    secrets = credentials(stack)
    configured = json.loads(engine.call("config", "--json", "--show-secrets"))
    known = {key.removeprefix("mlflow:"): entry.get("value") for key, entry in configured.items()}
    if other := [key for key, value in secrets.items() if known.get(key, value) != value]:
        raise StopError(
            f"{stack.path.name} has another {', '.join(other)} than the rehearsal, whose data would not open with it\n"
            f"  to keep the rehearsed data, remove those lines from {stack.path.name}; to give them up: make destroy "
            f"STACK={stack.name} CONFIRM={stack.name}\n  nothing was changed"
        )
    # An engine that cannot plan must not find out after the containers are gone.
    if engine.show("preview", "--suppress-outputs"):
        raise StopError("Pulumi cannot plan this stack; the reason is above. The rehearsed one was left as it is")
    if not approved and not confirmed(
        "Stop the rehearsed containers, and have Pulumi make them again on the same data?"
    ):
        raise StopError("nothing was changed")
    with _alone(stack):
        # One that somebody wrote into the stack's file himself is no news to him.
        generated = [key for key, value in _generated(stack).items() if secrets[key] == value]
        for key in secrets.keys() - known.keys():
            engine.call("config", "set", "--secret", key, stdin=secrets[key])
        Host(stack.daemon, stack.name, ROOT).prune()
        _passwords(stack).path.unlink()
    return generated
