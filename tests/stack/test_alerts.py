"""Test every alert with promtool: a case that fires it, one that does not, and a normal week."""

import io
import json
import math
import random
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import docker
import pytest
import yaml

from runtime.address import resolve_host
from tests.stack.deployment import ROOT
from tests.stack.edge import image

ALERTS = ROOT / "assets" / "monitoring" / "alerts.yml"
RULES = {rule["alert"]: rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]}
STACK = {"stack": "prod"}
SERVER = {**STACK, "instance": "server"}


@dataclass(frozen=True)
class Case:
    """Series that fire an alert at minute `at`, and others that do not; one value a minute in promtool's notation."""

    alert: str
    fires: dict[str, str]
    quiet: dict[str, str]
    at: int
    labels: dict[str, str] = field(default_factory=dict)
    value: str = ""
    """The value in its summary."""


def up(job: str, instance: str) -> str:
    return f'up{{stack="prod",job="{job}",instance="{instance}"}}'


def replica(instance: str) -> str:
    return f'probe_success{{stack="prod",job="readiness",instance="{instance}"}}'


WANTED = 'mlflow_replicas{stack="prod"}'


def nodes(state: str) -> str:
    return f'swarm_manager_nodes{{stack="prod",job="docker",instance="docker",state="{state}"}}'


def probe(name: str, job: str = "readiness") -> str:
    instance = {"readiness": "server", "store": "minio", "edge": "traefik"}[job]
    return f'{name}{{stack="prod",job="{job}",instance="{instance}"}}'


def requests(status: str) -> str:
    return f'mlflow_http_request_total{{stack="prod",job="mlflow",instance="server",method="GET",status="{status}"}}'


def routed(code: str) -> str:
    return f'traefik_service_requests_total{{stack="prod",job="traefik",instance="traefik",code="{code}"}}'


def disk(which: str) -> str:
    return f'minio_cluster_capacity_usable_{which}_bytes{{stack="prod",job="minio",instance="minio"}}'


def resource(which: str) -> str:
    return f'SeaweedFS_volumeServer_resource{{stack="prod",job="seaweedfs",instance="seaweedfs",type="{which}"}}'


def backup(name: str) -> str:
    return f'mlflow_{name}{{stack="prod",job="backup",instance="backup"}}'


def started(job: str, name: str = "process_start_time_seconds") -> str:
    return f'{name}{{stack="prod",job="{job}",instance="{job}"}}'


