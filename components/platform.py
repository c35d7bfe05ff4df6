"""What every component is built on: the images, the networks, the daemon, and whether data are protected."""

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from components.images import Images
from components.networks import Networks

if TYPE_CHECKING:
    from components.daemon import Daemon


@dataclass(frozen=True, kw_only=True)
class Platform:
    """The ground that the components share. Made once, in the entry point."""

    docker_host: str | None
    """The stack's `docker:host`, if it has one."""
    images: Images
    networks: Networks
    backed_up: bool
    """Whether a backup reads the data: who guards them makes it an identity for that."""
    monitored: bool
    """Whether Prometheus asks the services how they are."""
    protect_data: bool
    """Refuse to delete the data volumes' resources. Their volumes survive either way."""

    @cached_property
    def daemon(self) -> "Daemon":
        """The Docker daemon, for the questions that are asked at `up` only."""
        # Importing Docker's client is a fifth of a preview's time, and a preview has no use for it.
        from components.daemon import Daemon, resolve_host  # noqa: PLC0415

        return Daemon(resolve_host(self.docker_host))
