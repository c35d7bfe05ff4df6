"""What every component is built on: the images, the networks, the daemon, and whether data are protected."""

from dataclasses import dataclass

from components.daemon import Daemon
from components.images import Images
from components.networks import Networks


@dataclass(frozen=True, kw_only=True)
class Platform:
    """The ground that the components share. Made once, in the entry point."""

    daemon: Daemon
    images: Images
    networks: Networks
    protect_data: bool
    """Refuse to delete the data volumes' resources. Their volumes survive either way."""
