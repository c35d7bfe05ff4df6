"""Ingress and authentication, as Traefik's routers and middlewares.

The routes exist once, as Traefik's dynamic configuration. An existing Traefik gets them as labels, the bundled Traefik
as a file (components/traefik.py).
"""

import base64
import hashlib
from collections.abc import Sequence
from typing import Any

import pulumi

from runtime.credentials import Credential
from settings.ingress import Route
from settings.server import READINESS_PATH
from settings.traefik import CLIENT_USER, TraefikSettings

API_PATHS = ("/api", "/ajax-api", "/graphql", "/get-artifact", "/model-versions/get-artifact", "/gateway", "/v1")
"""Paths that clients and scripts request. The answer must never be a redirect to a login page."""
BLOCKED_PATHS = ("(?i)^(/|%2f)+metrics", "(?i)mlflow(/|%2f)+assistant")
"""Paths that are not reachable from outside. Prometheus reads /metrics inside, and the assistant runs commands for
anybody who reaches it.

They are patterns because Traefik does not decode an encoded slash, but the server does.
"""
PRIORITY = 10_000
"""Higher than the default priority of any other router, which is the length of its rule."""
IDENTITY_HEADERS = ("Remote-User", "Remote-Groups", "Remote-Email", "Remote-Name")
"""Headers in which the single sign-on passes the user's identity. Sent by a client, they are forged.

Behind Traefik, `_` in a header's name becomes `-`.
"""
REDIRECTS = ("300-303", "305-399")
"""All redirects except 304 (Not Modified), which confirms that a browser's cached copy is current."""


HEALTH_CHECK_SECONDS = 2
"""How often a proxy sends a health check to each of several replicas. To a single server, every 5 s."""
HEALTH_CHECK_TIMEOUT_SECONDS = 4
LEAVE_SECONDS = HEALTH_CHECK_SECONDS + HEALTH_CHECK_TIMEOUT_SECONDS
"""How long a replica that stops still accepts requests. In this time the proxy's next health check fails, also if
another replica hangs: Traefik checks one after another."""
STAY_SECONDS = 16
"""How long a task of a cluster serves as before once it is told to stop, behind an existing Traefik. Traefik's Swarm
provider asks for the tasks every 15 s by default (`refreshSeconds`). Until then it does not know the new task."""
RETRY = {"retry": {"attempts": 20, "initialInterval": "50ms"}}
"""If a proxy gets no connection to a replica, it tries another one. There are more attempts than replicas, because
other requests take their turns meanwhile. A request that a replica may have received is never sent again."""


def probe(route: Route) -> dict[str, Any]:
    """Return the request to which a ready server has an answer, as Traefik's `path`, `headers` and `status`."""
    found: dict[str, Any] = {"path": READINESS_PATH}
    if route.by_mlflow:
        # A user that does not exist: the 401 proves that MLflow has looked it up in the database.
        nobody = base64.b64encode(b"healthcheck:healthcheck").decode()
        found |= {"headers": {"Authorization": f"Basic {nobody}"}, "status": 401}
    return found


def health_check(route: Route) -> dict[str, Any]:
    """Return Traefik's health check of a server."""
    check = probe(route)
    if not route.balanced:
        return {"interval": "5s", "timeout": f"{HEALTH_CHECK_TIMEOUT_SECONDS}s", **check}
    return {
        "interval": f"{HEALTH_CHECK_SECONDS}s",
        "timeout": f"{HEALTH_CHECK_TIMEOUT_SECONDS}s",
        # Every replica accepts this name.
        "hostname": "localhost",
        **check,
        # A replica that is about to stop refuses only such a request: mlflow/plugins/draining.py.
        "headers": {**check.get("headers", {}), "X-Health-Check": "proxy"},
    }


def routes(route: Route, *, name: str, users: dict[str, Any]) -> dict[str, Any]:
    """Return the routers and middlewares of a server as Traefik's dynamic configuration.

    Either all routers of the hostname authenticate, or none does: this function creates all of them from one setting.
    `users` says where Traefik finds the clients' password: in a file or in a label.

    An MLflow client takes a redirect to a login page for success, and loses what it logged. So only a page for a
    browser may be redirected. All other requests are marked as a script's, which Authelia answers with 401. If any
    middleware redirects such a request nevertheless, Traefik turns the redirect into 401.
    """
    settings = route.traefik
    theirs, middlewares = list(settings.middlewares), _common_middlewares(name)
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
    # If MLflow authenticates, it needs the Authorization header.
    last = [] if route.by_mlflow else [f"{name}-private"]
    if route.balanced:
        middlewares[f"{name}-retry"] = RETRY
        # Innermost: earlier versions of Traefik would repeat the answer of a middleware, such as 401.
        last.append(f"{name}-retry")
    no_page = [f"{name}-forged", f"{name}-no-redirect", f"{name}-script"]
    everything = " && ".join([f"Host(`{route.hostname}`)", *(f"!PathRegexp(`{path}`)" for path in BLOCKED_PATHS)])
    page = " && ".join(["Method(`GET`)", "HeaderRegexp(`Accept`, `text/html`)", *_not_path_prefixes(API_PATHS)])
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
        router |= {"service": name, **_entry_points_and_tls(settings)}
    return {"http": {"routers": routers, "middlewares": middlewares}}


