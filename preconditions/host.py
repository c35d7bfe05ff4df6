"""Checks of the Docker host before the first change. They run in an `up` only, and report all problems at once."""

from typing import TYPE_CHECKING, Any

from runtime.tasks import replicas_of
from settings import names, packages
from settings.object_store import ObjectStoreSettings
from settings.traefik import TraefikSettings

if TYPE_CHECKING:
    from runtime.daemon import Daemon

ENDPOINT, DESTINATION = "MLFLOW_S3_ENDPOINT_URL", "MLFLOW_ARTIFACTS_DESTINATION"
"""Environment variables of the server with the location of its artifacts."""
OPERATIONS = {
    names.RESTORE: ("a restore", "would be lost"),
    names.EXPORT: ("an export", "would be missing in the copy"),
    names.IMPORT: ("an import", "may be replaced"),
    names.UPGRADE: ("an upgrade of Postgres", "may be lost"),
    names.ROTATE: ("a rotation", "may be encrypted with an old data key"),
    names.ENCRYPT: ("an encryption", "may be overwritten"),
}
"""Every operation that runs in a container beside the stack: what messages call it, and what happens to data that the
server writes meanwhile."""


def host_problems(
    daemon: "Daemon",
    *,
    stack: str,
    postgres_major: int,
    object_store: ObjectStoreSettings,
    traefik: TraefikSettings,
    swarm: bool = False,
) -> list[str]:
    """Return the problems that prevent the deployment, each with the command or setting that fixes it."""
    problems = _object_store_problems(daemon, stack, object_store) + _running_problems(daemon, stack)
    problems += _cluster_problems(daemon, traefik) if swarm else []
    if traefik.mode == "existing" and traefik.network not in daemon.networks():
        driver = "--driver overlay --attachable " if swarm else ""
        problems.append(
            f"mlflow:traefik.network: there is no Docker network {traefik.network!r}\n"
            "    start your Traefik if it creates the network, or type: "
            f"docker network create {driver}{traefik.network}"
        )
    asked = traefik.forward_auth_network if traefik.mode == "bundled" else None
    if asked and asked not in daemon.networks():
        problems.append(
            f"mlflow:traefik.forwardAuthNetwork: there is no Docker network {asked!r}\n"
            f"    start the service of mlflow:traefik.forwardAuth, or type: docker network create {asked}"
        )
    majors = {major for volume in daemon.volumes() if (major := names.postgres_major(stack, volume)) is not None}
    if majors and postgres_major not in majors:
        old = names.postgres_volume(stack, max(majors))
        problems.append(
            f"mlflow:images.postgres: version {postgres_major} would start with an empty database: this stack's data "
            f"is in the volume {old}\n"
            f"    go back to {_image_of(max(majors))}, or move the data first: "
            "docs/operations/upgrade.md#upgrade-postgres"
        )
    return problems


def _cluster_problems(daemon: "Daemon", traefik: TraefikSettings) -> list[str]:
    """Return why the server cannot run on a Docker Swarm cluster."""
    # See DockerHost.daemon.
    from runtime.cluster import Cluster  # noqa: PLC0415

    if problem := Cluster(daemon).problem():
        return [f"mlflow:runtime: swarm needs a manager of a Docker Swarm cluster: {problem}"]
    networks = daemon.api.networks(names=[traefik.network]) if traefik.mode == "existing" else []
    return [
        f"mlflow:traefik.network: {traefik.network} is on one host only, and the tasks of the server are on all nodes\n"
        "    attach your Traefik to another network, and set it here; to create one, type: "
        "docker network create --driver overlay --attachable <name>"
        for network in networks
        if network["Name"] == traefik.network and not (network["Driver"] == "overlay" and network["Attachable"])
    ]


def is_running(daemon: "Daemon", stack: str, operation: str) -> bool:
    """Return whether the container of an operation of this stack is running."""
    found = daemon.inspect(names.docker_name(stack, operation))
    return bool(found and found["State"]["Running"])


def _running_problems(daemon: "Daemon", stack: str) -> list[str]:
    """Return the operation that keeps the server stopped, if one is running."""
    problems = []
    for operation, (what, lost) in OPERATIONS.items():
        if is_running(daemon, stack, operation):
            container = names.docker_name(stack, operation)
            problems.append(
                f"{what} is running, and data that the server writes now {lost}\n"
                f"    to see its progress: docker logs -f {container}; to abort it, without loss of data: docker kill "
                f"{container}"
            )
    return problems


def _image_of(major: int) -> str:
    """Return the setting or image for this major version of Postgres."""
    built = packages.recipe("postgres").version == str(major)
    return "mlflow:images.source: packages" if built else f"postgres:{major}"


