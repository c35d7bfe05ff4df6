"""Output of the operations: progress on stderr, results on stdout, one exception for failures."""

import os
import sys
from contextlib import suppress

from settings import names

_goes_on = False
"""Whether the command goes on if nobody can read its output."""


class StopError(Exception):
    """An operation failed. The message says what is wrong, then what to type; it is shown without a traceback."""


class CanceledError(StopError):
    """A person or a signal ended the deployment, so its failure says nothing about the stack."""


class BusyError(StopError):
    """Another run changes the stack, so this one has changed nothing, and must not repair anything."""


def progress(text: str) -> None:
    """Print a progress message to stderr. If nobody can read it any more, go on without it."""
    # In one write, because several threads report progress.
    relay_output(f"{text}\n")


def output(text: str) -> None:
    """Print a result to stdout. Raises `OSError` if nobody can read it, but not after `go_on_without_reader`."""
    try:
        print(text, flush=True)
    except OSError:
        if not _goes_on:
            raise
        # Python flushes stdout when it exits, which would fail the same way.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def go_on_without_reader() -> None:
    """Complete the command also if nobody can read its output any more, because it changes something."""
    global _goes_on  # noqa: PLW0603 - of the process, as stdout is
    _goes_on = True


def interactive() -> bool:
    """Return whether a person at a terminal can answer a question of this program."""
    return sys.stdin.isatty() and sys.stderr.isatty()


def pulumi_can_ask() -> bool:
    """Return whether a person at a terminal can answer a question of Pulumi, which also prints it to stdout."""
    return interactive() and sys.stdout.isatty()


def confirmed(question: str) -> bool:
    """Ask for approval of something that deletes nothing. `YES=1` approves.

    Raises `StopError` if `YES=1` is not set and there is no terminal, or `YES=` has another value than 0 and 1.
    """
    if flag("YES"):
        return True
    if not interactive():
        raise StopError(f"{question}\n  without a terminal, approve with YES=1")
    progress(f"{question} [y/N]")
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def make(verb: str, stack: str | None = None) -> str:
    """Return the `make` command of a verb, for `stack` or for the stack of the current command."""
    return names.make_command(verb, stack or os.environ.get("STACK") or "dev")


def flag(name: str, *, default: bool = False) -> bool:
    """Return whether a variable is 1; raise `StopError` if it is neither 1 nor 0, so that no typo counts as 0."""
    given = os.environ.get(name) or str(int(default))
    if given not in ("0", "1"):
        raise StopError(f"{name}={given}: write {name}=1 or {name}=0; nothing was changed")
    return given == "1"


def require_confirmation(stack: str, question: str, verb: str = "destroy") -> None:
    """Ask for approval of a deletion: the stack's name, typed or in `CONFIRM`. Raise `StopError` without it."""
    # make exports CONFIRM as an empty string if it is not set.
    given = os.environ.get("CONFIRM") or None
    if given is None and interactive():
        progress(f"{question}\nType the stack's name to continue:")
        given = sys.stdin.readline().strip()
    if given != stack:
        if given:
            question = f"CONFIRM={given} is not the name of this stack, {stack}. {question}"
        raise StopError(f"{question}\n  nothing was deleted; to go on, type: make {verb} STACK={stack} CONFIRM={stack}")


def format_bytes(size: float | None) -> str:
    """Return a number of bytes as text: 3.1 GB, 12 MB, 7 kB, or 800 B."""
    if size is None:
        return "unknown"
    for unit, of_it, digits in (("GB", 1e9, 1), ("MB", 1e6, 0), ("kB", 1e3, 0)):
        # 999,600 bytes are 1 MB, not 1000 kB.
        if size >= 0.9995 * of_it:
            return f"{size / of_it:.{digits}f} {unit}"
    return f"{size:.0f} B"


def relay_output(words: str) -> None:
    """Print the output of a container to stderr as it arrives. If nobody can read it any more, go on without it."""
    # `make up 2>&1 | tee log` and Ctrl-C end the reader; a lost connection ends the terminal. What was begun must be
    # completed or undone all the same.
    with suppress(OSError):
        sys.stderr.write(words)
        sys.stderr.flush()
