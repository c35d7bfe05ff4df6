"""uvicorn in the process that has imported MLflow: one import, and workers that are forks."""

import importlib.util
import os
import signal
import subprocess
import sys
import threading
import time
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn

MLFLOW = Path(__file__).parents[2] / "mlflow"
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="a fork needs a POSIX system")


COMMAND = ["python", "-m", "uvicorn", "--workers", "2", "json:loads"]
"""`json` stands for the module of MLflow's application."""
KNOWN = {"_MLFLOW_SERVER_FILE_STORE": "postgresql://", "_MLFLOW_SGI_NAME": "uvicorn"}


@pytest.fixture
def preloaded(monkeypatch: pytest.MonkeyPatch) -> Any:  # noqa: ANN401 - loaded at run time
    """Load the module without a trace in this process; hide the threads of pytest."""
    for folder in (MLFLOW, MLFLOW / "plugins"):
        monkeypatch.syspath_prepend(folder)
    # Restored at the end: idle.py replaces both.
    for name in ("main_loop", "handle_exit"):
        monkeypatch.setattr(uvicorn.Server, name, getattr(uvicorn.Server, name))
    monkeypatch.delitem(sys.modules, "idle", raising=False)
    # It imports parts of Starlette that MLflow has imported first.
    monkeypatch.setitem(sys.modules, "application", types.ModuleType("application"))
    monkeypatch.setattr(os, "environ", dict(os.environ))
    spec = importlib.util.spec_from_file_location("preloaded", MLFLOW / "preloaded.py")
    assert spec
    assert spec.loader
    loaded: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    loaded.READ_LATE.add("PYTEST_CURRENT_TEST")
    monkeypatch.setattr(threading, "active_count", lambda: 1)
    return loaded


def test_variables_that_mlflow_reads_late_need_no_new_process_and_are_set(preloaded: Any) -> None:  # noqa: ANN401
    assert preloaded.prepare(COMMAND, KNOWN) is None
    assert KNOWN.items() <= os.environ.items()