DATABASE = {**STACK, "job": "postgres", "instance": "postgres"}
BACKUP = {**STACK, "job": "backup", "instance": "backup"}
MINIO = {**STACK, "job": "minio", "instance": "minio"}
WEED = {**STACK, "job": "seaweedfs", "instance": "seaweedfs", "type": "avail"}
PG_UP = 'pg_up{stack="prod",job="postgres",instance="postgres"}'
BACKENDS = 'pg_stat_database_numbackends{stack="prod",job="postgres",instance="postgres",datname="mlflow"}'
LIMIT = 'pg_settings_max_connections{stack="prod",job="postgres",instance="postgres"}'
FAILED = 'alertmanager_notifications_failed_total{stack="prod",job="alertmanager",instance="a",integration="webhook"}'
KILLS = 'mlflow_oom_kills{stack="prod",job="mlflow",instance="mlflow"}'
CREATED = started("mlflow", "mlflow_container_created_timestamp_seconds")
DAY = 86400
SECRETS_DUE = 'mlflow_secrets_due_timestamp_seconds{stack="prod"}'
CASES = [
    Case(
        "MlflowDown",
        {up("mlflow", "server"): "0x5", probe("probe_success"): "0x5"},
        # The metrics process has ended; the server has not.
        {up("mlflow", "server"): "0x5", probe("probe_success"): "1x5"},
        3,
        {**SERVER, "job": "mlflow"},
    ),
    Case(
        "MlflowDown",
        # There is no probe of the readiness.
        {up("mlflow", "server"): "0x5"},
        {up("mlflow", "server"): "1 0 1x5"},
        3,
        {**SERVER, "job": "mlflow"},
    ),
    Case(
        "MlflowNotReady",
        # One worker of two hangs.
        {probe("probe_success"): "1x5 0 1 0 1 0 1 0 1 0 1 0 1 0 1 0 1 0 1 0 1"},
        # Restarts that ended.
        {probe("probe_success"): "1x14 0 1 0 0 1 1 0 1 1 1 1x20"},
        24,
        {**SERVER, "job": "readiness"},
    ),
    Case(
        "MlflowNotReady",
        {probe("probe_success"): "1 0x9"},
        {probe("probe_success"): "1 0x1 1x9"},
        5,
        {**SERVER, "job": "readiness"},
    ),
    Case(
        "MlflowNotReady",
        {replica("server"): "1 0x9"},
        # One of two replicas serves.
        {replica("server"): "1x9", replica("server-2"): "0x9"},
        5,
        {**SERVER, "job": "readiness"},
    ),
    Case(
        "ReplicaDown",
        {replica("server"): "1x9", replica("server-2"): "1 0x9"},
        # A replica is replaced; and a server that is the only one is another alert's.
        {replica("server"): "1x9", replica("server-2"): "1 0 1x9"},
        8,
        {**STACK, "instance": "server-2", "job": "readiness"},
    ),
    Case(
        "ReplicaDown",
        {replica("server"): "1 0x9", replica("server-2"): "1x9"},
        {replica("server"): "0x9"},
        8,
        {**SERVER, "job": "readiness"},
    ),
    Case(
        "ReplicasMissing",
        {up("mlflow", "10.0.1.7:5001"): "1x9", up("mlflow", "10.0.1.8:5001"): "1 _x9", WANTED: "2x9"},
        # A task starts on another node: with another address.
        {
            up("mlflow", "10.0.1.7:5001"): "1x9",
            up("mlflow", "10.0.1.8:5001"): "1 _x9",
            up("mlflow", "10.0.1.9:5001"): "_ _ 1x9",
            WANTED: "2x9",
        },
        8,
        STACK,
        "1",
    ),
    Case(
        "ReplicasMissing",
        {up("mlflow", "10.0.1.7:5001"): "1x9", up("mlflow", "10.0.1.8:5001"): "0x9", WANTED: "2x9"},
        # On one host, nothing records the number.
        {up("mlflow", "server"): "1x9", up("mlflow", "server-2"): "0x9"},
        8,
        STACK,
        "1",
    ),
    Case(
        "NodeDown",
        {nodes("down"): "0 1x9", nodes("ready"): "3 2x9"},
        # A machine that restarts.
        {nodes("down"): "0 1 0x9", nodes("disconnected"): "0 0 1 0x9", nodes("ready"): "3 2 2 3x9"},
        4,
        STACK,
        "1",
    ),
    Case(
        "MlflowSlow",
        {probe("probe_duration_seconds"): "3x20", probe("probe_success"): "1x20"},
        # A single slow answer.
        {probe("probe_duration_seconds"): "0.02x5 9 0.02x20"},
        12,
        {**SERVER, "job": "readiness"},
        "3s",
    ),
    Case(
        "MlflowSlow",
        {probe("probe_duration_seconds"): "9x20", probe("probe_success"): "1x20"},
        # Timeouts of an outage that ended.
        {probe("probe_duration_seconds"): "0.02x5 10x4 0.02x20", probe("probe_success"): "1x5 0x4 1x20"},
        14,
        {**SERVER, "job": "readiness"},
        "9s",
    ),
    Case(
        "MlflowErrors",
        {requests("200"): "0+90x20", requests("500"): "0+10x20"},
        {requests("200"): "0+100x20", requests("500"): "0+3x20"},
        10,
        STACK,
        "50",
    ),
    Case(
        "MlflowErrors",
        {requests("503"): "0+2x20"},
        {requests("200"): "0+2x20", requests("500"): "0x9 1x11"},
        10,
        STACK,
        "10",
    ),
    Case(
        "MlflowErrors",
        # A small team: two of its four requests a minute fail, beside 29 probes.
        {requests("200"): "0+31x20", requests("500"): "0+2x20"},
        {requests("200"): "0+31x20", requests("500"): "0 0 0 0 0 1 1 2 2 3 3 3 3 3 3 3 3"},
        10,
        STACK,
        "10",
    ),
    Case(
        "MlflowErrors",
        {routed("200"): "0+90x20", routed("502"): "0+10x20"},
        {routed("200"): "0+100x20", routed("502"): "0+3x20"},
        10,
        STACK,
        "50",
    ),
    Case(
        "RestartLoop",
        {started("mlflow"): "1x2 2x2 3x2 4x20", CREATED: "1x30"},
        {started("mlflow"): "1x2 2x2 3x20", CREATED: "1x30"},
        10,
        {**STACK, "instance": "mlflow"},
        "3",
    ),
    Case(
        "RestartLoop",
        {started("mlflow"): "1x2 2 3 4 5x20", CREATED: "1x2 2x30"},
        # Four deployments, one of them interrupted: each created a container and started it.
        {started("mlflow"): "1x2 2x2 3x2 4x2 5x20", CREATED: "1x2 2x2 3x2 4x2 5x20"},
        12,
        {**STACK, "instance": "mlflow"},
        "3",
    ),
    Case(
        "RestartLoop",
        {started("postgres", "pg_postmaster_start_time_seconds"): "1 2 3 4 5 6x20", started("postgres"): "1x30"},
        # Deployments that restart Postgres; and a start of the exporter is not a start of the database.
        {started("postgres", "pg_postmaster_start_time_seconds"): "1 2 3 4 5x30", started("postgres"): "1 2 3 4 5 6 7"},
        10,
        {**STACK, "instance": "postgres"},
        "5",
    ),
    Case(
        "WorkersKilled",
        {KILLS: "0x3 1x20"},
        # Workers that were killed long ago, in a server that still runs.
        {KILLS: "2x30"},
        6,
        {**STACK, "instance": "mlflow"},
        "1",
    ),
    Case("DatabaseDown", {PG_UP: "0x5"}, {PG_UP: "1x5", up("postgres", "postgres"): "1x5"}, 3, DATABASE),
    Case(
        "DatabaseDown",
        {up("postgres", "postgres"): "0x5", probe("probe_success"): "0x5"},
        # Only the exporter is down.
        {up("postgres", "postgres"): "0x5", probe("probe_success"): "1x5"},
        3,
        DATABASE,
    ),
    Case(
        "DatabaseDown",
        {up("postgres", "postgres"): "0x5"},
        {up("postgres", "postgres"): "1 0 1x5"},
        3,
        DATABASE,
    ),
    Case("DatabaseConnections", {BACKENDS: "81x9", LIMIT: "100x9"}, {BACKENDS: "79x9", LIMIT: "100x9"}, 7, STACK, "81"),
    Case("ObjectStoreDown", {up("minio", "minio"): "0x5"}, {up("minio", "minio"): "1 0 1x5"}, 3, MINIO),
    Case(
        "ObjectStoreDown",
        # The object store serves metrics, but cannot store.
        {up("minio", "minio"): "1x5", probe("probe_success", "store"): "0x5"},
        # The object store works, but its metrics take too long.
        {up("minio", "minio"): "0x5", probe("probe_success", "store"): "1x5"},
        3,
        {**MINIO, "job": "store"},
    ),
    Case(
        "DiskNearlyFull",
        {disk("free"): "9x9", disk("total"): "100x9"},
        {disk("free"): "11x9", disk("total"): "100x9"},
        7,
        MINIO,
        "9%",
    ),
    Case(
        "DiskNearlyFull",
        {resource("avail"): "9x9", resource("all"): "100x9"},
        {resource("avail"): "11x9", resource("all"): "100x9"},
        7,
        {key: value for key, value in WEED.items() if key != "type"},
        "9%",
    ),
    Case(
        "DiskFilling",
        # 10 MB a minute is 14 GB a day.
        {disk("free"): "45000000000-10000000x480", disk("total"): "100000000000x480"},
        {disk("free"): "90000000000-10000000x480", disk("total"): "100000000000x480"},
        450,
        MINIO,
    ),
    Case(
        "DiskFilling",
        {resource("avail"): "45000000000-10000000x480", resource("all"): "100000000000x480"},
        {resource("avail"): "45000000000-1000000x480", resource("all"): "100000000000x480"},
        450,
        WEED,
    ),
    Case(
        "BackupTooOld",
        # One scrape got no answer.
        {backup("backup_due_timestamp_seconds"): "0x100 stale 0x30"},
        # The backup takes some time.
        {backup("backup_due_timestamp_seconds"): "0x100 86400x30"},
        125,
        BACKUP,
        "1970-01-01 00:00:00 +0000 UTC",
    ),
    Case("BackupFailed", {backup("backup_last_result"): "0x3"}, {backup("backup_last_result"): "1x3"}, 1, BACKUP),
    Case("DrillFailed", {backup("drill_last_result"): "0x3"}, {backup("drill_last_result"): "1x3"}, 1, BACKUP),
    Case(
        "DrillTooOld",
        {backup("drill_due_timestamp_seconds"): "0x1500"},
        {backup("drill_due_timestamp_seconds"): "3600x1500"},
        1450,
        BACKUP,
        "1970-01-01 00:00:00 +0000 UTC",
    ),
    Case(
        "EdgeDown",
        {probe("probe_success", "edge"): "0x9"},
        {probe("probe_success", "edge"): "1 0 1x9"},
        5,
        {**STACK, "job": "edge", "instance": "traefik"},
    ),
    Case(
        "CertificateExpiring",
        {probe("probe_ssl_earliest_cert_expiry", "edge"): f"{13 * DAY}x50 stale {13 * DAY}x40"},
        {probe("probe_ssl_earliest_cert_expiry", "edge"): f"{15 * DAY}x90"},
        70,
        {**STACK, "job": "edge", "instance": "traefik"},
        "12d 22h 50m 0s",
    ),
    Case(
        "InternalCertificatesExpiring",
        {
            probe("probe_ssl_earliest_cert_expiry", "readiness"): f"{20 * DAY}x50 stale {20 * DAY}x40",
            probe("probe_ssl_earliest_cert_expiry", "store"): f"{30 * DAY}x90",
        },
        {
            probe("probe_ssl_earliest_cert_expiry", "readiness"): f"{22 * DAY}x90",
            probe("probe_ssl_earliest_cert_expiry", "edge"): f"{20 * DAY}x90",
        },
        70,
        STACK,
        "19d 22h 50m 0s",
    ),
    Case("SecretsOld", {SECRETS_DUE: "600x90"}, {SECRETS_DUE: "7200x90"}, 75, STACK),
    Case(
        "TargetDown",
        {up("backup", "backup"): "0x9"},
        {up("backup", "backup"): "1 0x3 1x9"},
        7,
        BACKUP,
    ),
    Case("NotificationsFailing", {FAILED: "0+1x20"}, {FAILED: "0x2 1x18"}, 12, {**STACK, "integration": "webhook"}),
]


