"""Fixtures that run the program under mocks."""

from collections.abc import Callable
from typing import Any

import pytest

from tests.graph.mocked import Graph, HealthyDaemon, build, values_of


def bundled(**traefik: object) -> dict[str, Any]:
    """Return the settings of prod with the bundled Traefik and the generated password."""
    return values_of("prod") | {"mlflow:authentication": "password", "mlflow:traefik": {"mode": "bundled", **traefik}}


def watched(**monitoring: object) -> dict[str, Any]:
    """Return the settings of prod with the bundled Traefik and the complete monitoring."""
    return bundled() | {
        "mlflow:monitoring": {
            "mode": "bundled",
            "webhook": True,
            "prometheusPort": 9090,
            "alertmanagerPort": 9093,
            "grafanaPort": 3000,
            **monitoring,
        }
    }


WATCHING = ("postgres-exporter", "blackbox-exporter", "prometheus", "alertmanager", "grafana")
ADDRESS = "http://alerts.example.com/a-secret-path"


class WithArtifacts(HealthyDaemon):
    """A daemon on which dev has data volumes of both object stores."""

    def volumes(self) -> set[str]:
        return {"mlflow-dev-minio-data", "mlflow-dev-seaweedfs-data"}


@pytest.fixture(
    scope="module",
    params=[
        "dev",
        "staging",
        "prod",
        "dev with seaweedfs",
        "dev with minio from seaweedfs",
        "prod, bundled",
        "prod, watched",
    ],
)
def graph(request: pytest.FixtureRequest) -> Graph:
    """Run the whole program for each shipped stack, and for variants of object store, ingress and monitoring."""
    if request.param == "prod, bundled":
        built = build("prod", values=bundled())
        built.proxied = False
        return built
    if request.param == "prod, watched":
        built = build("prod", values=watched(), secrets={"alertWebhookUrl": ADDRESS})
        built.proxied, built.watched = False, WATCHING
        return built
    stack, _, stores = request.param.partition(" with ")
    if not stores:
        return build(stack)
    store, _, source = stores.partition(" from ")
    settings = {"kind": store} | ({"copyFrom": source} if source else {})
    built = build(stack, values=values_of(stack) | {"mlflow:objectStore": settings}, daemon_class=WithArtifacts)
    built.store, built.source = store, source
    return built


@pytest.fixture
def program() -> Callable[..., Graph]:
    """Return a function that runs the whole program with the settings of a test."""
    return build
