"""The main loop of uvicorn's workers: a tick each second, and an end at once."""

import asyncio
import importlib.util
import os
import signal
import subprocess
import sys
import time
import types
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

MLFLOW = Path(__file__).parents[2] / "mlflow"
UVICORN = ["python", "-m", "uvicorn", "--log-config", "uvicorn", "mlflow.server.fastapi_app:app"]


class Server:
    """What uvicorn's server has of it."""

    def __init__(self) -> None:
        self.ticks: list[int] = []
        self.signals: list[int] = []
        self.last: int | None = None

    def handle_exit(self, number: int, _frame: object) -> None:
        self.signals.append(number)

    async def on_tick(self, counter: int) -> bool:
        self.ticks.append(counter)
        return bool(self.signals) or counter == self.last

    async def main_loop(self) -> None:
        raise AssertionError


@pytest.fixture
def idle(monkeypatch: pytest.MonkeyPatch) -> Any:  # noqa: ANN401 - loaded at run time
    uvicorn: Any = types.ModuleType("uvicorn")
    uvicorn.Server = type("Server", (Server,), {})
    monkeypatch.setitem(sys.modules, "uvicorn", uvicorn)
    spec = importlib.util.spec_from_file_location("idle", MLFLOW / "plugins" / "idle.py")
    assert spec
    assert spec.loader
    loaded: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def test_a_worker_acts_once_a_second_as_uvicorn_does_at_every_tenth_tick(idle: Any) -> None:  # noqa: ANN401
    assert idle.SECONDS == 1
    idle.SECONDS = 0.02
    server = idle.uvicorn.Server()
    server.last = 30
    began = time.monotonic()
    asyncio.run(server.main_loop())
    assert server.ticks == [0, 10, 20, 30]
    assert time.monotonic() - began >= 3 * idle.SECONDS


def test_a_stop_signal_ends_a_worker_at_once(idle: Any) -> None:  # noqa: ANN401
    idle.SECONDS = 60
    server = idle.uvicorn.Server()

    async def serve() -> None:
        asyncio.get_running_loop().call_later(0.01, server.handle_exit, 15, None)
        await server.main_loop()

    began = time.monotonic()
    asyncio.run(serve())
    assert time.monotonic() - began < idle.SECONDS / 2
    assert server.signals == [15]


def test_a_stop_signal_that_arrives_while_the_main_loop_begins_is_not_lost(idle: Any) -> None:  # noqa: ANN401
    server = idle.uvicorn.Server()
    server.loop = None
    server.handle_exit(15, None)
    asyncio.run(server.main_loop())
    assert server.ticks == [0]


@pytest.mark.skipif(sys.platform == "win32", reason="uvicorn's workers need a POSIX system")
@pytest.mark.parametrize("workers", ["1", "2"])
def test_uvicorn_itself_serves_and_stops(workers: str, tmp_path: Path) -> None:
    """With the real uvicorn: its workers are new processes that import the module again."""
    (tmp_path / "application.py").write_text(APPLICATION)
    search = f"{tmp_path}{os.pathsep}{MLFLOW / 'plugins'}"
    command = [
        sys.executable,
        "-m",
        "idle",
        "--port",
        "0",
        "--workers",
        workers,
        "--no-use-colors",
        "application:answer",
    ]
    with subprocess.Popen(
        command, env={**os.environ, "PYTHONPATH": search}, cwd=tmp_path, stderr=subprocess.PIPE, text=True
    ) as running:
        assert running.stderr
        said, started = "", 0
        for line in running.stderr:
            said += line
            started += "loop of idle" in line
            if started == int(workers):
                break
        running.send_signal(signal.SIGTERM)
        said += running.stderr.read()
    assert said.count("Finished server process") == int(workers), said
    assert running.returncode in (0, -signal.SIGTERM)


APPLICATION = """
import sys, uvicorn
async def answer(scope, receive, send):
    if scope["type"] == "lifespan":
        assert uvicorn.Server.main_loop.__module__ in ("__main__", "__mp_main__")
        while (message := await receive())["type"] != "lifespan.shutdown":
            await send({"type": "lifespan.startup.complete"})
            print("the loop of idle", file=sys.stderr, flush=True)
        await send({"type": "lifespan.shutdown.complete"})
"""


def test_a_stop_signal_before_the_main_loop_is_not_lost(idle: Any) -> None:  # noqa: ANN401
    server = idle.uvicorn.Server()
    server.handle_exit(15, None)
    asyncio.run(server.main_loop())
    assert server.ticks == [0]


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (UVICORN, ["python", "-m", "idle", *UVICORN[3:]]),
        (["python", "-m", "another", "uvicorn"], ["python", "-m", "another", "uvicorn"]),
    ],
    ids=["uvicorn", "another program of a later MLflow"],
)
def test_only_uvicorn_itself_is_replaced(command: list[str], expected: list[str]) -> None:
    # serve.py runs the server when it is imported, so only the function is taken from it.
    source = (MLFLOW / "serve.py").read_text()
    function = source[source.index("def idle(") : source.index("\n\n\nif __name__ ==")]
    space: dict[str, Any] = {"pairwise": pairwise}
    exec(function, space)  # noqa: S102
    assert space["idle"](command) == expected
