"""Real deployments, by the engine where it is here and by the rehearsal where it is not.

Images come from the host, or are built from packages. Only what needs the engine itself is skipped without it.
"""

from collections.abc import Iterator

import pytest

from operations.host import docker_daemon
from runtime.daemon import Daemon, resolve_host
from tests.stack.backups import backed_up
from tests.stack.deployment import HAS_ENGINE, HAS_MINIO, NO_DIGESTS, WITH_LONG, Deployment, free_port


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark this folder's tests, and leave out those that cannot run."""
    ours = [item for item in items if item.path.parent.name == "stack"]
    problem = docker_daemon.docker_problem(Daemon(resolve_host())) if ours else None
    for item in ours:
        item.add_marker(pytest.mark.stack)
        if problem:
            item.add_marker(pytest.mark.skip(reason=f"needs Docker: {problem.splitlines()[0]}"))
        elif item.get_closest_marker("engine") and not HAS_ENGINE:
            item.add_marker(pytest.mark.skip(reason="needs the Pulumi engine: no pulumi on the PATH"))
    left_out = [] if HAS_MINIO else ["minio"]
    left_out += [] if WITH_LONG else ["long"]
    without = [item for item in ours if any(item.get_closest_marker(marker) for marker in left_out)]
    config.hook.pytest_deselected(items=without)
    items[:] = [item for item in items if item not in without]


@pytest.fixture(scope="session")
def dev(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """Dev's settings, deployed; with one worker, since the start of each is most of what these tests wait for."""
    deployment = Deployment(tmp_path_factory.mktemp("dev"), "dev")
    deployment.set("server.port", free_port())
    deployment.set("server.workers", 1)
    deployment.use("minio" if HAS_MINIO else "seaweedfs")
    try:
        deployment.make("up")
        yield deployment
    finally:
        deployment.remove()


@pytest.fixture(scope="session")
def seaweedfs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """Dev's settings with SeaweedFS for MinIO, deployed beside the others."""
    if not HAS_MINIO:
        yield request.getfixturevalue("dev")
        return
    deployment = Deployment(tmp_path_factory.mktemp("seaweedfs"), "dev")
    deployment.set("server.port", free_port())
    deployment.set("server.workers", 1)
    deployment.use("seaweedfs")
    try:
        deployment.make("up")
        yield deployment
    finally:
        deployment.remove()


@pytest.fixture(params=["dev", pytest.param("seaweedfs", marks=pytest.mark.minio)])
def each(request: pytest.FixtureRequest) -> Deployment:
    """A deployment with each object store; one where the first has SeaweedFS already."""
    deployment: Deployment = request.getfixturevalue(request.param)
    return deployment


@pytest.fixture(scope="session")
def prod(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """Prod's settings, deployed beside dev, with a proxy's network of its own."""
    deployment = Deployment(tmp_path_factory.mktemp("prod"), "prod")
    network = f"{deployment.stack}-shared-network"
    deployment.set("traefik.network", network)
    deployment.set("images", NO_DIGESTS)
    deployment.use("minio" if HAS_MINIO else "seaweedfs")
    if deployment.rehearsed:
        # A rehearsal does not touch what is protected.
        deployment.set("protectData", "false")
    deployment.api.create_network(network)
    try:
        deployment.make("up")
        yield deployment
    finally:
        deployment.remove()
        deployment.api.remove_network(network)


@pytest.fixture(scope="session")
def rehearsed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """Dev's settings from packages, deployed by the rehearsal even where the engine is here."""
    if not HAS_ENGINE and not HAS_MINIO:
        yield request.getfixturevalue("dev")
        return
    deployment = Deployment(tmp_path_factory.mktemp("rehearsed"), "dev", rehearsed=True)
    deployment.set("server.port", free_port())
    deployment.set("server.workers", 1)
    deployment.use("seaweedfs")
    deployment.set("images.source", "packages")
    try:
        deployment.make("up")
        yield deployment
    finally:
        deployment.remove()


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """A deployment with a backup, for as long as its tests last."""
    with backed_up(tmp_path_factory.mktemp("backup"), "minio" if HAS_MINIO else "seaweedfs") as deployment:
        yield deployment
