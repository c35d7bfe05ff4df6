"""The settings of a stack: one section for each component."""

import re

from pydantic import Field

from settings.backup import BackupSettings
from settings.base import Hostname, Settings
from settings.images import Image, ImagesSettings
from settings.ingress import Route
from settings.monitoring import MonitoringSettings
from settings.networks import ExtraNetwork, NetworksSettings
from settings.object_store import ObjectStoreSettings
from settings.postgres import PostgresSettings
from settings.server import ServerSettings
from settings.traefik import Authentication, TraefikSettings

NAMESPACE = "mlflow"
DEV = "dev"
"""The stack on somebody's laptop, that nobody is asked about."""


class StackConfig(Settings):
    """Everything that can be set in `Pulumi.<stack>.yaml`, under `mlflow:`. Nothing has to be."""

    hostname: Hostname | None = Field(
        default=None,
        description="The public name of the server. MLflow's allowed hosts and CORS origins follow from it.",
    )
    authentication: Authentication | None = Field(
        default=None,
        description="Who asks a person or a program who it is. `password`: Traefik, for one generated password. "
        "`singleSignOn`: your Authelia or the like, for everybody; a client sends the user and password of that. "
        "`singleSignOnAndPassword`: the same for browsers, and the generated password for clients. `mlflow`: MLflow "
        "itself, with users and permissions of its own. `anonymous`: nobody. Without Traefik: `anonymous`, unless "
        "told otherwise; with it, there is no default.",
    )
    protect_data: bool = Field(
        default=True,
        description="Refuse to delete the data volumes from the stack. (They survive even without it: "
        "only `make destroy` deletes data.)",
    )
    server: ServerSettings = Field(default=ServerSettings(), description="The MLflow tracking server.")
    postgres: PostgresSettings = Field(default=PostgresSettings(), description="The database.")
    object_store: ObjectStoreSettings = Field(default=ObjectStoreSettings(), description="Where artifacts are.")
    traefik: TraefikSettings = Field(default=TraefikSettings(), description="The way in from outside.")
    backup: BackupSettings = Field(default=BackupSettings(), description="The copy of everything.")
    monitoring: MonitoringSettings = Field(default=MonitoringSettings(), description="What watches it, and tells.")
    docker_networks: NetworksSettings = Field(
        default=NetworksSettings(), alias="networks", description="The stack's own Docker networks."
    )
    images: ImagesSettings = Field(default=ImagesSettings(), description="What is run, and what MLflow is built on.")

    @property
    def postgres_major(self) -> int:
        """The major version of the database, from its image's tag."""
        found = major(self.images.postgres.ref)
        assert found is not None, "parse_settings() refuses a tag without one"  # noqa: S101
        return found

    @property
    def route(self) -> Route:
        """The way in, as the server's component wants it."""
        return Route(
            traefik=self.traefik,
            hostname=self.hostname,
            authentication=self.authentication or "anonymous",
            server_port=self.server.port,
            server_address=self.server.bind_address,
        )

    @property
    def parts(self) -> tuple[str, ...]:
        """What the stack consists of, beside what every stack has: object stores, a backup, a proxy."""
        return (
            *self.object_store.kinds,
            *(["backup"] if self.backup.enabled else []),
            *(["traefik"] if self.traefik.mode == "bundled" else []),
            *self.monitoring.parts,
        )

    @property
    def pulled_images(self) -> list[Image]:
        """Every image that must be on the host before anything is deployed."""
        return self.images.pulled(self.parts)

    @property
    def networks(self) -> set[str]:
        """The networks that the stack has of its own."""
        return {"backend", *(["edge"] if self.traefik.mode != "existing" else []), *self.extra_networks}

    @property
    def extra_networks(self) -> set[ExtraNetwork]:
        """The networks beside the two that are always there."""
        wanted: dict[ExtraNetwork, bool] = {
            "access": bool(self.postgres.port or self.object_store.console_port or self.monitoring.published),
            "egress": self.backup.leaves or self.monitoring.leaves,
            "monitoring": self.monitoring.on,
        }
        return {network for network, is_wanted in wanted.items() if is_wanted}


def major(ref: str) -> int | None:
    """Return the major version in an image's tag, or None where the tag has none."""
    match = re.search(r":(\d+)(?:[.-][^:]*)?$", ref)
    return int(match.group(1)) if match else None
