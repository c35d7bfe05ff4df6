"""How a container of the stack reaches a service of the old deployment: by which network, name and port."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from operations.common.console import StopError
from runtime.daemon import Daemon

HERE = ("localhost", "127.0.0.1", "::1", "0.0.0.0", "host.docker.internal")  # noqa: S104 - names of this host
OUTSIDE = "host.docker.internal"
"""The Docker host, as a container on the default network reaches it."""
DEFAULT_NETWORK = "bridge"
"""Docker's network without names."""
FOLDER = "com.docker.compose.project.working_dir"


@dataclass(frozen=True)
class Address:
    """A service: its name and port as the importing container uses them, and the Docker network that has it."""

    host: str
    port: int
    network: str | None = None


def reach(daemon: Daemon, host: str, port: int, folder: Path | None) -> Address:
    """Return how to reach a service; raise `StopError` if two containers have its name.

    A name that no container has is left to DNS. A port of this host that a container publishes is reached through the
    network of that container, because it may be published for this host only.
    """
    # Others may start and remove containers meanwhile.
    listed = [daemon.inspect(entry["Id"]) for entry in daemon.api.containers()]
    running = [container for container in listed if container is not None]
    if host in HERE:
        for container in running:
            if inside := _published(container, port):
                return _inside(container, inside)
        return Address(OUTSIDE, port)
    found = [container for container in running if host in _names(container)]
    if len(found) > 1 and folder:
        found = [entry for entry in found if entry["Config"]["Labels"].get(FOLDER) == str(folder)] or found
    if len(found) > 1:
        names = ", ".join(sorted(entry["Name"].lstrip("/") for entry in found))
        raise StopError(f"{host}: several containers have this name ({names}); write the name of one of them instead")
    if not found:
        return Address(host, port)
    (container,) = found
    networks = container["NetworkSettings"]["Networks"]
    network = next((name for name, state in networks.items() if host in (state.get("Aliases") or [])), None)
    if network is None:
        return _inside(container, port)
    return Address(host, port, network)


def endpoint(daemon: Daemon, url: str, folder: Path | None) -> tuple[str, str | None]:
    """Return the URL of an object store for a container, and its network."""
    parts = urlsplit(url)
    port = parts.port or {"https": 443}.get(parts.scheme, 80)
    address = reach(daemon, parts.hostname or "", port, folder)
    if (address.host, address.port) == (parts.hostname, port):
        return url, address.network
    return f"{parts.scheme}://{address.host}:{address.port}", address.network


def _published(container: Mapping[str, Any], port: int) -> int | None:
    """Return the port inside of a container that is published as `port` of this host."""
    for inside, bindings in (container["NetworkSettings"]["Ports"] or {}).items():
        if inside.endswith("/tcp") and any(binding["HostPort"] == str(port) for binding in bindings or []):
            return int(inside.removesuffix("/tcp"))
    return None


def _names(container: Mapping[str, Any]) -> set[str]:
    """Return all names by which other containers reach a container."""
    aliases = [alias for state in container["NetworkSettings"]["Networks"].values() for alias in state["Aliases"] or []]
    return {container["Name"].lstrip("/"), container["Config"]["Hostname"], *aliases}


def _inside(container: Mapping[str, Any], port: int) -> Address:
    """Return the address of a container on one of its networks. By its IP: not every name is in Docker's DNS."""
    networks: dict[str, Any] = container["NetworkSettings"]["Networks"]
    found = next((name for name in networks if name not in ("host", "none")), None)
    return Address(networks[found]["IPAddress"], port, found) if found else Address(OUTSIDE, port)
