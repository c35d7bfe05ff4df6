"""`make rotate`: new values for the generated secrets by one deployment, and a proof that the old ones are refused."""

import difflib
import os
import secrets as random_source
import shutil
import string
from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from pathlib import Path

from operations.common.console import BusyError, CanceledError, StopError, confirmed, flag, make, output, progress
from operations.common.lock import exclusive
from operations.common.stack import Stack
from operations.data import backup_key, data_keys
from operations.deployment import up
from operations.deployment.engine_for import engine_of
from operations.deployment.policy import policy_options
from operations.engine.backend import rotation_copy, rotation_lock
from operations.engine.engine import Engine
from operations.engine.moments import issue_certificates, note_value
from operations.host.containers import require_no_operation
from operations.host.docker_daemon import require_docker
from operations.host.servers import servers
from operations.observe.status import require_containers
from operations.rotation import proof
from operations.rotation.secrets import ALL, CERTIFICATES, PROVIDED, TABLE
from settings import names
from settings.rotatable import left_out, used_secrets
from settings.secrets import COMPLETES, LENGTH, NEXT_KEYS

FEW = 3
"""Up to so many secrets, an update restarts a few services only."""


def rotate(stack: Stack) -> None:
    """Give the secret `SECRET=` a new value; `all`, the default, means each that can be. `DRY_RUN=1` changes nothing.

    It can be interrupted anywhere, and typed again: it then completes.
    """
    dry = flag("DRY_RUN")
    require_docker(stack)
    engine = engine_of(stack, install=False)
    if not engine.has_stack():
        raise StopError(f"{stack.name} was not deployed from here; type: {make('up', stack.name)}")
    keys = _chosen(stack, engine)
    _show_plan(stack, engine, keys)
    if dry:
        progress("nothing was changed")
        return
    what = keys[0] if len(keys) == 1 else f"{len(keys)} secrets"
    if not confirmed(f"This gives {what} of {stack.name} a new value."):
        raise StopError("nothing was changed")
    require_no_operation(stack.daemon, stack.name)
    with exclusive(rotation_lock(stack), f"another rotation of {stack.name} is running; nothing was changed"):
        # For the deployments, and for the plan before them.
        os.environ[COMPLETES] = engine.environment[COMPLETES] = "1"
        _require_deployed(stack, engine)
        _require_stoppable(stack, keys)
        _rotate(stack, engine, keys)


def _chosen(stack: Stack, engine: Engine) -> list[str]:
    """Return the secrets to rotate; raise `StopError` if `SECRET=` is none that can be."""
    there, alone = _rotatable(stack), left_out(stack.settings)
    wanted = os.environ.get("SECRET") or ALL
    if wanted == ALL:
        return [key for key in there if key not in alone]
    if wanted in PROVIDED:
        raise StopError(
            f"SECRET={wanted}: is yours, so only you can replace it; nothing was changed\n"
            f'  type: eval "$(make -s env STACK={stack.name})" && pulumi config set --stack {stack.name} --secret '
            f"{wanted}, then: {make('up', stack.name)}"
        )
    # Only you can do what the rotation of the authority needs, so it must be named.
    if wanted in alone and wanted != "internalAuthority":
        raise StopError(f"SECRET={wanted}: cannot be rotated: {alone[wanted]}; nothing was changed")
    if wanted not in there:
        known = ", ".join([ALL, *there])
        close = difflib.get_close_matches(wanted.lower(), [key.lower() for key in there], n=1)
        hint = "".join(f"; did you mean {key}?" for key in there if key.lower() in close)
        # Without the value: a shell or a CI system may have a variable SECRET for another purpose.
        why = f"{wanted}: {stack.name} does not use this secret" if wanted in TABLE else f": no such secret{hint}"
        raise StopError(f"SECRET={why}; nothing was changed\n  write one of: {known}")
    return list(dict.fromkeys([*data_keys.interrupted(engine), wanted]))


