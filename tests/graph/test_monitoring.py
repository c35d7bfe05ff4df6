"""Test the monitoring: its networks, its configuration and secret files, and that it is off by default."""

import json
import subprocess
from base64 import urlsafe_b64decode
from collections.abc import Callable
from typing import Any

import pytest
import yaml

from components.scrape import minio_token
from settings.monitoring import MonitoringSettings
from settings.secrets import SWITCH_SECRET, WEBHOOK_SECRET
from tests.graph.conftest import ADDRESS, bundled, watched
from tests.graph.mocked import PASSWORD, Graph, build

Program = Callable[..., Graph]


def uploaded(graph: Graph, consumer: str, file: str) -> Any:  # noqa: ANN401 - JSON
    uploads = graph.writers[f"{consumer}-files"].plain["uploads"]
    content = next(str(upload["content"]) for upload in uploads if upload["file"].endswith(f"/{file}"))
    return yaml.safe_load(content) if file.endswith((".yml", ".yaml", ".json")) else content


@pytest.fixture(scope="module")
def graph() -> Graph:
    return build("prod", values=watched(), secrets={WEBHOOK_SECRET: ADDRESS})


def test_monitoring_is_off_by_default(program: Program) -> None:
    plain = program("prod", values=bundled())
    assert not [
        name for name in plain.services if "exporter" in name or name in ("prometheus", "alertmanager", "grafana")
    ]
    assert not [resource.name for resource in plain.of(PASSWORD) if "monitoring" in resource.name]
    assert "METRICS_PORT" not in plain.services["server"].envs
    for service in plain.services.values():
        assert not [label for label in service.labels if label.startswith("prometheus.io/")]


def test_mode_exporters_adds_only_two_exporters(program: Program) -> None:
    graph = program("prod", values=bundled() | {"mlflow:monitoring": {"mode": "exporters"}})
    found = {name for name in graph.services if "exporter" in name or name in ("prometheus", "alertmanager", "grafana")}
    assert found == {"postgres-exporter", "blackbox-exporter"}
    assert graph.services["server"].labels["prometheus.io/port"] == "5001"


def test_every_scrape_target_is_on_the_monitoring_network(graph: Graph) -> None:
    config = uploaded(graph, "prometheus", "prometheus.yml")
    hosts = {entry["static_configs"][0]["targets"][0].partition(":")[0] for entry in config["scrape_configs"]}
    assert len(hosts) == 8
    for host in hosts:
        assert "monitoring-id" in graph.services[host.removeprefix("mlflow-prod-")].networks, host
    # Prometheus is on one other network only: that of its host port.
    assert graph.services["prometheus"].networks == ["monitoring-id", "access-id"]
    assert graph.services["blackbox-exporter"].networks == ["monitoring-id"]
    assert graph.services["postgres-exporter"].networks == ["monitoring-id", "backend-id"]


def test_scrape_job_names_are_unique_for_each_stack(graph: Graph) -> None:
    config = uploaded(graph, "prometheus", "prometheus.yml")
    for entry in config["scrape_configs"]:
        (group,) = entry["static_configs"]
        assert entry["job_name"] == f"mlflow-prod-{group['labels']['job']}"
        assert group["labels"]["stack"] == "prod"


def test_only_alertmanager_with_a_receiver_is_on_the_egress_network(program: Program, graph: Graph) -> None:
    assert [name for name, service in graph.services.items() if "egress-id" in service.networks] == ["alertmanager"]
    silent = program("prod", values=watched(webhook=False))
    assert not [name for name, service in silent.services.items() if "egress-id" in service.networks]


def test_scrape_tokens_are_secret_files_of_prometheus(graph: Graph) -> None:
    config = uploaded(graph, "prometheus", "prometheus.yml")
    files = {
        entry["static_configs"][0]["labels"]["job"]: entry["authorization"]["credentials_file"]
        for entry in config["scrape_configs"]
        if "authorization" in entry
    }
    assert files == {job: f"/run/secrets/{job}" for job in ("minio", "minio-node", "minio-bucket")}
    assert uploaded(graph, "prometheus", "minio") == minio_token(
        "mlflow-monitoring", "generated-minio-monitoring-password".ljust(32, "x")
    )


def test_the_minio_scrape_token_is_a_valid_signed_jwt() -> None:
    signed, _, signature = minio_token("someone", "a-secret-key").rpartition(".")
    header, claims = (json.loads(urlsafe_b64decode(part + "==")) for part in signed.split("."))
    assert header == {"alg": "HS512", "typ": "JWT"}
    assert claims == {"sub": "someone", "iss": "prometheus", "exp": 4102444800}
    command = ["openssl", "dgst", "-sha512", "-hmac", "a-secret-key", "-binary"]
    by_openssl = subprocess.run(command, input=signed.encode(), capture_output=True, check=True).stdout
    assert urlsafe_b64decode(signature + "==") == by_openssl


def test_the_webhook_url_is_a_secret_file(graph: Graph) -> None:
    config = uploaded(graph, "alertmanager", "alertmanager.yml")
    people = next(receiver for receiver in config["receivers"] if receiver["name"] == "people")
    assert people["webhook_configs"] == [{"url_file": f"/run/secrets/{WEBHOOK_SECRET}", "send_resolved": True}]
    assert uploaded(graph, "alertmanager", WEBHOOK_SECRET) == ADDRESS