def _common_middlewares(name: str) -> dict[str, Any]:
    """Return the middlewares that the routers use in every mode."""
    return {
        # Removes forged identity headers, so that only those of the single sign-on reach the server.
        f"{name}-forged": {"headers": {"customRequestHeaders": dict.fromkeys(_identity_header_spellings(), "")}},
        f"{name}-script": {"headers": {"customRequestHeaders": {"X-Requested-With": "XMLHttpRequest"}}},
        f"{name}-no-redirect": {
            "errors": {
                "status": list(REDIRECTS),
                "statusRewrites": dict.fromkeys(REDIRECTS, 401),
                "service": name,
                "query": "/health",
            }
        },
        # Hides passwords and the domain's cookies from MLflow, whose gateway forwards headers to model providers.
        f"{name}-private": {"headers": {"customRequestHeaders": {"Authorization": "", "Cookie": ""}}},
    }


def _not_path_prefixes(paths: Sequence[str]) -> list[str]:
    return [f"!PathPrefix(`{path}`)" for path in paths]


def _identity_header_spellings() -> list[str]:
    return [spelling for header in IDENTITY_HEADERS for spelling in (header, header.replace("-", "_"))]


def _entry_points_and_tls(settings: TraefikSettings) -> dict[str, Any]:
    """Return the entry points and the TLS settings of a router."""
    if settings.mode == "existing":
        tls: dict[str, Any] = {"certResolver": settings.cert_resolver} if settings.cert_resolver else {}
        return {"entryPoints": [settings.entry_point], "tls": tls or settings.tls}
    return {"entryPoints": ["websecure"], "tls": {"certResolver": "acme"} if settings.certificate == "acme" else {}}


def _forward_auth(settings: TraefikSettings) -> dict[str, Any]:
    # Forwarded headers from a proxy in front of Traefik are not trusted, as on the entry point.
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
        # MLflow's interface shows artifacts in frames.
        "customFrameOptionsValue": "SAMEORIGIN",
        "permissionsPolicy": "camera=(), microphone=(), geolocation=()",
    }
}
COMPRESS = {
    "compress": {
        "includedContentTypes": ["text/html", "text/css", "text/javascript", "application/javascript", "image/svg+xml"]
    }
}
"""The server sends the interface's scripts uncompressed, 4.5 MB. This also compresses artifacts of these types."""


def labels(
    route: Route, *, name: str, port: int, network: pulumi.Input[str], password: Credential | None
) -> dict[str, pulumi.Input[str]]:
    """Return the labels by which an existing Traefik finds the server.

    They always name `network` and the port: Traefik picks one at random if a container has several.
    """
    if route.traefik.mode != "existing":
        return {"traefik.enable": "false"}
    users = {"users": password.value.apply(htpasswd_line)} if password else {}
    balancer = f"traefik.http.services.{name}.loadbalancer"
    return {
        "traefik.enable": "true",
        # Traefik skips a service with both.
        f"traefik.{'swarm' if route.swarm else 'docker'}.network": network,
        f"{balancer}.server.port": str(port),
        **(
            {
                f"{balancer}.server.scheme": "https",
                f"{balancer}.serverstransport": str(route.traefik.servers_transport),
            }
            if route.internal_tls
            else {}
        ),
        # With TLS, its result tells `make doctor` whether Traefik trusts the certificate.
        **(
            _flat(f"{balancer}.healthcheck", health_check(route) | {"hostname": "localhost"})
            if route.balanced or route.internal_tls
            else {}
        ),
        **_flat("traefik", routes(route, name=name, users=users)),
    }


def _flat(path: str, value: Any) -> dict[str, pulumi.Input[str]]:  # noqa: ANN401 - Traefik's configuration
    """Return a part of Traefik's configuration as labels."""
    if isinstance(value, dict):
        return {key: text for name, part in value.items() for key, text in _flat(f"{path}.{name}", part).items()}
    if isinstance(value, bool):
        return {path: str(value).lower()}
    if isinstance(value, list | tuple):
        return {path: ",".join(map(str, value))}
    return {path: value if isinstance(value, pulumi.Output) else str(value)}


def htpasswd_line(password: str) -> str:
    """Return the line of a password file for the clients' user.

    The hash is fast on purpose: Traefik computes it at every request. It is safe because the password must be as long
    as a key (settings/secrets.py); a password that a person can remember would need a slow hash.
    """
    return f"{CLIENT_USER}:{{SHA}}{base64.b64encode(hashlib.sha1(password.encode()).digest()).decode()}"  # noqa: S324