def _rotatable(stack: Stack) -> list[str]:
    """Return the secrets that the stack uses, in the order of the table."""
    used = used_secrets(stack.settings) | ({CERTIFICATES} if stack.settings.tls.internal else set())
    return [key for key in TABLE if key in used]


def _show_plan(stack: Stack, engine: Engine, keys: Collection[str]) -> None:
    """Print what the rotation changes and interrupts."""
    rotation, tls = stack.settings.rotation, stack.settings.tls
    for key in keys:
        since = tls.issued if key == CERTIFICATES else rotation.value_since(key)
        age = f"{(datetime.now(UTC) - since).days} days old" if since else "age unknown"
        output(f"  {key}: {TABLE[key].what} ({age}); restarts: {TABLE[key].restarts}")
    if (os.environ.get("SECRET") or ALL) == ALL:
        for key, why in left_out(stack.settings).items():
            output(f"  left out: {key}: {why}")
    for key in keys:
        if TABLE[key].clients:
            output(f"  after {key}, {TABLE[key].clients}")
    # Measured on two cores, docs/operations/rotate.md.
    span = "half a minute" if len(keys) <= FEW else "one to two minutes"
    away = any(TABLE[key].away for key in keys)
    output(f"  the server is away for {span}" if away else "  the server stays up")
    if unfinished := data_keys.interrupted(engine):
        output(f"  completes the interrupted rotation of {', '.join(unfinished)}")


def _require_deployed(stack: Stack, engine: Engine) -> None:
    """Deploy what an interrupted rotation, or a person, has left undone: the rotation needs the values in use.

    Raises `StopError` if the stack file cannot be deployed.
    """
    plan = engine.plan(*policy_options(stack.settings, stack.name))
    if plan.errors or plan.refused:
        raise StopError(f"{plan.markdown()}\n  nothing was changed; fix {stack.path.name}, then repeat the command")
    if data_keys.interrupted(engine):
        # The rows have the old data keys or the new ones. Without a server, the deployment finds out which.
        if not servers(stack).deployed:
            _deploy_with_either(stack, engine)
        return
    if not plan.empty or not servers(stack).running:
        progress("the stack file is not deployed completely, by an edit or an interruption; deploying it first")
        up.up(stack, approved=True)
        engine.forget_state()
    require_containers(stack)


def _require_stoppable(stack: Stack, keys: Collection[str]) -> None:
    """Raise `StopError` before anything is written if the server cannot be stopped, for secrets that need it."""
    if not any(TABLE[key].away for key in keys):
        return
    if problem := servers(stack).stop_problem:
        raise StopError(f"{problem}\n  nothing was changed; then type again: {make('rotate', stack.name)}")
    if NEXT_KEYS.keys() & set(keys):
        try:
            data_keys.wait_for_lock(stack)
        except data_keys.UnchangedError as error:
            raise StopError(f"nothing was changed: {error}") from None


def _deploy_with_either(stack: Stack, engine: Engine) -> None:
    """Deploy with the old data keys or, if they do not decrypt the rows, with the new ones."""
    keys = data_keys.interrupted(engine)
    try:
        up.up(stack, approved=True)
    except (BusyError, CanceledError):
        # Not tried to the end, so the old data keys may well be those of the rows.
        raise
    except StopError as error:
        progress(f"{error}\nthe old data keys cannot be used; trying the new ones")
        values = engine.secrets()
        data_keys.adopt(engine, keys, {key: values[NEXT_KEYS[key]] for key in keys})
        up.up(stack, approved=True)
    engine.forget_state()


