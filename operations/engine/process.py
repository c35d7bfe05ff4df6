"""Processes of Pulumi: an interruption lets them complete or end by themselves, because a killed one leaves a lock.

A killed update also leaves a container that was created half, and a killed `config set` a truncated file.
"""

import os
import signal
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from operations.common.console import progress


def run_to_its_end(
    command: Sequence[str],
    *,
    cwd: Path,
    environment: Mapping[str, str],
    stdin: str | None = None,
    shielded: bool = False,
) -> subprocess.CompletedProcess[str]:
    """Run a command and return its output. An interruption is raised when the command has ended.

    A Ctrl-C in the terminal reaches the command as well, unless it is `shielded`; then a second one ends it.
    """
    interruption = None
    # Written before the command starts, because an interruption of `communicate` could lose it.
    with (
        _pipe_with(stdin) as source,
        subprocess.Popen(
            command,
            cwd=cwd,
            env=environment,
            stdin=source,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=shielded,
        ) as running,
    ):
        while True:
            try:
                printed, errors = running.communicate()
            except KeyboardInterrupt as interrupted:
                if shielded and interruption:
                    running.send_signal(signal.SIGINT)
                elif shielded:
                    progress("waiting until Pulumi has written; Ctrl-C again ends it")
                interruption = interrupted
                continue
            break
    if interruption:
        raise interruption
    return subprocess.CompletedProcess(command, running.returncode, printed, errors)


def wait_gracefully(
    command: Sequence[str],
    relay: Callable[[Iterable[str]], None],
    **options: Any,  # noqa: ANN401 - those of Popen
) -> tuple[int, bool]:
    """Run a command, and pass its lines to `relay`. Return its exit code, and whether it was interrupted.

    A Ctrl-C in the terminal reaches the command as well, and so does a SIGTERM of `timeout` or systemd: Pulumi
    completes what it is doing, and ends. After a second one it would end at once, so none is passed on. A SIGTERM to
    this process alone lets the update complete.
    """
    interrupted = False
    with subprocess.Popen(command, **options) as running:
        while True:
            try:
                relay(running.stdout or ())
                return running.wait(), interrupted
            except KeyboardInterrupt:
                interrupted = True


@contextmanager
def _pipe_with(text: str | None) -> Iterator[int]:
    """Yield a pipe that contains `text`, of at most 16 KiB (a pipe's size on macOS); without a text, /dev/null."""
    if text is None:
        yield subprocess.DEVNULL
        return
    reader, writer = os.pipe()
    os.write(writer, text.encode())
    os.close(writer)
    try:
        yield reader
    finally:
        os.close(reader)
