"""Shorter ways through MLflow's application: which requests take them, and what arrives at the client."""

import asyncio
import importlib.util
import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount

PATH = Path(__file__).parents[2] / "mlflow" / "plugins" / "shorter.py"
SLOW = 50
"""More clients than anyio has threads: 40."""
Start = Callable[[str, list[tuple[str, str]]], object]


@pytest.fixture(scope="module")
def plugin() -> Any:  # noqa: ANN401 - loaded at run time
    spec = importlib.util.spec_from_file_location("shorter", PATH)
    assert spec
    assert spec.loader
    loaded: Any = importlib.util.module_from_spec(spec)
    with warnings.catch_warnings():
        # Starlette's bridge to WSGI is deprecated. MLflow uses it, too.
        warnings.simplefilter("ignore")
        spec.loader.exec_module(loaded)
    # Stands for the source of MLflow's own functions and classes.
    loaded.own_digest, loaded.digest = loaded.digest, lambda known: loaded.DIGESTS[known.__name__]
    return loaded


class _EfficientWSGIResponder:
    """Stands for MLflow's class of this name."""


class _EfficientWSGIMiddleware:
    """Stands for MLflow's class of this name."""

    def __init__(self, app: Any) -> None:  # noqa: ANN401
        self.app = app

    async def __call__(self, scope: Any, _receive: Any, send: Any) -> None:  # noqa: ANN401
        assert scope["type"] == "websocket", "a request took MLflow's own way"
        await send({"type": "websocket.close", "code": 1000})


def flask(environ: dict[str, Any], start: Start) -> list[bytes]:
    """Stand for MLflow's Flask application."""
    start("201 CREATED", [("Content-Length", "4"), ("Set-Cookie", "a=1"), ("Set-Cookie", "b=2")])
    return [environ["REQUEST_METHOD"].encode()]


def ask(application: Any, path: str = "/", *parts: bytes, kind: str = "http", **headers: str) -> list[dict[str, Any]]:  # noqa: ANN401
    """Return the messages that `application` sends for a request with a body of `parts`."""
    sent: list[dict[str, Any]] = []
    received = iter(parts or [b""])
    left = len(parts or [b""])

    async def receive() -> dict[str, Any]:
        nonlocal left
        left -= 1
        return {"type": "http.request", "body": next(received), "more_body": left > 0}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    scope = {
        "type": kind,
        "method": "POST",
        "path": path,
        "query_string": b"",
        "http_version": "1.1",
        "headers": [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()],
    }
    asyncio.run(application(scope, receive, send))
    return sent


def mlflow(wsgi: Any = flask, *names: str) -> tuple[Starlette, list[str]]:  # noqa: ANN401
    """Return an application that is built as MLflow's is, and the list of the middlewares that requests passed."""
    passed: list[str] = []

    def dispatch(name: str) -> Any:  # noqa: ANN401
        async def function(request: Request, call_next: RequestResponseEndpoint) -> Response:
            passed.append(name)
            return await call_next(request)

        function.__name__ = name
        return function

    middlewares = [Middleware(BaseHTTPMiddleware, dispatch=dispatch(name)) for name in names]
    return Starlette(routes=[Mount("/", _EfficientWSGIMiddleware(wsgi))], middleware=middlewares), passed


def shortened(plugin: Any, wsgi: Any = flask, *names: str) -> Any:  # noqa: ANN401
    """Return an application that is built as MLflow's is, with the shorter ways."""
    application, _ = mlflow(wsgi, *names)
    plugin.shorten(application)
    return application


KNOWN = ("artifact_transfer_middleware", "gateway_timing_middleware", "workspace_context_middleware")


