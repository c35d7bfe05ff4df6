"""`make rotate`: new values for the generated secrets by one deployment, and a proof that the old ones are refused."""

import os
import secrets as random_source
import string
from collections.abc import Collection, Mapping
from datetime import UTC, datetime

from operations.common.console import StopError, confirmed, flag, make, output, progress
from operations.common.stack import Stack
from operations.data import data_keys
from operations.deployment import up
from operations.deployment.engine_for import engine_of
from operations.deployment.policy import policy_options
from operations.engine.engine import Engine
from operations.engine.moments import ISSUED
from operations.host.docker_daemon import require_docker
from operations.host.servers import servers
from operations.observe.status import require_containers
from operations.rotation import backup_key, proof
from operations.rotation.secrets import ALL, CERTIFICATES, FIXED, PROVIDED, TABLE
from settings.secrets import LENGTH, NEXT_KEYS

PAGE = "docs/operations/rotate.md"
DONE = "mlflow:rotation.done"
AWAY_SECONDS = 30
"""About how long the server is away: measured with one server on two cores, docs/operations/rotate.md."""


def rotate(stack: Stack) -> None:
    """Give the secret `SECRET=` a new value; `all`, the default, means each that can be. `DRY_RUN=1` changes nothing.

    It can be interrupted anywhere, and typed again: it then completes.
    """
    dry = flag("DRY_RUN")
    require_docker(stack)
    require_containers(stack)
    engine = engine_of(stack, install=False)
    if not engine.has_stack():
        raise StopError(f"{stack.name} was not deployed from here; type: {make('up', stack.name)}")
    keys = _chosen(stack, engine)
    _show_plan(stack, engine, keys)
    _require_deployable(stack, engine)
    if dry:
        progress("nothing was changed")
        return
    if not confirmed(f"This gives {len(keys)} secrets of {stack.name} new values."):
        raise StopError("nothing was changed")
    _rotate(stack, engine, keys)


def _chosen(stack: Stack, engine: Engine) -> list[str]:
    """Return the secrets to rotate; raise `StopError` if `SECRET=` is none that can be."""
    there = _rotatable(stack, engine)
    wanted = os.environ.get("SECRET") or ALL
    if wanted == ALL:
        return [key for key in there if not _has_outside_clients(stack, key)]
    if wanted in PROVIDED:
        raise StopError(
            f"SECRET={wanted}: is yours, so only you can replace it; nothing was changed\n"
            f'  type: eval "$(make -s env STACK={stack.name})" && pulumi config set --stack {stack.name} --secret '
            f"{wanted}, then: {make('up', stack.name)}"
        )
    if wanted in FIXED:
        raise StopError(f"SECRET={wanted}: {FIXED[wanted]}; nothing was changed")
    if wanted not in there:
        known = ", ".join([ALL, *there])
        why = "has no such secret now" if wanted in TABLE else "is no secret"
        raise StopError(f"SECRET={wanted}: {stack.name} {why}; nothing was changed\n  write one of: {known}")
    return list(dict.fromkeys([*data_keys.interrupted(engine), wanted]))


def _rotatable(stack: Stack, engine: Engine) -> list[str]:
    """Return the secrets that the deployment uses, in the order of the table."""
    used = set(engine.state.generated()) | ({CERTIFICATES} if stack.settings.tls.internal else set())
    return [key for key in TABLE if key in used]


def _has_outside_clients(stack: Stack, key: str) -> bool:
    """Return whether a client outside the stack has to get the new value before it works again."""
    return key == "internalAuthority" and stack.settings.traefik.mode == "existing"


def _show_plan(stack: Stack, engine: Engine, keys: Collection[str]) -> None:
    """Print what the rotation changes and interrupts."""
    for key in keys:
        since = stack.settings.rotation.value_since(key)
        age = f"{(datetime.now(UTC) - since).days} days old" if since else "age unknown"
        output(f"  {key}: {TABLE[key].what} ({age}); restarts: {TABLE[key].restarts}")
    if left_out := [key for key in _rotatable(stack, engine) if key not in keys and _has_outside_clients(stack, key)]:
        output(
            f"  left out: {', '.join(left_out)}, which your Traefik has to trust anew: {PAGE}#an-authority-that-your-"
            "traefik-trusts"
        )
    away = any(TABLE[key].away for key in keys)
    output(f"  the server is away for about {AWAY_SECONDS} s" if away else "  the server stays up")
    if unfinished := data_keys.interrupted(engine):
        output(f"  completes the interrupted rotation of {', '.join(unfinished)}")