def promtool(tests: list[dict[str, Any]]) -> tuple[int, str]:
    """Run `promtool test rules` in the image of Prometheus; return its exit code and output."""
    api = docker.APIClient(base_url=resolve_host(), version="auto")
    document = {"rule_files": ["alerts.yml"], "evaluation_interval": "1m", "tests": tests}
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as archive:
        for name, content in {"alerts.yml": ALERTS.read_text(), "tests.yml": json.dumps(document)}.items():
            entry = tarfile.TarInfo(f"rules/{name}")
            entry.size, entry.mode = len(content.encode()), 0o644
            archive.addfile(entry, io.BytesIO(content.encode()))
    command = ["promtool", "test", "rules", "/rules/tests.yml"]
    container = api.create_container(image("prometheus"), entrypoint=command)["Id"]
    try:
        api.put_archive(container, "/", raw.getvalue())
        api.start(container)
        code: int = api.wait(container)["StatusCode"]
        return code, api.logs(container).decode()
    finally:
        api.remove_container(container, force=True)


def expected(case: Case) -> dict[str, Any]:
    rule = RULES[case.alert]

    def filled(text: str) -> str:
        text = re.sub(r"{{ \$value[^}]*}}", case.value, text)
        return re.sub(r"{{ \$labels\.(\w+) }}", lambda match: case.labels[match[1]], text)

    return {
        "exp_labels": {**case.labels, **rule["labels"]},
        "exp_annotations": {key: filled(value) for key, value in rule["annotations"].items()},
    }


