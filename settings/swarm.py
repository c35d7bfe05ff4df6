"""The settings of a stack on a Docker Swarm cluster."""

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from settings.base import Settings, in_words

Runtime = Literal["container", "swarm"]
CONSTRAINT = re.compile(
    r"(node\.(id|hostname|role|platform\.(os|arch)|labels\.[\w.-]+)|engine\.labels\.[\w.-]+) ?[!=]= ?[\w.-]+"
)


MetricsAddress = Annotated[
    str,
    in_words(r"[a-z0-9][a-z0-9.-]*:\d{1,5}", "must be an address and a port, such as 172.17.0.1:9323"),
]


def _constraint(text: str) -> str:
    if not CONSTRAINT.fullmatch(text):
        raise ValueError("must be a placement constraint of Docker, such as node.labels.mlflow==true")
    return text


class SwarmSettings(Settings):
    """The settings under `mlflow:swarm`. They need `mlflow:runtime: swarm`."""

    encrypted: bool = Field(
        default=True,
        description="Whether the nodes encrypt what they send each other (IPsec). Every node's kernel needs ESP and "
        "AES-GCM, and the network between them must pass IP protocol 50. Without it, use a network that is already "
        "encrypted. A change recreates the networks and every container on them.",
    )
    metrics: MetricsAddress | None = Field(
        default=None,
        description="Address and port of the metrics of the manager's Docker daemon (`metrics-addr` in its "
        "`daemon.json`), as containers reach it, such as 172.17.0.1:9323. The alert NodeDown needs it. Needs "
        "`mlflow:monitoring`.",
    )
    constraints: tuple[Annotated[str, AfterValidator(_constraint)], ...] = Field(
        default=(),
        description="Placement constraints of the server's tasks, such as `node.labels.mlflow==true`. Default: every "
        "node. All other services run on the manager that the stack is deployed to, where their volumes are.",
    )
