"""Checks of the ingress: name resolution, authentication, certificate."""

import http.client
import re
import socket
import ssl
import time
from dataclasses import dataclass
from urllib.parse import urlsplit

from operations.common.console import StopError, say
from operations.common.stack import Stack
from operations.observe.existing_traefik import (
    address_of,
    attached_containers,
    check_existing_traefik,
    entry_point,
    is_traefik,
    static_configuration,
)
from operations.observe.findings import SECURITY, TIMEOUT_SECONDS, Found
from runtime import tunnel
from settings.ingress import Route
from settings.server import READINESS_PATH

EXPIRES_SOON_DAYS = 14
ROUTED_SECONDS = 15
"""A Traefik routes a second or two after the server is healthy."""
NO_ROUTE = (http.HTTPStatus.NOT_FOUND, http.HTTPStatus.SERVICE_UNAVAILABLE)


def ssh_forward_hint(stack: Stack) -> str | None:
    """Say how to reach from here what listens on the loopback address of a host that is reached over SSH."""
    host, url = stack.daemon.host, urlsplit(stack.settings.route.url)
    if not host.startswith("ssh://") or url.hostname != "127.0.0.1":
        return None
    forwarded = f"{url.port}:127.0.0.1:{url.port}"
    return (
        f"that is an address of {urlsplit(host).hostname}; to have it here, let this run: "
        f"ssh -nNT -L {forwarded} {' '.join(tunnel.destination(host))}"
    )


def look(stack: Stack) -> Found:
    """Return what is wrong with the way in, each with what to type."""
    found = Found([], [])
    if stack.settings.traefik.mode == "existing":
        check_existing_traefik(stack, found)
    if problem := resolution_problem(stack):
        found.problems.append(problem)
    for door in _listeners(stack):
        _check_listener(stack, found, door)
    return found


def unresolved(hostname: str) -> str:
    """Say that a name leads to no address, and what to do."""
    return (
        f"mlflow:hostname: {hostname} resolves to no address here, so that nobody gets in by it from here\n"
        "  make an entry in your DNS that leads to the Docker host; or, for a trial on this machine alone: "
        f"echo '127.0.0.1 {hostname}' | sudo tee -a /etc/hosts"
    )


def resolution_problem(stack: Stack) -> str | None:
    """Return what is wrong with the name of the server, if it has one and it cannot be resolved on this machine."""
    settings = stack.settings
    if settings.traefik.mode == "off" or not settings.hostname:
        return None
    try:
        socket.getaddrinfo(settings.hostname, None)
    except (socket.gaierror, UnicodeError):
        return unresolved(settings.hostname)
    return None


def require_authentication(stack: Stack) -> None:
    """Raise `StopError` where somebody is let in who should be asked, or a client would be redirected.

    Asked at the end of an `up`. A door that does not open yet is nobody's danger.
    """
    route = stack.settings.route
    for door in _listeners(stack):
        status = _once_routed(door, stack.settings.hostname or "")
        if status in NO_ROUTE:
            say(f"warning: {route.url} leads nowhere yet (HTTP {status}); make doctor STACK={stack.name} says why")
        if (status == http.HTTPStatus.OK or is_redirect(status)) and (problem := verdict(route, status, stack.name)):
            raise StopError(f"{route.url}: {problem}\n  the deployment is there, and its door is not closed")


def _once_routed(door: "Listener", hostname: str) -> int:
    """Return what a client without credentials gets once there is a route; 404 or 503 where there is none in time."""
    status: int = http.HTTPStatus.SERVICE_UNAVAILABLE
    deadline = time.monotonic() + ROUTED_SECONDS
    while time.monotonic() < deadline:
        try:
            if (status := _status(door, hostname)) not in NO_ROUTE:
                return status
        except (OSError, http.client.HTTPException):
            pass
        time.sleep(0.5)
    return status


@dataclass(frozen=True)
class Listener:
    """Where a Traefik listens for this stack."""

    address: str
    port: int
    tls: bool


