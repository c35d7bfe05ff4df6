"""What the monitoring of a stack watches: the services with metrics, and what the blackbox exporter probes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from components.backup import Backup
from components.mlflow import Mlflow
from components.object_store import ObjectStore
from components.scrape import Target
from components.traefik import Traefik, Upstream


@dataclass(frozen=True, kw_only=True)
class ScrapeTargets:
    """The scrape targets without the database, and what the blackbox exporter probes."""

    targets: Sequence[Target]
    upstream: Upstream
    """The servers, as the blackbox exporter needs them."""
    artifacts: ObjectStore
    hostname: str | None
    """Host name of the bundled Traefik; None without one."""
    tasks: int | None
    """The number of the server's tasks on a cluster; None for containers."""
    docker_metrics: str | None
    """Address of the metrics of the manager's Docker daemon; None without them."""

    @classmethod
    def of(cls, server: Mlflow, artifacts: ObjectStore, backup: Backup | None, proxy: Traefik | None) -> Self:
        """Return the monitored services of a stack."""
        return cls(
            targets=[
                *server.targets,
                *artifacts.targets,
                *(backup.targets if backup else []),
                *(proxy.targets if proxy else []),
                *(
                    [Target(job="docker", instance="docker", address=server.docker_metrics)]
                    if server.docker_metrics
                    else []
                ),
            ],
            upstream=server.upstream,
            artifacts=artifacts,
            hostname=proxy.hostname if proxy else None,
            tasks=server.tasks,
            docker_metrics=server.docker_metrics,
        )