def _require_deployable(stack: Stack, engine: Engine) -> None:
    """Raise `StopError` if the stack file cannot be deployed; say so if it has changes that are not deployed yet."""
    if data_keys.interrupted(engine):
        # Until the rotation is complete, no plan is possible.
        return
    plan = engine.plan(*policy_options(stack.settings, stack.name))
    if plan.errors or plan.refused:
        raise StopError(f"{plan.markdown()}\n  nothing was changed; fix {stack.path.name}, then repeat the command")
    if not plan.empty:
        progress("the stack file has changes that are not deployed yet; the rotation deploys them, too")


def _rotate(stack: Stack, engine: Engine, keys: list[str]) -> None:
    """Replace the values, deploy, and prove it."""
    old = _values(stack, engine, keys)
    new = {key: _generated() for key in keys if key != CERTIFICATES}
    ours = [key for key in keys if key in NEXT_KEYS]
    new |= data_keys.prepare(engine, {key: new[key] for key in ours})
    if "backupPassword" in keys and not backup_key.add(stack, new["backupPassword"]):
        progress("there is no backup yet, so there is no key to replace there")
    now = datetime.now(UTC).replace(microsecond=0).isoformat()
    for key in keys:
        progress(f"new value: {key}")
        if key not in (*ours, CERTIFICATES):
            # Through stdin, because arguments are visible in the process list.
            engine.call("config", "set", "--secret", key, stdin=new[key])
        # The name of a secret makes Pulumi ask for --secret.
        engine.call("config", "set", "--plaintext", "--path", ISSUED if key == CERTIFICATES else f"{DONE}.{key}", now)
    if ours:
        # Last, because the server is down from here on.
        data_keys.encrypt(stack, old, {key: new[key] for key in ours})
        data_keys.adopt(engine, ours, new)
    up.up(stack, approved=True)
    if "backupPassword" in keys:
        backup_key.remove_others(stack)
    _prove(stack, old, _values(stack, engine, keys, given=new))


def _values(
    stack: Stack, engine: Engine, keys: Collection[str], *, given: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Return the values in use. The authority's is its certificate, which a client can try."""
    known = given or engine.secrets()
    found = {key: known.get(key, "") for key in keys}
    if "internalAuthority" in found:
        found["internalAuthority"] = (servers(stack).secret("authority.pem") or b"").decode()
    return found


def _generated() -> str:
    """Return a value as the program generates them."""
    letters = string.ascii_letters + string.digits
    return "".join(random_source.choice(letters) for _ in range(LENGTH))


def _prove(stack: Stack, old: Mapping[str, str], new: Mapping[str, str]) -> None:
    """Try every old and new value and print a table; raise `StopError` if one is not as it must be."""
    progress("trying the old values and the new ones")
    before, after = proof.tried(stack, old), proof.tried(stack, new)
    output("| secret | old value | new value |\n| --- | --- | --- |")
    wrong = []
    for key in old:
        output(f"| {key} | {before.get(key, proof.UNTRIED)} | {after.get(key, proof.UNTRIED)} |")
        if before.get(key, proof.UNTRIED).startswith(proof.UNTRIED):
            continue
        if (before[key], after[key]) != (proof.REFUSED, proof.ACCEPTED):
            wrong.append(key)
    if wrong:
        raise StopError(
            f"the rotation of {', '.join(wrong)} is not proved: see the table; the stack file has the new values\n"
            f"  type: {make('doctor', stack.name)}, then again: {make('rotate', stack.name)} SECRET={wrong[0]}"
        )
    path = stack.path.name
    progress(f"{path} holds the new values, encrypted. Commit it:\n  git add {path} && git commit -m 'Secrets' {path}")
