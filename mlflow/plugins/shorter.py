"""Shorter ways through MLflow's application. They halve the CPU time of a call (docs/performance.md).

MLflow's REST API is a Flask application inside a FastAPI application. Before Flask does its work, a request passes
three middlewares, each of which runs the rest in a task of its own and copies the answer through a queue, and nearly
every request needs none of them. Then each part of Flask's answer goes through another queue, from thread to thread.

Here a request passes a middleware only if the middleware does something for it, and a short answer goes from Flask's
thread to the client in one piece. Middlewares that this module does not know stay as they are, such as those that check
hosts, origins and users.
"""

import os
from itertools import chain

import anyio
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.wsgi import build_environ
from starlette.routing import Mount

SHORT_BYTES = 8_000_000
"""An answer up to this length is sent in one piece; a longer one, or one of unknown length, as Flask produces it, which
takes a thread until the client has received it. The largest file of the web interface has 4.5 MB."""
WORKSPACE_HEADER = b"x-mlflow-workspace"


def with_workspace(scope):
    """Return whether the request needs a workspace. Without workspaces, MLflow only refuses the header."""
    enabled = os.environ.get("MLFLOW_ENABLE_WORKSPACES", "").lower() in ("true", "1")
    return enabled or any(name == WORKSPACE_HEADER for name, _ in scope["headers"])


NEEDED = {
    "workspace_context_middleware": with_workspace,
    "gateway_timing_middleware": lambda scope: "/gateway/" in scope["path"],
    "artifact_transfer_middleware": lambda scope: "upload-artifact" in scope["path"],
}
"""The functions of MLflow's middlewares that do nothing for most requests, and for which requests they may do something
(mlflow/server/fastapi_app.py of MLflow 3.18)."""
BRIDGE = "_EfficientWSGIMiddleware"
"""MLflow's class that runs Flask in a thread."""


def shorten(application):
    """Shorten the ways through `application`, MLflow's FastAPI application. Return how many there were to shorten."""
    found = 0
    for number, (kind, arguments, options) in enumerate(application.user_middleware):
        needed = NEEDED.get(getattr(options.get("dispatch"), "__name__", ""))
        if kind is BaseHTTPMiddleware and needed:
            application.user_middleware[number] = Middleware(IfNeeded, *arguments, needed=needed, **options)
            found += 1
    for route in application.routes:
        if isinstance(route, Mount) and type(route.app).__name__ == BRIDGE:
            route.app = Bridge(route.app)
            found += 1
    return found


class IfNeeded:
    """A middleware that a request passes only if `needed(scope)` is true."""

    def __init__(self, app, dispatch, needed):
        """Take what Starlette passes to a middleware, and `needed`."""
        self._around, self._middleware, self._needed = app, BaseHTTPMiddleware(app, dispatch), needed

    async def __call__(self, scope, receive, send):
        """Serve the request with the middleware or without it."""
        through = scope["type"] == "http" and self._needed(scope)
        await (self._middleware if through else self._around)(scope, receive, send)


class Bridge:
    """Runs Flask in a thread, as MLflow's own class does, with one step back to the event loop for a short answer."""

    def __init__(self, bridge):
        """Take MLflow's own object, which serves what is no HTTP request."""
        self._bridge, self._flask = bridge, bridge.app

    async def __call__(self, scope, receive, send):
        """Serve one request. As in MLflow, its whole body is in memory; uploads of artifacts do not come here."""
        if scope["type"] != "http":
            await self._bridge(scope, receive, send)
            return
        body, more = [], True
        while more:
            message = await receive()
            body.append(message.get("body", b""))
            more = message.get("more_body", False)
        environ = build_environ(scope, b"".join(body))
        del body
        for message in await anyio.to_thread.run_sync(self._answer, environ, send):
            await send(message)

    def _answer(self, environ, send):
        """Return the messages that remain to be sent: all of a short answer, the last one of any other."""
        started = {}

        def start(status, headers, _exc_info=None):
            started.update(status=int(status.partition(" ")[0]), headers=headers)

        answer = self._flask(environ, start)
        try:
            parts = iter(answer)
            # A generator may call `start` only now.
            first = next(parts, b"")
            headers = [(name.strip().lower().encode(), value.strip().encode()) for name, value in started["headers"]]
            head = {"type": "http.response.start", "status": started["status"], "headers": headers}
            if is_short(headers):
                return [head, {"type": "http.response.body", "body": b"".join([first, *parts])}]
            anyio.from_thread.run(send, head)
            for part in chain([first], parts):
                anyio.from_thread.run(send, {"type": "http.response.body", "body": part, "more_body": True})
        finally:
            # Flask closes the files that it sends.
            if hasattr(answer, "close"):
                answer.close()
        return [{"type": "http.response.body", "body": b""}]


def is_short(headers):
    """Return whether the headers of an answer say that it is short."""
    return any(name == b"content-length" and int(value) <= SHORT_BYTES for name, value in headers)
