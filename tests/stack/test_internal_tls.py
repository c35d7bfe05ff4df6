"""Test TLS between the services on a real deployment: what is on the wire, and who is refused."""

import json
import os
import re
import socket
import ssl
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import pytest

from components.certificates import CertificateAuthority
from tests.stack.capture import CAN_CAPTURE, recorded
from tests.stack.deployment import NO_DIGESTS, Deployment, free_port
from tests.stack.edge import HOSTNAME, Edge, Listener, image
from tests.stack.laptop import MAP, laptop
from tests.stack.probes import is_on_disk
from tests.stack.writer import Writer

PORTS = {
    "postgres": (5432,),
    "seaweedfs": (8333,),
    "server": (5000, 5001),
    "backup": (9110,),
    "traefik": (8083,),
    "postgres-exporter": (9187,),
    "blackbox-exporter": (9115,),
    "prometheus": (9090,),
    "alertmanager": (9093,),
}
"""The ports on the networks of the stack. (18333 of SeaweedFS requires a client certificate in every stack.)"""
SCRAPE_INTERVAL_S = 30
"""The longest of all targets."""
LISTENERS = [(service, port) for service, ports in PORTS.items() for port in ports]
IDS = [f"{service}:{port}" for service, port in LISTENERS]
SSL_REQUEST = bytes([0, 0, 0, 8, 4, 210, 22, 47])
"""The message by which a client of Postgres asks for TLS (its documentation, section Message Formats)."""
LOG = """
import mlflow, sys
name, marker = sys.argv[1:]
mlflow.set_experiment(name)
with mlflow.start_run() as run:
    mlflow.log_param(name, marker)
    for step in range(20):
        mlflow.log_metric(name, step, step=step)
    mlflow.log_text(marker * 200_000, "artifact.txt")
assert mlflow.MlflowClient().get_run(run.info.run_id).data.params[name] == marker
assert mlflow.artifacts.load_text(run.info.artifact_uri + "/artifact.txt") == marker * 200_000
"""


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Edge]:
    """Deploy every service that this machine has an image of, with TLS between them and encrypted artifacts."""
    deployment = Deployment(tmp_path_factory.mktemp("tls"), "dev")
    port = free_port()
    deployment.set("hostname", HOSTNAME)
    deployment.set("authentication", "password")
    deployment.set("images", NO_DIGESTS)
    deployment.use("seaweedfs")
    deployment.set("objectStore.encryption", value=True)
    for key in ("traefik", "prometheus", "alertmanager", "postgresExporter", "blackboxExporter"):
        deployment.set(f"images.{key}", {"ref": image(key)})
    deployment.set("server", {"workers": 1, "memoryMb": 1024})
    deployment.set(
        "traefik", {"mode": "bundled", "bindAddress": "127.0.0.1", "httpPort": free_port(), "httpsPort": port}
    )
    deployment.set("backup.enabled", value=True)
    deployment.set("monitoring", {"mode": "bundled", "prometheusPort": free_port()})
    deployment.set("tls.internal", value=True)
    try:
        deployment.make("up")
        edge = Edge(deployment, Listener(port), "")
        edge.opened()
        yield edge
    finally:
        deployment.remove()


def address(deployment: Deployment, service: str) -> str:
    networks = deployment.inspect(service)["NetworkSettings"]["Networks"]
    return str(next(found["IPAddress"] for found in networks.values() if found["IPAddress"]))


@pytest.fixture(scope="module")
def authority(secured: Edge) -> str:
    """The certificate of the authority of the services."""
    return secured.deployment.make("authority").stdout


def shaken(deployment: Deployment, service: str, port: int, trusted: str, name: str) -> None:
    """Complete a TLS handshake with a service as its client `trusted` and `name`; raise `ssl.SSLError` if it fails."""
    with socket.create_connection((address(deployment, service), port), timeout=10) as plain:
        if port == PORTS["postgres"][0]:
            plain.sendall(SSL_REQUEST)
            assert plain.recv(1) == b"S"
        ssl.create_default_context(cadata=trusted).wrap_socket(plain, server_hostname=name).close()


@pytest.mark.parametrize(("service", "port"), LISTENERS, ids=IDS)
def test_every_service_speaks_tls_and_only_its_name_and_authority_are_accepted(
    secured: Edge, authority: str, service: str, port: int
) -> None:
    deployment = secured.deployment
    shaken(deployment, service, port, authority, deployment.name(service))
    # For any other name, Traefik has the certificate for clients outside.
    with pytest.raises(ssl.SSLCertVerificationError, match=r"Hostname mismatch|self-signed"):
        shaken(deployment, service, port, authority, deployment.name("another"))
    theirs = CertificateAuthority.derived(deployment.stack, "x" * 32).certificate
    with pytest.raises(ssl.SSLCertVerificationError, match="certificate verify failed"):
        shaken(deployment, service, port, theirs, deployment.name(service))


