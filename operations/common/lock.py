"""A lock of this machine that ends with the process that holds it."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from operations.common.console import StopError


@contextmanager
def exclusive(path: Path, held: str) -> Iterator[None]:
    """Hold the lock of a file; raise `StopError` with the words `held` if another process holds it."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise StopError(held) from None
        yield


def is_held(path: Path) -> bool:
    """Return whether a process of this machine holds the lock of a file."""
    if not path.exists():
        return False
    with path.open() as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
    return False
