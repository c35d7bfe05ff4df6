"""A lock of this machine that ends with the process that holds it."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from operations.common.console import BusyError


@contextmanager
def exclusive(path: Path, held: str, *, owner: str = "") -> Iterator[None]:
    """Hold the lock of a file; raise `BusyError` with the words `held` if another process holds it.

    The file contains `owner`. In `held`, `{}` stands for the owner that holds the lock.
    """
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with path.open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.seek(0)
            raise BusyError(held.format(lock.read())) from None
        lock.truncate(0)
        lock.write(owner)
        lock.flush()
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
