"""Test the monitoring of a real deployment: scrape targets, dashboard, notifications, hidden secrets."""

import io
import json
import subprocess
import sys
import tarfile
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from tests.stack.backups import INVENTORY
from tests.stack.deployment import HAS_ENGINE, NO_DIGESTS, ROOT, Deployment, free_port
from tests.stack.edge import BESIDE, HOSTNAME, image
from tests.stack.probes import host_as_containers_see_it

pytestmark = pytest.mark.ci

WATCHING = ("prometheus", "alertmanager", "postgres-exporter", "blackbox-exporter")
DASHBOARD = ROOT / "assets" / "monitoring" / "dashboards" / "mlflow.json"


class Receiver(ThreadingHTTPServer):
    """A webhook receiver of Alertmanager, which records its notifications."""

    def __init__(self) -> None:
        # Containers that can reach outside reach the host through the gateway of the default network.
        super().__init__(("0.0.0.0", 0), _Told)
        self.told: list[tuple[str, str, str]] = []

    def until(self, path: str, alert: str, status: str, seconds: float = 240) -> float:
        started = time.monotonic()
        while (path, alert, status) not in self.told:
            assert time.monotonic() - started < seconds, f"no notification that {alert} is {status}: {self.told}"
            time.sleep(0.5)
        return time.monotonic() - started


