"""Addresses for the stack's networks: whether Docker has some left, and whether those that were chosen are free."""

import ipaddress
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

from runtime.daemon import Daemon
from settings import names
from settings.stack import StackConfig

GATEWAY = 0x2
"""Flag of a route that goes by a gateway (RTF_GATEWAY)."""
ROUTES = Path("/proc/net/route")
DEFAULT_POOLS = [{"Base": f"172.{second}.0.0/16", "Size": 16} for second in range(17, 32)] + [
    {"Base": "192.168.0.0/16", "Size": 20}
]
"""Docker's own, where its configuration names none. Source: moby, libnetwork/ipamutils."""


def problems(daemon: Daemon, settings: StackConfig, stack: str) -> list[str]:
    """Return what stands in the way of this stack's networks, each with what to type."""
    taken = daemon.subnets()
    local = daemon.host.startswith("unix://")
    # Docker asks for its host's routes, too. Of a remote one they are not known here.
    routes: dict[str, list[str]] = {}
    for device, subnet in host_routes() if local else ():
        routes.setdefault(f"a route of this host by {device}", []).append(subnet)
    ours = {names.physical(stack, service) for service in settings.networks}
    chosen: dict[str, str] = dict(settings.docker_networks.subnets.items())
    found = list(_overlapping(chosen, {name: subnets for name, subnets in taken.items() if name not in ours} | routes))
    missing = [
        service
        for service in sorted(settings.networks)
        if service not in chosen and names.physical(stack, service) not in taken
    ]
    pools = daemon.api.info().get("DefaultAddressPools") or DEFAULT_POOLS
    used = [subnet for subnets in [*taken.values(), *routes.values()] for subnet in subnets]
    left = free(pools, used, enough=len(missing))
    if left < len(missing):
        found.append(
            f"Docker has addresses for {left} more networks, and {len(missing)} are to be made ({', '.join(missing)})\n"
            "    remove what nobody uses: docker network prune; or choose addresses, in "
            f"Pulumi.{stack}.yaml: mlflow:networks: {{subnets: {{{missing[0]}: 10.213.0.0/26}}}}; or give Docker more "
            "(default-address-pools in /etc/docker/daemon.json)"
        )
    return found


def _overlapping(chosen: Mapping[str, str], taken: Mapping[str, Iterable[str]]) -> Iterator[str]:
    for service, subnet in chosen.items():
        for name, others in taken.items():
            for other in others:
                if IPv4Network(subnet).overlaps(IPv4Network(other)):
                    yield (
                        f"mlflow:networks.subnets.{service}: {subnet} overlaps with {other}, {name}\n"
                        "    choose another that nothing uses"
                    )


def free(pools: Sequence[Mapping[str, Any]], used: Iterable[str], *, enough: int) -> int:
    """Return how many networks Docker can still make of its pools; it does not count on beyond `enough`."""
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
    """Yield device and destination of every network that this host is on: an office's, a VPN's.

    Not what it reaches by a gateway: Docker has no use for those either, and a VPN for everything routes all there is.
    """
    try:
        lines = table.read_text().splitlines()[1:]
    except OSError:
        return
    for device, destination, *rest in (line.split() for line in lines if line.strip()):
        address, mask = (ipaddress.IPv4Address(struct.pack("<I", int(text, 16))) for text in (destination, rest[5]))
        # Docker's own bridges are its networks.
        if int(mask) and not int(rest[1], 16) & GATEWAY and not device.startswith(("docker", "br-")):
            yield device, str(IPv4Network((address, str(mask)), strict=False))
