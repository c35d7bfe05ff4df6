"""The way in: on which name or port the server is reached, and who asks a person or a program who it is.

Written once, in the words of Traefik's dynamic configuration; spelled as labels for a Traefik that is there already,
and as a file for the bundled one (components/traefik.py).
"""

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pulumi
from pydantic import Field

from components.credentials import LENGTH, Credential
from components.settings import (
    Address,
    Cpus,
    Email,
    HttpUrl,
    Middleware,
    NetworkName,
    PublicPort,
    Settings,
    TraefikName,
)

CLIENT_USER = "mlflow"
"""Who a client with the generated password says he is."""
CERTIFICATE_SECRET, KEY_SECRET, DNS_SECRET = "tlsCertificate", "tlsKey", "acmeDnsToken"
"""Keys of the config that nobody can generate: a certificate of one's own, and the token of a DNS provider."""

Authentication = Literal["anonymous", "password", "singleSignOn", "singleSignOnAndPassword", "mlflow"]
SINGLE_SIGN_ON = ("singleSignOn", "singleSignOnAndPassword")

NOT_PAGES = ("/api", "/ajax-api", "/graphql", "/get-artifact", "/model-versions/get-artifact", "/gateway", "/v1")
"""What programs ask for, and a page's own scripts: never to be answered with a login page."""
HIDDEN = ("(?i)^(/|%2f)+metrics", "(?i)mlflow(/|%2f)+assistant")
"""Nobody's business outside: Prometheus asks inside, and the assistant runs commands for whoever reaches it.

Patterns, since Traefik leaves an encoded slash as it is, and the server does not.
"""
PRIORITY = 10_000
"""Above any router whose priority is the length of its rule, as Traefik's is unless told otherwise."""
IDENTITY_HEADERS = ("Remote-User", "Remote-Groups", "Remote-Email", "Remote-Name")
"""What a single sign-on tells of who it let in. From a client they are a forgery; `_` becomes `-` behind Traefik."""
REDIRECTS = ("300-303", "305-399")
"""All but 304, which tells a browser that what it has is current."""


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


@dataclass(frozen=True, kw_only=True)
class Route:
    """How the server is reached, and who may: through Traefik by name, or on a port of the host."""

    traefik: TraefikSettings
    hostname: str | None
    authentication: Authentication
    server_port: int | None
    """Of the host, if one was asked for."""
    server_address: str
    """Of the host, on which that port is published."""

    DEFAULT_PORT = 5000
    """Without Traefik, and without another choice."""

    @property
    def published_port(self) -> int | None:
        """The port of the host on which the server itself is published, if it is."""
        return self.server_port or (self.DEFAULT_PORT if self.traefik.mode == "off" else None)

    @property
    def url(self) -> str:
        """The URL that a browser shows. No trailing slash: it is the browser's Origin, too."""
        if self.traefik.mode == "off":
            loopback = self.server_address == "127.0.0.1"
            host = "127.0.0.1" if loopback else self.hostname or self.server_address
            return f"http://{host}:{self.published_port}"
        if self.traefik.mode == "existing":
            return f"{'https' if self.traefik.tls else 'http'}://{self.hostname}"
        port = "" if self.traefik.https_port == 443 else f":{self.traefik.https_port}"  # noqa: PLR2004 - https
        return f"https://{self.hostname}{port}"

    @property
    def ways_in(self) -> list[tuple[str, str]]:
        """Every address at which the server is reached, and how it authenticates whoever comes by it."""
        found = [] if self.traefik.mode == "off" else [(self.url, str(self.authentication))]
        if self.published_port:
            # Traefik authenticates at its own address only; MLflow at each.
            by_mlflow = "mlflow" if self.by_mlflow else "anonymous"
            found.append((f"http://{self.server_address}:{self.published_port}", by_mlflow))
        return found

    @property
    def by_single_sign_on(self) -> bool:
        """Whether somebody else's login page stands before the server."""
        return self.authentication in SINGLE_SIGN_ON

    @property
    def by_password(self) -> bool:
        """Whether Traefik asks for the generated password."""
        return self.authentication in ("password", "singleSignOnAndPassword")

    @property
    def by_mlflow(self) -> bool:
        """Whether MLflow itself asks who somebody is."""
        return self.authentication == "mlflow"


def routes(route: Route, *, name: str, users: dict[str, Any]) -> dict[str, Any]:
    """Return the routers and middlewares of a server, in the words of Traefik's dynamic configuration.

    Every router of a hostname asks who somebody is, or none does: they are all made here, from one setting. `users`
    says where Traefik finds the password of the clients: in a file, or in a label.

    A client of MLflow takes a redirect to a login page for success, and what it logged is lost. So only a page that a
    browser asks for may be redirected, whoever redirects. Anything else is marked as a script's request, which
    Authelia answers with 401, and whatever redirects it all the same is turned into 401.
    """
    settings = route.traefik
    theirs, middlewares = list(settings.middlewares), _guards(name)
    if settings.mode == "bundled":
        middlewares |= {f"{name}-secure": SECURE_HEADERS, f"{name}-compress": COMPRESS}
        theirs = [f"{name}-secure", f"{name}-compress"]
        if route.by_single_sign_on:
            middlewares[f"{name}-sso"] = _forward_auth(settings)
            theirs.append(f"{name}-sso")
    if route.by_password:
        middlewares[f"{name}-password"] = {"basicAuth": {**users, "realm": "MLflow"}}
    if route.authentication == "password":
        theirs.append(f"{name}-password")
    # MLflow's own users are its to ask.
    last = [] if route.by_mlflow else [f"{name}-private"]
    no_page = [f"{name}-forged", f"{name}-no-redirect", f"{name}-script"]
    everything = " && ".join([f"Host(`{route.hostname}`)", *(f"!PathRegexp(`{path}`)" for path in HIDDEN)])
    page = " && ".join(["Method(`GET`)", "HeaderRegexp(`Accept`, `text/html`)", *_outside(NOT_PAGES)])
    routers: dict[str, dict[str, Any]] = {
        f"{name}-pages": {
            "rule": f"{everything} && {page}",
            "priority": PRIORITY + 1,
            "middlewares": [f"{name}-forged", *theirs, *last],
        },
        name: {"rule": everything, "priority": PRIORITY, "middlewares": [*no_page, *theirs, *last]},
    }
    if route.authentication == "singleSignOnAndPassword":
        sso = {settings.single_sign_on, f"{name}-sso"}
        others = [entry for entry in theirs if entry not in sso]
        routers[f"{name}-clients"] = {
            "rule": f"{everything} && HeaderRegexp(`Authorization`, `(?i)^basic `)",
            "priority": PRIORITY + 2,
            "middlewares": [*no_page, f"{name}-password", *others, *last],
        }
    for router in routers.values():
        router |= {"service": name, **_listening(settings)}
    return {"http": {"routers": routers, "middlewares": middlewares}}


