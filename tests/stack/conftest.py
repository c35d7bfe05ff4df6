"""Fixtures with real deployments: by the engine if it is installed, otherwise without it.

Images are those on the host, or are built from packages. Without the engine, only tests that need it are skipped.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from operations.host import docker_daemon
from runtime.address import resolve_host
from runtime.daemon import Daemon
from tests.stack.backups import backed_up
from tests.stack.deployment import HAS_ENGINE, HAS_MINIO, NO_DIGESTS, WITH_CI, WITH_LONG, Deployment, free_port

LONGEST = Path(__file__).with_name("test_swarm.py")
"""The file that takes longest. It starts first: otherwise it runs alone at the end, on one processor."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark the tests of this folder, and skip or deselect those that cannot run."""
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
    left_out += [] if WITH_CI else ["ci"]
    without = [item for item in ours if any(item.get_closest_marker(marker) for marker in left_out)]
    config.hook.pytest_deselected(items=without)
    left = [item for item in items if item not in without]
    items[:] = sorted(left, key=lambda item: item.path != LONGEST)


@pytest.fixture(scope="session")
def dev(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """Deploy the settings of dev, with its two workers."""
    deployment = Deployment(tmp_path_factory.mktemp("dev"), "dev")
    deployment.set("server.port", free_port())
    deployment.use("minio" if HAS_MINIO else "seaweedfs")
    try:
        deployment.make("up")
        yield deployment
    finally:
        deployment.remove()


@pytest.fixture(scope="session")
def undeployed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """Prepare the settings of dev, for commands that are refused before they change anything."""
    deployment = Deployment(tmp_path_factory.mktemp("undeployed"), "dev")
    deployment.set("server.port", free_port())
    deployment.use("minio" if HAS_MINIO else "seaweedfs")
    yield deployment
    assert deployment.containers() == [], "a command that was refused has deployed something"
    deployment.remove()


@pytest.fixture(scope="session")
def seaweedfs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """Deploy the settings of dev with SeaweedFS instead of MinIO, beside the other stacks."""
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


@pytest.fixture(params=["dev", pytest.param("seaweedfs", marks=[pytest.mark.minio, pytest.mark.long])])
def each(request: pytest.FixtureRequest) -> Deployment:
    """Return a deployment with each object store; only one if dev already has SeaweedFS."""
    deployment: Deployment = request.getfixturevalue(request.param)
    return deployment


@pytest.fixture(scope="session")
def prod(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """Deploy the settings of prod beside dev, with a separate network for Traefik."""
    deployment = Deployment(tmp_path_factory.mktemp("prod"), "prod")
    network = f"{deployment.stack}-shared-network"
    deployment.set("traefik.network", network)
    deployment.set("images", NO_DIGESTS)
    deployment.use("minio" if HAS_MINIO else "seaweedfs")
    if deployment.engineless:
        # An engine-less deployment is refused with protected data.
        deployment.set("protectData", "false")
    deployment.api.create_network(network)
    try:
        deployment.make("up")
        yield deployment
    finally:
        deployment.remove()
        deployment.api.remove_network(network)


@pytest.fixture(scope="session")
def engineless(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """Deploy the settings of dev with packages images and without the engine, even if the engine is installed."""
    if not HAS_ENGINE and not HAS_MINIO:
        yield request.getfixturevalue("dev")
        return
    deployment = Deployment(tmp_path_factory.mktemp("engineless"), "dev", engineless=True)
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
    """Provide a deployment with a backup to the tests of one module."""
    with backed_up(tmp_path_factory.mktemp("backup"), "minio" if HAS_MINIO else "seaweedfs") as deployment:
        yield deployment