@pytest.mark.parametrize(("service", "port"), LISTENERS[1:], ids=IDS[1:])
def test_every_service_refuses_http(secured: Edge, service: str, port: int) -> None:
    paths = {"seaweedfs": "/healthz", "server": "/version"}
    with socket.create_connection((address(secured.deployment, service), port), timeout=10) as plain:
        path = paths.get(service, "/metrics")
        plain.sendall(f"GET {path} HTTP/1.0\r\nHost: {secured.deployment.name(service)}\r\n\r\n".encode())
        plain.settimeout(10)
        try:
            answer = plain.recv(64)
        except ConnectionResetError:
            answer = b""
    # Traefik has one port for both, and no route without TLS.
    assert not answer or (b" 404 " if service == "traefik" else b" 400 ") in answer, answer


def test_postgres_refuses_a_connection_without_tls(secured: Edge) -> None:
    command = "PGPASSFILE=$HOME/p; export PGPASSFILE; umask 077; cp /run/secrets/pgpass $PGPASSFILE; "
    for mode, wanted in (("disable", 2), ("verify-full", 0)):
        code, printed = secured.deployment.run("backup", "sh", "-c", f"{command} PGSSLMODE={mode} psql -Atc 'SELECT 1'")
        assert code == wanted, printed
        assert ("no encryption" in printed) == bool(wanted)


def test_every_client_of_a_service_refuses_another_name(secured: Edge) -> None:
    """Each uses its own settings, and reaches the service by its address, for which there is no certificate."""
    deployment = secured.deployment
    postgres, store = address(deployment, "postgres"), address(deployment, "seaweedfs")
    connect = f"import psycopg2; psycopg2.connect('postgresql://mlflow@{postgres}/mlflow')"
    s3 = (
        "import boto3, os; os.environ['AWS_CA_BUNDLE'] = '/run/mlflow/authorities.pem'; "
        f"boto3.client('s3', endpoint_url='https://{store}:8333', aws_access_key_id='a', aws_secret_access_key='b', "
        "region_name='us-east-1').list_buckets()"
    )
    rclone = f"RCLONE_CONFIG_STORE_ENDPOINT=https://{store}:8333 rclone lsd store: --retries 1 --low-level-retries 1"
    for service, command, words in (
        ("server", ["python", "-c", connect], "does not match host name"),
        ("server", ["python", "-c", s3], "doesn't match"),
        ("backup", ["sh", "-c", f"PGHOST={postgres} psql -c 'SELECT 1'"], "does not match host name"),
        ("backup", ["sh", "-c", rclone], "doesn't contain any IP SANs|is valid for 127.0.0.1, not"),
    ):
        code, printed = deployment.run(service, *command)
        assert code, printed
        assert any(part in printed for part in words.split("|")), printed


def until_scraped(deployment: Deployment) -> dict[str, str]:
    """Return the health of every scrape target, once a scrape from now on has found each of them up.

    A scrape before this call tells nothing about the services of now, and the first one of a new Prometheus can be
    earlier than the start of the service that it asks. After the deadline the return value holds the last errors.
    """
    request = ["wget", "-q", "--no-check-certificate", "-O", "-", "https://127.0.0.1:9090/api/v1/targets"]
    called = datetime.now(UTC)
    deadline = time.monotonic() + 3 * SCRAPE_INTERVAL_S
    while True:
        code, printed = deployment.run("prometheus", *request)
        assert code == 0, printed
        targets = json.loads(printed)["data"]["activeTargets"]
        found = {target["labels"]["job"]: target["health"] + target["lastError"] for target in targets}
        fresh = all(datetime.fromisoformat(target["lastScrape"]) > called for target in targets)
        if (fresh and set(found.values()) == {"up"}) or time.monotonic() > deadline:
            return found if fresh else found | {"old": "not every target was scraped again"}
        time.sleep(2)


def test_prometheus_scrapes_every_service_by_tls(secured: Edge) -> None:
    jobs = {"mlflow", "postgres", "backup", "traefik", "edge", "readiness", "store", "prometheus", "alertmanager"}
    assert until_scraped(secured.deployment) == dict.fromkeys(jobs, "up")
    # The exporter is scraped also if what it probes does not answer.
    deadline = time.monotonic() + 60
    while (found := probes(secured.deployment)) != {"edge": "1", "readiness": "1", "store": "1"}:
        assert time.monotonic() < deadline, found
        time.sleep(2)


def probes(deployment: Deployment) -> dict[str, str]:
    """Return by job whether the last probe of the blackbox exporter succeeded: 1, or 0."""
    url = "https://127.0.0.1:9090/api/v1/query?query=probe_success"
    code, printed = deployment.run("prometheus", "wget", "-q", "--no-check-certificate", "-O", "-", url)
    assert code == 0, printed
    return {found["metric"]["job"]: found["value"][1] for found in json.loads(printed)["data"]["result"]}


