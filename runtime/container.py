"""The arguments of every container: where the hardening is."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import pulumi
import pulumi_docker as docker

from runtime.docker_host import DockerHost
from runtime.labels import label, standard_labels
from runtime.workload import Metrics, Workload


def with_scrape_target(workload: Workload, metrics: Metrics, platform: DockerHost) -> Workload:
    """Return `workload` with the network `monitoring`, and with labels for a Prometheus that discovers its targets."""
    labels = {
        "prometheus.io/scrape": "true",
        "prometheus.io/port": str(metrics.port),
        "prometheus.io/path": metrics.path,
        # The default of every discovery is http.
        **({"prometheus.io/scheme": metrics.scheme} if metrics.scheme != "http" else {}),
    }
    return replace(
        workload,
        networks=[*workload.networks, *([platform.monitoring_network] if platform.monitoring_network else [])],
        labels={**workload.labels, **labels},
    )


def container_arguments(
    physical: str,
    name: str,
    role: str,
    workload: Workload,
    *,
    read: Mapping[str, pulumi.Output[str]] = MappingProxyType({}),
    labels: Sequence[docker.ContainerLabelArgsDict] = (),
) -> dict[str, Any]:
    """Return the arguments that services and jobs have in common. The volumes in `read` are mounted read-only."""
    stack = pulumi.get_stack()
    # All values have the form in which the provider reads them back: any other form would be a change in every plan.
    return {
        "name": physical,
        "image": workload.image,
        "entrypoints": workload.entrypoint,
        "command": workload.command,
        "envs": [_assignment(key, value) for key, value in sorted({"STACK": stack, **workload.env}.items())],
        "user": workload.user,
        "capabilities": {"drops": ["ALL"]},
        "security_opts": ["no-new-privileges:true"],
        "memory": workload.limits.memory_mb,
        "memory_swap": workload.limits.memory_mb,
        "cpus": _cpus(workload.limits.cpus),
        "shm_size": workload.shm_mb,
        "tmpfs": dict(workload.tmpfs),
        "network_mode": "bridge",
        "networks_advanced": [{"name": network} for network in workload.networks],
        "volumes": [
            *({"volume_name": volume, "container_path": path} for path, volume in sorted(workload.data.items())),
            *({"volume_name": volume, "container_path": path, "read_only": True} for path, volume in read.items()),
        ],
        "log_driver": "json-file",
        "log_opts": {"max-size": "10m", "max-file": "5"},
        "labels": [
            *standard_labels(stack, name, role),
            *(label(key, value) for key, value in sorted(workload.labels.items())),
            *labels,
        ],
    }


def _assignment(key: str, value: pulumi.Input[str]) -> pulumi.Input[str]:
    # Each output costs several asyncio tasks, and there are sixty of these assignments.
    return f"{key}={value}" if isinstance(value, str) else pulumi.Output.concat(key, "=", value)


def container_options(
    parent: pulumi.Resource,
    after: Sequence[pulumi.Input[pulumi.Resource]],
    replaced_with: Sequence[pulumi.Resource] = (),
) -> pulumi.ResourceOptions:
    """Return the resource options that every container needs, as a child of `parent`."""
    return pulumi.ResourceOptions(
        parent=parent,
        depends_on=[*after],
        # The name is fixed, so the old container must be deleted first. The engine cannot know that.
        delete_before_replace=True,
        # The provider reports an update of these properties, but changes nothing.
        replace_on_changes=["healthcheck", "init", "tmpfs"],
        replace_with=[*replaced_with],
        # The provider reports them in random order if a container has two networks.
        hide_diffs=["networkDatas"],
    )


def go_duration(seconds: int) -> str:
    """Return seconds in Go's format: 90 is 1m30s, 60 is 1m0s."""
    minutes, rest = divmod(seconds, 60)
    return f"{minutes}m{rest}s" if minutes else f"{rest}s"


def _cpus(number: float) -> str:
    """Return a number of CPUs in Docker's format: 1 is 1.0, 0.50 is 0.5."""
    return str(float(number))
