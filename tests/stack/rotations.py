"""The table that `make rotate` prints at its end."""

import re


def proofs(printed: str) -> dict[str, tuple[str, str]]:
    """Return the proof of a rotation: secret to what became of the old value and of the new one."""
    return {
        key: (old, new)
        for key, old, new in re.findall(r"(?m)^\| (\w+) \| (.+) \| (.+) \|$", printed)
        if new != "new value"
    }