class _Told(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.told += [(self.path, alert["labels"]["alertname"], alert["status"]) for alert in body["alerts"]]
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@dataclass(frozen=True)
class Watched:
    deployment: Deployment
    receiver: Receiver
    prometheus: int
    server: int
    urls: dict[str, str]

    def ask(self, path: str, **query: str) -> Any:  # noqa: ANN401 - Prometheus' answer
        url = f"http://127.0.0.1:{self.prometheus}/api/v1/{path}?{urllib.parse.urlencode(query)}"
        with urllib.request.urlopen(url, timeout=30) as answer:
            return json.load(answer)["data"]


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    deployment = Deployment(tmp_path_factory.mktemp("watched"), "dev")
    prometheus, server = free_port(), free_port()
    deployment.set("hostname", HOSTNAME)
    deployment.set("authentication", "password")
    deployment.set("images", NO_DIGESTS)
    deployment.use(deployment.any_store)
    for key in ("traefik", "prometheus", "alertmanager", "postgresExporter", "blackboxExporter"):
        deployment.set(f"images.{key}", {"ref": image(key)})
    deployment.set("server.port", server)
    deployment.set("server.workers", 1)
    deployment.set("server.logFormat", "json")
    deployment.set(
        "traefik", {"mode": "bundled", "bindAddress": "127.0.0.1", "httpPort": free_port(), "httpsPort": free_port()}
    )
    deployment.set("backup.enabled", value=True)
    deployment.set(
        "monitoring", {"mode": "bundled", "webhook": True, "deadMansSwitch": True, "prometheusPort": prometheus}
    )
    with Receiver() as receiver:
        Thread(target=receiver.serve_forever, daemon=True).start()
        base = f"http://{host_as_containers_see_it(deployment.api)}:{receiver.server_port}"
        urls = {"alertWebhookUrl": f"{base}/people-a3f1", "deadMansSwitchUrl": f"{base}/switch-b7c2"}
        for key, url in urls.items():
            # With an engine, as docs/operations/monitoring.md types it; an engine-less deployment cannot decrypt.
            if HAS_ENGINE:
                deployment.pulumi("config", "set", "--secret", f"mlflow:{key}", url)
            else:
                deployment.set(key, url)
        try:
            deployment.make("up")
            subprocess.run(
                [sys.executable, "-W", "ignore", INVENTORY, "fill", "6", "600", "12", "6"],
                env={**deployment.environment, "MLFLOW_TRACKING_URI": f"http://127.0.0.1:{server}"},
                check=True,
                capture_output=True,
            )
            deployment.make("backup")
            deployment.make("drill")
            yield Watched(deployment, receiver, prometheus, server, urls)
        finally:
            receiver.shutdown()
            deployment.remove()


def until(condition: Callable[[], bool], seconds: float, words: object) -> None:
    """Wait until `condition` is true; otherwise fail with the value of `words` at that time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, words
        time.sleep(1)


def test_every_scrape_target_is_up(watched: Watched) -> None:
    store = watched.deployment.store
    stores = {"minio", "minio-node", "minio-bucket"} if store == "minio" else {"seaweedfs"}
    expected = {"mlflow", "postgres", "backup", "traefik", "readiness", "store", "edge"} | stores
    expected |= {"prometheus", "alertmanager"}

    def found() -> dict[str, str]:
        targets = watched.ask("targets")["activeTargets"]
        return {target["labels"]["job"]: target["health"] for target in targets}

    until(lambda: set(found().values()) == {"up"}, 90, "a scrape target is not up")
    assert set(found()) == expected
    for job in ("readiness", "store", "edge"):
        ready = watched.ask("query", query=f'probe_success{{job="{job}"}}')["result"]
        assert [value["value"][1] for value in ready] == ["1"], job


@pytest.mark.long
def test_every_panel_of_the_dashboard_shows_something(watched: Watched) -> None:
    panels = [panel for panel in json.loads(DASHBOARD.read_text())["panels"] if panel["type"] != "row"]
    queries = {target["expr"]: panel["title"] for panel in panels for target in panel["targets"]}
    assert len(queries) > 30
    missing = dict(queries)

    def asked() -> bool:
        for query in list(missing):
            if watched.ask("query", query=query.replace("$stack", watched.deployment.stack))["result"]:
                del missing[query]
        return not missing

    # The exporter counts once a minute, and MinIO's scanner is slow; a rate needs two values.
    until(asked, 240, missing)


@pytest.mark.long
def test_the_runs_are_counted(watched: Watched) -> None:
    def runs() -> dict[str, str]:
        result = watched.ask("query", query="mlflow_runs_count")["result"]
        return {one["metric"]["status"]: one["value"][1] for one in result}

    until(lambda: runs().get("FINISHED") == "6", 120, "the runs were not counted")
    assert runs()["FAILED"] == "0"


def test_monitoring_is_not_reachable_from_outside_by_default(watched: Watched) -> None:
    deployment = watched.deployment
    for service in WATCHING:
        bound = {
            (entry["HostIp"], entry["HostPort"])
            for entries in (deployment.inspect(service)["HostConfig"]["PortBindings"] or {}).values()
            for entry in entries
        }
        assert bound == ({("127.0.0.1", str(watched.prometheus))} if service == "prometheus" else set()), service
        networks = set(deployment.inspect(service)["NetworkSettings"]["Networks"])
        assert deployment.name("edge") not in networks, service
    assert deployment.api.inspect_network(deployment.name("monitoring"))["Internal"] is True
    assert deployment.name("egress") not in deployment.inspect("prometheus")["NetworkSettings"]["Networks"]


def test_no_token_password_or_webhook_url_is_in_docker_inspect(watched: Watched) -> None:
    deployment = watched.deployment
    shown = json.dumps([deployment.api.inspect_container(name) for name in deployment.containers()])
    for key, value in {**deployment.credentials(), **watched.urls}.items():
        assert value not in shown, key


def test_the_server_logs_one_json_object_for_each_line(watched: Watched) -> None:
    lines = watched.deployment.api.logs(watched.deployment.name("server")).decode().splitlines()
    # Before MLflow reads its logging configuration at startup, it prints plain lines.
    entries = [json.loads(line) for line in lines if line.startswith("{")]
    assert not [line for line in lines if "HTTP/1.1" in line and not line.startswith("{")]
    asked = [entry for entry in entries if entry["logger"] == "uvicorn.access"]
    assert {entry["status"] for entry in asked} >= {200}
    assert any("/experiments/search" in entry["path"] for entry in asked)


def counting(deployment: Deployment, password: str, statement: str) -> tuple[int, str]:
    """Query the database as the exporter does."""
    command = ("psql", "-h", "127.0.0.1", "-U", "mlflow_monitoring", "-d", "mlflow", "-Atc", statement)
    return deployment.run("postgres", "env", f"PGPASSWORD={password}", *command)


def test_the_monitoring_role_can_count_but_not_read_tables(watched: Watched) -> None:
    deployment = watched.deployment
    password = deployment.credentials()["postgresMonitoringPassword"]

    def psql(statement: str) -> tuple[int, str]:
        return counting(deployment, password, statement)

    assert psql("SELECT count FROM monitoring.runs() WHERE status = 'FINISHED'") == (0, "6")
    for statement in ("SELECT * FROM runs", "SELECT * FROM params", "CREATE TABLE public.x (y int)"):
        code, said = psql(statement)
        assert code != 0
        assert "permission denied" in said or "read-only transaction" in said


@pytest.mark.minio
def test_prometheus_does_not_show_its_token(watched: Watched) -> None:
    said = json.dumps(watched.ask("status/config")) + json.dumps(watched.ask("targets"))
    assert "credentials_file" in said
    # Every such token begins with these letters.
    assert "eyJ" not in said


@pytest.mark.minio
def test_the_minio_identity_of_the_monitoring_cannot_read_objects(watched: Watched) -> None:
    key = watched.deployment.credentials()["minioMonitoringPassword"]
    script = (
        "import boto3, botocore, os, sys\n"
        "s3 = boto3.client('s3', endpoint_url=os.environ['MLFLOW_S3_ENDPOINT_URL'], "
        f"aws_access_key_id='mlflow-monitoring', aws_secret_access_key='{key}')\n"
        "for ask in (s3.list_buckets, lambda: s3.list_objects_v2(Bucket='mlflow')):\n"
        "    try: found = ask(); assert not found.get('Buckets', ['x'] if 'Name' in found else []), found\n"
        "    except botocore.exceptions.ClientError as error: assert 'AccessDenied' in str(error), error\n"
        "print('closed')"
    )
    assert watched.deployment.run("server", "python", "-c", script) == (0, "closed")


def test_the_status_reports_sizes_and_alerts_as_text_and_json(watched: Watched) -> None:
    deployment = watched.deployment
    told = json.loads(deployment.make("status", JSON="1").stdout)
    assert told["alerts"] == []
    assert told["problems"] == []
    assert told["bytes"]["postgres"] > 1_000_000
    assert told["bytes"][deployment.store] > 1_000_000
    assert {service["state"] for service in told["services"]} == {"healthy"}
    assert {service["name"] for service in told["services"]} > {deployment.name(service) for service in WATCHING}
    said = deployment.make("status").stdout
    assert "alerts: none" in said
    assert f"{deployment.store} " in said


@pytest.mark.long
def test_firing_and_resolved_alerts_reach_their_receivers(watched: Watched) -> None:
    deployment, receiver = watched.deployment, watched.receiver
    receiver.until("/switch-b7c2", "Watchdog", "firing")
    deployment.api.pause(deployment.name("server"))
    try:
        receiver.until("/people-a3f1", "MlflowDown", "firing")
        refused = deployment.make("status", ok=False)
        assert "firing alerts: MlflowDown of server" in refused.stderr
    finally:
        deployment.api.unpause(deployment.name("server"))
    receiver.until("/people-a3f1", "MlflowDown", "resolved")
    assert {path for path, alert, _ in receiver.told if alert == "Watchdog"} == {"/switch-b7c2"}


@pytest.mark.engine
def test_a_stack_with_monitoring_has_no_drift(watched: Watched) -> None:
    assert "No changes." in watched.deployment.make("drift").stdout


@pytest.mark.engine
def test_a_paused_container_is_reported_as_drift(watched: Watched) -> None:
    deployment = watched.deployment
    name = deployment.name("alertmanager")
    deployment.api.pause(name)
    try:
        found = deployment.make("drift", ok=False)
    finally:
        deployment.api.unpause(name)
    assert found.stdout.endswith(f"`{name}` is paused: `docker unpause {name}`\n<!-- drift: found -->\n")
    assert f"type: docker unpause {name}" in found.stderr


@pytest.mark.long
@pytest.mark.engine
def test_an_existing_prometheus_works_with_the_output_of_make_scrape(watched: Watched, tmp_path: Path) -> None:
    deployment = watched.deployment
    printed = deployment.make("scrape").stdout
    (tmp_path / "mlflow.yml").write_text(printed)
    config = {"global": {"scrape_interval": "5s"}, "scrape_config_files": ["/theirs/mlflow.yml"]}
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as archive:
        for name, content in {"prometheus.yml": json.dumps(config), "mlflow.yml": printed}.items():
            entry = tarfile.TarInfo(f"theirs/{name}")
            entry.size, entry.mode = len(content.encode()), 0o644
            archive.addfile(entry, io.BytesIO(content.encode()))
    api, network = deployment.api, deployment.name("monitoring")
    container = api.create_container(
        image("prometheus"),
        entrypoint=["prometheus", "--config.file=/theirs/prometheus.yml", "--storage.tsdb.path=/tmp/data"],
        name=deployment.name("theirs"),
        labels={BESIDE: deployment.stack},
        host_config=api.create_host_config(network_mode=network),
    )["Id"]
    try:
        api.put_archive(container, "/", raw.getvalue())
        api.start(container)

        def health() -> dict[str, str]:
            address = "http://127.0.0.1:9090/api/v1/targets"
            code, said = deployment.run("theirs", "wget", "-q", "-T", "4", "-O", "-", address)
            targets = json.loads(said)["data"]["activeTargets"] if code == 0 else []
            return {target["labels"]["job"]: target["health"] for target in targets}

        until(lambda: set(health().values()) == {"up"}, 90, "a scrape target is not up")
        assert "mlflow" in health()
        refused = deployment.make("down", ok=False)
        assert f"docker network disconnect {network} {deployment.name('theirs')}" in refused.stderr
        assert "nothing was changed" in refused.stderr
    finally:
        api.remove_container(container, force=True)


@pytest.mark.long
def test_turning_monitoring_off_removes_its_services_and_identities(watched: Watched) -> None:
    deployment = watched.deployment
    known = deployment.credentials()
    deployment.set("monitoring", {"mode": "off"})
    if HAS_ENGINE:
        plan = deployment.make("preview").stdout
        assert "**Stops permanently**: `alertmanager`, `blackbox-exporter`, `postgres-exporter`, `prometheus`" in plan
        assert "| forget | volume | `prometheus-history` |" in plan
    deployment.make("up")
    assert not {deployment.name(service) for service in WATCHING} & set(deployment.containers())
    assert deployment.name("monitoring") not in {network["Name"] for network in deployment.api.networks()}
    code, said = counting(deployment, known["postgresMonitoringPassword"], "SELECT 1")
    assert code != 0
    assert "not permitted to log in" in said or "password authentication failed" in said
    # A secret file that is no longer needed is deleted from its volume.
    assert deployment.run("postgres", "ls", "/run/secrets") == (0, "backup-password\nmlflow-password")
    if "minioMonitoringPassword" in known:
        script = (
            "import boto3, botocore, os\n"
            "s3 = boto3.client('s3', endpoint_url=os.environ['MLFLOW_S3_ENDPOINT_URL'], "
            f"aws_access_key_id='mlflow-monitoring', aws_secret_access_key='{known['minioMonitoringPassword']}')\n"
            "try: s3.list_buckets()\n"
            "except botocore.exceptions.ClientError as error: print(error.response['Error']['Code'])"
        )
        assert deployment.run("server", "python", "-c", script) == (0, "InvalidAccessKeyId")
