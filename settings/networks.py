"""The settings of the Docker networks."""

from typing import Literal

from pydantic import Field

from settings.base import Settings, Subnet

ExtraNetwork = Literal["access", "egress", "monitoring"]


class NetworksSettings(Settings):
    """The settings under `mlflow:networks`."""

    subnets: dict[Literal["backend", "edge", "access", "egress", "monitoring"], Subnet] = Field(
        default={},
        description="Subnets of the stack's Docker networks, by name, such as `backend: 10.213.0.0/26`. Set them if "
        "the subnets that Docker chooses are in use elsewhere (a VPN, an office network). A change recreates the "
        "network and every container on it.",
    )
