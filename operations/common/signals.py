"""Signals that end a command: what it has begun is completed or undone first."""

import signal
from types import FrameType


class EndedError(KeyboardInterrupt):
    """SIGTERM, which only this process got. Handled as Ctrl-C, which all processes of the terminal get."""


def end_gracefully() -> None:
    """Handle SIGTERM as an interruption, so that every `finally` runs, and ignore a lost terminal (SIGHUP).

    A command that loses its SSH connection continues to its end, such as the start of the server after a restore. Its
    child processes inherit that they ignore the signal.
    """
    signal.signal(signal.SIGTERM, _end)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)


def _end(number: int, _: FrameType | None) -> None:
    raise EndedError(number)