@pytest.mark.parametrize(
    ("path", "headers", "passes"),
    [
        ("/api/2.0/mlflow/runs/get", {}, []),
        ("/api/2.0/mlflow/runs/get", {"x_mlflow_workspace": "other"}, ["workspace_context_middleware"]),
        ("/gateway/chat/mlflow/invocations", {}, ["gateway_timing_middleware"]),
        ("/prefix/gateway/chat", {}, ["gateway_timing_middleware"]),
        ("/ajax-api/2.0/mlflow/upload-artifact", {}, ["artifact_transfer_middleware"]),
    ],
)
def test_a_request_passes_only_the_middlewares_that_do_something_for_it(
    plugin: Any,  # noqa: ANN401
    path: str,
    headers: dict[str, str],
    passes: list[str],
) -> None:
    application, passed = mlflow(flask, *KNOWN)
    assert plugin.shorten(application) == []
    assert ask(application, path, **headers)[0]["status"] == 201
    assert passed == passes


@pytest.mark.parametrize("value", ["true", "1", "True"])
def test_every_request_has_a_workspace_if_mlflow_has_workspaces(
    plugin: Any,  # noqa: ANN401
    monkeypatch: pytest.MonkeyPatch,
    value: str,
) -> None:
    monkeypatch.setenv("MLFLOW_ENABLE_WORKSPACES", value)
    application, passed = mlflow(flask, *KNOWN)
    plugin.shorten(application)
    ask(application, "/api/2.0/mlflow/runs/get")
    assert passed == ["workspace_context_middleware"]


def test_an_unknown_middleware_stays(plugin: Any) -> None:  # noqa: ANN401
    application, passed = mlflow(flask, "fastapi_permission_middleware", *KNOWN)
    assert plugin.shorten(application) == []
    ask(application)
    assert passed == ["fastapi_permission_middleware"]


