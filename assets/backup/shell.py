"""Runs external programs: shows their output as it comes, and reports a failure in one line."""

import os
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

LAST_LINES = 12
PROGRESS_SECONDS = 10
SHOWN = 10
"""Maximum number of names that a message lists."""


class Failure(Exception):  # noqa: N818 - the operator reads its message only
    """An error for the operator: what went wrong, and what to type."""


def make(verb: str) -> str:
    """Return the `make` command of a verb, for this stack."""
    return f"make {verb} STACK={os.environ['STACK']}"


def say(words: str) -> None:
    """Print a line of progress, without buffering."""
    print(words, flush=True)


def amount(size: float) -> str:
    """Return a number of bytes in words: 3.1 GB, 12 MB, 7 kB, or 800 B."""
    for unit, of_it, digits in (("GB", 1e9, 1), ("MB", 1e6, 0), ("kB", 1e3, 0)):
        # 999,600 bytes are 1 MB, not 1000 kB.
        if size >= 0.9995 * of_it:
            return f"{size / of_it:.{digits}f} {unit}"
    return f"{size:.0f} B"


def first(names: Sequence[str]) -> str:
    """Return the first ten names, one per line, and how many more there are."""
    shown = "".join(f"\n    {name}" for name in names[:SHOWN])
    return shown + (f"\n    and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def trusted_authority() -> ssl.SSLContext | None:
    """Return what verifies the certificates of the stack's services; None if they speak plaintext."""
    authority = os.environ.get("AUTHORITY")
    return ssl.create_default_context(cafile=authority) if authority else None


class Progress:
    """Prints the progress of a long operation every `PROGRESS_SECONDS`."""

    def __init__(self, words: str) -> None:
        """Start at zero. `words` follow the number: "3.1 GB ..."."""
        self._words = words
        self._done = 0
        self._next = time.monotonic() + PROGRESS_SECONDS

    def add(self, size: int) -> None:
        """Add `size` bytes to the progress."""
        self._done += size
        if time.monotonic() > self._next:
            self._next = time.monotonic() + PROGRESS_SECONDS
            say(f"{amount(self._done)} {self._words}")


def run(*command: str, stdin: str | None = None) -> str:
    """Run a program and return its output; raise `Failure` with its last lines if it fails."""
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Failure(_failed(command, done.returncode, done.stderr or done.stdout))
    return done.stdout


def show(*command: str, check: Callable[[], None] = lambda: None) -> None:
    """Run a program and show its output; raise `Failure` with its last lines if it fails.

    `check` is called after each line. The program ends if that raises.
    """
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as running:
        assert running.stdout  # noqa: S101 - it is a pipe
        lines: list[str] = []
        for line in running.stdout:
            sys.stdout.write(line)
            sys.stdout.flush()
            lines = [*lines, line][-LAST_LINES:]
            try:
                check()
            except Failure:
                running.kill()
                raise
    if running.returncode:
        raise Failure(_failed(command, running.returncode, "".join(lines)))


def _failed(command: Sequence[str], code: int, words: str) -> str:
    last = "\n".join(f"    {line}" for line in words.strip().splitlines()[-LAST_LINES:])
    return f"{command[0]} {command[1] if len(command) > 1 else ''} {killed(code)}\n{last}"


def killed(code: int) -> str:
    """Return how a failed program ended, by its exit code."""
    if code < 0:
        return f"was killed by signal {-code}; perhaps memory ran out: raise mlflow:backup.memoryMb"
    return f"failed with exit code {code}"