def rule_test(case: Case, series: dict[str, str], alerts: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "interval": "1m",
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "alert_rule_test": [{"eval_time": f"{case.at}m", "alertname": case.alert, "exp_alerts": alerts}],
    }


@pytest.mark.ci
def test_every_alert_fires_in_its_case_and_stays_quiet_otherwise() -> None:
    tests = []
    for case in CASES:
        tests += [rule_test(case, case.fires, [expected(case)]), rule_test(case, case.quiet, [])]
    watchdog = Case("Watchdog", {}, {}, 1)
    tests.append(rule_test(watchdog, {"up": "1x3"}, [expected(watchdog)]))
    code, said = promtool(tests)
    assert code == 0, said


def test_foreign_metrics_in_the_same_prometheus_fire_no_alert() -> None:
    theirs: dict[str, str] = {}
    for case in CASES:
        theirs |= {name.replace('stack="prod"', 'instance_of="theirs"'): values for name, values in case.fires.items()}
    firing = 'count by (alertname) (count_over_time(ALERTS{alertname!="Watchdog"}[1d]))'
    code, said = promtool(
        [
            {
                "interval": "1m",
                "input_series": [{"series": name, "values": values} for name, values in theirs.items()],
                "promql_expr_test": [{"expr": firing, "eval_time": "1d", "exp_samples": []}],
            }
        ]
    )
    assert code == 0, said