@pytest.mark.skipif(not CAN_CAPTURE, reason="needs root on Linux to record packets")
def test_nothing_readable_passes_between_the_containers(secured: Edge, tmp_path: Path) -> None:
    """During a client's day, a backup and a scrape. A request in plaintext shows that the record is complete."""
    deployment = secured.deployment
    name, marker, control = f"metric-{uuid4()}", f"marker-{uuid4()}", f"control-{uuid4()}"
    script = tmp_path / "log.py"
    script.write_text(LOG)
    with recorded(tmp_path / "packets"):
        done = secured.listener.client(
            str(script), name, marker, MLFLOW_TRACKING_USERNAME="mlflow", MLFLOW_TRACKING_PASSWORD=secured.password
        )
        assert done.returncode == 0, done.stderr
        deployment.make("backup")
        until_scraped(deployment)
        server = deployment.name("server")
        plain = f"import socket; socket.create_connection(('{server}', 5000)).sendall(b'GET /{control} HTTP/1.0\\r\\n')"
        assert deployment.run("backup", "python3", "-c", plain)[0] == 0
        time.sleep(1)
    found = (tmp_path / "packets").read_bytes()
    # The artifact of 9 MB passes from Traefik to the server and on to the object store, and all of it back.
    assert len(found) > 4 * 9_000_000
    assert control.encode() in found, "the record lacks packets between containers"
    secrets = {key: value for key, value in deployment.credentials().items() if len(value) >= 12}
    assert len(secrets) > 5
    for what, text in {"the metric's name": name, "the artifact": marker, **secrets}.items():
        assert text.encode() not in found, what


@pytest.mark.engine
def test_the_second_plan_is_empty(secured: Edge) -> None:
    assert not secured.deployment.plan()


@pytest.mark.ci
def test_a_restore_and_a_garbage_collection_work_by_tls(secured: Edge) -> None:
    deployment = secured.deployment
    deployment.make("backup")
    deployment.make("restore", FROM="latest", CONFIRM=deployment.stack)
    assert "nothing to delete" in deployment.make("gc", CONFIRM=deployment.stack, OLDER_THAN="1s").stderr


@pytest.mark.ci
@pytest.mark.skipif(not CAN_CAPTURE, reason="needs root on Linux to record packets and to read a volume")
def test_an_import_arrives_by_tls_and_is_encrypted(secured: Edge, tmp_path: Path) -> None:
    deployment, content = secured.deployment, os.urandom(100_000)
    old = laptop(tmp_path, deployment.name("server"), content)
    with recorded(tmp_path / "packets"):
        said = deployment.make("import", SOURCE=str(old.database), CONFIRM=deployment.stack, MAP=MAP).stdout
    assert re.search(r"\b1 artifacts?\b", said), said
    packets = (tmp_path / "packets").read_bytes()
    assert len(packets) > len(content), "the record lacks the copy of the artifact"
    assert content[1000:1064] not in packets
    old.require_equal(secured.listener, tmp_path, secured.password)
    # What is not encrypted, such as the names of its files, shows that this is the disk of the store.
    assert is_on_disk(deployment, old.artifact.name.encode())
    assert not is_on_disk(deployment, content[1000:1064])


@pytest.mark.ci
@pytest.mark.engine
def test_every_secret_and_certificate_is_rotated_while_a_client_writes(secured: Edge) -> None:
    deployment = secured.deployment

    def password() -> str:
        return deployment.make("password").stdout.strip()

    # Without one, the old password of the backups opens nothing that could be tried.
    deployment.make("backup")
    with Writer(f"https://127.0.0.1:{secured.listener.port}", HOSTNAME, "mlflow", password) as writer:
        time.sleep(3)
        said = deployment.make("rotate").stdout
        time.sleep(5)
    for key in ("clientPassword", "internalAuthority", "postgresPassword", "seaweedfsPassword", "backupPassword"):
        assert f"| {key} | refused | accepted |" in said
    assert len(writer.runs) > 10
    assert writer.writes, "the client never came back"
    assert writer.lost() == []
    assert set(until_scraped(deployment).values()) == {"up"}
    assert not deployment.plan()


@pytest.mark.engine
@pytest.mark.long
def test_expired_certificates_are_named_and_the_next_up_renews_them(secured: Edge) -> None:
    deployment = secured.deployment
    deployment.pulumi("config", "set", "--path", "mlflow:tls.issued", "2024-01-01T00:00:00Z")
    failed = deployment.pulumi("up", "--yes", "--skip-preview", "--refresh", ok=False)
    assert failed.returncode
    assert "expired" in failed.stdout
    assert f"make up STACK={deployment.stack}" in failed.stdout
    assert "valid until" in deployment.make("up").stderr
    issued = datetime.fromisoformat(str(deployment.values["mlflow:tls"]["issued"]))
    assert datetime.now(UTC) - issued < timedelta(hours=1)
    secured.opened()
