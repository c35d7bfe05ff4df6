"""The settings of the Docker networks."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from settings.base import Settings, Subnet
from settings.names import NETWORKS_OF_THE_SERVER, NetworkKind

ExtraNetwork = Literal["access", "egress", "monitoring"]


@dataclass(frozen=True, kw_only=True)
class WantedNetworks:
    """The Docker networks that a stack needs, beside `backend` and `edge`."""

    extra: frozenset[ExtraNetwork]
    subnets: Mapping[str, str]
    """The subnets that are set, by network."""
    kind: NetworkKind
    """The kind of the networks to which the server is attached."""

    def name(self, service: str) -> str:
        """Return the name of a network without the stack: backend; on a cluster backend-overlay, backend-encrypted.

        On a cluster, everything that cannot be changed in place is in the name. So a change is a new network, and the
        old one is removed last: a Swarm service uses it until then.
        """
        if not self.kind or service not in NETWORKS_OF_THE_SERVER:
            return service
        subnet = re.sub("[./]", "-", self.subnets.get(service, ""))
        return "-".join(filter(None, [service, self.kind, subnet]))


class NetworksSettings(Settings):
    """The settings under `mlflow:networks`."""

    subnets: dict[Literal["backend", "edge", "access", "egress", "monitoring"], Subnet] = Field(
        default={},
        description="Subnets of the stack's Docker networks, by name, such as `backend: 10.213.0.0/26`. Set them if "
        "the subnets that Docker chooses are in use elsewhere (a VPN, an office network). A change recreates the "
        "network and every container on it.",
    )
