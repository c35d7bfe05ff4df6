"""Test what an interruption does to a command of Pulumi, with small programs in its place."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable
from pathlib import Path

import pytest

from operations import __main__ as operations_main
from operations.__main__ import ALONE, CHANGES, INTERRUPTED_MESSAGES, VERBS, main
from operations.common import console, signals
from operations.common import stack as stack_module
from operations.common.console import BusyError
from operations.common.lock import exclusive
from operations.engine import engine as engine_module
from operations.engine.engine import Engine
from operations.engine.process import run_to_its_end, wait_gracefully
from tests.shipped import stack_file

ROOT = Path(__file__).parents[2]
SHORT = "import sys; print('written', sys.stdin.read())"
INTERRUPTING = "import os, signal, time; os.kill(os.getppid(), signal.SIGINT); time.sleep(0.3); open('done', 'w')"
"""A program during which the command is interrupted."""
HANGING = """
import os, signal, time
for _ in range(2):
    os.kill(os.getppid(), signal.SIGINT)
    time.sleep(0.3)
time.sleep(60)
"""
"""A program during which the command is interrupted twice, and which does not end by itself."""
GRACEFUL = """
import signal, sys, time
told = []
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda *_: told.append(1))
print("started", flush=True)
while not told:
    time.sleep(0.05)
