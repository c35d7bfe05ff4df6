"""The age of the secrets, for `make status`: from the stack file, which `make rotate` writes."""

from datetime import UTC, datetime, timedelta
from typing import Any

from operations.common.console import make
from operations.common.lock import is_held
from operations.common.stack import Stack
from operations.engine.backend import rotation_copy, rotation_lock
from settings.rotatable import rotatable
from settings.secrets import NEXT_KEYS, interrupted_message
from settings.stack import NAMESPACE


def ages(stack: Stack) -> dict[str, Any]:
    """Return the days since each generated secret got its value, by key (None: unknown), and which are too old."""
    rotation, now = stack.settings.rotation, datetime.now(UTC)
    keys = sorted(rotatable(stack.settings) & {key.removeprefix(f"{NAMESPACE}:") for key in stack.values})
    since = {key: rotation.value_since(key) for key in keys}
    limit = timedelta(days=rotation.after_days) if rotation.after_days else None
    return {
        "days": {key: (now - moment).days if moment else None for key, moment in since.items()},
        "limit": rotation.after_days,
        "tooOld": [key for key, moment in since.items() if limit and moment and now - moment > limit],
    }


def summary(found: dict[str, Any], stack: str) -> str:
    """Return the ages in one line."""
    known = {key: days for key, days in found["days"].items() if days is not None}
    if not known:
        return f"{len(found['days'])}, of unknown age; {make('rotate', stack)} replaces them"
    oldest = max(known, key=lambda key: known[key])
    words = f"{len(found['days'])}, the oldest {known[oldest]} days old ({oldest})"
    if found["tooOld"]:
        words += f"; older than {found['limit']} days: {', '.join(found['tooOld'])}; type: {make('rotate', stack)}"
    return words


def problems(stack: Stack) -> list[str]:
    """Return a rotation that is running, or an interrupted one with its command, as a problem."""
    if is_held(rotation_lock(stack)):
        return [f"a rotation of {stack.name} is running; the server is away for part of it, and make up has to wait"]
    found = sorted(key for key in NEXT_KEYS.values() if f"{NAMESPACE}:{key}" in stack.values)
    if found:
        return [interrupted_message(found, stack.name)]
    if rotation_copy(stack).exists():
        return [
            "a rotation was interrupted: old values may still be accepted\n"
            f"  to complete it, with new values, type: {make('rotate', stack.name)}"
        ]
    return []
