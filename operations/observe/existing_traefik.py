"""Checks of an existing Traefik: version, entry point, middlewares, routers."""

import difflib
import json
import re
import tomllib
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import yaml

from operations.common.stack import Stack
from operations.observe.findings import SECURITY, TIMEOUT_SECONDS, Findings
from runtime.daemon import Daemon
from settings import names

MINIMUM_VERSION = (3, 4)
"""The first version with `statusRewrites`. An older one ignores all labels of a container if it does not know one."""
RECOMMENDED_VERSION = (3, 6, 21)
"""The first version with the security fixes that docs/security.md lists."""
MINIMUM_READ_TIMEOUT_SECONDS = 600
"""A read timeout below this interrupts uploads of realistic size."""
STATIC_FILES = ("/etc/traefik/traefik.yml", "/etc/traefik/traefik.yaml", "/etc/traefik/traefik.toml")


def entry_point(static: dict[str, str], name: str) -> dict[str, str]:
    """Return the part of a static configuration for one entry point; empty if it has none."""
    prefix = f"entrypoints.{name.lower()}."
    return {key.removeprefix(prefix): value for key, value in static.items() if key.startswith(prefix)}


def check_existing_traefik(stack: Stack, found: Findings) -> None:
    """Add what is wrong with the existing Traefik to `found`."""
    settings, daemon = stack.settings.traefik, stack.daemon
    network = settings.network
    servers = {names.docker_name(stack.name, service) for service in stack.settings.replicas}
    attached = attached_containers(daemon, network)
    proxies = [container for container in attached if is_traefik(container)]
    others = sorted(
        container["Name"].lstrip("/")
        for container in attached
        if container not in proxies
        and container["Name"].lstrip("/") not in servers
        # Swarm names the container of a task.
        and container["Config"]["Labels"].get(names.STACK_LABEL) != stack.name
    )
    if others:
        found.notes.append(
            f"other containers on the network {network}: {', '.join(others)}; they can bypass Traefik: {SECURITY}"
        )
    found.problems += _missing_middlewares(stack)
    if not proxies:
        found.notes.append(
            f"no container on the network {network} looks like Traefik. A Traefik that runs directly on the host "
            f"reaches the server; one in another container does not\n  type: docker network connect {network} "
            "<your Traefik>"
        )
    for proxy in proxies:
        _check_traefik(stack, found, proxy)


def attached_containers(daemon: Daemon, network: str) -> list[dict[str, Any]]:
    """Return Docker's inspection of every container on a network."""
    listed = daemon.api.containers(filters={"network": network})
    return [found for entry in listed if (found := daemon.inspect(entry["Id"]))]


def is_traefik(container: dict[str, Any]) -> bool:
    """Return whether a container runs Traefik, by its image and its command."""
    config = container["Config"]
    program = [*(config["Entrypoint"] or []), *(config["Cmd"] or [])][:2]
    named = re.search(r"(^|/)traefik(:|@|$)", config["Image"])
    return bool(named) or any(Path(word).name == "traefik" for word in program)


def _check_traefik(stack: Stack, found: Findings, proxy: dict[str, Any]) -> None:
    settings, daemon, name = stack.settings.traefik, stack.daemon, proxy["Name"].lstrip("/")
    _, printed = daemon.run(proxy["Id"], ["traefik", "version"])
    version = re.search(r"(?m)^Version:\s*v?(\d+(?:\.\d+)*)", printed)
    numbers = tuple(int(part) for part in version[1].split(".")) if version else ()
    if not numbers:
        found.notes.append(f"{name}: its version is unknown; the minimum is {_dotted(MINIMUM_VERSION)}: {SECURITY}")
    elif numbers < MINIMUM_VERSION:
        found.problems.append(
            f"{name}: Traefik {version[1] if version else ''} is too old; upgrade to {_dotted(MINIMUM_VERSION)}"
        )
    elif numbers < RECOMMENDED_VERSION:
        found.notes.append(
            f"{name}: Traefik {version[1] if version else ''} lacks security fixes; upgrade to "
            f"{_dotted(RECOMMENDED_VERSION)}"
        )
    static = static_configuration(daemon, proxy)
    mine = entry_point(static, settings.entry_point)
    if not mine:
        known = sorted({key.split(".")[1] for key in static if key.startswith("entrypoints.")})
        found.notes.append(
            f"{name}: entry point {settings.entry_point} not found in its arguments, variables or {STATIC_FILES[0]}"
            + (f" (found: {', '.join(known)})" if known else "")
            + f"; check it by hand: {SECURITY}"
        )
    else:
        timeout = seconds(mine.get("transport.respondingtimeouts.readtimeout", "60"))
        if 0 < timeout < MINIMUM_READ_TIMEOUT_SECONDS:
            found.problems.append(
                f"{name}: uploads that take longer than {timeout:g} s are interrupted\n"
                f"  set entryPoints.{settings.entry_point}.transport.respondingTimeouts.readTimeout to 2h or more "
                "in the place that has its other options: Traefik reads only one of its file, arguments and variables"
            )
        strategies = {mine.get("http.aliasheadersstrategy"), mine.get("http.underscoreheadersstrategy")}
        if not strategies & {"delete", "reject"}:
            found.notes.append(
                f"{name}: entryPoints.{settings.entry_point}.http.aliasHeadersStrategy is not set to delete; "
                f"see {SECURITY}"
            )
    address = address_of(proxy, settings.network)
    if address and daemon.host.startswith("unix://"):
        _check_routers(stack, found, name, address)


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


