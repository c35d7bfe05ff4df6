"""Host ports and addresses: whether the stack can publish on them."""

import errno
import socket

from runtime.daemon import Daemon
from settings import names
from settings.stack import StackConfig


def address_problems(daemon: Daemon, settings: StackConfig) -> list[str]:
    """Return the problem of every bind address that this host does not have."""
    if not daemon.host.startswith("unix://"):
        return []
    wanted = {"server": settings.server.bind_address} if settings.route.published_port else {}
    if "traefik" in settings.parts:
        wanted["traefik"] = settings.traefik.bind_address
    return [
        f"mlflow:{section}.bindAddress: this host has no address {address}\n"
        "    set one of its addresses (ip -4 addr), 0.0.0.0 for all of them, or 127.0.0.1"
        for section, address in wanted.items()
        if not _is_local_address(address)
    ]


def _is_local_address(address: str) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        try:
            probe.bind((address, 0))
        except OSError as error:
            return error.errno != errno.EADDRNOTAVAIL
    return True


def port_problems(daemon: Daemon, settings: StackConfig, stack: str) -> list[str]:
    """Return the host ports that another container or program holds."""
    wanted = {
        "server.port": (settings.server.bind_address, settings.route.published_port),
        "postgres.port": ("127.0.0.1", settings.postgres.port),
        "objectStore.consolePort": ("127.0.0.1", settings.object_store.console_port),
    }
    if "traefik" in settings.parts:
        traefik = settings.traefik
        wanted["traefik.httpPort"] = (traefik.bind_address, traefik.http_port)
        wanted["traefik.httpsPort"] = (traefik.bind_address, traefik.https_port)
    for service, published in settings.monitoring.addresses.items():
        wanted[f"monitoring.{service.lower()}Port"] = ("127.0.0.1", published)
    addresses = {address for address, _ in wanted.values()}
    running = daemon.api.containers(filters={"status": ["running", "restarting", "paused"]})
    # The configured ports of this stack: a container that is restarting holds none for a moment.
    ours = {
        port
        for container in running
        if container["Labels"].get(names.STACK_LABEL) == stack
        for port in _configured_ports(daemon, container["Id"])
    }
    by_container = {
        (port["PublicPort"], host_address): container
        for container in running
        for port in container["Ports"]
        if "PublicPort" in port
        for host_address in ([port["IP"], "0.0.0.0"] if port["IP"] not in ("0.0.0.0", "::") else addresses)  # noqa: S104
    }
    problems = []
    for key, (address, port) in wanted.items():
        if not port:
            continue
        if port in ours:
            continue
        if container := by_container.get((port, address)):
            holder = f"the container {container['Names'][0].lstrip('/')}"
        elif daemon.host.startswith("unix://") and _is_port_in_use(address, port):
            holder = f"another program (to find it: ss -ltnp 'sport = :{port}')"
        else:
            continue
        section, _, name = key.partition(".")
        problems.append(
            f"mlflow:{key}: port {port} of {address} is in use by {holder}\n"
            f"    stop it, or set another port in Pulumi.{stack}.yaml, under mlflow:{section}: {name}: {port + 1}"
        )
    return problems


def _configured_ports(daemon: Daemon, container: str) -> list[int]:
    """Return the host ports that a container is configured to publish, whether or not it holds them now."""
    found = daemon.inspect(container)
    bindings = (found["HostConfig"]["PortBindings"] or {}) if found else {}
    return [int(binding["HostPort"]) for published in bindings.values() for binding in published or []]


def _is_port_in_use(address: str, port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError as error:
            return error.errno == errno.EADDRINUSE
    return False
