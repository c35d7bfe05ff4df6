"""Shorter ways through MLflow's application: which requests take them, and what arrives at the client."""

import asyncio
import importlib.util
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
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
Start = Callable[[str, list[tuple[str, str]]], object]


@pytest.fixture(scope="module")
def plugin() -> Any:  # noqa: ANN401 - loaded at run time
    spec = importlib.util.spec_from_file_location("shorter", PATH)
    assert spec
    assert spec.loader
    loaded = importlib.util.module_from_spec(spec)
    with warnings.catch_warnings():
        # Starlette's bridge to WSGI is deprecated. MLflow uses it, too.
        warnings.simplefilter("ignore")
        spec.loader.exec_module(loaded)
    return loaded


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
    assert plugin.shorten(application) == 4
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
    assert plugin.shorten(application) == 4
    ask(application)
    assert passed == ["fastapi_permission_middleware"]


def test_nothing_is_shortened_in_an_application_that_is_built_differently(plugin: Any) -> None:  # noqa: ANN401
    assert plugin.shorten(Starlette(routes=[Mount("/", Starlette())])) == 0


def test_a_short_answer_arrives_in_one_piece_with_every_header(plugin: Any) -> None:  # noqa: ANN401
    application, _ = mlflow()
    plugin.shorten(application)
    head, body = ask(application)
    assert head["status"] == 201
    assert head["headers"] == [(b"content-length", b"4"), (b"set-cookie", b"a=1"), (b"set-cookie", b"b=2")]
    assert body == {"type": "http.response.body", "body": b"POST"}


def test_flask_gets_the_whole_body_of_the_request(plugin: Any) -> None:  # noqa: ANN401
    def echo(environ: dict[str, Any], start: Start) -> list[bytes]:
        body = environ["wsgi.input"].read()
        start("200 OK", [("Content-Length", str(len(body)))])
        return [body]

    application, _ = mlflow(echo)
    plugin.shorten(application)
    assert ask(application, "/", b"one ", b"two ", b"three")[1]["body"] == b"one two three"


@pytest.mark.parametrize("headers", [[], [("Content-Length", "8000001")]], ids=["of unknown length", "long"])
def test_an_answer_that_is_not_short_arrives_as_flask_produces_it(
    plugin: Any,  # noqa: ANN401
    headers: list[tuple[str, str]],
) -> None:
    arrived, closed = threading.Event(), threading.Event()

    class Parts:
        def __iter__(self) -> Iterator[bytes]:
            yield b"first"
            assert arrived.wait(10), "the first part waited for the second one"
            yield b"second"

        def close(self) -> None:
            closed.set()

    def stream(_environ: dict[str, Any], start: Start) -> Iterable[bytes]:
        start("200 OK", headers)
        return Parts()

    application, _ = mlflow(stream)
    plugin.shorten(application)
    sent: list[bytes] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request"}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message.get("body"))  # type: ignore[arg-type]
        if message.get("body") == b"first":
            arrived.set()

    scope = {"type": "http", "method": "GET", "path": "/", "query_string": b"", "http_version": "1.1", "headers": []}
    asyncio.run(application(scope, receive, send))  # type: ignore[arg-type]
    assert sent == [None, b"first", b"second", b""]
    assert closed.is_set()


def test_a_short_answer_is_closed(plugin: Any) -> None:  # noqa: ANN401
    closed = threading.Event()

    class Parts(list[bytes]):
        def close(self) -> None:
            closed.set()

    def answer(_environ: dict[str, Any], start: Start) -> Iterable[bytes]:
        start("200 OK", [("Content-Length", "1")])
        return Parts([b"x"])

    application, _ = mlflow(answer)
    plugin.shorten(application)
    ask(application)
    assert closed.is_set()


def test_an_answer_without_a_body_arrives(plugin: Any) -> None:  # noqa: ANN401
    def answer(_environ: dict[str, Any], start: Start) -> list[bytes]:
        start("304 NOT MODIFIED", [])
        return []

    application, _ = mlflow(answer)
    plugin.shorten(application)
    sent = ask(application)
    assert sent[0]["status"] == 304
    assert b"".join(message["body"] for message in sent[1:]) == b""
    assert "more_body" not in sent[-1]


def test_an_error_in_flask_is_reported_as_before(plugin: Any) -> None:  # noqa: ANN401
    def fail(_environ: dict[str, Any], _start: Start) -> list[bytes]:
        raise RuntimeError("broken")

    application, _ = mlflow(fail)
    plugin.shorten(application)
    with pytest.raises(RuntimeError, match="broken"):
        ask(application)


def test_what_is_no_http_request_takes_mlflows_own_way(plugin: Any) -> None:  # noqa: ANN401
    application, _ = mlflow(flask, *KNOWN)
    plugin.shorten(application)
    assert ask(application, kind="websocket") == [{"type": "websocket.close", "code": 1000}]
