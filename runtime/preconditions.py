"""What must hold on the Docker host before the first change. Asked at `up` only, and all at once."""

from typing import TYPE_CHECKING, Any

from settings import names, packages
from settings.object_store import ObjectStoreSettings
from settings.traefik import TraefikSettings

if TYPE_CHECKING:
    from runtime.daemon import Daemon

ENDPOINT, DESTINATION = "MLFLOW_S3_ENDPOINT_URL", "MLFLOW_ARTIFACTS_DESTINATION"
"""Of the server's environment: where its artifacts are."""


def unmet(
    daemon: "Daemon",
    *,
    stack: str,
    postgres_major: int,
    object_store: ObjectStoreSettings,
    traefik: TraefikSettings,
) -> list[str]:
    """Return what stands in the way, each with what to type."""
    problems = _artifacts_left_behind(daemon, stack, object_store) + _being_restored(daemon, stack)
    if traefik.mode == "existing" and traefik.network not in daemon.networks():
        problems.append(
            f"mlflow:traefik.network: there is no Docker network {traefik.network!r}\n"
            f"    start your Traefik, which owns it, or type: docker network create {traefik.network}"
        )
    asked = traefik.forward_auth_network if traefik.mode == "bundled" else None
    if asked and asked not in daemon.networks():
        problems.append(
            f"mlflow:traefik.forwardAuthNetwork: there is no Docker network {asked!r}\n"
            f"    start what mlflow:traefik.forwardAuth names, or type: docker network create {asked}"
        )
    majors = {major for volume in daemon.volumes() if (major := names.postgres_major(stack, volume)) is not None}
    if majors and postgres_major not in majors:
        old = names.postgres_volume(stack, max(majors))
        problems.append(
            f"mlflow:images.postgres: version {postgres_major} would start on an empty database: this stack's data "
            f"are in the volume {old}\n"
            f"    go back to {_image_of(max(majors))}, or move the data first: docs/operations/upgrade.md#upgrade-postgres"
        )
    return problems


def restore_is_running(daemon: "Daemon", stack: str) -> bool:
    """Whether a restore is replacing the data of this stack."""
    found = daemon.inspect(names.physical(stack, names.RESTORE))
    return bool(found and found["State"]["Running"])


def _being_restored(daemon: "Daemon", stack: str) -> list[str]:
    if not restore_is_running(daemon, stack):
        return []
    name = names.physical(stack, names.RESTORE)
    return [
        "a restore is at work, and what the server wrote now would be lost\n"
        f"    see how far it is: docker logs -f {name}; to end it, which loses nothing: docker kill {name}"
    ]


def _image_of(major: int) -> str:
    """Return what to set for a Postgres of this major version."""
    built = packages.recipe("postgres").version == str(major)
    return "mlflow:images.source: packages" if built else f"postgres:{major}"


def _artifacts_left_behind(daemon: "Daemon", stack: str, settings: ObjectStoreSettings) -> list[str]:
    """Return why the server would not find the artifacts of this stack where `settings` put it."""
    kind, source = settings.kind, settings.copy_from
    manual = "docs/operations/object-store.md"
    holders = {found for volume in daemon.volumes() if (found := names.object_store(stack, volume)) is not None}
    server = daemon.inspect(names.physical(stack, "server"))
    used, bucket = _used_by(stack, server) if server else (None, None)
    unfinished = _unfinished_copy(daemon, stack, kind)
    problem = None
    if bucket and bucket != settings.bucket:
        problem = (
            f"bucket: this stack's artifacts are in the bucket {bucket}, and would not be found in another\n"
            f"    go back to {bucket}"
        )
    elif source and source not in holders:
        problem = (
            f"copyFrom: there is nothing to copy: no volume {names.object_store_volume(stack, source)}\n"
            "    remove it from the stack's file"
        )
    elif source and used == kind:
        problem = (
            f"copyFrom: the server uses {kind} already; an older copy from {source} must not come over what it wrote\n"
            "    remove copyFrom from the stack's file"
        )
    elif source and used and server and not _stopped_for_good(server):
        name = names.physical(stack, "server")
        running = server["State"]["Running"]
        problem = (
            (
                f"copyFrom: the server still writes to {used}"
                if running
                else f"copyFrom: Docker starts the server, which writes to {used}, again when its daemon restarts"
            )
            + ", and what it writes during the copy would be lost\n"
            f"    type: docker update --restart=no {name} && docker stop {name}, then try again; {manual}"
        )
    elif not source and unfinished:
        problem = (
            f"copyFrom: the artifacts have not all been copied from {unfinished} yet\n"
            f"    put copyFrom: {unfinished} back, or go back to kind: {unfinished}; {manual}"
        )
    elif not source and (used != kind if used else holders and kind not in holders):
        old = used or min(holders)
        problem = (
            f"kind: {kind} would start without this stack's artifacts, which are in the volume "
            f"{names.object_store_volume(stack, old)}\n"
            f"    go back to {old}, or add mlflow:objectStore.copyFrom: {old}; {manual}"
        )
    return [f"mlflow:objectStore.{problem}"] if problem else []


def _used_by(stack: str, server: dict[str, Any]) -> tuple[names.ObjectStoreKind | None, str | None]:
    """Return the object store and the bucket that a deployed server uses; None for what is not ours."""
    environment = _environment(server)
    endpoint, destination = environment.get(ENDPOINT, ""), environment.get(DESTINATION, "")
    kinds = (kind for kind in names.OBJECT_STORES if f"//{names.physical(stack, kind)}:" in endpoint)
    return next(kinds, None), destination.removeprefix("s3://").partition("/")[0] or None


def _stopped_for_good(container: dict[str, Any]) -> bool:
    """Whether a container does not run, and nothing but a person starts it: `docker stop` does not hold for ever."""
    return not container["State"]["Running"] and container["HostConfig"]["RestartPolicy"]["Name"] in ("", "no")


def _unfinished_copy(daemon: "Daemon", stack: str, target: str) -> str | None:
    """Return the store from which a copy to `target` was begun and not completed, if there is one."""
    job = daemon.inspect(names.physical(stack, names.COPY))
    if job is None or (job["State"]["Status"] == "exited" and job["State"]["ExitCode"] == 0):
        return None
    environment = _environment(job)
    return environment["SOURCE"] if environment["TARGET"] == target else None


def _environment(container: dict[str, Any]) -> dict[str, str]:
    return dict(entry.partition("=")[::2] for entry in container["Config"]["Env"] or [])
