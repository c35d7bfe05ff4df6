"""A Swarm service: equal tasks on the nodes of a Docker Swarm cluster, of which at least one always serves."""

import base64
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pulumi
import pulumi_docker as docker

from runtime.container import with_scrape_target
from runtime.convergence import Converged, until_converged
from runtime.docker_host import DockerHost
from runtime.files import FileVolumes
from runtime.labels import label, short_digest, standard_labels
from runtime.workload import SECRETS, HealthCheck, Metrics, Workload
from settings import names

MONITOR_SECONDS = 10
"""How long Swarm watches a new task. If it ends in this time, the update is rolled back."""
RESTART_DELAY_SECONDS = 5
READABLE = 0o444
"""Mode of the files: a task runs as one user, and only its own files are in its container."""
WRITABLE = 0o777
"""Mode of a tmpfs: a service has no option for its owner."""
NAME_CHARACTERS = 56
"""Maximum characters of the name of a file's resource. A name in the cluster has 64, and Pulumi adds 8."""
NO_NEW_PRIVILEGES = ("setpriv", "--no-new-privs")
"""Begins the command of every task: the provider has no such option of a service."""


@dataclass(frozen=True, kw_only=True)
class Placement:
    """How many tasks a service has, and on which nodes."""

    tasks: int
    image: pulumi.Input[str]
    """The name of the workload's image, by which each node knows it."""
    entrypoint: Sequence[str]
    """The entry point of the image."""
    constraints: Sequence[str] = ()


