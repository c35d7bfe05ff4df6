"""Test requests to a Docker daemon that answers late, incompletely or not at all."""

import json
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import Any

import pytest
from docker.errors import APIError
from requests import Response
from requests.exceptions import ChunkedEncodingError
from urllib3.exceptions import HTTPError as CutOffError

from runtime.daemon import NO_ANSWER_ERRORS, Daemon


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exclude this machine from any proxy that is configured."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


class Silent(Daemon):
    """A daemon that starts to send the output of a command and then hangs."""

    def __init__(self) -> None:
        super().__init__("unix:///nowhere")

    @property
    def api(self) -> Any:  # noqa: ANN401
        return SimpleNamespace(
            base_url="",
            api_version="",
            exec_create=lambda *_, **__: {"Id": "x"},
            post=lambda *_, **__: threading.Event().wait(),
        )


def test_a_container_that_is_still_stopping_is_stopped_before_it_starts_again(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    api = SimpleNamespace(
        update_container=lambda _, restart_policy: done.append(restart_policy["Name"]),
        start=lambda _: done.append("start"),
    )
    daemon = Daemon("unix:///none")
    monkeypatch.setattr(Daemon, "api", api)
    monkeypatch.setattr(daemon, "stop", lambda _: done.append("stop"))
    daemon.resume("mlflow-dev-server")
    assert done == ["always", "stop", "start"]


def test_a_hanging_command_in_a_container_times_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtime.daemon.REQUEST_TIMEOUT_SECONDS", 0.1)
    assert Silent().run("server", ["true"]) == (124, "no answer within 0.1 s")


@contextmanager
def a_daemon(*, frames: bytes, inspected: list[dict[str, Any]], reset: bool = False) -> Iterator[Daemon]:
    """Run a daemon on which a command prints `frames`; it reports the states `inspected`, the last one repeatedly."""

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found = {"ApiVersion": "1.41"}
            if self.path.endswith("/exec/x/json"):
                found = inspected.pop(0) if len(inspected) > 1 else inspected[0]
            self.answer(json.dumps(found).encode())

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            if not self.path.endswith("/start"):
                self.answer(b'{"Id": "x"}')
                return
            self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/vnd.docker.raw-stream\r\n\r\n" + frames)
            self.close_connection = True
            if reset:
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.close()

        def answer(self, body: bytes) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        daemon = Daemon(f"tcp://127.0.0.1:{server.server_port}")
        with closing(daemon.api):
            yield daemon
        server.shutdown()


HELLO = b"\x01\0\0\0\0\0\0\x05hello"
RUNS = {"Running": True, "ExitCode": None}


@pytest.mark.parametrize(
    ("inspected", "code"),
    [
        ([{"Running": False, "ExitCode": 3}], 3),
        ([RUNS, RUNS, {"Running": False, "ExitCode": 3}], 3),
        ([{"Running": False, "ExitCode": None}], 124),
    ],
    ids=["ended", "closed its output first", "unknown"],
)
def test_the_exit_code_of_a_command_is_never_guessed(inspected: list[dict[str, Any]], code: int) -> None:
    with a_daemon(frames=HELLO, inspected=[*inspected]) as daemon:
        assert daemon.run("server", ["true"]) == (code, "hello")
    told: list[str] = []
    with a_daemon(frames=HELLO, inspected=[*inspected]) as daemon:
        assert daemon.show("server", ["true"], told.append) == code
    assert told == ["hello"]


def test_a_connection_cut_during_output_counts_as_no_answer() -> None:
    with a_daemon(frames=HELLO + HELLO[:8], inspected=[RUNS], reset=True) as daemon:
        code, said = daemon.run("server", ["true"])
        assert code == 124
        assert "reset by peer" in said
        with pytest.raises(NO_ANSWER_ERRORS):
            daemon.show("server", ["true"], print)


def test_an_unreachable_daemon_counts_as_no_answer() -> None:
    code, said = Daemon("tcp://127.0.0.1:1").run("server", ["true"])
    assert code == 124
    assert "refused" in said


class Restarting(Daemon):
    """A daemon with `live-restore` that restarts while a container prints: it cuts the stream and is back at once."""

    def __init__(self) -> None:
        super().__init__("unix:///nowhere")
        self.asked: list[object] = []
        stopping = Response()
        stopping.status_code = 503
        self.cuts = [ChunkedEncodingError("cut off"), APIError("stopping", stopping)]
        self.waited = 0

    @property
    def api(self) -> Any:  # noqa: ANN401
        return SimpleNamespace(ping=lambda: True)

    def logs(self, _container: str, *, tail: object, **_: object) -> Iterator[bytes]:  # type: ignore[override]
        self.asked.append(tail)
        yield b"before" if tail == "all" else b"after"
        if tail == "all":
            raise CutOffError("the daemon went away")

    def wait(self, _container: str, **_: object) -> dict[str, int]:
        if self.waited < len(self.cuts):
            self.waited += 1
            raise self.cuts[self.waited - 1]
        return {"StatusCode": 7}


def test_a_container_is_followed_across_a_restart_of_the_daemon() -> None:
    daemon, told = Restarting(), list[str]()
    assert daemon._stream_until_exit(daemon, "restore", told.append) == 7  # type: ignore[arg-type]
    assert told == ["before", "after", "after", "after"]
    assert daemon.asked == ["all", 0, 0, 0], "output that was already printed would be printed again"
