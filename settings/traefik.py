"""The settings of Traefik and of authentication."""

from typing import Literal

from pydantic import Field

from settings.base import Address, Cpus, Email, HttpUrl, Middleware, NetworkName, PublicPort, Settings, TraefikName

CLIENT_USER = "mlflow"
"""Who a client with the generated password says he is."""
Authentication = Literal["anonymous", "password", "singleSignOn", "singleSignOnAndPassword", "mlflow"]
SINGLE_SIGN_ON = ("singleSignOn", "singleSignOnAndPassword")


class TraefikSettings(Settings):
    """What an operator may set under `mlflow:traefik`."""

    mode: Literal["off", "existing", "bundled"] = Field(
        default="off",
        description="`existing`: a Traefik on this host routes `mlflow:hostname` to the server. `bundled`: one is "
        "deployed for that, with the stack. `off`: nothing does; the server is published on a port of this host.",
    )
    single_sign_on: Middleware | None = Field(
        default=None,
        description="`existing`: which of `middlewares` asks who somebody is. For `mlflow:authentication: "
        "singleSignOn`.",
    )
    network: NetworkName = Field(
        default="shared-network",
        description="`existing`: the Docker network that Traefik shares with what it routes to.",
    )
    entry_point: TraefikName = Field(
        default="websecure", description="`existing`: the entry point that the routers listen on."
    )
    tls: bool = Field(default=True, description="`existing`: whether the routers end TLS.")
    cert_resolver: TraefikName | None = Field(
        default=None, description="`existing`: the certificate resolver of your Traefik. Needs `tls`."
    )
    middlewares: tuple[Middleware, ...] = Field(
        default=(),
        description="`existing`: middlewares of your Traefik, in the order in which a request passes them. "
        "One that does not exist closes the route.",
    )
    forward_auth: HttpUrl | None = Field(
        default=None,
        description="`bundled`: whom to ask who somebody is, such as `http://authelia:9091/api/authz/forward-auth`. "
        "For `mlflow:authentication: singleSignOn`.",
    )
    forward_auth_network: NetworkName | None = Field(
        default=None,
        description="`bundled`: an existing Docker network on which `forwardAuth` is reached. Without it, by the "
        "host's own way out.",
    )
    certificate: Literal["selfSigned", "own", "acme"] = Field(
        default="selfSigned",
        description="`bundled`: where the certificate comes from. `own`: the secrets `tlsCertificate` (with its chain) "
        "and `tlsKey`, PEM. `acme`: Let's Encrypt, proved through Cloudflare's DNS with the secret `acmeDnsToken`. "
        "`selfSigned`: for a first try; every client has to be told to trust it.",
    )
    acme_email: Email | None = Field(default=None, description="`bundled`: whom the authority writes to.")
    acme_server: HttpUrl | None = Field(
        default=None, description="`bundled`: another authority than Let's Encrypt, or its staging directory."
    )
    bind_address: Address = Field(
        default="0.0.0.0",  # noqa: S104 - it is there in order to be reached
        description="`bundled`: the host's address on which it is published.",
    )
    http_port: PublicPort = Field(
        default=80, description="`bundled`: port of the host that sends browsers on to `httpsPort`."
    )
    https_port: PublicPort = Field(default=443, description="`bundled`: port of the host for everything.")
    upload_minutes: int = Field(
        default=120,
        ge=1,
        le=1440,
        description="`bundled`: how long a request may take to arrive, the artifact in it included: 120 are enough for "
        "5 GB at 6 Mbit/s. A connection that sends nothing is kept for as long, too.",
    )
    memory_mb: int = Field(
        default=512, ge=128, le=65_536, description="`bundled`: memory limit. Each open connection takes 0.05."
    )
    cpus: Cpus = Field(default=1.0, description="`bundled`: processors that it may use.")


EXISTING_ONLY = ("single_sign_on", "network", "entry_point", "tls", "cert_resolver", "middlewares")
SHARED = ("mode",)
BUNDLED_ONLY = tuple(key for key in TraefikSettings.model_fields if key not in (*EXISTING_ONLY, *SHARED))
