"""Real deployments. Skipped, with the reason, where daemon, engine or images are missing."""

from collections.abc import Iterator

import pytest

from components.daemon import Daemon, resolve_host
from operations.checkout import Stack
from tests.stack.deployment import NO_DIGESTS, Deployment, free_port, missing


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark this folder's tests, and skip them where they cannot run."""
    lacks = missing()
    for item in items:
        if item.path.parent.name == "stack":
            item.add_marker(pytest.mark.stack)
            if lacks:
                item.add_marker(pytest.mark.skip(reason="needs " + "; ".join(lacks)))


@pytest.fixture(scope="session")
def dev(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """Dev's settings, deployed."""
    deployment = Deployment(tmp_path_factory.mktemp("dev"), "dev")
    deployment.set("server.port", free_port())
    try:
        deployment.make("up")
        yield deployment
    finally:
        deployment.remove()


@pytest.fixture(scope="session")
def seaweedfs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """Dev's settings with SeaweedFS for MinIO, deployed beside the others."""
    image = Stack("dev").settings.images.seaweedfs
    if not Daemon(resolve_host()).has_image(image.name):
        pytest.skip(f"needs image: {image.name}")
    deployment = Deployment(tmp_path_factory.mktemp("seaweedfs"), "dev")
    deployment.set("server.port", free_port())
    deployment.set("objectStore", {"kind": "seaweedfs"})
    try:
        deployment.make("up")
        yield deployment
    finally:
        deployment.remove()


@pytest.fixture(params=["dev", "seaweedfs"])
def each(request: pytest.FixtureRequest) -> Deployment:
    """A deployment with each object store."""
    deployment: Deployment = request.getfixturevalue(request.param)
    return deployment


@pytest.fixture(scope="session")
def prod(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """Prod's settings, deployed beside dev, with a proxy's network of its own."""
    deployment = Deployment(tmp_path_factory.mktemp("prod"), "prod")
    network = f"{deployment.stack}-shared-network"
    deployment.set("traefik.network", network)
    deployment.set("images", NO_DIGESTS)
    deployment.api.create_network(network)
    try:
        deployment.make("up")
        yield deployment
    finally:
        deployment.remove()
        deployment.api.remove_network(network)
