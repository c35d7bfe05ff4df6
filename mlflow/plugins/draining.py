"""The answers of a replica to a proxy's health check while it drains. Part of application.py.

A replica that is about to stop refuses the proxy's health check, and still accepts every request. So the proxy stops
sending requests before the server stops accepting them.
"""

import os
from pathlib import Path

PRIVATE = Path(os.environ.get("PRIVATE", "/run/mlflow"))
DRAINING = PRIVATE / "draining"
"""docker-entrypoint.sh creates this file when the container receives the stop signal."""
IN_BALANCE = PRIVATE / "in-balance"
"""Touched at each health check of the proxy that succeeds: from then on, the proxy sends requests."""
HEALTH_CHECK = (b"x-health-check", b"proxy")
"""The header of the proxy's health checks. components/route.py sets it."""
READY = 401 if os.environ.get("MLFLOW_AUTH_CONFIG_PATH") else 200
"""Status of a successful health check; 401 with MLflow's own users. healthcheck.py expects the same."""


def answering(application):
    """Return `application` with the answer to a proxy's health check."""

    async def answer(scope, receive, send):
        if scope["type"] != "http":
            await application(scope, receive, send)
        elif HEALTH_CHECK not in scope["headers"]:
            await application(scope, receive, closing(send) if DRAINING.exists() else send)
        elif DRAINING.exists():
            await send({"type": "http.response.start", "status": 503, "headers": []})
            await send({"type": "http.response.body", "body": b"draining"})
        else:
            await application(scope, receive, noting(send))

    return answer


def closing(send):
    """Return `send`, which also makes the client close the connection: its next request goes to another replica.

    On a cluster the proxy has one name for all replicas, and would keep its connections to this one.
    """

    async def close(message):
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", []), (b"connection", b"close")]}
        await send(message)

    return close


def noting(send):
    """Return `send`, which also notes a successful health check."""

    async def note(message):
        await send(message)
        if message["type"] == "http.response.start" and message["status"] == READY:
            IN_BALANCE.touch()

    return note
