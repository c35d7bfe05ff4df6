"""What every component needs: the Docker host, the images, the networks, TLS, and who reads the data."""

from collections.abc import Sequence
from dataclasses import dataclass

import pulumi

from components.images import Images
from components.internal_tls import InternalTls
from components.networks import Networks
from runtime.docker_host import DockerHost


@dataclass(frozen=True, kw_only=True)
class Platform(DockerHost):
    """Shared by all components. `__main__.py` creates the only one."""

    images: Images
    networks: Networks
    tls: InternalTls
    backed_up: bool
    """Whether a backup reads the data. If so, Postgres and the object store create an identity for it."""
    protect_data: bool
    """Whether Pulumi refuses to delete the resources of the data volumes. Docker keeps the volumes in both cases."""

    @property
    def monitoring_network(self) -> pulumi.Output[str] | None:
        """Id of the network `monitoring`; None in a stack without monitoring."""
        return self.networks.monitoring

    @property
    def prerequisites(self) -> Sequence[pulumi.Resource]:
        """The images that are built: a build that fails must not have deleted a service."""
        return self.images.built
