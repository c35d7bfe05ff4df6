"""Checks the addresses of the stack's networks: Docker has enough left, and the configured subnets are free."""

import ipaddress
import re
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

from runtime.daemon import Daemon
from settings import names
from settings.stack import StackConfig

GATEWAY = 0x2
"""Flag of a route through a gateway (RTF_GATEWAY)."""
ROUTES = Path("/proc/net/route")
DEFAULT_POOLS = [{"Base": f"172.{second}.0.0/16", "Size": 16} for second in range(17, 32)] + [
    {"Base": "192.168.0.0/16", "Size": 20}
]
"""Docker's default, used where its configuration names no pools. Source: moby, libnetwork/ipamutils."""


def problems(daemon: Daemon, settings: StackConfig, stack: str) -> list[str]:
    """Return every problem with the addresses of this stack's networks, each with the command to type."""
    taken = daemon.subnets()
    local = daemon.host.startswith("unix://")
    # Docker avoids its host's routes, too. The routes of a remote host are not known here.
    routes: dict[str, list[str]] = {}
    for device, subnet in host_routes() if local else ():
        routes.setdefault(f"a route of this host through {device}", []).append(subnet)
    # Those of the other runtime as well: they exist until the stack has moved.
    mine = re.compile(rf"{re.escape(names.docker_name(stack, ''))}(\w+)(-(overlay|encrypted)(-.*)?)?")
    ours = {name for name in taken if (match := mine.fullmatch(name)) and match[1] in settings.networks}
    chosen: dict[str, str] = dict(settings.docker_networks.subnets.items())
    found = list(_overlapping(chosen, {name: subnets for name, subnets in taken.items() if name not in ours} | routes))
    missing = [
        service
        for service in sorted(settings.networks)
        if service not in chosen
        and names.docker_name(stack, service) not in taken
        # The addresses of a network across nodes come from the cluster's own pool.
        and not (settings.on_swarm and service in names.NETWORKS_OF_THE_SERVER)
    ]
    pools = daemon.api.info().get("DefaultAddressPools") or DEFAULT_POOLS
    used = [subnet for subnets in [*taken.values(), *routes.values()] for subnet in subnets]
    left = free(pools, used, enough=len(missing))
    if left < len(missing):
        found.append(
            f"Docker has addresses for {left} more networks, but the stack needs {len(missing)} "
            f"({', '.join(missing)})\n"
            "    remove unused networks: docker network prune; or set subnets in "
            f"Pulumi.{stack}.yaml: mlflow:networks: {{subnets: {{{missing[0]}: 10.213.0.0/26}}}}; or give Docker more "
            "addresses (default-address-pools in /etc/docker/daemon.json)"
        )
    return found


def _overlapping(chosen: Mapping[str, str], taken: Mapping[str, Iterable[str]]) -> Iterator[str]:
    for service, subnet in chosen.items():
        for name, others in taken.items():
            for other in others:
                if IPv4Network(subnet).overlaps(IPv4Network(other)):
                    yield (
                        f"mlflow:networks.subnets.{service}: {subnet} overlaps with {other} ({name})\n"
                        "    set a subnet that is not in use"
                    )


def free(pools: Sequence[Mapping[str, Any]], used: Iterable[str], *, enough: int) -> int:
    """Return how many more networks Docker can create from its pools; stop counting at `enough`."""
    taken = [IPv4Network(subnet) for subnet in used]
    count = 0
    for pool in pools:
        base = ipaddress.ip_network(pool["Base"])
        if not isinstance(base, IPv4Network):
            continue
        for subnet in base.subnets(new_prefix=pool["Size"]):
            if count >= enough:
                return count
            count += not any(subnet.overlaps(other) for other in taken)
    return count


def host_routes(table: Path = ROUTES) -> Iterator[tuple[str, str]]:
    """Yield device and destination of every network that this host is directly on, such as an office's or a VPN's.

    Routes through a gateway are left out: Docker ignores them too, and a full-tunnel VPN routes every address.
    """
    try:
        lines = table.read_text().splitlines()[1:]
    except OSError:
        return
    for device, destination, *rest in (line.split() for line in lines if line.strip()):
        address, mask = (ipaddress.IPv4Address(struct.pack("<I", int(text, 16))) for text in (destination, rest[5]))
        # Docker's own bridges are counted among its networks.
        if int(mask) and not int(rest[1], 16) & GATEWAY and not device.startswith(("docker", "br-")):
            yield device, str(IPv4Network((address, str(mask)), strict=False))
