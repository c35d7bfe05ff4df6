"""uvicorn in the process that has imported MLflow: one import, and workers that are forks."""

import importlib.util
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

MLFLOW = Path(__file__).parents[2] / "mlflow"
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="a fork needs a POSIX system")


@pytest.fixture(scope="module")
def preloaded() -> Iterator[Any]:
    before = list(sys.path), dict(sys.modules)
    sys.path[:0] = [str(MLFLOW), str(MLFLOW / "plugins")]
    spec = importlib.util.spec_from_file_location("preloaded", MLFLOW / "preloaded.py")
    assert spec
    assert spec.loader
    loaded: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    yield loaded
    sys.path[:] = before[0]
    sys.modules.pop("idle", None)


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide the threads of pytest."""
    monkeypatch.setattr(threading, "active_count", lambda: 1)


KNOWN = {"_MLFLOW_SERVER_FILE_STORE": "postgresql://", "_MLFLOW_SGI_NAME": "uvicorn"}


@pytest.mark.usefixtures("alone")
def test_variables_that_mlflow_reads_late_need_no_new_process(preloaded: Any) -> None:  # noqa: ANN401
    assert preloaded.reason_against(KNOWN) is None


@pytest.mark.usefixtures("alone")
def test_another_variable_needs_a_new_process_unless_it_was_set_before_the_import(
    preloaded: Any,  # noqa: ANN401
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    variables = KNOWN | {"_MLFLOW_OF_A_LATER_RELEASE": "1"}
    assert preloaded.reason_against(variables) == (
        "MLflow may read these variables when it is imported: _MLFLOW_OF_A_LATER_RELEASE"
    )
    monkeypatch.setenv("_MLFLOW_OF_A_LATER_RELEASE", "1")
    assert preloaded.reason_against(variables) is None


def test_threads_need_a_new_process(preloaded: Any) -> None:  # noqa: ANN401
    ended = threading.Event()
    thread = threading.Thread(target=ended.wait)
    thread.start()
    try:
        assert "threads" in preloaded.reason_against({})
    finally:
        ended.set()
        thread.join()


ENGINE = """
class Engine:
    connected = True
    def dispose(self):
        self.connected = False
"""
"""What SQLAlchemy, which this virtual environment lacks, has of it."""
APPLICATION = """
import os, sys
from sqlalchemy.engine import Engine
print("imported by", os.getpid(), file=sys.stderr, flush=True)
database = Engine()
async def answer(scope, receive, send):
    if scope["type"] == "lifespan":
        while (message := await receive())["type"] != "lifespan.shutdown":
            await send({"type": "lifespan.startup.complete"})
            print("served by", os.getpid(), database.connected, file=sys.stderr, flush=True)
        await send({"type": "lifespan.shutdown.complete"})
"""
START = "import preloaded, sys; preloaded.run(sys.argv[2:], sys.argv[1])"


@contextmanager
def started(folder: Path, workers: int) -> Iterator[tuple[subprocess.Popen[str], list[int]]]:
    """Run a server; yield its process, and the process IDs of its workers once they serve."""
    (folder / "application.py").write_text(APPLICATION)
    (folder / "sqlalchemy").mkdir()
    (folder / "sqlalchemy" / "engine.py").write_text(ENGINE)
    search = os.pathsep.join(map(str, (folder, MLFLOW, MLFLOW / "plugins")))
    name = "application:answer"
    options = ["--port", "0", "--workers", str(workers), "--no-use-colors", name]
    with subprocess.Popen(
        [sys.executable, "-c", START, name, *options],
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


def test_a_stop_signal_while_a_worker_begins_ends_it(preloaded: Any, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: ANN401
    """The handler of its parent, which the fork has, notes the signal only: the worker would never end."""
    handlers: dict[int, object] = {}
    monkeypatch.setattr(signal, "signal", handlers.__setitem__)
    found: list[object] = []
    config = SimpleNamespace(configure_logging=lambda: found.append(dict(handlers)))

    def serve(sockets: list[str]) -> None:
        found.append(sockets)

    preloaded.begin(config, serve, ["a socket"])
    assert found[1] == ["a socket"]
    assert found[0][signal.SIGTERM] == signal.SIG_DFL  # type: ignore[index]
