"""A job: a container that runs once, to its end."""

from collections.abc import Sequence

import pulumi
import pulumi_docker as docker

from runtime.container import container_arguments, container_options
from runtime.docker_host import DockerHost
from runtime.readiness import until_done, when_checked
from runtime.workload import Workload
from settings import names

JOB_TIMEOUT_SECONDS = 900
"""A job that takes longer is reported as failed."""


class Job(pulumi.ComponentResource):
    """A container that runs once, to its end, and again whenever a property of it changes. Jobs are idempotent."""

    done: pulumi.Output[docker.Container]
    """Resolves when the job has succeeded. For `depends_on` of resources that need its result."""
    container: docker.Container

    def __init__(
        self,
        name: str,
        workload: Workload,
        *,
        platform: DockerHost,
        timeout_s: int = JOB_TIMEOUT_SECONDS,
        after: Sequence[pulumi.Input[pulumi.Resource]] = (),
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        """Run `workload` when everything in `after` is ready. If it fails, the next `up` runs it again."""
        super().__init__("mlflow:runtime:Job", name, None, opts)
        physical = names.docker_name(pulumi.get_stack(), name)
        self.container = docker.Container(
            name,
            **container_arguments(physical, name, "job", workload, labels=workload.files.labels),
            # Docker cannot upload into a read-only root. The job's user owns no program and no configuration there.
            read_only=not workload.files.folders,
            uploads=workload.files.uploads,
            restart="no",
            must_run=False,
            opts=container_options(self, after),
        )
        self.done = when_checked(
            self.container,
            lambda container_id: until_done(platform, container_id, physical, timeout_s, workload.prepares),
        )
        self.register_outputs({"name": physical})