def address_of(container: dict[str, Any], network: str) -> str | None:
    """Return the IP address of a container on a network, or None."""
    return container["NetworkSettings"]["Networks"].get(network, {}).get("IPAddress") or None


def static_configuration(daemon: Daemon, proxy: dict[str, Any]) -> dict[str, str]:
    """Return a Traefik's static configuration, with dotted keys in lower case.

    Traefik reads only one source: its file, else its arguments, else its variables.
    """
    words = [*(proxy["Config"]["Entrypoint"] or []), *(proxy["Config"]["Cmd"] or [])]
    arguments = dict(re.findall(r"(?m)^--([^=\s]+)(?:=(.*))?$", "\n".join(words)))
    arguments = {key.lower(): value or "true" for key, value in arguments.items()}
    chosen = arguments.get("configfile")
    for path in [chosen] if chosen else STATIC_FILES:
        if flat := _flat("", _parsed(path, daemon.read_file(proxy["Id"], path) or b"")):
            return flat
    # A variable without a value may have no equals sign.
    variables = dict(entry.partition("=")[::2] for entry in proxy["Config"]["Env"] or [])
    return arguments or {
        key.removeprefix("TRAEFIK_").lower().replace("_", "."): value
        for key, value in variables.items()
        if key.startswith("TRAEFIK_")
    }


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
    """Return a Go duration, or a plain number of seconds, in seconds; 0 means no limit."""
    units = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
    if re.fullmatch(r"\d+(\.\d+)?", duration):
        return float(duration)
    return sum(float(number) * units[unit] for number, unit in re.findall(r"(\d+(?:\.\d+)?)(ms|h|m|s)", duration))


def _missing_middlewares(stack: Stack) -> list[str]:
    """Return the configured Docker middlewares that no running container defines. Other providers are not checked."""
    labels = [container["Labels"] or {} for container in stack.daemon.api.containers()]
    pattern = re.compile(r"traefik\.http\.middlewares\.([^.]+)\.", re.IGNORECASE)
    defined = sorted({match[1] for entry in labels for label in entry if (match := pattern.match(label))})
    problems = []
    for middleware in stack.settings.traefik.middlewares:
        name, _, provider = middleware.partition("@")
        if provider != "docker" or name in defined:
            continue
        # Names are case-sensitive; wrong case is the usual reason.
        alike = [other for other in defined if other.lower() == name.lower()]
        close = alike or difflib.get_close_matches(name, defined, n=1)
        hint = f"; did you mean {close[0]}@docker?" if close else ""
        problems.append(
            f"mlflow:traefik.middlewares: no running container defines {middleware}{hint}\n"
            "  Traefik disables the route until one does: every request gets 404"
        )
    return problems


def _listed(address: str, kind: str, name: str) -> list[dict[str, Any]]:
    """Return Traefik's routers or services that contain `name`. Raises `OSError` or `ValueError` without an answer."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    query = f"http://{address}:8080/api/http/{kind}?per_page=100&search={name}"
    with opener.open(query, timeout=TIMEOUT_SECONDS) as answer:
        found: list[dict[str, Any]] = json.load(answer)
    return found


def _check_routers(stack: Stack, found: Findings, proxy: str, address: str) -> None:
    """Add the errors that Traefik's API reports for the routers and servers of this stack, if the API answers."""
    ours = names.docker_name(stack.name, "server")
    try:
        routers, services = (_listed(address, kind, ours) for kind in ("routers", "services"))
    except (urllib.error.URLError, OSError, ValueError):
        found.notes.append(f"{proxy}: its API does not answer on port 8080, so its routers were not checked")
        return
    if stack.settings.tls.internal:
        found.problems += [
            f"{proxy}: {url} is {state}: the server is down, or the serversTransport "
            f"{stack.settings.traefik.servers_transport} is missing or does not trust the stack's authority: "
            "docs/operations/tls.md#an-existing-traefik"
            for service in services
            if service["name"].partition("@")[0] == ours
            for url, state in (service.get("serverStatus") or {}).items()
            if state != "UP"
        ]
    found.problems += [
        f"{proxy}: the router {router['name']} is {router['status']}: {'; '.join(router.get('error', []))}"
        for router in routers
        if router["name"].startswith(ours) and router["status"] != "enabled"
    ]
