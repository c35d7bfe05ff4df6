"""Signals that end a command: what it has begun is completed or undone first."""

import signal
from types import FrameType


def end_gracefully() -> None:
    """Handle SIGTERM as Ctrl-C, so that every `finally` runs, and ignore a lost terminal (SIGHUP).

    A command that loses its SSH connection continues to its end, such as the start of the server after a restore. Its
    child processes inherit that they ignore the signal.
    """
    signal.signal(signal.SIGTERM, _interrupt)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)


def _interrupt(_: int, __: FrameType | None) -> None:
    raise KeyboardInterrupt
