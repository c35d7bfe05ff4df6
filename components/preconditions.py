"""The preconditions of an update, checked by the program itself before it changes anything."""

from collections.abc import Sequence
from typing import Protocol

import pulumi

from preconditions.host import host_problems
from settings import names, packages
from settings.images import Image
from settings.object_store import ObjectStoreSettings
from settings.traefik import TraefikSettings


class HostRequirements(Protocol):
    """The settings of a stack that these checks need."""

    @property
    def pulled_images(self) -> Sequence[Image]:
        """The images that must be on the host before the deployment starts."""

    @property
    def postgres_major(self) -> int:
        """The major version of Postgres."""

    @property
    def object_store(self) -> ObjectStoreSettings:
        """The current and the previous object store."""

    @property
    def on_swarm(self) -> bool:
        """Whether the server runs on a Docker Swarm cluster."""

    @property
    def traefik(self) -> TraefikSettings:
        """The settings of Traefik, whose networks must exist."""


def ready_host(wanted: HostRequirements) -> str | None:
    """Return `docker:host`; raise `RunError` with all problems of that host. A plan does not look at it."""
    docker_host = pulumi.Config("docker").get("host")
    if pulumi.runtime.is_dry_run():
        return docker_host
    # See DockerHost.daemon.
    from runtime.address import resolve_host  # noqa: PLC0415
    from runtime.daemon import UNREACHABLE_ERRORS, Daemon  # noqa: PLC0415

    try:
        daemon = Daemon(resolve_host(docker_host))
        problems = host_problems(
            daemon,
            stack=pulumi.get_stack(),
            postgres_major=wanted.postgres_major,
            object_store=wanted.object_store,
            traefik=wanted.traefik,
            swarm=wanted.on_swarm,
        ) + [
            f"mlflow:images.source: {image.name} has not been built yet\n"
            f"    type: {names.make_command('up', pulumi.get_stack())}, which builds it"
            for image in wanted.pulled_images
            if packages.is_packages_image(image.ref) and not daemon.has_image(image.name)
        ]
    except UNREACHABLE_ERRORS as error:
        problems = [
            f"the Docker daemon does not answer: {error}\n    type: {names.make_command('doctor', pulumi.get_stack())}"
        ]
    if problems:
        raise pulumi.RunError("nothing was changed\n" + "\n".join(f"  {problem}" for problem in problems))
    return docker_host
