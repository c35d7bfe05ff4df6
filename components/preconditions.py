"""What must hold on the Docker host before the first change. Asked at `up` only, and all at once."""

from typing import TYPE_CHECKING

import pulumi

from components import names
from components.object_store import ObjectStoreSettings
from components.traefik import TraefikSettings

if TYPE_CHECKING:
    from components.daemon import Daemon


def unmet(
    daemon: "Daemon",
    *,
    stack: str,
    postgres_major: int,
    object_store: ObjectStoreSettings,
    traefik: TraefikSettings,
) -> list[str]:
    """Return what stands in the way, each with what to type."""
    problems = _artifacts_left_behind(daemon, stack, object_store)
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


def _artifacts_left_behind(daemon: "Daemon", stack: str, settings: ObjectStoreSettings) -> list[str]:
    """Return why the object store that `settings` name would not have the artifacts of this stack."""
    holders = {kind for volume in daemon.volumes() if (kind := names.object_store(stack, volume)) is not None}
    used, running = _server_writes_to(daemon, stack)
    manual = "docs/operations.md#change-the-object-store"
    if settings.copy_from and settings.copy_from not in holders:
        volume = names.object_store_volume(stack, settings.copy_from)
        return [
            f"mlflow:objectStore.copyFrom: there is nothing to copy: no volume {volume}\n"
            "    remove it from the stack's file"
        ]
    if settings.copy_from and running and used != settings.kind:
        server = names.physical(stack, "server")
        return [
            f"mlflow:objectStore.copyFrom: the server still writes to {used}, and what it writes during the copy would "
            f"be lost\n    type: docker stop {server}, then try again; {manual}"
        ]
    source = _unfinished_copy(daemon, stack, settings.kind)
    if not settings.copy_from and source:
        return [
            f"mlflow:objectStore.copyFrom: the artifacts have not all been copied from {source} yet\n"
            f"    put copyFrom: {source} back, or go back to kind: {source}; {manual}"
        ]
    old = used if used in holders else next(iter(sorted(holders)), None)
    if not settings.copy_from and old and (old != settings.kind if used else settings.kind not in holders):
        return [
            f"mlflow:objectStore.kind: {settings.kind} would start without this stack's artifacts, which are in the "
            f"volume {names.object_store_volume(stack, old)}\n"
            f"    go back to {old}, or add mlflow:objectStore.copyFrom: {old}; {manual}"
        ]
    return []


def _unfinished_copy(daemon: "Daemon", stack: str, target: str) -> str | None:
    """Return the store from which a copy to `target` was begun and not completed, if there is one."""
    found = daemon.inspect(names.physical(stack, names.COPY))
    if found is None or (found["State"]["Status"] == "exited" and found["State"]["ExitCode"] == 0):
        return None
    environment: dict[str, str] = dict(entry.split("=", 1) for entry in found["Config"]["Env"])
    return environment["SOURCE"] if environment["TARGET"] == target else None


def _server_writes_to(daemon: "Daemon", stack: str) -> tuple[str | None, bool]:
    """Return the object store that the deployed server uses, if there is one, and whether it runs."""
    found = daemon.inspect(names.physical(stack, "server"))
    if found is None:
        return None, False
    environment = " ".join(found["Config"]["Env"])
    kinds = (kind for kind in names.OBJECT_STORES if f"//{names.physical(stack, kind)}:" in environment)
    return next(kinds, None), found["State"]["Running"]


def require(
    docker_host: str | None, *, postgres_major: int, object_store: ObjectStoreSettings, traefik: TraefikSettings
) -> None:
    """Raise `RunError` with everything that stands in the way. A plan asks nothing."""
    if pulumi.runtime.is_dry_run():
        return
    # See Platform.daemon.
    from components.daemon import UNREACHABLE, Daemon, resolve_host  # noqa: PLC0415

    try:
        daemon = Daemon(resolve_host(docker_host))
        problems = unmet(
            daemon,
            stack=pulumi.get_stack(),
            postgres_major=postgres_major,
            object_store=object_store,
            traefik=traefik,
        )
    except UNREACHABLE as error:
        problems = [f"the Docker daemon does not answer: {error}\n    type: make doctor"]
    if problems:
        raise pulumi.RunError("nothing was changed\n" + "\n".join(f"  {problem}" for problem in problems))
