"""The checks of TLS between the services against the other settings."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

from settings.stack import StackConfig

PAGE = "docs/operations/tls.md"
CLOCK_SKEW = timedelta(days=1)
"""How far the clock of this machine may be behind that of the one that wrote the time."""


def tls_contradictions(config: StackConfig) -> Iterator[tuple[set[str], str]]:
    """Yield the problems: the sections involved, and the message."""
    traefik, issued = config.traefik, config.tls.issued
    if issued and issued > datetime.now(UTC) + CLOCK_SKEW:
        yield (
            {"tls"},
            f"mlflow:tls.issued: is in the future: {issued:%Y-%m-%d}, and the clock of this machine says "
            f"{datetime.now(UTC):%Y-%m-%d}; correct the clock; if it is right, remove the line: make up writes it",
        )
    if not config.tls.internal:
        if traefik.servers_transport:
            yield (
                {"traefik", "tls"},
                f"mlflow:traefik.serversTransport: {traefik.servers_transport!r} is ignored while mlflow:tls.internal "
                "is false; remove it, or set internal to true",
            )
        return
    if traefik.mode == "off":
        yield (
            {"tls", "traefik"},
            "mlflow:tls.internal: needs Traefik, whose certificate clients trust, and mlflow:traefik.mode is off; set "
            f"it to bundled or existing, or internal to false; {PAGE}",
        )
    elif config.route.published_port:
        yield (
            {"tls", "server"},
            f"mlflow:server.port: {config.route.published_port} would need clients that trust the stack's own "
            "authority, because mlflow:tls.internal is true; remove the port: requests pass through Traefik",
        )
    if traefik.mode == "existing" and not traefik.servers_transport:
        yield (
            {"tls", "traefik"},
            "mlflow:traefik.serversTransport: is required with mlflow:tls.internal: the serversTransport of your "
            f"Traefik that trusts the stack's authority, such as mlflow@file; {PAGE}#an-existing-traefik",
        )
