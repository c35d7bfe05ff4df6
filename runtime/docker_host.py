"""The Docker host that a stack is deployed to, as services and jobs need it."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import pulumi

if TYPE_CHECKING:
    from runtime.cluster import Cluster
    from runtime.daemon import Daemon


@dataclass(frozen=True, kw_only=True)
class DockerHost:
    """The Docker daemon's address, and what a stack adds for all of its services."""

    docker_host: str | None
    """The stack's `docker:host`; None for the daemon that the environment selects."""

    @property
    def monitoring_network(self) -> pulumi.Output[str] | None:
        """Id of the network on which Prometheus scrapes services; None in a stack without monitoring."""
        return None

    @property
    def prerequisites(self) -> Sequence[pulumi.Resource]:
        """What must succeed before the files of a service change, because that deletes the service first."""
        return ()

    @property
    def monitored(self) -> bool:
        """Return whether Prometheus scrapes the services of this stack."""
        return self.monitoring_network is not None

    @cached_property
    def daemon(self) -> "Daemon":
        """The Docker daemon, for the readiness checks of an update. A plan does not use it."""
        # Imported late: Docker's client takes a fifth of a plan's time.
        from runtime.address import resolve_host  # noqa: PLC0415
        from runtime.daemon import Daemon  # noqa: PLC0415

        return Daemon(resolve_host(self.docker_host))

    @cached_property
    def cluster(self) -> "Cluster":
        """The Docker Swarm cluster of the daemon, if it is a manager of one. A plan does not use it."""
        from runtime.cluster import Cluster  # noqa: PLC0415 - as above

        return Cluster(self.daemon)
