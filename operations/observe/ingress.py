"""Checks of the ingress: name resolution, authentication, certificate."""

import http.client
import re
import socket
import ssl
import time
from dataclasses import dataclass

from operations.common.console import StopError, progress
from operations.common.stack import Stack
from operations.observe.existing_traefik import (
    address_of,
    attached_containers,
    check_existing_traefik,
    entry_point,
    is_traefik,
    static_configuration,
)
from operations.observe.findings import SECURITY, TIMEOUT_SECONDS, Findings
from operations.observe.hostname import resolution_problem
from settings.ingress import Route
from settings.server import READINESS_PATH

EXPIRES_SOON_DAYS = 14
ROUTED_SECONDS = 15
"""How long to wait for a route. Traefik adds it a second or two after the server is healthy."""
NO_ROUTE = (http.HTTPStatus.NOT_FOUND, http.HTTPStatus.SERVICE_UNAVAILABLE)


def check_ingress(stack: Stack) -> Findings:
    """Return every problem with the ingress, each with what to do."""
    found = Findings([], [])
    if stack.settings.traefik.mode == "existing":
        check_existing_traefik(stack, found)
    if problem := resolution_problem(stack):
        found.problems.append(problem)
    for listener in listeners(stack):
        _check_listener(stack, found, listener)
    return found


def require_authentication(stack: Stack) -> None:
    """Raise `StopError` if the endpoint accepts a request without credentials, or redirects a client.

    Called at the end of `up`. An endpoint that does not answer yet is no security problem.
    """
    route = stack.settings.route
    for listener in listeners(stack):
        status = _wait_for_route(listener, stack.settings.hostname or "")
        if status is None:
            progress(
                f"warning: nothing answers at {listener.address}:{listener.port}, so whether {route.url} requires "
                f"credentials was not checked\n  to see why: make doctor STACK={stack.name}"
            )
            continue
        if status in NO_ROUTE:
            progress(
                f"warning: Traefik does not route {route.url} yet (HTTP {status})\n"
                f"  to see why: make doctor STACK={stack.name}"
            )
        if (status == http.HTTPStatus.OK or is_redirect(status)) and (
            problem := authentication_problem(route, status, stack.name)
        ):
            raise StopError(f"{route.url}: {problem}\n  the deployment is running, but not protected as configured")


def _wait_for_route(listener: "Listener", hostname: str) -> int | None:
    """Return the HTTP status without credentials once there is a route.

    If there is none in time: 404 or 503, or None if nothing answered.
    """
    status = None
    deadline = time.monotonic() + ROUTED_SECONDS
    while time.monotonic() < deadline:
        try:
            if (status := _status(listener, hostname)) not in NO_ROUTE:
                return status
        except (OSError, http.client.HTTPException):
            pass
        time.sleep(0.5)
    return status


@dataclass(frozen=True)
class Listener:
    """An address on which a Traefik listens for this stack."""

    address: str
    port: int
    tls: bool


def listeners(stack: Stack) -> list[Listener]:
    """Return the addresses to check. For a remote daemon there are none, as they may not be reachable from here."""
    settings, daemon = stack.settings.traefik, stack.daemon
    if settings.mode == "off" or not daemon.host.startswith("unix://"):
        return []
    if settings.mode == "bundled":
        address = "127.0.0.1" if settings.bind_address == "0.0.0.0" else settings.bind_address  # noqa: S104
        return [Listener(address, settings.https_port, tls=True)]
    listeners = []
    for proxy in filter(is_traefik, attached_containers(daemon, settings.network)):
        listening = entry_point(static_configuration(daemon, proxy), settings.entry_point).get("address", ":443")
        port = re.search(r":(\d+)(/|$)", listening)
        if port and (found := address_of(proxy, settings.network)):
            listeners.append(Listener(found, int(port[1]), settings.tls))
    return listeners


# --- requests to the endpoint --------------------------------------------------------------------------------------