class SwarmService(pulumi.ComponentResource):
    """The tasks of a workload on the nodes of a cluster. A change starts a new task before it stops an old one.

    Creates the service, and for each of its secret files a secret of the cluster. These are immutable, so a change of a
    file replaces its secret. The manager keeps a copy of the files in the same volumes as for a `Service`: for
    `make restore`, `make gc` and `make export`.
    """

    host: str
    """Its host name on its networks: an address of every task. They are also those of `tasks.<host>`."""
    ready: pulumi.Output[docker.Service]
    """Resolves when every task is ready. For `depends_on` of its clients."""

    def __init__(
        self,
        name: str,
        workload: Workload,
        health: HealthCheck,
        *,
        platform: DockerHost,
        placement: Placement,
        grace_s: int,
        metrics: Metrics | None = None,
        after: Sequence[pulumi.Input[pulumi.Resource]] = (),
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        """Run the tasks when everything in `after` is ready, each with a stop grace period of `grace_s` seconds."""
        super().__init__("mlflow:runtime:SwarmService", name, None, opts)
        if metrics and platform.monitored:
            workload = with_scrape_target(workload, metrics, platform)
        stack = pulumi.get_stack()
        self.host = names.docker_name(stack, name)
        parent = opts.parent if opts else None
        FileVolumes(name, workload.files, image=workload.image, after=platform.prerequisites, parent=parent)
        own = {**workload.labels, names.IMAGE_LABEL: workload.image}
        container = self._container(name, workload, health, placement, grace_s=grace_s, after=after)
        task = _task(workload, placement)
        # All that an update can change: an update that Swarm rolls back leaves another revision than the wanted one.
        contents = pulumi.Output.json_dumps([container, task, own, placement.tasks])
        revision = pulumi.Output.unsecret(contents.apply(short_digest))
        # A variable, because a change of a task's label would replace the service: every task would stop first.
        container["env"] = {"STACK": stack, **workload.env, names.REVISION_VARIABLE: revision}
        service = self._service(name, {**task, "container_spec": container}, own, placement.tasks, after)
        within_s = (placement.tasks + 1) * (health.ready_within_s + grace_s + MONITOR_SECONDS)

        async def check(values: list[Any]) -> docker.Service:
            if not pulumi.runtime.is_dry_run():
                wanted = Converged(
                    revision=values[1], tasks=placement.tasks, within_s=within_s, prepares=workload.prepares
                )
                await until_converged(platform, self.host, wanted)
            return service

        self.ready = pulumi.Output.all(service.id, revision).apply(check)
        self.register_outputs({"host": self.host})

    def _service(
        self,
        name: str,
        task: docker.ServiceTaskSpecArgsDict,
        own: Mapping[str, pulumi.Input[str]],
        tasks: int,
        after: Sequence[pulumi.Input[pulumi.Resource]],
    ) -> docker.Service:
        return docker.Service(
            name,
            name=self.host,
            # Of the service, where the provider changes labels in place.
            labels=[
                *standard_labels(pulumi.get_stack(), name, "service"),
                *(label(key, own[key]) for key in sorted(own)),
            ],
            task_spec=task,
            mode={"replicated": {"replicas": tasks}},
            # Found by their names: that needs neither IPVS in the kernel nor the ingress network.
            endpoint_spec={"mode": "dnsrr"},
            update_config=_one_after_another("rollback"),
            rollback_config=_one_after_another("pause"),
            opts=pulumi.ResourceOptions(
                parent=self,
                depends_on=[*after],
                delete_before_replace=True,
                # Docker finds out for which platforms the image is.
                ignore_changes=["taskSpec.placement.platforms"],
            ),
        )

    def _container(
        self,
        name: str,
        workload: Workload,
        health: HealthCheck,
        placement: Placement,
        *,
        grace_s: int,
        after: Sequence[pulumi.Input[pulumi.Resource]],
    ) -> docker.ServiceTaskSpecContainerSpecArgsDict:
        """Return the container of each task, hardened as in `runtime/container.py`, and create its files."""
        return {
            "image": placement.image,
            "commands": [*NO_NEW_PRIVILEGES, *placement.entrypoint],
            "args": [*(workload.command or [])],
            "env": workload.env,
            "labels": standard_labels(pulumi.get_stack(), name, "service"),
            "user": workload.user,
            "cap_drops": ["ALL"],
            "read_only": True,
            "init": True,
            "mounts": _mounts(workload),
            "secrets": self._secrets(name, workload, after),
            "healthcheck": {
                "tests": ["CMD", *health.command],
                "interval": short_duration(health.interval_s),
                "timeout": short_duration(health.timeout_s),
                "start_period": short_duration(health.start_period_s),
                "retries": health.retries,
            },
            "stop_grace_period": short_duration(grace_s),
        }

    def _secrets(
        self, service: str, workload: Workload, after: Sequence[pulumi.Input[pulumi.Resource]]
    ) -> list[docker.ServiceTaskSpecContainerSpecSecretArgsDict]:
        """Create a secret for each secret file, and return the references to them."""
        found = {
            file: docker.Secret(
                _resource_name(service, file),
                data=pulumi.Output.secret(content).apply(_base64),
                labels=standard_labels(pulumi.get_stack(), service, "files"),
                opts=pulumi.ResourceOptions(parent=self, depends_on=[*after]),
            )
            for file, content in sorted(workload.files.secrets.items())
        }
        return [
            {
                "secret_id": secret.id,
                "secret_name": secret.name,
                "file_name": f"{SECRETS}/{file}",
                "file_uid": "0",
                "file_gid": "0",
                "file_mode": READABLE,
            }
            for file, secret in found.items()
        ]


def _task(workload: Workload, placement: Placement) -> docker.ServiceTaskSpecArgsDict:
    """Return the properties of a task beside its container."""
    limits = workload.limits
    memory = limits.memory_mb * 2**20
    return {  # type: ignore[typeddict-item]  # the container is added by the caller
        # By id: with names, the provider would replace the service in every plan.
        "networks_advanceds": [{"id": network} for network in workload.networks],
        "resources": {
            "limits": {"memory_bytes": memory, "nano_cpus": int(limits.cpus * 1e9)},
            # Swarm places tasks by their reservations only, also those of a lost node.
            "reservation": {"memory_bytes": memory},
        },
        "placement": {"constraints": sorted(placement.constraints)},
        # With another window, the provider would report a change in every plan.
        "restart_policy": {"condition": "any", "delay": short_duration(RESTART_DELAY_SECONDS), "window": "0s"},
        "log_driver": {"name": "json-file", "options": {"max-size": "10m", "max-file": "5"}},
    }


def _resource_name(service: str, file: str) -> str:
    """Return the name of the resource of a file, from which Pulumi makes the name in the cluster, with a random end.

    So the new object exists before the service changes, and the old one until no task uses it. A hash of the content
    instead would be refused after an update that was rolled back: the old object is still there, and waits for its
    deletion.
    """
    return names.docker_name(pulumi.get_stack(), f"{service}-{file}")[-NAME_CHARACTERS:].lstrip("-.")


def _base64(content: str) -> str:
    return base64.b64encode(content.encode()).decode()


def _mounts(workload: Workload) -> list[docker.ServiceTaskSpecContainerSpecMountArgsDict]:
    """Return the mounts of a task: its data in a volume of its own, which ends with it, and tmpfs."""
    volumes: list[docker.ServiceTaskSpecContainerSpecMountArgsDict] = [
        {"target": path, "type": "volume"} for path in sorted(workload.data)
    ]
    tmpfs: list[docker.ServiceTaskSpecContainerSpecMountArgsDict] = [
        {"target": path, "type": "tmpfs", "tmpfs_options": {"size_bytes": _size_mb(options) * 2**20, "mode": WRITABLE}}
        for path, options in sorted(workload.tmpfs.items())
    ]
    return volumes + tmpfs


def _size_mb(options: str) -> int:
    """Return the size in the mount options of a tmpfs."""
    match = re.search(r"size=(\d+)m", options)
    assert match is not None, f"a tmpfs has a size: {options}"  # noqa: S101
    return int(match.group(1))


def _one_after_another(on_failure: str) -> docker.ServiceUpdateConfigArgsDict:
    """Return how Swarm replaces tasks: each new one is ready before an old one stops."""
    return {
        "parallelism": 1,
        "order": "start-first",
        "delay": "0s",
        "failure_action": on_failure,
        "monitor": short_duration(MONITOR_SECONDS),
        "max_failure_ratio": "0.0",
    }


def short_duration(seconds: int) -> str:
    """Return seconds as the provider reads a service's durations back: 60 is 1m, 90 is 1m30s."""
    minutes, rest = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    parts = [f"{number}{unit}" for number, unit in ((hours, "h"), (minutes, "m"), (rest, "s")) if number]
    return "".join(parts) or "0s"
