"""Looking at the way in: what only an operator's own Traefik can have, and what answers at the door."""

import difflib
import http.client
import io
import json
import re
import socket
import ssl
import tarfile
import time
import tomllib
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml
from docker.errors import NotFound

from components import names, tunnel
from components.daemon import Daemon
from components.mlflow import READINESS_PATH
from components.route import Route
from operations.checkout import Stack
from operations.console import StopError, say

OLDEST = (3, 4)
"""Knows `statusRewrites`. An older one drops all of a container's labels where it does not know one of them."""
ADVISED = (3, 6, 21)
"""Has the security fixes that docs/security.md names."""
SHORT_SECONDS = 600
"""A read time-out below this cuts off uploads that somebody will try."""
STATIC_FILES = ("/etc/traefik/traefik.yml", "/etc/traefik/traefik.yaml", "/etc/traefik/traefik.toml")
SECURITY = "docs/security.md#what-your-traefik-needs"
EXPIRES_SOON_DAYS = 14
TIMEOUT_SECONDS = 5
ROUTED_SECONDS = 15
"""A Traefik routes a second or two after the server is healthy."""
NO_ROUTE = (http.HTTPStatus.NOT_FOUND, http.HTTPStatus.SERVICE_UNAVAILABLE)


@dataclass
class Found:
    """What is wrong, and what somebody should know."""

    problems: list[str]
    notes: list[str]


def way_there(stack: Stack) -> str | None:
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
        _existing(stack, found)
    if problem := resolution_problem(stack):
        found.problems.append(problem)
    for door in _doors(stack):
        _knock(stack, found, door)
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


def require_closed(stack: Stack) -> None:
    """Raise `StopError` where somebody is let in who should be asked, or a client would be redirected.

    Asked at the end of an `up`. A door that does not open yet is nobody's danger.
    """
    route = stack.settings.route
    for door in _doors(stack):
        status = _once_routed(door, stack.settings.hostname or "")
        if status in NO_ROUTE:
            say(f"warning: {route.url} leads nowhere yet (HTTP {status}); make doctor STACK={stack.name} says why")
        if (status == http.HTTPStatus.OK or is_redirect(status)) and (problem := verdict(route, status, stack.name)):
            raise StopError(f"{route.url}: {problem}\n  the deployment is there, and its door is not closed")


def _once_routed(door: "Door", hostname: str) -> int:
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
class Door:
    """Where a Traefik listens for this stack."""

    address: str
    port: int
    tls: bool


def _doors(stack: Stack) -> list[Door]:
    """Return where to knock. A daemon elsewhere has its doors elsewhere."""
    settings, daemon = stack.settings.traefik, stack.daemon
    if settings.mode == "off" or not daemon.host.startswith("unix://"):
        return []
    if settings.mode == "bundled":
        address = "127.0.0.1" if settings.bind_address == "0.0.0.0" else settings.bind_address  # noqa: S104
        return [Door(address, settings.https_port, tls=True)]
    doors = []
    for proxy in filter(_is_traefik, _attached(daemon, settings.network)):
        listening = _entry_point(static_configuration(daemon, proxy), settings.entry_point).get("address", ":443")
        port = re.search(r":(\d+)(/|$)", listening)
        if port and (found := _address(proxy, settings.network)):
            doors.append(Door(found, int(port[1]), settings.tls))
    return doors


def _entry_point(static: dict[str, str], name: str) -> dict[str, str]:
    """Return what a static configuration says of one entry point; nothing where it does not have it."""
    prefix = f"entrypoints.{name.lower()}."
    return {key.removeprefix(prefix): value for key, value in static.items() if key.startswith(prefix)}


def _existing(stack: Stack, found: Found) -> None:
    settings, daemon = stack.settings.traefik, stack.daemon
    network = settings.network
    server = names.physical(stack.name, "server")
    attached = _attached(daemon, network)
    proxies = [container for container in attached if _is_traefik(container)]
    others = sorted(
        container["Name"].lstrip("/")
        for container in attached
        if container not in proxies and container["Name"].lstrip("/") != server
    )
    if others:
        found.notes.append(
            f"on the network {network}, beside Traefik: {', '.join(others)}; they reach the server past it: {SECURITY}"
        )
    found.problems += _missing_middlewares(stack)
    if not proxies:
        found.notes.append(
            f"no container on the network {network} looks like Traefik. One on the host itself reaches the server; one "
            f"in a container does not\n  type: docker network connect {network} <your Traefik>"
        )
    for proxy in proxies:
        _one_traefik(stack, found, proxy)