def _check_listener(stack: Stack, found: Findings, listener: Listener) -> None:
    """Send a request without credentials to an address, and check the answer and the certificate."""
    settings = stack.settings
    hostname = settings.hostname or ""
    try:
        status = _status(listener, hostname)
        for_a_trial = settings.traefik.mode == "bundled" and settings.traefik.certificate == "selfSigned"
        if listener.tls and not for_a_trial:
            found.problems += _certificate_problems(listener, hostname)
    except (OSError, http.client.HTTPException) as error:
        words = (
            f"{settings.route.url} does not answer at {listener.address}:{listener.port}: {error}\n  see Traefik's log"
        )
        # Some Docker installations do not route container addresses from the host, so this may be no problem.
        (found.problems if settings.traefik.mode == "bundled" else found.notes).append(words)
        return
    if problem := authentication_problem(settings.route, status, stack.name):
        found.problems.append(f"{settings.route.url}: {problem}")


def _status(listener: Listener, hostname: str) -> int:
    with socket.create_connection((listener.address, listener.port), timeout=TIMEOUT_SECONDS) as plain:
        context = ssl._create_unverified_context()  # noqa: S323, SLF001 - checked separately, below
        wrapped = context.wrap_socket(plain, server_hostname=hostname) if listener.tls else plain
        with wrapped as connection:
            request = f"GET {READINESS_PATH} HTTP/1.1\r\nHost: {hostname}\r\nAccept: */*\r\nConnection: close\r\n\r\n"
            connection.sendall(request.encode())
            response = http.client.HTTPResponse(connection)
            response.begin()
            return response.status


def is_redirect(status: int) -> bool:
    """Return whether an HTTP status is a redirect."""
    return http.HTTPStatus.MULTIPLE_CHOICES <= status < http.HTTPStatus.BAD_REQUEST


def authentication_problem(route: Route, status: int, stack: str) -> str | None:
    """Return the problem if a client without credentials gets `status`, or None."""
    wanted = 200 if route.authentication == "anonymous" else 401
    if status == wanted:
        return None
    if status == http.HTTPStatus.OK:
        return f"accepts requests without credentials, but mlflow:authentication is {route.authentication}; {SECURITY}"
    if status in NO_ROUTE:
        transport = route.internal_tls and route.traefik.servers_transport
        return (
            f"Traefik has no route to the server (HTTP {status}): the server is unhealthy, or a middleware is missing"
            + (
                f", or the serversTransport {transport}: docs/operations/tls.md#an-existing-traefik"
                if transport
                else ""
            )
            + f"\n  see: make logs STACK={stack} SERVICE=server, and Traefik's log"
        )
    if is_redirect(status):
        return f"redirects clients (HTTP {status}), so their logged data is lost; {SECURITY}"
    return f"a request without credentials gets HTTP {status}, expected {wanted}; see Traefik's log"


def _certificate_problems(listener: Listener, hostname: str) -> list[str]:
    """Return the problems that a client with this host's trusted authorities has with the certificate."""
    try:
        with (
            socket.create_connection((listener.address, listener.port), timeout=TIMEOUT_SECONDS) as plain,
            ssl.create_default_context().wrap_socket(plain, server_hostname=hostname) as connection,
        ):
            certificate = connection.getpeercert() or {}
    except ssl.SSLCertVerificationError as error:
        return [
            f"https://{hostname}: this host does not trust the certificate: {error.verify_message}\n"
            "  for the bundled Traefik: docs/operations/ingress.md#the-certificate"
        ]
    left = (ssl.cert_time_to_seconds(str(certificate["notAfter"])) - time.time()) / 86400
    if left < EXPIRES_SOON_DAYS:
        return [
            f"https://{hostname}: the certificate expires in {left:.0f} days\n"
            "  for the bundled Traefik: docs/operations/ingress.md#the-certificate"
        ]
    return []
