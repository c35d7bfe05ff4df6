"""The program, run under mocks, as fixtures."""

from collections.abc import Callable

import pytest

from tests.graph.mocked import Graph, build, values_of


@pytest.fixture(scope="module", params=["dev", "staging", "prod", "dev with seaweedfs"])
def graph(request: pytest.FixtureRequest) -> Graph:
    """The whole program, once for each stack that we ship, and once with the other object store."""
    stack, _, store = request.param.partition(" with ")
    if not store:
        return build(stack)
    built = build(stack, values=values_of(stack) | {"mlflow:objectStore": {"kind": store}})
    built.store = store
    return built


@pytest.fixture
def program() -> Callable[..., Graph]:
    """The whole program with settings of the test's own."""
    return build
