"""Fixtures of all tests of commands on fakes."""

import pytest

from runtime.cluster import Cluster


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    """Answer as a daemon that is no manager of a cluster does."""
    monkeypatch.setattr(Cluster, "services", lambda _self, _stack: {})
    monkeypatch.setattr(Cluster, "inspect", lambda _self, _name: None)
    monkeypatch.setattr(Cluster, "remove_all", lambda _self, _prefix: None)
    monkeypatch.setattr(Cluster, "problem", lambda _self: "no manager")
    monkeypatch.setattr(Cluster, "secrets", lambda _self, _stack: {})