def _listeners(stack: Stack) -> list[Listener]:
    """Return where to knock. A daemon elsewhere has its doors elsewhere."""
    settings, daemon = stack.settings.traefik, stack.daemon
    if settings.mode == "off" or not daemon.host.startswith("unix://"):
        return []
    if settings.mode == "bundled":
        address = "127.0.0.1" if settings.bind_address == "0.0.0.0" else settings.bind_address  # noqa: S104
        return [Listener(address, settings.https_port, tls=True)]
    doors = []
    for proxy in filter(is_traefik, attached_containers(daemon, settings.network)):
        listening = entry_point(static_configuration(daemon, proxy), settings.entry_point).get("address", ":443")
        port = re.search(r":(\d+)(/|$)", listening)
        if port and (found := address_of(proxy, settings.network)):
            doors.append(Listener(found, int(port[1]), settings.tls))
    return doors


# --- knocking ------------------------------------------------------------------------------------------------------


def _check_listener(stack: Stack, found: Found, door: Listener) -> None:
    """Ask at the door as a client without credentials would, and look at the certificate."""
    settings = stack.settings
    hostname = settings.hostname or ""
    try:
        status = _status(door, hostname)
        for_a_trial = settings.traefik.mode == "bundled" and settings.traefik.certificate == "selfSigned"
        if door.tls and not for_a_trial:
            found.problems += _certificate_problems(door, hostname)
    except (OSError, http.client.HTTPException) as error:
        words = f"{settings.route.url} does not answer at {door.address}:{door.port}: {error}"
        # Of a container's own address, not every Docker lets its host know.
        (found.problems if settings.traefik.mode == "bundled" else found.notes).append(words)
        return
    if problem := verdict(settings.route, status, stack.name):
        found.problems.append(f"{settings.route.url}: {problem}")


def _status(door: Listener, hostname: str) -> int:
    with socket.create_connection((door.address, door.port), timeout=TIMEOUT_SECONDS) as plain:
        context = ssl._create_unverified_context()  # noqa: S323, SLF001 - looked at by itself, below
        wrapped = context.wrap_socket(plain, server_hostname=hostname) if door.tls else plain
        with wrapped as connection:
            request = f"GET {READINESS_PATH} HTTP/1.1\r\nHost: {hostname}\r\nAccept: */*\r\nConnection: close\r\n\r\n"
            connection.sendall(request.encode())
            response = http.client.HTTPResponse(connection)
            response.begin()
            return response.status


def is_redirect(status: int) -> bool:
    """Whether an HTTP status sends somebody elsewhere."""
    return http.HTTPStatus.MULTIPLE_CHOICES <= status < http.HTTPStatus.BAD_REQUEST


def verdict(route: Route, status: int, stack: str) -> str | None:
    """Say what is wrong where a client without credentials gets `status`, or None."""
    wanted = 200 if route.authentication == "anonymous" else 401
    if status == wanted:
        return None
    if status == http.HTTPStatus.OK:
        return f"anybody is let in, and mlflow:authentication is {route.authentication}; {SECURITY}"
    if status in NO_ROUTE:
        return (
            f"Traefik knows no way to the server (HTTP {status}): it is not healthy, or a middleware is missing\n"
            f"  type: make doctor STACK={stack}, and see Traefik's log"
        )
    if is_redirect(status):
        return f"a client is redirected (HTTP {status}), and would lose what it logs; {SECURITY}"
    return f"a client without credentials gets HTTP {status}, and {wanted} is expected; see Traefik's log"


def _certificate_problems(door: Listener, hostname: str) -> list[str]:
    """Return what a client that trusts what this host trusts would say of the certificate."""
    try:
        with (
            socket.create_connection((door.address, door.port), timeout=TIMEOUT_SECONDS) as plain,
            ssl.create_default_context().wrap_socket(plain, server_hostname=hostname) as connection,
        ):
            certificate = connection.getpeercert() or {}
    except ssl.SSLCertVerificationError as error:
        return [f"https://{hostname}: this host does not trust the certificate: {error.verify_message}"]
    left = (ssl.cert_time_to_seconds(str(certificate["notAfter"])) - time.time()) / 86400
    if left < EXPIRES_SOON_DAYS:
        return [f"https://{hostname}: the certificate expires in {left:.0f} days"]
    return []
