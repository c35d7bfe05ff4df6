"""Running other people's programs: their words go on as they come, and a failure is told in one line."""

import os
import subprocess
import sys
import time
from collections.abc import Sequence

LAST_LINES = 12
PROGRESS_SECONDS = 10
SHOWN = 10
"""Of a list of names."""


class Failure(Exception):  # noqa: N818 - what an operator reads is its message
    """What went wrong, and what to type."""


def make(verb: str) -> str:
    """Return a verb of this project as a person types it for this stack."""
    return f"make {verb} STACK={os.environ['STACK']}"


def say(words: str) -> None:
    """Print a line of progress, at once."""
    print(words, flush=True)


def amount(size: float) -> str:
    """Spell a number of bytes: 3.1 GB, 12 MB, or 7 kB."""
    for unit, of_it, digits in (("GB", 1e9, 1), ("MB", 1e6, 0)):
        if size >= of_it:
            return f"{size / of_it:.{digits}f} {unit}"
    return f"{size / 1e3:.0f} kB"


def first(names: Sequence[str]) -> str:
    """Spell the first ten of some names, a line each, and say how many more there are."""
    shown = "".join(f"\n    {name}" for name in names[:SHOWN])
    return shown + (f"\n    and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


class Progress:
    """Says how far a long piece of work is, now and then."""

    def __init__(self, words: str) -> None:
        """Begin with nothing done. `words` go behind the number: "3.1 GB ..."."""
        self._words = words
        self._done = 0
        self._next = time.monotonic() + PROGRESS_SECONDS

    def add(self, size: int) -> None:
        """Count so many bytes as done."""
        self._done += size
        if time.monotonic() > self._next:
            self._next = time.monotonic() + PROGRESS_SECONDS
            say(f"{amount(self._done)} {self._words}")


def run(*command: str, stdin: str | None = None) -> str:
    """Run a program and return what it printed; raise `Failure` with its last words."""
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Failure(_failed(command, done.returncode, done.stderr or done.stdout))
    return done.stdout


def show(*command: str) -> None:
    """Run a program whose progress is worth seeing; raise `Failure` where it fails."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as running:
        assert running.stdout  # noqa: S101 - it is a pipe
        lines: list[str] = []
        for line in running.stdout:
            sys.stdout.write(line)
            sys.stdout.flush()
            lines = [*lines, line][-LAST_LINES:]
    if running.returncode:
        raise Failure(_failed(command, running.returncode, "".join(lines)))


def _failed(command: Sequence[str], code: int, words: str) -> str:
    last = "\n".join(f"    {line}" for line in words.strip().splitlines()[-LAST_LINES:])
    return f"{command[0]} {command[1] if len(command) > 1 else ''} {killed(code)}\n{last}"


def killed(code: int) -> str:
    """Say how a program ended that did not succeed."""
    if code < 0:
        return f"was killed by signal {-code}; out of memory, perhaps (mlflow:backup.memoryMb)"
    return f"failed with exit code {code}"
