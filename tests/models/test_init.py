"""`make init`: the stack file that it creates, and what it refuses."""

import socket
from pathlib import Path

import pytest
import yaml

from operations.common import stack as stack_module
from operations.common.console import StopError
from operations.common.stack import Stack
from operations.deployment import init as init_module
from operations.deployment.init import init
from tests.shipped import stack_file


@pytest.fixture(autouse=True)
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout with the stack file of dev."""
    (tmp_path / "Pulumi.dev.yaml").write_text(stack_file("dev"))
    for module in (init_module, stack_module):
        monkeypatch.setattr(module, "ROOT", tmp_path)
    for name in ("PORT", "STACK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path


def test_a_new_stack_has_the_settings_of_dev_and_its_own_port(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PORT", "5055")
    init("acme")
    acme, dev = Stack("acme"), Stack("dev")
    assert acme.settings.route.url == "http://127.0.0.1:5055"
    assert {key: value for key, value in acme.values.items() if key != "mlflow:server"} == {
        key: value for key, value in dev.values.items() if key != "mlflow:server"
    }
    assert "# No digests: an image with the right name" in acme.text
    assert acme.text.splitlines()[1].startswith("# Created by `make init` from Pulumi.dev.yaml.")
    printed = capsys.readouterr()
    assert printed.out == "Pulumi.acme.yaml\n"
    assert "to deploy it: make up STACK=acme\n" in printed.err


def test_a_new_stack_has_neither_the_ages_nor_the_certificates_of_dev(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PORT", "5055")
    path = checkout / "Pulumi.dev.yaml"
    document = yaml.safe_load(path.read_text())
    since = "2026-01-02T03:04:05+00:00"
    document["config"] |= {
        "mlflow:rotation": {"since": since, "done": {"postgresPassword": since}, "afterDays": 90},
        "mlflow:tls": {"issued": since},
    }
    path.write_text(yaml.safe_dump(document))
    init("acme")
    created = yaml.safe_load((checkout / "Pulumi.acme.yaml").read_text())["config"]
    assert created["mlflow:rotation"] == {"afterDays": 90}
    assert "mlflow:tls" not in created


def test_a_new_stack_has_no_secret_and_no_salt_of_dev(checkout: Path) -> None:
    path = checkout / "Pulumi.dev.yaml"
    document = yaml.safe_load(path.read_text())
    document["encryptionsalt"] = "v1:salt:v1:a:b"
    document["config"] |= {
        "mlflow:postgresPassword": {"secure": "v1:a:b"},
        "mlflow:clientPassword": "plain-text-password",
        "docker:host": {"secure": "v1:a:b"},
    }
    path.write_text(yaml.safe_dump(document))
    init("acme")
    acme = Stack("acme")
    assert acme.document.keys() == {"config"}
    assert not {"mlflow:postgresPassword", "mlflow:clientPassword", "docker:host"} & acme.values.keys()


def test_without_a_port_the_first_free_one_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        taken.listen()
        monkeypatch.setattr(init_module, "FIRST_PORT", port)
        init("acme")
        first = Stack("acme").settings.route.published_port
        init("team")
        second = Stack("team").settings.route.published_port
    assert first is not None
    assert second is not None
    assert port < first < second


@pytest.mark.parametrize(
    ("name", "port", "words"),
    [
        ("dev", "", "STACK=dev: Pulumi.dev.yaml exists already"),
        ("Acme", "", "STACK=Acme: a stack's name is part of Docker names"),
        ("acme", "80", "PORT=80: must be a port from 1024 to 65535"),
        ("acme", "port", "PORT=port: must be a port from 1024 to 65535"),
        ("acme", "5000", "PORT=5000: Pulumi.dev.yaml publishes its server on this port"),
    ],
)
def test_an_invalid_name_or_port_creates_nothing(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, name: str, port: str, words: str
) -> None:
    monkeypatch.setenv("PORT", port)
    before = sorted(checkout.iterdir())
    with pytest.raises(StopError) as refused:
        init(name)
    assert words in str(refused.value)
    assert "for a new stack on a free port, type: make init STACK=<name>" in str(refused.value)
    assert sorted(checkout.iterdir()) == before


def test_all_problems_of_a_new_stack_are_reported_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PORT", "80")
    with pytest.raises(StopError, match=r"(?s)STACK=Acme: .*PORT=80: "):
        init("Acme")