def test_promtool_detects_a_wrong_case() -> None:
    code, said = promtool([rule_test(CASES[0], CASES[0].quiet, [expected(CASES[0])])])
    assert code != 0
    assert "MlflowDown" in said


def test_every_alert_has_case_severity_and_runbook() -> None:
    assert {case.alert for case in CASES} | {"Watchdog"} == set(RULES)
    headings = {
        line.strip("# \n").lower().replace(" ", "-")
        for line in (ROOT / "docs" / "operations" / "alerts.md").read_text().splitlines()
        if line.startswith("#")
    }
    for name, rule in RULES.items():
        assert rule["labels"]["severity"] in ("critical", "warning", "none"), name
        path, _, anchor = rule["annotations"]["runbook_url"].partition("#")
        assert path == "docs/operations/alerts.md", name
        assert anchor in headings, name


MINUTES = range(7 * 24 * 60)
UPGRADE = 3 * 1440 + 600
"""The minute in which the server was upgraded."""


def busy(minute: int) -> float:
    """Return how busy a minute of the day is: 0 at night, 1 at the peak."""
    return max(0.0, math.sin((minute % 1440 - 480) / 1440 * 2 * math.pi))


def counted(chance: random.Random, share: float) -> Iterator[float]:
    total = 0.0
    for minute in MINUTES:
        total += round((16 + 600 * busy(minute)) * share * chance.random() * 2)
        if minute == UPGRADE:
            total = 0.0
        yield total