def test_what_a_release_of_mlflow_has_changed_stays_and_is_named(
    plugin: Any,  # noqa: ANN401
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    digest = plugin.own_digest
    application, passed = mlflow(flask, *KNOWN)
    changed = digest(application.user_middleware[0].kwargs["dispatch"])
    monkeypatch.setitem(plugin.DIGESTS, "gateway_timing_middleware", changed)
    monkeypatch.setattr(plugin, "digest", digest)
    # All three have the source of one function here, and its digest is that of one of them.
    assert plugin.shorten(application) == [
        "artifact_transfer_middleware",
        "workspace_context_middleware",
        plugin.BRIDGE,
    ]
    monkeypatch.setitem(plugin.DIGESTS, plugin.BRIDGE, digest(_EfficientWSGIMiddleware))
    assert plugin.shorten(application) == [*KNOWN]
    ask(application)
    assert passed == ["artifact_transfer_middleware", "workspace_context_middleware"]


def test_a_change_of_what_decides_for_a_known_function_is_noticed(
    plugin: Any,  # noqa: ANN401
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = plugin.own_digest(_EfficientWSGIMiddleware)
    monkeypatch.setattr(sys.modules[__name__], "_EfficientWSGIResponder", flask)
    assert plugin.own_digest(_EfficientWSGIMiddleware) != before
    assert set(plugin.READ_WITH) < set(plugin.DIGESTS)


def test_what_has_no_source_stays(plugin: Any) -> None:  # noqa: ANN401
    space: dict[str, Any] = {}
    exec("def without_source(): pass", space)  # noqa: S102
    assert plugin.own_digest(space["without_source"]) == ""
    assert "" not in plugin.DIGESTS.values()


def test_an_application_that_is_built_differently_stays_as_it_is(plugin: Any) -> None:  # noqa: ANN401
    assert plugin.shorten(Starlette(routes=[Mount("/", Starlette())])) == list(plugin.DIGESTS)


def test_an_application_is_shortened_once(plugin: Any) -> None:  # noqa: ANN401
    application, _ = mlflow(flask, *KNOWN)
    plugin.shorten(application)
    before = list(application.user_middleware)
    assert plugin.shorten(application) == list(plugin.DIGESTS)
    assert application.user_middleware == before


def test_a_short_answer_arrives_in_one_piece_with_every_header(plugin: Any) -> None:  # noqa: ANN401
    application = shortened(plugin)
    head, body = ask(application)
    assert head["status"] == 201
    assert head["headers"] == [(b"content-length", b"4"), (b"set-cookie", b"a=1"), (b"set-cookie", b"b=2")]
    assert body == {"type": "http.response.body", "body": b"POST"}


def test_flask_gets_the_whole_body_of_the_request(plugin: Any) -> None:  # noqa: ANN401
    def echo(environ: dict[str, Any], start: Start) -> list[bytes]:
        body = environ["wsgi.input"].read()
        start("200 OK", [("Content-Length", str(len(body)))])
        return [body]

    application = shortened(plugin, echo)
    assert ask(application, "/", b"one ", b"two ", b"three")[1]["body"] == b"one two three"


def run(application: Any, send: Any) -> None:  # noqa: ANN401
    """Send one request without a body, and pass the answer to `send`."""

    async def receive() -> dict[str, Any]:
        return {"type": "http.request"}

    scope = {"type": "http", "method": "GET", "path": "/", "query_string": b"", "http_version": "1.1", "headers": []}
    asyncio.run(application(scope, receive, send))


def test_an_answer_of_unknown_length_arrives_as_flask_produces_it(plugin: Any) -> None:  # noqa: ANN401
    arrived, closed = threading.Event(), threading.Event()

    class Parts:
        def __iter__(self) -> Iterator[bytes]:
            yield b"first"
            assert arrived.wait(10), "the first part waited for the second one"
            yield b"second"

        def close(self) -> None:
            closed.set()

    def stream(_environ: dict[str, Any], start: Start) -> Iterable[bytes]:
        start("200 OK", [])
        return Parts()

    application = shortened(plugin, stream)
    sent: list[Any] = []

    async def send(message: dict[str, Any]) -> None:
        sent.append(message.get("body"))
        if message.get("body") == b"first":
            arrived.set()

    run(application, send)
    assert sent == [None, b"first", b"second", b""]
    assert closed.is_set()


def test_a_long_answer_arrives_in_pieces_and_no_faster_than_the_client_receives_it(plugin: Any) -> None:  # noqa: ANN401
    produced = 0

    def long(_environ: dict[str, Any], start: Start) -> Iterator[bytes]:
        nonlocal produced
        start("200 OK", [("Content-Length", "2500000")])
        for _ in range(25):
            produced += 100_000
            yield b"x" * 100_000

    application = shortened(plugin, long)
    sizes: list[int] = []

    async def send(message: dict[str, Any]) -> None:
        sizes.append(len(message.get("body", b"")))
        assert produced - sum(sizes) <= plugin.PIECE_BYTES

    run(application, send)
    assert sizes == [0, 1_000_000, 1_000_000, 500_000]


def test_clients_that_stop_reading_take_no_thread_from_others(plugin: Any) -> None:  # noqa: ANN401
    def answer(environ: dict[str, Any], start: Start) -> list[bytes]:
        size = 2_000_000 if environ["PATH_INFO"] == "/long" else 2
        start("200 OK", [("Content-Length", str(size))])
        return [b"x" * size]

    application = shortened(plugin, answer)
    stalled = 0

    async def everything() -> None:
        all_stalled = asyncio.Event()

        async def receive() -> dict[str, Any]:
            return {"type": "http.request"}

        async def stall(message: dict[str, Any]) -> None:
            nonlocal stalled
            if message["type"] == "http.response.body":
                stalled += 1
                if stalled == SLOW:
                    all_stalled.set()
                await asyncio.Event().wait()

        async def send(_message: dict[str, Any]) -> None:
            pass

        scope = {"type": "http", "method": "GET", "query_string": b"", "http_version": "1.1", "headers": []}
        slow = [asyncio.create_task(application({**scope, "path": "/long"}, receive, stall)) for _ in range(SLOW)]
        await asyncio.wait_for(all_stalled.wait(), 30)
        await asyncio.wait_for(application({**scope, "path": "/short"}, receive, send), 5)
        for task in slow:
            task.cancel()
        await asyncio.gather(*slow, return_exceptions=True)

    asyncio.run(everything())


def test_an_answer_is_closed_if_the_request_is_cancelled(plugin: Any) -> None:  # noqa: ANN401
    closed = threading.Event()

    class Parts(list[bytes]):
        def close(self) -> None:
            closed.set()

    def answer(_environ: dict[str, Any], start: Start) -> Iterable[bytes]:
        start("200 OK", [])
        return Parts([b"x", b"y"])

    application = shortened(plugin, answer)

    async def cancel(_message: dict[str, Any]) -> None:
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        run(application, cancel)
    assert closed.is_set()


def test_all_pieces_are_read_in_one_context(plugin: Any) -> None:  # noqa: ANN401
    request: ContextVar[str] = ContextVar("request")

    def answer(_environ: dict[str, Any], start: Start) -> Iterator[bytes]:
        start("200 OK", [])
        token = request.set("mine")
        yield b"first"
        yield request.get().encode()
        request.reset(token)

    application = shortened(plugin, answer)
    assert b"".join(message["body"] for message in ask(application)[1:]) == b"firstmine"


def test_headers_are_sent_with_the_bytes_that_wsgi_gives(plugin: Any) -> None:  # noqa: ANN401
    def answer(_environ: dict[str, Any], start: Start) -> list[bytes]:
        start("200 OK", [("X-Name", "\xe9")])
        return []

    application = shortened(plugin, answer)
    assert ask(application)[0]["headers"] == [(b"x-name", b"\xe9")]


def test_an_error_after_the_head_is_raised_and_one_before_it_replaces_the_answer(plugin: Any) -> None:  # noqa: ANN401
    def late(_environ: dict[str, Any], start: Any) -> Iterator[bytes]:  # noqa: ANN401
        start("200 OK", [])
        yield b"first"
        start("500 ERROR", [], (RuntimeError, RuntimeError("late"), None))
        yield b"second"

    def early(_environ: dict[str, Any], start: Any) -> list[bytes]:  # noqa: ANN401
        start("200 OK", [("Content-Length", "5")])
        start("500 ERROR", [], (RuntimeError, RuntimeError("early"), None))
        return [b"error"]

    application = shortened(plugin, late)
    with pytest.raises(RuntimeError, match="late"):
        ask(application)
    application = shortened(plugin, early)
    assert ask(application)[0]["status"] == 500


def test_the_head_of_a_long_answer_alone_is_sent_for_head(plugin: Any) -> None:  # noqa: ANN401
    def answer(_environ: dict[str, Any], start: Start) -> list[bytes]:
        start("200 OK", [("Content-Length", "9000000")])
        return []

    application = shortened(plugin, answer)
    head, body = ask(application)
    assert head["headers"] == [(b"content-length", b"9000000")]
    assert body == {"type": "http.response.body", "body": b""}


def test_a_short_answer_is_closed(plugin: Any) -> None:  # noqa: ANN401
    closed = threading.Event()

    class Parts(list[bytes]):
        def close(self) -> None:
            closed.set()

    def answer(_environ: dict[str, Any], start: Start) -> Iterable[bytes]:
        start("200 OK", [("Content-Length", "1")])
        return Parts([b"x"])

    application = shortened(plugin, answer)
    ask(application)
    assert closed.is_set()


def test_an_answer_without_a_body_arrives(plugin: Any) -> None:  # noqa: ANN401
    def answer(_environ: dict[str, Any], start: Start) -> list[bytes]:
        start("304 NOT MODIFIED", [])
        return []

    application = shortened(plugin, answer)
    sent = ask(application)
    assert sent[0]["status"] == 304
    assert b"".join(message["body"] for message in sent[1:]) == b""
    assert "more_body" not in sent[-1]


def test_an_error_in_flask_is_answered_with_500(plugin: Any) -> None:  # noqa: ANN401
    def fail(_environ: dict[str, Any], _start: Start) -> list[bytes]:
        raise RuntimeError("broken")

    application = shortened(plugin, fail)
    sent: list[int] = []

    async def send(message: dict[str, Any]) -> None:
        sent.append(message.get("status", 0))

    # Starlette answers with 500, and passes the error on to uvicorn's log.
    with pytest.raises(RuntimeError, match="broken"):
        run(application, send)
    assert sent[0] == 500


def test_what_is_no_http_request_takes_mlflows_own_way(plugin: Any) -> None:  # noqa: ANN401
    application = shortened(plugin, flask, *KNOWN)
    assert ask(application, kind="websocket") == [{"type": "websocket.close", "code": 1000}]