def _object_store_problems(daemon: "Daemon", stack: str, settings: ObjectStoreSettings) -> list[str]:
    """Return the reason why the server would not find this stack's artifacts with `settings`, if there is one."""
    kind, source = settings.kind, settings.copy_from
    manual = "docs/operations/object-store.md"
    holders = {found for volume in daemon.volumes() if (found := names.object_store(stack, volume)) is not None}
    servers = _servers(daemon, stack)
    used, bucket = _object_store_of(stack, servers[0]) if servers else (None, None)
    writers = [server for server in servers if not _stopped_for_good(server)]
    unfinished = _unfinished_copy(daemon, stack, kind)
    problem = None
    if bucket and bucket != settings.bucket:
        problem = (
            f"bucket: this stack's artifacts are in the bucket {bucket}, and the server would not find them\n"
            f"    set it to {bucket} again"
        )
    elif source and source not in holders:
        problem = (
            f"copyFrom: there is no volume {names.object_store_volume(stack, source)} to copy from\n"
            "    remove copyFrom from the stack file"
        )
    elif source and used == kind:
        problem = (
            f"copyFrom: the server uses {kind} already; a copy from {source} would overwrite newer artifacts\n"
            "    remove copyFrom from the stack file"
        )
    elif source and used and writers:
        which = " ".join(server["Name"].lstrip("/") for server in writers)
        stop = f"docker update --restart=no {which} && docker stop {which}"
        if writers[0].get("Scale"):
            stop = f"docker service scale {which}=0"
        running = any(server["State"]["Running"] for server in writers)
        problem = (
            f"copyFrom: the server still writes to {used}"
            if running
            else f"copyFrom: if Docker restarts, it starts the server again, which then writes to {used}"
        ) + f", and data that it writes during the copy would be lost\n    type: {stop}, then try again; {manual}"
    elif not source and unfinished:
        problem = (
            f"copyFrom: not all artifacts have been copied from {unfinished} yet\n"
            f"    add copyFrom: {unfinished} again, or go back to kind: {unfinished}; {manual}"
        )
    elif not source and (used != kind if used else holders and kind not in holders):
        old = used or min(holders)
        problem = (
            f"kind: {kind} would start without this stack's artifacts, which are in the volume "
            f"{names.object_store_volume(stack, old)}\n"
            f"    go back to {old}, or add mlflow:objectStore.copyFrom: {old}; {manual}"
        )
    return [f"mlflow:objectStore.{problem}"] if problem else []


def _servers(daemon: "Daemon", stack: str) -> list[dict[str, Any]]:
    """Return Docker's inspection of every replica of the server, running or not."""
    services = sorted(daemon.services(stack, stopped=True).items())
    found = (daemon.inspect(container) for service, container in services if names.is_replica(service))
    return [server for server in found if server] + _tasks(daemon, stack)


def _tasks(daemon: "Daemon", stack: str) -> list[dict[str, Any]]:
    """Return the Swarm service of the server in the form of a container's inspection, if there is one."""
    # See DockerHost.daemon.
    from runtime.cluster import Cluster  # noqa: PLC0415

    service = Cluster(daemon).inspect(names.docker_name(stack, names.SERVER))
    if service is None:
        return []
    number = replicas_of(service)
    return [
        {
            "Name": service["Spec"]["Name"],
            "Config": {"Env": service["Spec"]["TaskTemplate"]["ContainerSpec"].get("Env")},
            "State": {"Running": number > 0},
            # Without tasks, Docker starts none when it restarts.
            "HostConfig": {"RestartPolicy": {"Name": "always" if number else "no"}},
            "Scale": True,
        }
    ]


def _object_store_of(stack: str, server: dict[str, Any]) -> tuple[names.ObjectStoreKind | None, str | None]:
    """Return the object store and the bucket that a deployed server uses, each None if it is not of this stack."""
    environment = _environment(server)
    endpoint, destination = environment.get(ENDPOINT, ""), environment.get(DESTINATION, "")
    kinds = (kind for kind in names.OBJECT_STORES if f"//{names.docker_name(stack, kind)}:" in endpoint)
    return next(kinds, None), destination.removeprefix("s3://").partition("/")[0] or None


def _stopped_for_good(container: dict[str, Any]) -> bool:
    """Return whether a container is stopped and Docker does not start it again, as it may after `docker stop`."""
    return not container["State"]["Running"] and container["HostConfig"]["RestartPolicy"]["Name"] in ("", "no")


def _unfinished_copy(daemon: "Daemon", stack: str, target: str) -> str | None:
    """Return the object store from which a copy to `target` was started but not completed, if there is one."""
    job = daemon.inspect(names.docker_name(stack, names.COPY))
    if job is None or (job["State"]["Status"] == "exited" and job["State"]["ExitCode"] == 0):
        return None
    environment = _environment(job)
    return environment["SOURCE"] if environment["TARGET"] == target else None


def _environment(container: dict[str, Any]) -> dict[str, str]:
    return dict(entry.partition("=")[::2] for entry in container["Config"]["Env"] or [])
