"""Test TLS between the services: every connection is verified, every listener has a certificate of its own."""

import json
import re
from collections.abc import Callable
from typing import Any

import pytest
import yaml
from cryptography import x509
from cryptography.x509.verification import PolicyBuilder, Store

from tests.graph.conftest import ADDRESS, bundled, watched
from tests.graph.mocked import PASSWORD, Graph, plain_text_of, values_of

Program = Callable[..., Graph]
TLS = {"mlflow:tls": {"internal": True, "issued": "2026-11-29T09:00:00Z"}}
LISTENERS = ("postgres", "server", "backup", "traefik", "postgres-exporter", "blackbox-exporter", "prometheus")
"""Services that listen on a network of the stack, beside the object store and Alertmanager."""
CLIENTS = (*LISTENERS, "verify-data-keys", "migrate", "grafana")
"""Consumers of files that connect to a service of the stack."""


def files(graph: Graph, consumer: str) -> dict[str, str]:
    uploads = graph.with_files[consumer].plain["uploads"]
    return {upload["file"]: str(upload["content"]) for upload in uploads}


def made(program: Program, kind: str, **monitoring: object) -> Graph:
    settings = watched(**monitoring) | {"mlflow:objectStore": {"kind": kind, "memoryMb": 1024}} | TLS
    return program("prod", values=settings, secrets={"alertWebhookUrl": ADDRESS})


@pytest.fixture(scope="module", params=["minio", "seaweedfs"])
def graph(request: pytest.FixtureRequest) -> Graph:
    from tests.graph.mocked import build  # noqa: PLC0415 - the fixture `program` is for one test

    return made(build, request.param)


def store(graph: Graph) -> str:
    return next(name for name in ("minio", "seaweedfs") if name in graph.services)


def test_no_address_of_another_container_is_plaintext(graph: Graph) -> None:
    ours = re.compile(r"http://(?!127\.0\.0\.1|localhost)[\w.-]*mlflow-prod[\w.-]*")
    for name, container in graph.containers.items():
        configured = (
            " ".join(content for path, content in files(graph, name).items()) if name in graph.with_files else ""
        )
        text = json.dumps([container.plain.get(key) for key in ("envs", "command", "entrypoints", "healthcheck")])
        assert not ours.findall(text + configured), name
        assert "sslmode=disable" not in text, name


def test_every_listener_has_a_certificate_for_its_name_and_for_no_other_service(graph: Graph) -> None:
    for service in (*LISTENERS, store(graph), "alertmanager"):
        found = files(graph, service)
        pem = next(content for path, content in found.items() if path.endswith((".crt", "internal-certificate.pem")))
        authority = x509.load_pem_x509_certificate(found["/run/secrets/authority.pem"].encode())
        certificate = x509.load_pem_x509_certificate(pem.encode())
        for host in (f"mlflow-prod-{service}", "localhost"):
            verifier = PolicyBuilder().store(Store([authority])).time(certificate.not_valid_before_utc)
            verifier.build_server_verifier(x509.DNSName(host)).verify(certificate, [])
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert set(names.get_values_for_type(x509.DNSName)) == {f"mlflow-prod-{service}", "localhost"}


def test_every_service_has_a_key_of_its_own(graph: Graph) -> None:
    keys = [
        content
        for consumer in graph.with_files
        for path, content in files(graph, consumer).items()
        if path.endswith(("internal-key.pem", "private.key"))
    ]
    assert len(keys) == len(set(keys)) == len(LISTENERS) + 2


def test_every_client_trusts_the_authority_of_the_stack(graph: Graph) -> None:
    for consumer in (*CLIENTS, store(graph), f"{store(graph)}-bootstrap"):
        assert "BEGIN CERTIFICATE" in files(graph, consumer)["/run/secrets/authority.pem"], consumer


def test_no_key_is_in_plain_text_in_the_state(graph: Graph) -> None:
    for resource in graph.resources:
        assert "PRIVATE KEY" not in plain_text_of(resource.inputs), resource.name
    assert "PRIVATE KEY" not in plain_text_of(list(graph.outputs.values()))


def test_the_certificate_of_the_authority_is_an_output_for_those_who_trust_it(graph: Graph) -> None:
    found = next(outputs for urn, outputs in graph.outputs.items() if urn.endswith("Authority::authority"))
    assert x509.load_pem_x509_certificate(found["certificate"].encode()).subject.rfc4514_string() == (
        "CN=mlflow-prod internal authority"
    )


def test_postgres_accepts_no_connection_without_tls(graph: Graph) -> None:
    rules = files(graph, "postgres")["/run/config/pg_hba.conf"]
    assert re.findall(r"(?m)^(\w+) ", rules) == ["local", "hostssl", "hostssl", "hostssl"]
    assert "ssl=on" in graph.services["postgres"].plain["command"]


def test_every_client_of_postgres_verifies_it(graph: Graph) -> None:
    for name in ("server", "migrate", "verify-data-keys", "backup"):
        assert graph.containers[name].envs["PGSSLMODE"] == "verify-full", name
        assert graph.containers[name].envs["PGSSLROOTCERT"] == "/run/secrets/authority.pem", name
    exporter = graph.services["postgres-exporter"].envs["DATA_SOURCE_URI"]
    assert exporter.endswith("?sslmode=verify-full&sslrootcert=/run/secrets/authority.pem")


def test_every_scrape_verifies_the_certificate_for_the_name_of_its_target(graph: Graph) -> None:
    config = yaml.safe_load(files(graph, "prometheus")["/run/config/prometheus.yml"])
    assert len(config["scrape_configs"]) > 7
    for entry in config["scrape_configs"]:
        host = entry["static_configs"][0]["targets"][0].partition(":")[0]
        assert entry["scheme"] == "https", entry["job_name"]
        assert entry["tls_config"] == {"ca_file": "/run/secrets/authority.pem", "server_name": host}
    (receiver,) = config["alerting"]["alertmanagers"]
    assert (receiver["scheme"], receiver["tls_config"]) == ("https", {"ca_file": "/run/secrets/authority.pem"})


