"""The settings of a stack: one section for each component."""

import re

from pydantic import Field

from settings import names
from settings.backup import BackupSettings
from settings.base import Hostname, Settings
from settings.images import Image, ImagesSettings
from settings.ingress import Route
from settings.monitoring import MonitoringSettings
from settings.networks import ExtraNetwork, NetworksSettings, WantedNetworks
from settings.object_store import ObjectStoreSettings
from settings.postgres import PostgresSettings
from settings.rotation import RotationSettings
from settings.server import ServerSettings
from settings.swarm import Runtime, SwarmSettings
from settings.tls import TlsSettings
from settings.traefik import Authentication, TraefikSettings

NAMESPACE = "mlflow"
DEV = "dev"
"""The stack for a laptop: plain text secrets are allowed in its stack file."""


class StackConfig(Settings):
    """All settings of a stack: the keys under `mlflow:` in `Pulumi.<stack>.yaml`. Every setting has a default."""

    hostname: Hostname | None = Field(
        default=None,
        description="The public host name of the server. MLflow's allowed hosts and CORS origins follow from it. "
        "Required with Traefik, and with `mlflow:server.bindAddress: 0.0.0.0`.",
    )
    authentication: Authentication | None = Field(
        default=None,
        description="How browsers and clients authenticate. `anonymous`: not at all. `password`: at Traefik, with "
        "one generated password. `singleSignOn`: at your identity provider, such as Authelia; "
        "clients send a user and password of that provider. `singleSignOnAndPassword`: browsers at your identity "
        "provider, clients at Traefik with the generated password. `mlflow`: at MLflow, which has its "
        "own users and permissions. Without Traefik, only `anonymous` (the default) and `mlflow` are possible. With "
        "Traefik, the setting is required.",
    )
    protect_data: bool = Field(
        default=True,
        description="Whether Pulumi refuses to delete the data volumes from the stack. The data survives even with "
        "`false`: only `make destroy` deletes them.",
    )
    runtime: Runtime = Field(
        default="container",
        description="Where the server runs. `container`: in containers on the Docker host. `swarm`: in tasks of a "
        "Docker Swarm service, on all nodes of a cluster: docs/operations/swarm.md.",
    )
    swarm: SwarmSettings = Field(default=SwarmSettings(), description="The Docker Swarm cluster.")
    server: ServerSettings = Field(default=ServerSettings(), description="The MLflow tracking server.")
    postgres: PostgresSettings = Field(default=PostgresSettings(), description="The database.")
    object_store: ObjectStoreSettings = Field(default=ObjectStoreSettings(), description="The store for artifacts.")
    tls: TlsSettings = Field(default=TlsSettings(), description="TLS between the services of the stack.")
    traefik: TraefikSettings = Field(
        default=TraefikSettings(),
        description="Ingress: how requests from outside reach MLflow. A setting whose description begins with "
        "`existing` or `bundled` applies in that `mode` only.",
    )
    backup: BackupSettings = Field(default=BackupSettings(), description="Backups of the database and the artifacts.")
    monitoring: MonitoringSettings = Field(default=MonitoringSettings(), description="Monitoring and alerting.")
    docker_networks: NetworksSettings = Field(
        default=NetworksSettings(), alias="networks", description="The Docker networks of the stack."
    )
    rotation: RotationSettings = Field(default=RotationSettings(), description="The age of the secrets.")
    images: ImagesSettings = Field(default=ImagesSettings(), description="The container images.")

    @property
    def postgres_major(self) -> int:
        """The major version of Postgres, taken from the tag of its image."""
        found = major(self.images.postgres.ref)
        assert found is not None, "parse_settings() refuses a tag without one"  # noqa: S101
        return found

    @property
    def route(self) -> Route:
        """The ingress and the authentication, in the form that the components take."""
        return Route(
            traefik=self.traefik,
            hostname=self.hostname,
            authentication=self.authentication or "anonymous",
            server_port=self.server.port,
            server_address=self.server.bind_address,
            drain_s=self.server.drain_seconds,
            replicas=self.server.replicas,
            swarm=self.on_swarm,
            internal_tls=self.tls.internal,
        )

    @property
    def on_swarm(self) -> bool:
        """Whether the server runs on a Docker Swarm cluster."""
        return self.runtime == "swarm"

    @property
    def replicas(self) -> tuple[str, ...]:
        """The names of the server's services. On a cluster, all replicas are tasks of one service."""
        return names.replicas(1 if self.on_swarm else self.server.replicas)

    @property
    def parts(self) -> tuple[str, ...]:
        """The names of the stack's optional services: object stores, backup, Traefik, monitoring."""
        return (
            *self.object_store.kinds,
            *(["backup"] if self.backup.enabled else []),
            *(["traefik"] if self.traefik.mode == "bundled" else []),
            *self.monitoring.parts,
        )

    @property
    def pulled_images(self) -> list[Image]:
        """The images that must be on the host before the deployment starts."""
        return self.images.pulled(self.parts)

    @property
    def networks(self) -> set[str]:
        """The names of the networks that the stack creates."""
        return {"backend", *(["edge"] if self.traefik.mode != "existing" else []), *self.extra_networks}

    @property
    def network_kind(self) -> names.NetworkKind:
        """The kind of the networks to which the server is attached."""
        if not self.on_swarm:
            return ""
        return "encrypted" if self.swarm.encrypted else "overlay"

    @property
    def scrapes_docker(self) -> bool:
        """Whether the bundled Prometheus reads the metrics of the manager's Docker daemon."""
        return self.monitoring.mode == "bundled" and self.swarm.metrics is not None

    @property
    def monitoring_urls(self) -> dict[str, str]:
        """The published interfaces of monitoring: name to URL on the host's loopback address."""
        tls = {"Prometheus", "Alertmanager"} if self.tls.internal else set()
        return {
            name: f"{'https' if name in tls else 'http'}://127.0.0.1:{port}"
            for name, port in self.monitoring.addresses.items()
        }

    @property
    def cluster(self) -> SwarmSettings | None:
        """The settings of the cluster; None on one host."""
        return self.swarm if self.on_swarm else None

    @property
    def wanted_networks(self) -> WantedNetworks:
        """The networks, in the form that the component takes."""
        return WantedNetworks(
            extra=frozenset(self.extra_networks),
            subnets=dict(self.docker_networks.subnets.items()),
            kind=self.network_kind,
        )

    @property
    def extra_networks(self) -> set[ExtraNetwork]:
        """The names of the optional networks that these settings need."""
        wanted: dict[ExtraNetwork, bool] = {
            "access": bool(self.postgres.port or self.object_store.console_port or self.monitoring.published),
            "egress": self.backup.needs_egress or self.monitoring.needs_egress or self.scrapes_docker,
            "monitoring": self.monitoring.on,
        }
        return {network for network, is_wanted in wanted.items() if is_wanted}


def major(ref: str) -> int | None:
    """Return the major version in an image's tag, or None where the tag has none."""
    match = re.search(r":(\d+)(?:[.-][^:]*)?$", ref)
    return int(match.group(1)) if match else None
