"""MLflow on Docker: read the settings, check the host, create the services, export the URL."""

import pulumi

from components.artifacts import Artifacts
from components.backup import Backup
from components.images import Images
from components.internal_tls import InternalTls
from components.mlflow import Mlflow
from components.monitoring import Monitoring
from components.networks import Networks
from components.platform import Platform
from components.postgres import Postgres
from components.preconditions import ready_host
from components.scrape_targets import ScrapeTargets
from components.stack_settings import load_settings
from components.traefik import Traefik
from runtime.cancellation import end_quietly_when_canceled
from runtime.credentials import warn_of_unsaved
from settings.rotatable import rotatable


def main() -> None:
    """Declare the whole stack."""
    end_quietly_when_canceled()
    settings = load_settings()
    docker_host = ready_host(settings)

    images = Images("images", settings.images, parts=settings.parts)
    networks = Networks("networks", settings.traefik, wanted=settings.wanted_networks, after=images.built)
    platform = Platform(
        docker_host=docker_host,
        images=images,
        networks=networks,
        tls=InternalTls.of(settings.tls),
        backed_up=settings.backup.enabled,
        protect_data=settings.protect_data,
    )
    postgres = Postgres("postgres", settings.postgres, platform=platform, major=settings.postgres_major)
    artifacts = Artifacts("artifacts", settings.object_store, platform=platform)
    mlflow = Mlflow(
        "mlflow",
        settings.server,
        platform=platform,
        database=postgres,
        store=artifacts.store,
        route=settings.route,
        swarm=settings.cluster,
    )
    traefik = backup = monitoring = None
    if settings.traefik.mode == "bundled":
        traefik = Traefik("traefik", settings.route, platform=platform, upstream=mlflow.upstream)
    if Backup.exists(settings.backup):
        backup = Backup(
            "backup", settings.backup, platform=platform, database=postgres, store=artifacts.store, server=mlflow
        )
    if settings.monitoring.on:
        monitoring = Monitoring(
            "monitoring",
            settings.monitoring,
            platform=platform,
            database=postgres,
            targets=ScrapeTargets.of(mlflow, artifacts.store, backup, traefik),
            secrets_due=settings.rotation.due(rotatable(settings)),
        )

    pulumi.export("url", mlflow.url)
    warn_of_unsaved(platform.tls, postgres, artifacts.store, mlflow, traefik, backup, monitoring)


main()
