"""The way in: on which name or port the server is reached, and who asks a person or a program who it is.

Written once, in the words of Traefik's dynamic configuration; spelled as labels for a Traefik that is there already,
and as a file for the bundled one (components/traefik.py).
"""

import base64
import hashlib
from collections.abc import Sequence
from typing import Any

import pulumi

from runtime.credentials import Credential
from settings.ingress import Route
from settings.secrets import LENGTH
from settings.traefik import CLIENT_USER, TraefikSettings

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
