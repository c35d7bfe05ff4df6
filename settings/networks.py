"""The settings of the Docker networks."""

from typing import Literal

from pydantic import Field

from settings.base import Settings, Subnet

ExtraNetwork = Literal["access", "egress", "monitoring"]


class NetworksSettings(Settings):
    """What an operator may set under `mlflow:networks`."""

    subnets: dict[Literal["backend", "edge", "access", "egress", "monitoring"], Subnet] = Field(
        default={},
        description="Addresses of the stack's own Docker networks, by name, such as `backend: 10.213.0.0/26`, where "
        "those that Docker chooses belong to somebody else (a VPN, an office). A change makes the network, and every "
        "container on it, anew.",
    )