def _guards(name: str) -> dict[str, Any]:
    """Return the middlewares that every router is made of."""
    return {
        # Behind it only what the single sign-on itself says is left.
        f"{name}-forged": {"headers": {"customRequestHeaders": dict.fromkeys(_forged(), "")}},
        f"{name}-script": {"headers": {"customRequestHeaders": {"X-Requested-With": "XMLHttpRequest"}}},
        f"{name}-no-redirect": {
            "errors": {
                "status": list(REDIRECTS),
                "statusRewrites": dict.fromkeys(REDIRECTS, 401),
                "service": name,
                "query": "/health",
            }
        },
        # A password, or the cookie of a whole domain, is nothing that MLflow has to know: its gateway hands on headers.
        f"{name}-private": {"headers": {"customRequestHeaders": {"Authorization": "", "Cookie": ""}}},
    }


def _outside(paths: Sequence[str]) -> list[str]:
    return [f"!PathPrefix(`{path}`)" for path in paths]


def _forged() -> list[str]:
    return [spelling for header in IDENTITY_HEADERS for spelling in (header, header.replace("-", "_"))]


def _listening(settings: TraefikSettings) -> dict[str, Any]:
    """Return where a router listens, and with which certificate."""
    if settings.mode == "existing":
        tls: dict[str, Any] = {"certResolver": settings.cert_resolver} if settings.cert_resolver else {}
        return {"entryPoints": [settings.entry_point], "tls": tls or settings.tls}
    return {"entryPoints": ["websecure"], "tls": {"certResolver": "acme"} if settings.certificate == "acme" else {}}


def _forward_auth(settings: TraefikSettings) -> dict[str, Any]:
    # What the proxy before this one says of the client is not believed, as on the entry point.
    return {
        "forwardAuth": {
            "address": settings.forward_auth,
            "trustForwardHeader": False,
            "authResponseHeaders": list(IDENTITY_HEADERS),
            "maxResponseBodySize": 65_536,
        }
    }


SECURE_HEADERS = {
    "headers": {
        "stsSeconds": 31_536_000,
        "contentTypeNosniff": True,
        "referrerPolicy": "strict-origin-when-cross-origin",
        # MLflow shows artifacts in frames of its own.
        "customFrameOptionsValue": "SAMEORIGIN",
        "permissionsPolicy": "camera=(), microphone=(), geolocation=()",
    }
}
COMPRESS = {
    "compress": {
        "includedContentTypes": ["text/html", "text/css", "text/javascript", "application/javascript", "image/svg+xml"]
    }
}
"""The interface's scripts are 4.5 MB as they come from the server. So are artifacts of these types."""


def labels(
    route: Route, *, name: str, port: int, network: pulumi.Input[str], password: Credential | None
) -> dict[str, pulumi.Input[str]]:
    """Return the labels by which a Traefik that is there already finds the server.

    `network` and the port are always told: Traefik picks one at random where a container has several.
    """
    if route.traefik.mode != "existing":
        return {"traefik.enable": "false"}
    users = {"users": password.value.apply(hashed)} if password else {}
    return {
        "traefik.enable": "true",
        "traefik.docker.network": network,
        f"traefik.http.services.{name}.loadbalancer.server.port": str(port),
        **_flat("traefik", routes(route, name=name, users=users)),
    }


def _flat(path: str, value: Any) -> dict[str, pulumi.Input[str]]:  # noqa: ANN401 - Traefik's configuration
    """Spell a piece of configuration as labels."""
    if isinstance(value, dict):
        return {key: text for name, part in value.items() for key, text in _flat(f"{path}.{name}", part).items()}
    if isinstance(value, bool):
        return {path: str(value).lower()}
    if isinstance(value, list | tuple):
        return {path: ",".join(map(str, value))}
    return {path: value if isinstance(value, pulumi.Output) else str(value)}


def hashed(password: str) -> str:
    """Return the line of a password file for the clients' user.

    A fast hash on purpose: it is computed at every request. It holds because the password is as long as a key, which
    is required; a password that a person could remember would need a slow one.
    """
    if len(password) < LENGTH:
        raise pulumi.RunError(f"mlflow:clientPassword: must have {LENGTH} characters or more")
    return f"{CLIENT_USER}:{{SHA}}{base64.b64encode(hashlib.sha1(password.encode()).digest()).decode()}"  # noqa: S324