def _rotate(stack: Stack, engine: Engine, keys: list[str]) -> None:
    """Replace the values, deploy, and prove it."""
    old = _values(stack, engine, keys)
    new = {key: _generated() for key in keys if key != CERTIFICATES}
    ours = [key for key in keys if key in NEXT_KEYS]
    unfinished = data_keys.interrupted(engine)
    # First, because it changes nothing that is in use, and may fail.
    added = backup_key.add(stack, new["backupPassword"]) if "backupPassword" in keys else None
    new |= data_keys.prepare(engine, {key: new[key] for key in ours})
    for key in keys:
        progress(f"new value: {key}")
        if key == CERTIFICATES:
            issue_certificates(engine)
            continue
        if key not in ours:
            # Through stdin, because arguments are visible in the process list.
            engine.call("config", "set", "--secret", key, stdin=new[key])
        note_value(engine, key)
    copy = _copied(stack)
    if ours:
        # Last, because the server is down from here on.
        try:
            _encrypt(stack, engine, {key: old[key] for key in ours}, {key: new[key] for key in ours}, unfinished)
        except data_keys.UnchangedError as error:
            others = [key for key in keys if key not in ours]
            left = f"\n  {stack.path.name} has new values already, not deployed: {', '.join(others)}" if others else ""
            raise StopError(f"{error}{left}") from None
        data_keys.adopt(engine, ours, new)
    try:
        up.up(stack, approved=True)
    except StopError as error:
        raise StopError(
            f"{error}\n  do not revert {stack.path.name}: only it has the new values, with which data may be encrypted "
            f"already\n  a copy of it from before that is {copy}\n  to complete, type: {make('rotate', stack.name)}"
        ) from None
    if added:
        backup_key.remove_old(stack, added)
    _prove(stack, old, _values(stack, engine, keys, given=new))
    copy.unlink()


def _encrypt(
    stack: Stack, engine: Engine, old: Mapping[str, str], new: Mapping[str, str], unfinished: Collection[str]
) -> None:
    """Encrypt the data with new data keys. If that fails, forget those that this command has generated."""
    try:
        data_keys.encrypt(stack, old, new)
    except data_keys.UnchangedError:
        data_keys.discard(engine, [key for key in new if key not in unfinished])
        raise


def _copied(stack: Stack) -> Path:
    """Copy the stack file, with the old and the new data keys, to the folder of the passphrase, and return the copy.

    It is encrypted. The only copy of a data key must not depend on an edit of one file.
    """
    copy = rotation_copy(stack)
    copy.parent.mkdir(parents=True, exist_ok=True)
    copy.touch(mode=0o600)
    shutil.copyfile(stack.path, copy)
    return copy


def _values(
    stack: Stack, engine: Engine, keys: Collection[str], *, given: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Return the values in use. The authority's is its certificate, which a client can try."""
    known = given or engine.secrets()
    found = {key: known.get(key, "") for key in keys}
    if "internalAuthority" in found:
        found["internalAuthority"] = data_keys.secret_of(servers(stack), names.AUTHORITY_FILE)
    return found


def _generated() -> str:
    """Return a value as the program generates them."""
    letters = string.ascii_letters + string.digits
    return "".join(random_source.choice(letters) for _ in range(LENGTH))


def _prove(stack: Stack, old: Mapping[str, str], new: Mapping[str, str]) -> None:
    """Try every old and new value and print a table; raise `StopError` if one is not as it must be."""
    progress("trying the old values and the new ones")
    before, after = proof.tried(stack, old, old=True), proof.tried(stack, new, old=False)
    output("| secret | old value | new value |\n| --- | --- | --- |")
    wrong = []
    for key in old:
        tried, fresh = before.get(key, proof.UNTRIED), after.get(key, proof.UNTRIED)
        output(f"| {key} | {tried} | {'' if tried == fresh else fresh} |")
        if not tried.startswith(proof.UNTRIED) and (tried, fresh) != (proof.REFUSED, proof.ACCEPTED):
            wrong.append(key)
    if wrong:
        raise StopError(
            f"the rotation of {', '.join(wrong)} is not proved: see the table; the stack file has the new values\n"
            f"  type: {make('doctor', stack.name)}, then again: {make('rotate', stack.name)} SECRET={wrong[0]}"
        )
    path = stack.path.name
    progress(f"{path} holds the new values, encrypted. Commit it:\n  git add {path} && git commit -m 'Secrets' {path}")
