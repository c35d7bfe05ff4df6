"""The program, run under mocks, as fixtures."""

from collections.abc import Callable

import pytest

from tests.graph.mocked import Graph, build


@pytest.fixture(scope="module", params=["dev", "staging", "prod"])
def graph(request: pytest.FixtureRequest) -> Graph:
    """The whole program, once for each stack that we ship."""
    return build(request.param)


@pytest.fixture
def program() -> Callable[..., Graph]:
    """The whole program with settings of the test's own."""
    return build
