"""A service: a container that runs for as long as the stack does."""

from collections.abc import Mapping, Sequence

import pulumi
import pulumi_docker as docker

from runtime.container import container_arguments, container_options, go_duration, with_scrape_target
from runtime.docker_host import DockerHost
from runtime.files import FileVolumes
from runtime.readiness import until_healthy, when_checked
from runtime.workload import HealthCheck, Metrics, Publish, Workload
from settings import names


class Service(pulumi.ComponentResource):
    """A container that runs for as long as the stack does, and is back after a reboot."""

    host: str
    """Its name on its networks."""
    ready: pulumi.Output[docker.Container]
    """For `depends_on` of whoever needs it to answer."""

    def __init__(
        self,
        name: str,
        workload: Workload,
        health: HealthCheck,
        *,
        platform: DockerHost,
        grace_s: int,
        publish: Sequence[Publish] = (),
        metrics: Metrics | None = None,
        after: Sequence[pulumi.Input[pulumi.Resource]] = (),
        replaced_with: Sequence[pulumi.Resource] = (),
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        """Run `workload`, started once everything in `after` is ready, stopped with `grace_s` seconds of notice.

        One with `metrics` is where Prometheus can reach it, in a stack that is monitored.
        """
        super().__init__("mlflow:runtime:Service", name, None, opts)
        if metrics and platform.monitored:
            workload = with_scrape_target(workload, metrics, platform)
        self.host = names.physical(pulumi.get_stack(), name)
        volumes: Mapping[str, pulumi.Output[str]] = {}
        writers: list[docker.Container] = []
        if workload.files.folders:
            writer = FileVolumes(name, workload.files, image=workload.image, parent=opts.parent if opts else None)
            volumes, writers = writer.volumes, [writer.container]
        container = docker.Container(
            name,
            **container_arguments(self.host, name, "service", workload, read=volumes),
            read_only=True,
            # Not "unless-stopped": when dockerd 20.10 comes back after a crash it stops what survived, remembers that
            # as somebody's wish, and leaves it stopped.
            restart="always",
            # An init reaps what a health check that timed out leaves behind.
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
            # Unset, it means SIGTERM and SIGKILL in the same second.
            destroy_grace_seconds=grace_s,
            opts=container_options(self, [*after, *writers], [*writers, *replaced_with]),
        )
        self.ready = when_checked(
            container, lambda container_id: until_healthy(platform, container_id, self.host, health, workload.prepares)
        )
        self.register_outputs({"host": self.host})
