"""What must hold on the Docker host before the first change. Asked at `up` only, and all at once."""

from typing import TYPE_CHECKING

import pulumi

from components import names
from components.traefik import TraefikSettings

if TYPE_CHECKING:
    from components.daemon import Daemon


def unmet(daemon: "Daemon", *, stack: str, postgres_major: int, traefik: TraefikSettings) -> list[str]:
    """Return what stands in the way, each with what to type."""
    problems = []
    if traefik.mode == "existing" and traefik.network not in daemon.networks():
        problems.append(
            f"mlflow:traefik.network: there is no Docker network {traefik.network!r}\n"
            f"    start your Traefik, which owns it, or type: docker network create {traefik.network}"
        )
    majors = {major for volume in daemon.volumes() if (major := names.postgres_major(stack, volume)) is not None}
    if majors and postgres_major not in majors:
        old = names.postgres_volume(stack, max(majors))
        problems.append(
            f"mlflow:images.postgres: version {postgres_major} would start on an empty database: this stack's data "
            f"are in the volume {old}\n"
            f"    go back to postgres:{max(majors)}, or move the data first: docs/operations.md#upgrade-postgres"
        )
    return problems


def require(docker_host: str | None, *, postgres_major: int, traefik: TraefikSettings) -> None:
    """Raise `RunError` with everything that stands in the way. A plan asks nothing."""
    if pulumi.runtime.is_dry_run():
        return
    # See Platform.daemon.
    from components.daemon import UNREACHABLE, Daemon, resolve_host  # noqa: PLC0415

    try:
        daemon = Daemon(resolve_host(docker_host))
        problems = unmet(daemon, stack=pulumi.get_stack(), postgres_major=postgres_major, traefik=traefik)
    except UNREACHABLE as error:
        problems = [f"the Docker daemon does not answer: {error}\n    type: make doctor"]
    if problems:
        raise pulumi.RunError("nothing was changed\n" + "\n".join(f"  {problem}" for problem in problems))
