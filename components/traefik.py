"""The labels by which an existing Traefik finds the server. Traefik itself is the operator's."""

from typing import Literal

import pulumi
from pydantic import Field

from components.settings import Middleware, NetworkName, Settings, TraefikName


class TraefikSettings(Settings):
    """What an operator may set under `mlflow:traefik`."""

    mode: Literal["off", "existing"] = Field(
        default="off",
        description="`existing`: a Traefik on this host routes `mlflow:hostname` to the server. "
        "`off`: nothing does; the server is published on a port of this host.",
    )
    network: NetworkName = Field(
        default="shared-network", description="The existing Docker network that Traefik shares with what it routes to."
    )
    entry_point: TraefikName = Field(default="websecure", description="The entry point that the router listens on.")
    tls: bool = Field(default=True, description="Whether the router ends TLS.")
    cert_resolver: TraefikName | None = Field(
        default=None, description="The certificate resolver of your Traefik. Needs `tls`."
    )
    middlewares: tuple[Middleware, ...] = Field(
        default=(),
        description="Middlewares of your Traefik, in the order in which a request passes them. "
        "One that does not exist closes the route.",
    )


def labels(
    settings: TraefikSettings, *, router: str, hostname: str | None, port: int, network: pulumi.Input[str]
) -> dict[str, pulumi.Input[str]]:
    """Return the Traefik labels of a container.

    `network` and the port are always told: Traefik picks one at random where a container has several. `/metrics` is
    in no rule: it is open to whoever reaches it.
    """
    if settings.mode == "off" or hostname is None:
        return {"traefik.enable": "false"}
    http = f"traefik.http.routers.{router}"
    rendered: dict[str, pulumi.Input[str]] = {
        "traefik.enable": "true",
        "traefik.docker.network": network,
        f"{http}.rule": f"Host(`{hostname}`) && !PathPrefix(`/metrics`)",
        f"{http}.entrypoints": settings.entry_point,
        f"{http}.service": router,
        f"{http}.tls": str(settings.tls).lower(),
        f"traefik.http.services.{router}.loadbalancer.server.port": str(port),
    }
    if settings.cert_resolver:
        rendered[f"{http}.tls.certresolver"] = settings.cert_resolver
    if settings.middlewares:
        rendered[f"{http}.middlewares"] = ",".join(settings.middlewares)
    return rendered
