"""Shorter ways through MLflow's application: docs/adr/0026-shorter-ways-through-mlflow.md.

MLflow's REST API is a Flask application inside a FastAPI application. Before Flask does its work, a request passes
three middlewares, each of which runs the rest in a task of its own and copies the answer through a queue, and nearly
every request needs none of them. Then each part of Flask's answer goes through another queue, from thread to thread.

Here a request passes a middleware only if the middleware does something for it, and a short answer goes from Flask's
thread to the client in one piece. What this module does not know exactly stays as it is, such as the middlewares that
check hosts, origins and users.
"""

import hashlib
import inspect
import os
from contextvars import copy_context

import anyio
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.wsgi import build_environ
from starlette.routing import Mount

PIECE_BYTES = 1_000_000
"""An answer up to this length is sent in one piece, a longer one in pieces of about this length."""
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
(mlflow/server/fastapi_app.py)."""
BRIDGE = "_EfficientWSGIMiddleware"
"""MLflow's class that runs Flask in a thread."""
READ_WITH = {
    BRIDGE: "_EfficientWSGIResponder",
    "workspace_context_middleware": "resolve_workspace_for_request_if_enabled",
}
"""What decides in their place what they do, in the same module."""
DIGESTS = {
    "artifact_transfer_middleware": "6f61a252ebafafa9",
    "gateway_timing_middleware": "7c8b73643be70b49",
    "workspace_context_middleware": "faf5c7ed56ea5182",
    BRIDGE: "0b024a5e5a6b962c",
}
"""The first digits of the SHA-256 of their source and of what they are read with, as in MLflow 3.18."""


def shorten(application):
    """Shorten the ways through `application`, MLflow's FastAPI application. Return the names of those that stay long.

    A way stays long if a release of MLflow has changed its source: nobody has read yet what it does now.
    """
    long = dict.fromkeys(DIGESTS)
    for number, (kind, arguments, options) in enumerate(application.user_middleware):
        function = options.get("dispatch")
        name = getattr(function, "__name__", "")
        if kind is BaseHTTPMiddleware and name in NEEDED and digest(function) == DIGESTS[name]:
            application.user_middleware[number] = Middleware(IfNeeded, *arguments, needed=NEEDED[name], **options)
            long.pop(name, None)
    for route in application.routes:
        kind = type(getattr(route, "app", None))
        if isinstance(route, Mount) and kind.__name__ == BRIDGE and digest(kind) == DIGESTS[BRIDGE]:
            route.app = Bridge(route.app)
            long.pop(BRIDGE, None)
    return list(long)


def digest(known):
    """Return the first digits of the SHA-256 of the source of a function or class, and of what it is read with.

    Empty without their source.
    """
    helper = getattr(inspect.getmodule(known), READ_WITH.get(known.__name__, ""), None)
    try:
        source = "".join(inspect.getsource(one) for one in (known, helper) if one)
    except OSError:
        return ""
    return hashlib.sha256(source.encode()).hexdigest()[:16]


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
    """Runs Flask in a thread, as MLflow's own class does, and sends its answer in as few pieces as possible."""

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
        answer = Answer(self._flask, build_environ(scope, b"".join(body)))
        del body
        try:
            piece = await anyio.to_thread.run_sync(answer.read)
            await send(answer.head)
            # No thread waits for the client: there are 40 of them for all requests.
            while not answer.ended:
                await send({"type": "http.response.body", "body": piece, "more_body": True})
                piece = await anyio.to_thread.run_sync(answer.read)
        finally:
            if not answer.ended:
                with anyio.CancelScope(shield=True):
                    await anyio.to_thread.run_sync(answer.close)
        await send({"type": "http.response.body", "body": piece})


class Answer:
    """Flask's answer to one request. Only `head` and `ended` may be used outside a thread."""

    head = None
    """ASGI's message with status and headers, after the first `read`."""
    ended = False
    """Whether `read` has returned the last piece."""

    def __init__(self, flask, environ):
        """Take the application and the WSGI environment of the request."""
        self._flask, self._environ = flask, environ
        self._answer = self._parts = self._context = None
        self._sized = self._sent = False

    def read(self):
        """Return the next piece of the body. The first call runs Flask; the last one closes the answer."""
        # Flask keeps the request in context variables. Each piece may be read in another thread.
        self._context = self._context or copy_context()
        return self._context.run(self._read)

    def close(self):
        """Close the answer before its end. Does nothing if the request was cancelled before Flask began."""
        if self._context:
            self._context.run(self._close)

    def _read(self):
        if self._parts is None:
            self._answer = self._flask(self._environ, self._start)
            self._parts = iter(self._answer)
        else:
            self._sent = True
        piece, length = [], 0
        for part in self._parts:
            piece.append(part)
            length += len(part)
            # An answer without a length may take its time between the parts.
            if length >= PIECE_BYTES or not self._sized:
                return b"".join(piece)
        self.ended = True
        self._close()
        return b"".join(piece)

    def _close(self):
        # Flask closes the files that it sends.
        if hasattr(self._answer, "close"):
            self._answer.close()

    def _start(self, status, headers, exc_info=None):
        """Note status and headers: WSGI's `start_response`. An error may replace an answer that is not sent yet."""
        if exc_info and self._sent:
            raise exc_info[1].with_traceback(exc_info[2])
        # WSGI's strings have the bytes of Latin-1.
        encoded = [(name.strip().lower().encode("latin-1"), value.strip().encode("latin-1")) for name, value in headers]
        self.head = {"type": "http.response.start", "status": int(status.partition(" ")[0]), "headers": encoded}
        self._sized = any(name == b"content-length" for name, _ in encoded)
