"""Memory, processors and disk of the Docker host."""

import shutil
from pathlib import Path

from operations.common.console import make
from runtime.daemon import Daemon
from settings.stack import StackConfig

MINIMUM_FREE_GB = 5
"""The images take 2 GB unpacked, and their layers another 2 GB during a pull. The rest is for the first data."""
NEARLY_FULL_GB = 1
"""Below this, uploads begin to fail: an artifact is buffered on this disk before it is stored."""


def capacity_problems(daemon: Daemon, settings: StackConfig) -> list[str]:
    """Return which limits exceed the processors, memory or disk of the Docker host."""
    info = daemon.api.info()
    problems = []
    asked_for = {
        "server": settings.server.cpus,
        "postgres": settings.postgres.cpus,
        "objectStore": settings.object_store.cpus,
        "backup": settings.backup.cpus if settings.backup.enabled else 0,
        "traefik": settings.traefik.cpus if "traefik" in settings.parts else 0,
        "monitoring": settings.monitoring.cpus if settings.monitoring.mode == "bundled" else 0,
    }
    for key, cpus in asked_for.items():
        if cpus > info["NCPU"]:
            problems.append(f"mlflow:{key}.cpus: is {cpus:g}, but the Docker host has {info['NCPU']} CPUs; lower it")
    stores = len(settings.object_store.kinds)
    memory = {
        # On a cluster, the tasks are on several machines.
        "server": len(settings.replicas) * settings.server.memory_mb,
        "postgres": settings.postgres.memory_mb,
        "objectStore": stores * settings.object_store.memory_mb,
        "backup": settings.backup.memory_mb if settings.backup.enabled else 0,
        "traefik": settings.traefik.memory_mb if "traefik" in settings.parts else 0,
        "monitoring": settings.monitoring.memory_mb if settings.monitoring.mode == "bundled" else 0,
    }
    available = info["MemTotal"] // 2**20
    if sum(memory.values()) > available:
        number = len(settings.replicas)
        replicas = f"; or mlflow:server.replicas, now {number}, each {settings.server.memory_mb} MB" * (number > 1)
        each = ", ".join(f"mlflow:{section} {megabytes}" for section, megabytes in memory.items() if megabytes)
        problems.append(
            f"memory: the limits of all services add up to {sum(memory.values())} MB, but the host has {available} MB\n"
            f"    lower memoryMb of one of: {each}{replicas}"
        )
    wanted = [image.name for image in settings.pulled_images]
    wanted += [image.name for image in settings.images.built(settings.parts).values()]
    # If all images are present, a full disk must not prevent the start of a stopped stack.
    if not all(daemon.has_image(name) for name in wanted) and (problem := disk_problem(daemon, MINIMUM_FREE_GB)):
        problems.append(problem)
    return problems


def disk_problem(daemon: Daemon, minimum_gb: int = NEARLY_FULL_GB) -> str | None:
    """Return the problem if Docker's disk has less than `minimum_gb` GiB free, or None. A remote one is not checked."""
    root = Path(daemon.api.info()["DockerRootDir"])
    if not daemon.host.startswith("unix://"):
        return None
    try:
        free = shutil.disk_usage(root).free / 2**30
    except OSError:
        # Docker Desktop's is in its virtual machine; another one is in a folder that this user may not read.
        return None
    if free >= minimum_gb:
        return None
    return (
        f"disk: {free:.1f} GB are free in {root}; the stack needs {minimum_gb} GB\n"
        f"    to see what uses it: docker system df; to delete images of earlier versions: {make('prune')}; other "
        "images: docker image prune -a; more: docs/operations/capacity.md#disk-full"
    )
