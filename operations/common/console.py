"""How the operations speak: progress on stderr, answers on stdout, one kind of failure."""

import os
import sys

from settings import names


class StopError(Exception):
    """The end of an operation that could not be done: what is wrong, then what to type. Never a traceback."""


def say(text: str) -> None:
    """Tell the person what is going on."""
    # In one piece: threads tell of their progress, too.
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def answer(text: str) -> None:
    """Print what was asked for."""
    print(text, flush=True)


def interactive() -> bool:
    """Whether somebody is there to be asked."""
    return sys.stdin.isatty() and sys.stderr.isatty()


def confirmed(question: str) -> bool:
    """Ask a question that deletes nothing. `YES=1` answers it; without a terminal nobody does."""
    if os.environ.get("YES") == "1":
        return True
    if not interactive():
        raise StopError(f"{question}\n  without a terminal, answer with YES=1")
    say(f"{question} [y/N]")
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def make(verb: str, stack: str | None = None) -> str:
    """Return a verb as a person types it for a stack, or for the one that this command is about."""
    return names.make(verb, stack or os.environ.get("STACK") or "dev")


def flag(name: str, *, default: bool = False) -> bool:
    """Whether a variable is 1 rather than 0; raise `StopError` where it is neither: no word is taken for a no."""
    given = os.environ.get(name) or str(int(default))
    if given not in ("0", "1"):
        raise StopError(f"{name}={given}: write {name}=1 or {name}=0; nothing was changed")
    return given == "1"


def require_name(stack: str, question: str, verb: str = "destroy") -> None:
    """Ask a question that deletes: only the stack's name will do, typed or in `CONFIRM`."""
    # make exports an empty one where there is none.
    given = os.environ.get("CONFIRM") or None
    if given is None and interactive():
        say(f"{question}\nType the stack's name to go on:")
        given = sys.stdin.readline().strip()
    if given != stack:
        if given:
            question = f"CONFIRM={given} is not the name of this stack, {stack}. {question}"
        raise StopError(f"{question}\n  nothing was deleted; to go on, type: make {verb} STACK={stack} CONFIRM={stack}")


def amount(size: float | None) -> str:
    """Spell a number of bytes: 3.1 GB, 12 MB, or 7 kB."""
    if size is None:
        return "unknown"
    for unit, of_it, digits in (("GB", 1e9, 1), ("MB", 1e6, 0)):
        if size >= of_it:
            return f"{size / of_it:.{digits}f} {unit}"
    return f"{size / 1e3:.0f} kB"


def through(words: str) -> None:
    """Hand on what a container prints, as it comes."""
    sys.stderr.write(words)
    sys.stderr.flush()
