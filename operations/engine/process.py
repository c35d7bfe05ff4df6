"""Processes of Pulumi: an interruption lets them complete or end by themselves, because a killed one leaves a lock.

A killed update also leaves a container that was created half, and a killed `config set` a truncated file.
"""

import signal
import subprocess
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from operations.common.signals import EndedError


def run_to_its_end(
    command: Sequence[str], *, cwd: Path, environment: Mapping[str, str], stdin: str | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a short command and return its output. An interruption is raised when the command has ended.

    In its own session, so that Ctrl-C in the terminal does not reach it.
    """
    interruption = None
    with subprocess.Popen(
        command,
        cwd=cwd,
        env=environment,
        stdin=subprocess.DEVNULL if stdin is None else subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as running:
        while True:
            try:
                printed, errors = running.communicate(stdin)
            except KeyboardInterrupt as interrupted:
                # The input is sent already, or is in the buffer of the communication.
                interruption, stdin = interrupted, None
                continue
            break
    if interruption:
        raise interruption
    return subprocess.CompletedProcess(command, running.returncode, printed, errors)


def wait_gracefully(command: Sequence[str], relay: Callable[[Iterable[str]], None], **options: Any) -> int:  # noqa: ANN401 - those of Popen
    """Run a command, pass its lines to `relay`, and return its exit code. An interruption does not end the wait.

    A Ctrl-C in the terminal has reached the command as well. Any other signal is passed on as SIGINT, on which Pulumi
    completes what it is doing, and ends.
    """
    with subprocess.Popen(command, **options) as running:
        while True:
            try:
                relay(running.stdout or ())
                return running.wait()
            except EndedError:
                running.send_signal(signal.SIGINT)
            except KeyboardInterrupt:
                continue