def test_the_application_is_imported_before_the_fork(preloaded: Any, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: ANN401
    monkeypatch.setitem(sys.modules, "application", None)
    with pytest.raises(ImportError):
        preloaded.prepare(COMMAND, KNOWN)


def test_another_variable_needs_a_new_process(preloaded: Any) -> None:  # noqa: ANN401
    reason = preloaded.prepare(COMMAND, KNOWN | {"_MLFLOW_OF_A_LATER_RELEASE": "1"})
    assert reason == "MLflow may read these variables when it is imported: _MLFLOW_OF_A_LATER_RELEASE"
    assert os.environ["_MLFLOW_OF_A_LATER_RELEASE"] == "1", "the new process would lack it"


def test_a_variable_that_the_command_sets_in_its_own_process_counts(preloaded: Any) -> None:  # noqa: ANN401
    os.environ["MLFLOW_SERVER_ALLOWED_HOSTS"] = "another.example"
    assert "MLFLOW_SERVER_ALLOWED_HOSTS" in preloaded.prepare(COMMAND, KNOWN)


def test_another_program_of_a_later_mlflow_is_started_as_it_is(preloaded: Any) -> None:  # noqa: ANN401
    assert preloaded.prepare(["/bin/uvicorn", *COMMAND[3:]], KNOWN) == "MLflow starts /bin/uvicorn --workers 2"


def test_threads_need_a_new_process(preloaded: Any, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: ANN401
    monkeypatch.setattr(threading, "active_count", lambda: 2)
    assert "threads" in preloaded.prepare(COMMAND, KNOWN)


ENGINE = """
class Engine:
    connected = True
    def dispose(self):
        self.connected = False
"""
"""What SQLAlchemy, which this virtual environment lacks, has of it."""
APPLICATION = """
import os
from sqlalchemy.engine import Engine
def say(text):
    # At once: the workers have one stderr.
    os.write(2, f"\\n{text}\\n".encode())
say(f"imported by {os.getpid()}")
database = Engine()
async def answer(scope, receive, send):
    if scope["type"] == "lifespan":
        while (message := await receive())["type"] != "lifespan.shutdown":
            await send({"type": "lifespan.startup.complete"})
            say(f"served by {os.getpid()} {database.connected}")
        await send({"type": "lifespan.shutdown.complete"})
"""
START = """
import preloaded, sys
command = ["python", *sys.argv[1:]]
assert preloaded.prepare(command, {}) is None
preloaded.run(command)
"""


@contextmanager
def started(folder: Path, workers: int) -> Iterator[tuple[subprocess.Popen[str], list[int]]]:
    """Run a server; yield its process, and the process IDs of its workers once they serve."""
    (folder / "application.py").write_text(APPLICATION)
    (folder / "sqlalchemy").mkdir()
    (folder / "sqlalchemy" / "engine.py").write_text(ENGINE)
    search = os.pathsep.join(map(str, (folder, MLFLOW, MLFLOW / "plugins")))
    command = ["-m", "uvicorn", "--port", "0", "--workers", str(workers), "--no-use-colors", "application:answer"]
    with subprocess.Popen(
        [sys.executable, "-c", START, *command],
        env={**os.environ, "PYTHONPATH": search},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as running:
        assert running.stderr
        importers: list[int] = []
        try:
            yield running, [served(running, importers) for _ in range(workers)]
        except BaseException:
            os.killpg(running.pid, signal.SIGKILL)
            raise
        assert importers == [running.pid], "the application was imported again"


def served(running: subprocess.Popen[str], importers: list[int]) -> int:
    """Return the process ID of the next worker that serves; add those that import the application to `importers`."""
    assert running.stderr
    for line in running.stderr:
        if line.startswith("imported by"):
            importers.append(int(line.split()[-1]))
        if line.startswith("served by"):
            number, connected = line.split()[-2:]
            assert connected == "False", "a worker has the connection of its parent to the database"
            return int(number)
    pytest.fail("the server ended")


def test_one_worker_is_the_process_that_imported_the_application(tmp_path: Path) -> None:
    with started(tmp_path, 1) as (running, workers):
        assert workers == [running.pid]
        running.send_signal(signal.SIGTERM)
        assert running.stderr
        assert "Finished server process" in running.stderr.read()
    assert running.returncode in (0, -signal.SIGTERM)


def test_several_workers_are_forks_and_a_killed_one_is_replaced_by_another(tmp_path: Path) -> None:
    with started(tmp_path, 2) as (running, workers):
        assert len({running.pid, *workers}) == 3
        os.kill(workers[0], signal.SIGKILL)
        imported: list[int] = []
        another = served(running, imported)
        assert imported == []
        assert another not in {running.pid, *workers}
        running.send_signal(signal.SIGTERM)
        assert running.stderr
        said = running.stderr.read()
        assert said.count("Finished server process") == 2, said
    assert running.returncode == 0


def test_a_worker_that_ends_while_its_parent_asks_it_is_replaced_at_once(tmp_path: Path) -> None:
    with started(tmp_path, 2) as (running, workers):
        os.kill(workers[0], signal.SIGSTOP)
        # The parent asks each worker twice a second, and waits for an answer for five seconds.
        time.sleep(2)
        os.kill(workers[0], signal.SIGKILL)
        killed = time.monotonic()
        served(running, [])
        assert time.monotonic() - killed < 4
        running.send_signal(signal.SIGTERM)
        assert running.stderr
        running.stderr.read()


BEGINS = """
import multiprocessing, os, signal, time
import preloaded
seen = []
signal.signal(signal.SIGTERM, lambda number, frame: seen.append(number))
begin = preloaded.begin
def late(*arguments):
    print("forked", os.getpid(), flush=True)
    time.sleep(0.5)
    begin(*arguments)
preloaded.begin = late
class Config:
    def configure_logging(self):
        pass
class Process:
    child_conn = multiprocessing.Pipe()[1]
    def target(self, sockets):
        time.sleep(30)
worker = preloaded.Worker(Config(), Process().target, [])
worker.start()
worker.join()
print(worker.exitcode, seen, flush=True)
"""


def test_a_stop_signal_while_a_worker_begins_ends_it(tmp_path: Path) -> None:
    """The handler of its parent, which the fork has, notes the signal only: the worker would never end."""
    (tmp_path / "begins.py").write_text(BEGINS)
    search = os.pathsep.join(map(str, (MLFLOW, MLFLOW / "plugins")))
    with subprocess.Popen(
        [sys.executable, str(tmp_path / "begins.py")],
        env={**os.environ, "PYTHONPATH": search},
        stdout=subprocess.PIPE,
        text=True,
    ) as running:
        assert running.stdout
        os.kill(int(running.stdout.readline().split()[1]), signal.SIGTERM)
        assert running.stdout.read() == f"{-signal.SIGTERM} []\n"
