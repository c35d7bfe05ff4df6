"""The table that `make rotate` prints at its end."""

import re

UNTRIED = {"cryptoKekPassphrase", "webhookEncryptionKey"}
"""Secrets of every stack that no request shows; the database is compared instead."""


def proofs(printed: str) -> dict[str, tuple[str, str]]:
    """Return the proof of a rotation: secret to what became of the old value and of the new one.

    The table leaves the new one out if it is the same: neither could be tried.
    """
    return {
        key: (old, new or old)
        for key, old, new in re.findall(r"(?m)^\| (\w+) \| (.+?) \| (.*?) ?\|$", printed)
        if new != "new value"
    }
