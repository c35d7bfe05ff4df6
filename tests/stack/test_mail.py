"""Test mail by a real Alertmanager: over TLS, with authentication, for firing and resolved alerts."""

import io
import json
import subprocess
import tarfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from email.message import Message
from pathlib import Path
from ssl import PROTOCOL_TLS_SERVER, SSLContext

import docker
import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.handlers import Message as Handler
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session

from components.alertmanager import alertmanager_config
from runtime.address import resolve_host
from runtime.workload import CONFIG, SECRETS
from settings.monitoring import MonitoringSettings
from settings.secrets import MAIL_SECRET
from tests.stack.deployment import free_port
from tests.stack.edge import image
from tests.stack.probes import host_as_containers_see_it

SERVER, PASSWORD = "smtp.example.com", "of-the-mail"
ALERT = ("alertname=MlflowDown", "stack=prod", "--annotation=summary=It does not answer.")


class Inbox(Handler):
    """The mails that arrived."""

    def __init__(self) -> None:
        super().__init__()
        self.mails: list[Message] = []

    def handle_message(self, message: Message) -> None:
        self.mails.append(message)

    def until(self, words: str, seconds: float = 60) -> Message:
        deadline = time.monotonic() + seconds
        while True:
            for mail in self.mails:
                if words in str(mail["Subject"]):
                    return mail
            assert time.monotonic() < deadline, f"no subject has {words}: {[mail['Subject'] for mail in self.mails]}"
            time.sleep(0.2)


def knows(_: SMTP, __: Session, ___: Envelope, ____: str, said: object) -> AuthResult:
    right = isinstance(said, LoginPassword) and (said.login, said.password) == (b"mlflow", PASSWORD.encode())
    return AuthResult(success=right, handled=False)


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, SSLContext]:
    """Return the certificate of the mail server, and a TLS context that serves it."""
    public, private = tmp_path / "certificate.pem", tmp_path / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", f"/CN={SERVER}"]
    options = ["-addext", f"subjectAltName=DNS:{SERVER}", "-keyout", str(private), "-out", str(public)]
    subprocess.run([*command, *options], check=True, capture_output=True)
    context = SSLContext(PROTOCOL_TLS_SERVER)
    context.load_cert_chain(public, private)
    return public, context


@pytest.fixture
def server(certificate: tuple[Path, SSLContext]) -> Iterator[tuple[Inbox, int]]:
    """Run a mail server that requires TLS and authentication."""
    inbox, port = Inbox(), free_port()
    controller = Controller(
        inbox,
        # Containers reach the host through the gateway of the default network.
        hostname="0.0.0.0",
        port=port,
        server_hostname=SERVER,
        tls_context=certificate[1],
        require_starttls=True,
        authenticator=knows,
        auth_required=True,
        # aiosmtpd prompts for "User Name" in LOGIN, which differs from other mail servers.
        auth_exclude_mechanism=["LOGIN"],
    )
    controller.start()
    try:
        yield inbox, port
    finally:
        controller.stop()


@contextmanager
def alertmanager(files: dict[str, str]) -> Iterator[tuple[docker.APIClient, str]]:
    """Run Alertmanager with `files` (path to content); yield the API client and the container."""
    api = docker.APIClient(base_url=resolve_host(), version="auto")
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as archive:
        for path, content in files.items():
            entry = tarfile.TarInfo(path.removeprefix("/"))
            entry.size, entry.mode = len(content.encode()), 0o644
            archive.addfile(entry, io.BytesIO(content.encode()))
    command = [f"--config.file={CONFIG}/alertmanager.yml", "--storage.path=/tmp/data", "--cluster.listen-address="]
    container = api.create_container(
        image("alertmanager"),
        entrypoint=["alertmanager", *command],
        environment={"SSL_CERT_FILE": "/run/authority.pem"},
        host_config=api.create_host_config(extra_hosts={SERVER: host_as_containers_see_it(api)}),
    )["Id"]
    try:
        api.put_archive(container, "/", raw.getvalue())
        api.start(container)
        yield api, container
    finally:
        api.remove_container(container, force=True)


def tell(api: docker.APIClient, container: str, *arguments: str) -> None:
    """Send an alert to Alertmanager, as Prometheus does, once it listens."""
    command = ["amtool", "--alertmanager.url=http://127.0.0.1:9093", "alert", "add", *arguments]
    deadline = time.monotonic() + 30
    while True:
        run = api.exec_create(container, command)["Id"]
        said = api.exec_start(run).decode()
        if api.exec_inspect(run)["ExitCode"] == 0:
            return
        assert time.monotonic() < deadline, said + api.logs(container).decode()
        time.sleep(0.2)


def test_an_alert_that_another_one_explains_is_not_sent() -> None:
    mail = {"to": "ops@example.com", "sender": "mlflow@example.com", "server": f"{SERVER}:1", "user": "mlflow"}
    config = alertmanager_config(MonitoringSettings.model_validate({"mode": "bundled", "mail": mail}))
    explained = "alertname=MlflowNotReady"
    with alertmanager({f"{CONFIG}/alertmanager.yml": config, f"{SECRETS}/{MAIL_SECRET}": PASSWORD}) as (api, container):

        def inhibited() -> list[str]:
            command = ["amtool", "--alertmanager.url=http://127.0.0.1:9093", "alert", "query", "--inhibited"]
            run = api.exec_create(container, [*command, "--output=json"])["Id"]
            return [alert["labels"]["stack"] for alert in json.loads(api.exec_start(run).decode())]

        for stack in ("prod", "staging"):
            tell(api, container, explained, f"stack={stack}")
        assert inhibited() == []
        tell(api, container, *ALERT)
        deadline = time.monotonic() + 30
        while (found := inhibited()) != ["prod"]:
            assert time.monotonic() < deadline, found
            time.sleep(0.2)


def test_a_firing_and_a_resolved_alert_arrive_by_mail(
    certificate: tuple[Path, SSLContext], server: tuple[Inbox, int]
) -> None:
    inbox, port = server
    mail = {"to": "ops@example.com", "sender": "mlflow@example.com", "server": f"{SERVER}:{port}", "user": "mlflow"}
    config = alertmanager_config(MonitoringSettings.model_validate({"mode": "bundled", "mail": mail}))
    # Shorten the waiting times, which are not under test.
    config = config.replace("group_wait: 10s", "group_wait: 1s").replace("group_interval: 1m", "group_interval: 2s")
    files = {
        f"{CONFIG}/alertmanager.yml": config,
        f"{SECRETS}/{MAIL_SECRET}": PASSWORD,
        "/run/authority.pem": certificate[0].read_text(),
    }
    with alertmanager(files) as (api, container):
        tell(api, container, *ALERT)
        told = inbox.until("FIRING:1")
        assert (told["To"], told["From"]) == ("ops@example.com", "mlflow@example.com")
        assert "MlflowDown" in told["Subject"]
        assert "It does not answer." in "".join(str(part.get_payload(decode=True)) for part in told.walk())
        tell(api, container, *ALERT, "--start=2026-01-01T00:00:00Z", "--end=2026-01-02T00:00:00Z")
        inbox.until("RESOLVED")
        assert PASSWORD not in api.logs(container).decode()
