"""The Docker networks: which containers can reach which."""

import ipaddress
from collections.abc import Sequence

import pulumi
import pulumi_docker as docker

from settings import names
from settings.networks import ExtraNetwork, WantedNetworks
from settings.traefik import TraefikSettings


class Networks(pulumi.ComponentResource):
    """The Docker networks of the stack.

    Always creates `backend`, an internal network for the data services, and, unless an existing Traefik brings its own,
    `edge`, which the server shares with its proxy. Creates others only if the settings need them: `access`, for the
    host port of a data service, because Docker publishes no ports of containers on internal networks only; `egress`,
    for a service that connects to a target outside; `monitoring`, an internal network of Prometheus and its scrape
    targets.
    """

    backend: pulumi.Output[str]
    """Id of the internal network of the data services."""
    edge: pulumi.Output[str]
    """Id of the network that the server shares with the proxy. With an existing Traefik on one host, its name."""
    edge_name: pulumi.Output[str]
    """Docker name of that network, for Traefik."""

    def __init__(
        self,
        name: str,
        traefik: TraefikSettings,
        *,
        wanted: WantedNetworks,
        after: Sequence[pulumi.Resource] = (),
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        """Create the networks when everything in `after` exists: replacing a network deletes its containers first.

        An existing network is used by name, so that a plan needs no Docker daemon.

        On a cluster, a plan asks Docker for its id.
        """
        super().__init__("mlflow:components:Networks", name, None, opts)
        self._wanted, self._after = wanted, after
        # Ids, not names: a network that was removed by hand gets a new id, so its containers are attached again.
        self.backend = self._create("backend", internal=True).id
        if traefik.mode == "existing":
            self.edge = self.edge_name = pulumi.Output.from_input(traefik.network)
            if wanted.kind and not names.is_copy():
                # With the name, the provider would replace the Swarm service after each refresh.
                self.edge = docker.get_network_output(name=traefik.network, opts=pulumi.InvokeOptions(parent=self)).id
        else:
            edge = self._create("edge")
            self.edge, self.edge_name = edge.id, edge.name
        self._extra = {
            service: self._create(service, internal=service == "monitoring").id for service in sorted(wanted.extra)
        }
        self.register_outputs({"backend": self.backend, "edge": self.edge})

    @property
    def monitoring(self) -> pulumi.Output[str] | None:
        """Id of the network on which Prometheus scrapes; None in a stack without monitoring."""
        return self._extra.get("monitoring")

    def data_service_networks(self, *, published: bool) -> list[pulumi.Output[str]]:
        """Return the networks of a data service: `backend`, and `access` if it has a host port."""
        return [self.backend, *([self._extra["access"]] if published else [])]

    def proxy_networks(self, other: str | None) -> list[pulumi.Input[str]]:
        """Return the networks of a proxy: `edge`, and the existing network `other` if it needs one."""
        return [self.edge, *([other] if other else [])]

    def backup_networks(self, *, outward: bool) -> list[pulumi.Output[str]]:
        """Return the networks of a service: `backend`, and `egress` if it connects to a target outside."""
        return [self.backend, *([self._extra["egress"]] if outward else [])]

    def monitoring_networks(
        self, *, published: bool = False, outward: bool = False, backend: bool = False
    ) -> list[pulumi.Output[str]]:
        """Return the networks of a monitored or monitoring service: `monitoring`, and the others that it needs."""
        wanted: dict[ExtraNetwork, bool] = {"access": published, "egress": outward}
        others = [self._extra[network] for network, is_wanted in wanted.items() if is_wanted]
        return [self._extra["monitoring"], *([self.backend] if backend else []), *others]

    def _addresses(self, service: str) -> list[docker.NetworkIpamConfigArgsDict] | None:
        """Return the subnet of a network if it is set. The gateway is the one that Docker would choose and reports."""
        if (subnet := self._wanted.subnets.get(service)) is None:
            return None
        return [{"subnet": subnet, "gateway": str(ipaddress.IPv4Network(subnet)[1])}]

    def _create(self, service: str, *, internal: bool = False) -> docker.Network:
        stack, name = pulumi.get_stack(), self._wanted.name(service)
        across = name != service
        return docker.Network(
            # Another resource, so that a move of the stack deletes the network last, when no server uses it any more.
            name,
            name=names.docker_name(stack, name),
            internal=internal,
            ipam_configs=self._addresses(service),
            labels=[{"label": names.STACK_LABEL, "value": stack}],
            driver="overlay" if across else None,
            # So that the containers on the manager are attached as well as tasks.
            attachable=True if across else None,
            options={"encrypted": ""} if across and self._wanted.kind == "encrypted" else None,
            # Docker adds an option of its own, which would be a change in every plan. The name tells `encrypted`.
            opts=pulumi.ResourceOptions(
                parent=self, depends_on=[*self._after], ignore_changes=["options"] if across else None
            ),
        )