def _attached(daemon: Daemon, network: str) -> list[dict[str, Any]]:
    """Return all that Docker knows of the containers that are on a network."""
    listed = daemon.api.containers(filters={"network": network})
    return [found for entry in listed if (found := daemon.inspect(entry["Id"]))]


def _is_traefik(container: dict[str, Any]) -> bool:
    config = container["Config"]
    program = [*(config["Entrypoint"] or []), *(config["Cmd"] or [])][:2]
    named = re.search(r"(^|/)traefik(:|@|$)", config["Image"])
    return bool(named) or any(Path(word).name == "traefik" for word in program)


def _one_traefik(stack: Stack, found: Found, proxy: dict[str, Any]) -> None:
    settings, daemon, name = stack.settings.traefik, stack.daemon, proxy["Name"].lstrip("/")
    _, printed = daemon.run(proxy["Id"], ["traefik", "version"])
    version = re.search(r"(?m)^Version:\s*v?(\d+(?:\.\d+)*)", printed)
    numbers = tuple(int(part) for part in version[1].split(".")) if version else ()
    if not numbers:
        found.notes.append(f"{name}: its version cannot be read; needs {_dotted(OLDEST)}: {SECURITY}")
    elif numbers < OLDEST:
        found.problems.append(f"{name}: Traefik {version[1] if version else ''} is too old, needs {_dotted(OLDEST)}")
    elif numbers < ADVISED:
        found.notes.append(
            f"{name}: Traefik {version[1] if version else ''} lacks security fixes, {_dotted(ADVISED)} has them"
        )
    static = static_configuration(daemon, proxy)
    mine = _entry_point(static, settings.entry_point)
    if not mine:
        known = sorted({key.split(".")[1] for key in static if key.startswith("entrypoints.")})
        found.notes.append(
            f"{name}: its entry point {settings.entry_point} is not in its arguments, variables or {STATIC_FILES[0]}"
            + (f" (there are: {', '.join(known)})" if known else "")
            + f"; look yourself: {SECURITY}"
        )
    else:
        timeout = seconds(mine.get("transport.respondingtimeouts.readtimeout", "60"))
        if 0 < timeout < SHORT_SECONDS:
            found.problems.append(
                f"{name}: an upload that takes longer than {timeout:g} s is cut off\n"
                f"  where its other options are (its file, its arguments or its variables: it reads one of them), set "
                f"entryPoints.{settings.entry_point}.transport.respondingTimeouts.readTimeout to 2h or more"
            )
        strategies = {mine.get("http.aliasheadersstrategy"), mine.get("http.underscoreheadersstrategy")}
        if not strategies & {"delete", "reject"}:
            found.notes.append(
                f"{name}: entryPoints.{settings.entry_point}.http.aliasHeadersStrategy is not delete: {SECURITY}"
            )
    address = _address(proxy, settings.network)
    if address and daemon.host.startswith("unix://"):
        _ask_its_api(stack, found, name, address)


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


def _address(container: dict[str, Any], network: str) -> str | None:
    return container["NetworkSettings"]["Networks"].get(network, {}).get("IPAddress") or None


def static_configuration(daemon: Daemon, proxy: dict[str, Any]) -> dict[str, str]:
    """Return a Traefik's static configuration, keys in lower case with dots.

    It is in its file, or else in its arguments, or else in its variables: Traefik reads the first that is there, alone.
    """
    words = [*(proxy["Config"]["Entrypoint"] or []), *(proxy["Config"]["Cmd"] or [])]
    arguments = dict(re.findall(r"(?m)^--([^=\s]+)(?:=(.*))?$", "\n".join(words)))
    arguments = {key.lower(): value or "true" for key, value in arguments.items()}
    chosen = arguments.get("configfile")
    for path in [chosen] if chosen else STATIC_FILES:
        if flat := _flat("", _parsed(path, _content(daemon, proxy["Id"], path))):
            return flat
    # One without a value may come without the sign, too.
    variables = dict(entry.partition("=")[::2] for entry in proxy["Config"]["Env"] or [])
    return arguments or {
        key.removeprefix("TRAEFIK_").lower().replace("_", "."): value
        for key, value in variables.items()
        if key.startswith("TRAEFIK_")
    }