def test_the_metrics_of_seaweedfs_which_has_no_tls_for_them_stay_in_its_container() -> None:
    from tests.graph.mocked import build  # noqa: PLC0415

    graph = made(build, "seaweedfs")
    assert "-metricsIp=127.0.0.1" in graph.services["seaweedfs"].plain["command"]
    # The blackbox exporter probes it there.
    assert "monitoring-id" in graph.services["seaweedfs"].networks
    assert "seaweedfs:9327" not in files(graph, "prometheus")["/run/config/prometheus.yml"]


def test_the_blackbox_exporter_verifies_the_server_and_the_store(graph: Graph) -> None:
    modules = yaml.safe_load(files(graph, "blackbox-exporter")["/run/config/blackbox.yml"])["modules"]
    for module in ("readiness", "store"):
        assert modules[module]["http"]["fail_if_not_ssl"] is True
        assert modules[module]["http"]["tls_config"] == {"ca_file": "/run/secrets/authority.pem"}


def test_the_bundled_traefik_verifies_the_server_and_serves_metrics_by_tls_only(graph: Graph) -> None:
    found = files(graph, "traefik")
    dynamic = json.loads(found["/run/config/routes.yml"])
    (service,) = dynamic["http"]["services"].values()
    assert service["loadBalancer"]["servers"] == [{"url": "https://mlflow-prod-server:5000"}]
    transport = dynamic["http"]["serversTransports"][service["loadBalancer"]["serversTransport"]]
    assert transport["rootCAs"] == ["/run/secrets/authority.pem"]
    assert json.loads(found["/run/config/traefik.yml"])["metrics"]["prometheus"]["manualRouting"] is True
    assert dynamic["http"]["routers"]["metrics"]["tls"] == {}


def test_an_existing_traefik_uses_the_transport_that_trusts_the_authority(program: Program) -> None:
    settings = values_of("prod") | TLS
    settings["mlflow:traefik"] = {**settings["mlflow:traefik"], "serversTransport": "mlflow@file"}
    labels = program("prod", values=settings).services["server"].labels
    balancer = "traefik.http.services.mlflow-prod-server.loadbalancer"
    assert labels[f"{balancer}.server.scheme"] == "https"
    assert labels[f"{balancer}.serverstransport"] == "mlflow@file"


def test_replicas_have_certificates_for_their_own_name_and_for_the_one_an_existing_traefik_knows(
    program: Program,
) -> None:
    settings = bundled() | TLS | {"mlflow:server": {"replicas": 2}, "mlflow:postgres": {"memoryMb": 512}}
    graph = program("prod", values=settings)
    for service, hosts in (("server", {"server"}), ("server-2", {"server-2", "server"})):
        pem = files(graph, service)["/run/secrets/internal-certificate.pem"]
        names = x509.load_pem_x509_certificate(pem.encode()).extensions.get_extension_for_class(
            x509.SubjectAlternativeName
        )
        found = set(names.value.get_values_for_type(x509.DNSName)) - {"localhost"}
        assert found == {f"mlflow-prod-{host}" for host in hosts}


def test_another_authority_stops_all_replicas_first(program: Program) -> None:
    settings = bundled() | TLS | {"mlflow:server": {"replicas": 2}}
    labels = [
        program("prod", values=settings, secrets={"internalAuthority": value}).services["server"].labels
        for value in ("a" * 32, "b" * 32)
    ]
    assert labels[0]["mlflow.together"] != labels[1]["mlflow.together"]


def test_a_second_plan_has_the_same_certificates_and_another_time_of_issue_others(program: Program) -> None:
    secrets = {"internalAuthority": "a" * 32}
    later = {"mlflow:tls": {"internal": True, "issued": "2026-11-29T10:00:00Z"}}
    first, second, third = (
        files(program("prod", values=bundled() | tls, secrets=secrets), "server") for tls in (TLS, TLS, later)
    )
    assert first == second
    assert first["/run/secrets/internal-certificate.pem"] != third["/run/secrets/internal-certificate.pem"]
    assert first["/run/secrets/internal-key.pem"] != third["/run/secrets/internal-key.pem"]
    assert first["/run/secrets/authority.pem"] == third["/run/secrets/authority.pem"]


def test_without_the_setting_nothing_of_it_exists(program: Program) -> None:
    graph = program("prod", values=bundled() | {"mlflow:tls": {"internal": False}})
    assert not [resource.name for resource in graph.of(PASSWORD) if "authority" in resource.name]
    for consumer in graph.with_files:
        assert not [path for path in files(graph, consumer) if "authority" in path or "internal" in path]


def test_an_existing_prometheus_gets_the_authority_inline(program: Program) -> None:
    settings: dict[str, Any] = bundled() | TLS | {"mlflow:monitoring": {"mode": "exporters"}}
    graph = program("prod", values=settings)
    scrape = next(outputs["scrape"] for urn, outputs in graph.outputs.items() if urn.endswith("::monitoring"))
    text = scrape["value"] if isinstance(scrape, dict) else scrape
    entries = json.loads(text)["scrape_configs"]
    assert entries
    assert all("BEGIN CERTIFICATE" in entry["tls_config"]["ca"] for entry in entries)
    assert all(entry["tls_config"]["server_name"].startswith("mlflow-prod-") for entry in entries)
    assert graph.services["server"].labels["prometheus.io/scheme"] == "https"
