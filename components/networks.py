"""The networks: who can talk to whom."""

import ipaddress
from collections.abc import Collection

import pulumi
import pulumi_docker as docker

from settings import names
from settings.networks import ExtraNetwork, NetworksSettings
from settings.traefik import TraefikSettings


class Networks(pulumi.ComponentResource):
    """`backend` has no way out and holds the data; `edge` is where the server meets its proxy.

    More exist only where the settings ask for them: `access` for a published port of a data service, since an internal
    network publishes nothing; `egress` for a service that has to reach a target outside; and `monitoring`, on which
    Prometheus meets whom it asks, and from which there is no way out.
    """

    backend: pulumi.Output[str]
    """Id of the internal network of the data services."""
    edge: pulumi.Output[str]
    """Id of the network that the server shares with the proxy; its name, where it is somebody else's."""
    edge_name: pulumi.Output[str]
    """What Traefik calls it."""

    def __init__(
        self,
        name: str,
        traefik: TraefikSettings,
        *,
        extra: Collection[ExtraNetwork],
        settings: NetworksSettings,
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        """Create the networks of this stack. An existing one is taken by its name, which needs no daemon in a plan."""
        super().__init__("mlflow:components:Networks", name, None, opts)
        self._subnets: dict[str, str] = dict(settings.subnets.items())
        # Ids: a network that was removed by hand has a new one, and whoever was on it is attached again.
        self.backend = self._create("backend", internal=True).id
        if traefik.mode == "existing":
            self.edge = self.edge_name = pulumi.Output.from_input(traefik.network)
        else:
            edge = self._create("edge")
            self.edge, self.edge_name = edge.id, edge.name
        self._extra = {service: self._create(service, internal=service == "monitoring").id for service in sorted(extra)}
        self.register_outputs({"backend": self.backend, "edge": self.edge})

    @property
    def monitoring(self) -> pulumi.Output[str] | None:
        """Id of the network on which Prometheus scrapes; None in a stack without monitoring."""
        return self._extra.get("monitoring")

    def backend_and(self, *, published: bool) -> list[pulumi.Output[str]]:
        """Return the networks of a data service, with a way to its published port if it has one."""
        return [self.backend, *([self._extra["access"]] if published else [])]

    def edge_and(self, other: str | None) -> list[pulumi.Input[str]]:
        """Return the networks of a proxy: where it meets the server, and an existing one, if it needs that."""
        return [self.edge, *([other] if other else [])]

    def backend_and_out(self, *, outward: bool) -> list[pulumi.Output[str]]:
        """Return the networks of a service on the data network, with a way out if its target is outside."""
        return [self.backend, *([self._extra["egress"]] if outward else [])]

    def monitored_and(
        self, *, published: bool = False, outward: bool = False, backend: bool = False
    ) -> list[pulumi.Output[str]]:
        """Return the networks of a service that watches: where it meets the others, and what else it needs."""
        wanted: dict[ExtraNetwork, bool] = {"access": published, "egress": outward}
        others = [self._extra[network] for network, is_wanted in wanted.items() if is_wanted]
        return [self._extra["monitoring"], *([self.backend] if backend else []), *others]

    def _addresses(self, service: str) -> list[docker.NetworkIpamConfigArgsDict] | None:
        """Return a network's addresses where they were chosen. The gateway as Docker chooses it, and reads it back."""
        if (subnet := self._subnets.get(service)) is None:
            return None
        return [{"subnet": subnet, "gateway": str(ipaddress.IPv4Network(subnet)[1])}]

    def _create(self, service: str, *, internal: bool = False) -> docker.Network:
        stack = pulumi.get_stack()
        return docker.Network(
            service,
            name=names.physical(stack, service),
            internal=internal,
            ipam_configs=self._addresses(service),
            labels=[{"label": names.STACK_LABEL, "value": stack}],
            opts=pulumi.ResourceOptions(parent=self),
        )
