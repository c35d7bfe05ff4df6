"""The settings of Traefik and of authentication."""

from typing import Literal

from pydantic import Field

from settings.base import (
    Address,
    Cpus,
    Email,
    HttpUrl,
    Middleware,
    NetworkName,
    PublicPort,
    Settings,
    TraefikName,
    TraefikReference,
)

CLIENT_USER = "mlflow"
"""User name of the clients that send the generated password."""
Authentication = Literal["anonymous", "password", "singleSignOn", "singleSignOnAndPassword", "mlflow"]
SINGLE_SIGN_ON = ("singleSignOn", "singleSignOnAndPassword")


class TraefikSettings(Settings):
    """The settings under `mlflow:traefik`."""

    mode: Literal["off", "existing", "bundled"] = Field(
        default="off",
        description="`off`: no Traefik; the server is published on a host port. `existing`: your Traefik on this host "
        "routes `mlflow:hostname` to the server. `bundled`: the stack deploys a Traefik, which does the same.",
    )
    single_sign_on: Middleware | None = Field(
        default=None,
        description="`existing`: the entry of `middlewares` that authenticates. Required for `mlflow:authentication: "
        "singleSignOn` and `singleSignOnAndPassword`, and refused otherwise.",
    )
    network: NetworkName = Field(
        default="shared-network",
        description="`existing`: the Docker network that your Traefik shares with the containers it routes to. It must "
        "exist.",
    )
    entry_point: TraefikName = Field(
        default="websecure", description="`existing`: the entry point of your Traefik that the routers use."
    )
    tls: bool = Field(
        default=True, description="`existing`: whether the routers terminate TLS. Must be true for single sign-on."
    )
    cert_resolver: TraefikName | None = Field(
        default=None, description="`existing`: the certificate resolver of your Traefik. Only with `tls: true`."
    )
    servers_transport: TraefikReference | None = Field(
        default=None,
        description="`existing`: the serversTransport of your Traefik that trusts the stack's authority, such as "
        "`mlflow@file`. Required with `mlflow:tls.internal`, and refused otherwise; docs/operations/tls.md.",
    )
    middlewares: tuple[Middleware, ...] = Field(
        default=(),
        description="`existing`: middlewares of your Traefik, in the order in which a request passes through them. "
        "If one of them does not exist, Traefik disables the route.",
    )
    forward_auth: HttpUrl | None = Field(
        default=None,
        description="`bundled`: the URL of your identity provider for forward authentication, such as "
        "`http://authelia:9091/api/authz/forward-auth`. Required for `mlflow:authentication: singleSignOn` and "
        "`singleSignOnAndPassword`, and refused otherwise.",
    )
    forward_auth_network: NetworkName | None = Field(
        default=None,
        description="`bundled`: an existing Docker network through which Traefik reaches `forwardAuth`. Without it, "
        "Traefik connects through the host's network.",
    )
    certificate: Literal["selfSigned", "own", "acme"] = Field(
        default="selfSigned",
        description="`bundled`: the source of the certificate. `selfSigned`: generated, for a first try; every client "
        "has to be configured to trust it. `own`: yours, in the secrets `tlsCertificate` (with its chain) and "
        "`tlsKey`, in PEM. `acme`: Let's Encrypt, with a DNS challenge at Cloudflare and the secret `acmeDnsToken`.",
    )
    acme_email: Email | None = Field(
        default=None,
        description="`bundled`: the e-mail address for messages of the certificate authority. Required with "
        "`certificate: acme`, and ignored otherwise.",
    )
    acme_server: HttpUrl | None = Field(
        default=None,
        description="`bundled`: the URL of another ACME certificate authority, or of Let's Encrypt's staging "
        "directory. Without it, Let's Encrypt. Ignored unless `certificate` is `acme`.",
    )
    bind_address: Address = Field(
        default="0.0.0.0",  # noqa: S104 - Traefik is meant to be reachable
        description="`bundled`: the address of the host on which Traefik is published. Required with "
        "`mlflow:authentication: anonymous`.",
    )
    http_port: PublicPort = Field(
        default=80, description="`bundled`: the host port for HTTP. Traefik redirects it to `httpsPort`."
    )
    https_port: PublicPort = Field(default=443, description="`bundled`: the host port for HTTPS.")
    upload_minutes: int = Field(
        default=120,
        ge=1,
        le=1440,
        description="`bundled`: the maximum duration of an upload, in minutes. 120 minutes are "
        "enough for 5 GB at 6 Mbit/s. A connection that sends nothing is closed after the same time.",
    )
    memory_mb: int = Field(
        default=512,
        ge=128,
        le=65_536,
        description="`bundled`: the memory limit of Traefik, in MB. Each open connection takes 0.05 MB.",
    )
    cpus: Cpus = Field(default=1.0, description="`bundled`: the number of CPUs that Traefik may use.")


EXISTING_ONLY = ("single_sign_on", "network", "entry_point", "tls", "cert_resolver", "servers_transport", "middlewares")
SHARED = ("mode",)
BUNDLED_ONLY = tuple(key for key in TraefikSettings.model_fields if key not in (*EXISTING_ONLY, *SHARED))