time.sleep(0.3)
print("canceled after", len(told), flush=True)
sys.exit(3)
"""
"""A program that completes what it is doing after SIGINT or SIGTERM, as `pulumi up` does, and ends."""


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a checkout with the stack dev, in a home folder of its own."""
    (tmp_path / "Pulumi.dev.yaml").write_text(stack_file("dev"))
    monkeypatch.setattr(stack_module, "ROOT", tmp_path)
    monkeypatch.setattr(engine_module, "ROOT", tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    for name in ("STACK", "DRY_RUN", "YES"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.fixture
def handlers() -> Iterable[None]:
    """Handle Ctrl-C also if these tests run in the background, and set the handlers of signals back at the end."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("handlers")
def test_a_short_command_completes_before_an_interruption_counts(tmp_path: Path) -> None:
    command = [sys.executable, "-c", INTERRUPTING]
    with pytest.raises(KeyboardInterrupt):
        run_to_its_end(command, cwd=tmp_path, environment=os.environ, stdin="all", shielded=True)
    assert (tmp_path / "done").exists()


@pytest.mark.usefixtures("handlers")
def test_a_second_interruption_ends_a_short_command_that_hangs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [sys.executable, "-c", HANGING]
    with pytest.raises(KeyboardInterrupt):
        run_to_its_end(command, cwd=tmp_path, environment=os.environ, shielded=True)
    assert capsys.readouterr().err == "waiting until Pulumi has written; Ctrl-C again ends it\n"


def test_a_short_command_returns_what_it_printed(tmp_path: Path) -> None:
    done = run_to_its_end([sys.executable, "-c", SHORT], cwd=tmp_path, environment=os.environ, stdin="all")
    assert (done.returncode, done.stdout, done.stderr) == (0, "written all\n", "")


@pytest.mark.usefixtures("handlers")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "Ctrl-C"])
def test_an_update_ends_by_itself_after_one_signal(number: signal.Signals) -> None:
    signals.end_gracefully()
    printed: list[str] = []

    def relay(lines: Iterable[str]) -> None:
        for line in lines:
            printed.append(line)
            if line == "started\n":
                # A terminal, `timeout` and systemd send it to every process. The program counts how many it gets.
                os.kill(running_child(), number)
                os.kill(os.getpid(), number)

    command = [sys.executable, "-c", GRACEFUL]
    assert wait_gracefully(command, relay, stdout=subprocess.PIPE, text=True) == (3, True)
    assert printed == ["started\n", "canceled after 1\n"]


def running_child() -> int:
    """Return the process id of the program that this test has started."""
    children = Path(f"/proc/{os.getpid()}/task/{threading.get_native_id()}/children").read_text().split()
    return int(children[-1])


@pytest.mark.usefixtures("handlers")
def test_a_command_that_changes_something_goes_on_without_a_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "_goes_on", False)
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as unread:
        with monkeypatch.context() as there:
            there.setattr(sys, "stdout", unread)
            with pytest.raises(BrokenPipeError):
                console.output("https://mlflow.example.com")
            console.go_on_without_reader()
            console.output("https://mlflow.example.com")
        # It leads to /dev/null now.
        unread.flush()


@pytest.mark.usefixtures("handlers")
def test_a_lost_terminal_ends_neither_a_command_nor_its_child() -> None:
    signals.end_gracefully()
    os.kill(os.getpid(), signal.SIGHUP)
    kills_itself = "import os, signal; os.kill(os.getpid(), signal.SIGHUP); print('alive')"
    done = subprocess.run([sys.executable, "-c", kills_itself], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "alive\n")


@pytest.mark.usefixtures("handlers")
@pytest.mark.parametrize("verb", sorted(INTERRUPTED_MESSAGES))
def test_an_interrupted_command_says_what_is_left(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], verb: str
) -> None:
    assert verb in VERBS

    def interrupted(_: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(operations_main, "Stack", interrupted)
    assert main([verb]) == 130
    assert f"interrupted; {INTERRUPTED_MESSAGES[verb]}" in capsys.readouterr().err
    assert checkout.exists()


@pytest.mark.usefixtures("handlers")
def test_one_command_at_a_time_changes_a_stack(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lock = checkout / "state" / "pulumi-mlflow" / "locks" / "dev"
    with exclusive(lock, "", owner="restore, process 4711"):
        assert main(["up"]) == 1
    assert capsys.readouterr().err == (
        "\nerror: dev is being changed by another run: make restore, process 4711\n"
        "  nothing was changed; wait for it, then type again\n"
    )


def test_every_command_that_deploys_or_stops_the_server_is_alone() -> None:
    assert {"up", "down", "destroy", "restore", "import", "export", "encrypt", "rotate", "upgrade-postgres"} <= ALONE
    assert ALONE <= CHANGES


def test_a_lock_names_its_latest_owner(tmp_path: Path) -> None:
    for owner in ("a longer owner", "second"):
        with exclusive(tmp_path / "lock", "", owner=owner):
            with pytest.raises(BusyError) as told, exclusive(tmp_path / "lock", "held by {}"):
                pass
            assert str(told.value) == f"held by {owner}"


def test_an_update_completes_although_nobody_reads_its_output(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = checkout / "pulumi"
    program.write_text('#!/bin/sh\nfor i in $(seq 2000); do echo "line $i"; done\ntouch complete\n')
    program.chmod(0o755)
    engine = Engine.__new__(Engine)
    engine.stack, engine.cli, engine.environment = stack_module.Stack("dev"), program, dict(os.environ)
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as unread:
        monkeypatch.setattr(sys, "stdout", unread)
        code = engine.show("up")
        monkeypatch.undo()
        # What is left in the buffer cannot be written either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), writer)
    assert code == 0
    assert (checkout / "complete").exists()


def test_progress_that_nobody_can_read_does_not_end_a_command(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as unread:
        monkeypatch.setattr(sys, "stderr", unread)
        console.progress("stopping the server")
        monkeypatch.undo()
        os.dup2(os.open(os.devnull, os.O_WRONLY), writer)


@pytest.mark.parametrize("piped", ["stdin", "stdout", "stderr"])
def test_pulumi_asks_only_if_input_and_output_are_a_terminal(monkeypatch: pytest.MonkeyPatch, piped: str) -> None:
    for name in ("stdin", "stdout", "stderr"):
        monkeypatch.setattr(getattr(sys, name), "isatty", lambda: True, raising=False)
    monkeypatch.setattr(console, "interactive", lambda: sys.stdin.isatty() and sys.stderr.isatty())
    assert console.pulumi_can_ask()
    monkeypatch.setattr(getattr(sys, piped), "isatty", lambda: False, raising=False)
    assert not console.pulumi_can_ask()