def _content(daemon: Daemon, container: str, path: str) -> bytes:
    """Return a file of a container; nothing where there is none."""
    try:
        packed, _ = daemon.api.get_archive(container, path)
    except NotFound:
        return b""
    with tarfile.open(fileobj=io.BytesIO(b"".join(packed))) as archive:
        members = [member for member in archive.getmembers() if member.isfile()]
        content = archive.extractfile(members[0]) if members else None
        return content.read() if content else b""


def _parsed(path: str, content: bytes) -> Any:  # noqa: ANN401 - Traefik's configuration
    text = content.decode(errors="replace")
    try:
        return tomllib.loads(text) if path.endswith(".toml") else yaml.safe_load(text)
    except (yaml.YAMLError, tomllib.TOMLDecodeError):
        return None


def _flat(path: str, value: Any) -> dict[str, str]:  # noqa: ANN401 - Traefik's configuration
    if isinstance(value, dict):
        parts = (_flat(f"{path}.{name}".lstrip("."), part) for name, part in value.items())
        return {key: text for part in parts for key, text in part.items()}
    return {path.lower(): str(value)} if path else {}


def seconds(duration: str) -> float:
    """Return a duration as Go spells it, or a plain number, in seconds; 0 is for ever."""
    units = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
    if re.fullmatch(r"\d+(\.\d+)?", duration):
        return float(duration)
    return sum(float(number) * units[unit] for number, unit in re.findall(r"(\d+(?:\.\d+)?)(ms|h|m|s)", duration))


def _missing_middlewares(stack: Stack) -> list[str]:
    """Return which of the middlewares no running container defines. Those of other providers are Traefik's to know."""
    labels = [container["Labels"] or {} for container in stack.daemon.api.containers()]
    pattern = re.compile(r"traefik\.http\.middlewares\.([^.]+)\.", re.IGNORECASE)
    defined = sorted({match[1] for entry in labels for label in entry if (match := pattern.match(label))})
    problems = []
    for middleware in stack.settings.traefik.middlewares:
        name, _, provider = middleware.partition("@")
        if provider != "docker" or name in defined:
            continue
        # Spelled otherwise it is another, and that is the usual reason.
        alike = [other for other in defined if other.lower() == name.lower()]
        close = alike or difflib.get_close_matches(name, defined, n=1)
        hint = f"; did you mean {close[0]}@docker?" if close else ""
        problems.append(
            f"mlflow:traefik.middlewares: no running container defines {middleware}{hint}\n"
            "  Traefik closes the route until one does: everybody gets 404"
        )
    return problems


def _ask_its_api(stack: Stack, found: Found, proxy: str, address: str) -> None:
    """Add what Traefik itself says is wrong with our routers, where its API answers."""
    ours = names.physical(stack.name, "server")
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        query = f"http://{address}:8080/api/http/routers?per_page=100&search={ours}"
        with opener.open(query, timeout=TIMEOUT_SECONDS) as answer:
            routers = json.load(answer)
    except (urllib.error.URLError, OSError, ValueError):
        found.notes.append(f"{proxy}: its API does not answer on port 8080, so it was not asked about the routers")
        return
    found.problems += [
        f"{proxy}: the router {router['name']} is {router['status']}: {'; '.join(router.get('error', []))}"
        for router in routers
        if router["name"].startswith(ours) and router["status"] != "enabled"
    ]


# --- knocking ------------------------------------------------------------------------------------------------------


def _knock(stack: Stack, found: Found, door: Door) -> None:
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


def _status(door: Door, hostname: str) -> int:
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


def _certificate_problems(door: Door, hostname: str) -> list[str]:
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