def test_mail_is_sent_with_the_password_from_a_file(program: Program) -> None:
    mail = {"to": "ops@example.com", "sender": "mlflow@example.com", "server": "smtp.example.com:587", "user": "mlflow"}
    graph = program(
        "prod",
        values=watched(mail=mail, webhook=False, deadMansSwitch=True),
        secrets={"smtpPassword": "of-the-mail", SWITCH_SECRET: ADDRESS},
    )
    config = uploaded(graph, "alertmanager", "alertmanager.yml")
    people, switch = config["receivers"]
    assert people["email_configs"] == [
        {
            "to": "ops@example.com",
            "from": "mlflow@example.com",
            "smarthost": "smtp.example.com:587",
            "send_resolved": True,
            "auth_username": "mlflow",
            "auth_password_file": "/run/secrets/smtpPassword",
        }
    ]
    assert switch["webhook_configs"][0]["url_file"] == f"/run/secrets/{SWITCH_SECRET}"
    assert config["route"]["routes"][0]["matchers"] == ['alertname = "Watchdog"']


def test_the_readiness_probe_equals_the_health_check_of_the_server(program: Program, graph: Graph) -> None:
    modules = uploaded(graph, "blackbox-exporter", "blackbox.yml")["modules"]
    assert modules["readiness"]["http"]["valid_status_codes"] == [200]
    assert modules["edge"]["http"]["headers"] == {"Host": "mlflow.example.com"}
    by_mlflow = program(
        "prod",
        values=watched() | {"mlflow:authentication": "mlflow", "mlflow:postgres": {"maxConnections": 150}},
        secrets={WEBHOOK_SECRET: ADDRESS},
    )
    http = uploaded(by_mlflow, "blackbox-exporter", "blackbox.yml")["modules"]["readiness"]["http"]
    assert http["valid_status_codes"] == [401]
    assert http["headers"]["Authorization"].startswith("Basic ")


def test_server_metrics_are_not_on_the_port_that_traefik_routes_to(graph: Graph) -> None:
    assert graph.services["server"].envs["METRICS_PORT"] == "5001"
    assert "5001" not in json.dumps(graph.services["server"].plain["ports"])
    routes = uploaded(graph, "traefik", "routes.yml")
    assert "5001" not in json.dumps(routes)


def test_grafana_is_provisioned_with_data_source_and_dashboard(graph: Graph) -> None:
    source = uploaded(graph, "grafana", "datasources/prometheus.yaml")["datasources"][0]
    assert source["url"] == "https://mlflow-prod-prometheus:9090"
    assert source["jsonData"] == {"tlsAuthWithCACert": True}
    assert source["secureJsonData"] == {"tlsCACert": "$__file{/run/secrets/authority.pem}"}
    board = uploaded(graph, "grafana", "dashboards/mlflow.json")
    assert board["uid"] == "mlflow"
    provider = uploaded(graph, "grafana", "dashboards/mlflow.yaml")["providers"][0]
    assert provider["options"]["path"] == "/run/config/dashboards"
    grafana = graph.services["grafana"]
    assert grafana.envs["GF_SECURITY_ADMIN_PASSWORD__FILE"] == "/run/secrets/admin-password"
    assert grafana.envs["GF_PLUGINS_PREINSTALL_DISABLED"] == "true"
    assert grafana.plain["user"] == "472:0"


def test_only_deployed_monitoring_services_have_an_address() -> None:
    ports = {"prometheusPort": 9090, "grafanaPort": 3000}
    bundled = MonitoringSettings.model_validate({"mode": "bundled", **ports})
    assert bundled.addresses == {"Prometheus": 9090, "Grafana": 3000}
    assert MonitoringSettings.model_validate({"mode": "exporters", **ports}).addresses == {}


def test_alerts_link_to_the_configured_runbooks(program: Program, graph: Graph) -> None:
    def links(of: Graph) -> set[str]:
        groups = uploaded(of, "prometheus", "alerts.yml")["groups"]
        return {rule["annotations"]["runbook_url"] for group in groups for rule in group["rules"]}

    page = "https://git.example.com/ops/mlflow/blob/main/docs/operations/alerts.md"
    elsewhere = program("prod", values=watched(runbooks=page), secrets={WEBHOOK_SECRET: ADDRESS})
    assert links(elsewhere) == {link.replace("docs/operations/alerts.md", page) for link in links(graph)}
    assert all(link.startswith("docs/operations/alerts.md#") for link in links(graph))


def test_every_inhibition_rule_names_existing_alerts(graph: Graph) -> None:
    alerts = {
        rule["alert"] for group in uploaded(graph, "prometheus", "alerts.yml")["groups"] for rule in group["rules"]
    }
    rules = uploaded(graph, "alertmanager", "alertmanager.yml")["inhibit_rules"]
    assert rules
    for rule in rules:
        for matcher in [*rule["source_matchers"], *rule["target_matchers"]]:
            assert set(matcher.split('"')[1].split("|")) <= alerts