def blinking(chance: random.Random) -> Iterator[float]:
    """Yield answers of which one in a thousand is lost, never two in a row."""
    last = 1.0
    for _ in MINUTES:
        last = 0.0 if last and chance.random() < 0.001 else 1.0
        yield last


def due(missed: bool) -> Iterator[float]:  # noqa: FBT001
    """Yield when the next backup is due: at 03:17; a backup takes 20 to 100 minutes."""
    following = 197 * 60.0
    for minute in MINUTES:
        day, of_day = divmod(minute, 1440)
        if of_day == 197 + 20 + 13 * day and not (missed and day == 4):
            following = ((day + 1) * 1440 + 197) * 60.0
        yield following


def free(chance: random.Random) -> Iterator[float]:
    """Yield the free space of a disk that fills by day and is emptied every second night."""
    left = 46e9
    for minute in MINUTES:
        left = 46e9 if minute % 2880 == 2000 else left - 2e6 * busy(minute) * chance.random()
        yield left


def week(*, missed: bool = False) -> dict[str, str]:
    """Return a week of a busy stack without problems; with `missed`, one night has no backup."""
    chance = random.Random(7)
    values: dict[str, Iterator[float]] = {
        up("mlflow", "server"): blinking(chance),
        up("minio", "minio"): blinking(chance),
        up("backup", "backup"): blinking(chance),
        up("postgres", "postgres"): blinking(chance),
        PG_UP: blinking(chance),
        probe("probe_success"): blinking(chance),
        probe("probe_success", "edge"): blinking(chance),
        probe("probe_success", "store"): blinking(chance),
        probe("probe_duration_seconds"): (
            8.0 if chance.random() < 0.002 else 0.02 + busy(minute) * chance.random() for minute in MINUTES
        ),
        requests("200"): counted(chance, 1),
        requests("404"): counted(chance, 0.05),
        requests("500"): counted(chance, 0.002),
        BACKENDS: (10 + round(50 * busy(minute) * chance.random()) for minute in MINUTES),
        LIMIT: (100.0 for _ in MINUTES),
        disk("free"): free(chance),
        disk("total"): (100e9 for _ in MINUTES),
        backup("backup_due_timestamp_seconds"): due(missed),
        backup("backup_last_result"): (1.0 for _ in MINUTES),
        backup("drill_last_result"): (1.0 for _ in MINUTES),
        backup("drill_due_timestamp_seconds"): (10.0 * DAY for _ in MINUTES),
        started("mlflow"): (float(minute > UPGRADE) for minute in MINUTES),
        probe("probe_ssl_earliest_cert_expiry", "edge"): (
            31.0 * DAY if minute < 1440 else 91.0 * DAY for minute in MINUTES
        ),
        FAILED: (0.0 for _ in MINUTES),
    }
    return {name: " ".join(f"{value:.10g}" for value in series) for name, series in values.items()}


@pytest.mark.long
@pytest.mark.parametrize("missed", [False, True], ids=["no problem", "a missed backup"])
def test_a_normal_week_fires_no_alert_but_for_a_missed_backup(*, missed: bool) -> None:
    firing = 'count by (alertname) (count_over_time(ALERTS{alertstate="firing", alertname!="Watchdog"}[7d]))'
    found = [{"labels": '{alertname="BackupTooOld"}', "value": 1}] if missed else []
    code, said = promtool(
        [
            {
                "interval": "1m",
                "input_series": [{"series": name, "values": values} for name, values in week(missed=missed).items()],
                "promql_expr_test": [{"expr": firing, "eval_time": "7d", "exp_samples": found}],
            }
        ]
    )
    assert code == 0, said
