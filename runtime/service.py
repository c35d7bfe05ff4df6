"""A service: a container that runs for as long as the stack does."""

from collections.abc import Mapping, Sequence

import pulumi
import pulumi_docker as docker

from runtime.container import container_arguments, container_options, go_duration, with_scrape_target
from runtime.docker_host import DockerHost
from runtime.files import FileVolumes
from runtime.readiness import until_ready, when_checked
from runtime.workload import Balance, HealthCheck, Metrics, Publish, Workload
from settings import names


class Service(pulumi.ComponentResource):
    """A container that runs for as long as the stack does, and starts again after a reboot.

    Creates the container, and for its files one volume each for secrets and configuration, and the container that
    writes them.
    """

    host: str
    """Its host name on its networks."""
    ready: pulumi.Output[docker.Container]
    """Resolves when the service is ready. For `depends_on` of its clients."""

    def __init__(
        self,
        name: str,
        workload: Workload,
        health: HealthCheck,
        *,
        platform: DockerHost,
        grace_s: int,
        publish: Sequence[Publish] = (),
        balance: Balance | None = None,
        metrics: Metrics | None = None,
        after: Sequence[pulumi.Input[pulumi.Resource]] = (),
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        """Run `workload` when everything in `after` is ready, with a stop grace period of `grace_s` seconds.

        A service with `metrics` is attached to the network `monitoring` if the stack is monitored. A replica with
        `balance` is ready when the proxy sends requests to it as well.
        """
        super().__init__("mlflow:runtime:Service", name, None, opts)
        if metrics and platform.monitored:
            workload = with_scrape_target(workload, metrics, platform)
        self.host = names.docker_name(pulumi.get_stack(), name)
        volumes: Mapping[str, pulumi.Output[str]] = {}
        writers: list[docker.Container] = []
        if workload.files.folders:
            parent = opts.parent if opts else None
            writer = FileVolumes(
                name, workload.files, image=workload.image, after=platform.prerequisites, parent=parent
            )
            volumes, writers = writer.volumes, [writer.container]
        container = docker.Container(
            name,
            **container_arguments(self.host, name, "service", workload, read=volumes),
            read_only=True,
            # Not "unless-stopped": when dockerd 20.10 restarts after a crash, it stops the containers that still run,
            # records that as stopped by a user, and does not start them again.
            restart="always",
            # The init process reaps processes that a timed-out health check leaves behind.
            init=True,
            healthcheck={
                "tests": ["CMD", *health.command],
                "interval": go_duration(health.interval_s),
                "timeout": go_duration(health.timeout_s),
                "start_period": go_duration(health.start_period_s),
                "retries": health.retries,
            },
            ports=[
                {"internal": port.target, "external": port.port, "ip": port.address, "protocol": "tcp"}
                for port in sorted(publish, key=lambda port: port.target)
            ],
            stop_timeout=grace_s,
            # If unset, the provider sends SIGTERM and SIGKILL in the same second.
            destroy_grace_seconds=grace_s,
            opts=container_options(self, [*after, *writers], writers),
        )
        self.ready = when_checked(
            container, lambda container_id: until_ready(platform, container_id, self.host, health, workload, balance)
        )
        self.register_outputs({"host": self.host})
