"""MLflow on Docker: read the settings, check the host, wire the services, say where they are."""

import pulumi

from components import interpreter, preconditions
from components.artifacts import Artifacts
from components.backup import Backup
from components.credentials import owned_by, warn_of_unsaved
from components.images import Images
from components.mlflow import Mlflow
from components.monitoring import Monitoring, Watched
from components.networks import Networks
from components.platform import Platform
from components.postgres import Postgres
from components.traefik import Traefik
from config import StackConfig


async def main() -> None:
    """Declare the whole stack."""
    config = StackConfig.load()
    docker_host = pulumi.Config("docker").get("host")
    preconditions.require(docker_host, config)

    platform = Platform(
        docker_host=docker_host,
        images=Images("images", config.images, parts=config.parts),
        networks=Networks("networks", config.traefik, extra=config.extra_networks, settings=config.docker_networks),
        protect_data=config.protect_data,
        backed_up=config.backup.enabled,
        monitored=config.monitoring.on,
    )
    await interpreter.let_begin()
    postgres = Postgres("postgres", config.postgres, platform=platform, major=config.postgres_major)
    artifacts = Artifacts("artifacts", config.object_store, platform=platform).store
    mlflow = Mlflow("mlflow", config.server, platform=platform, database=postgres, store=artifacts, route=config.route)
    traefik = Traefik("traefik", config.route, platform=platform, upstream=mlflow.upstream)
    backup = Backup("backup", config.backup, platform=platform, database=postgres, store=artifacts, server=mlflow)
    watched = Watched.of(mlflow, artifacts, backup, traefik)
    monitoring = Monitoring("monitoring", config.monitoring, platform=platform, database=postgres, watched=watched)

    pulumi.export("url", mlflow.url)
    warn_of_unsaved(owned_by(postgres, artifacts, mlflow, traefik, backup, monitoring))


interpreter.make_haste()
pulumi.run(main)
