"""Test the operations that need no deployment."""

import ast
import hashlib
import importlib
import io
import json
import os
import platform
import re
import shutil
import socket
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import docker
import pytest
import requests
import yaml
from docker.errors import APIError, DockerException

from offline import build, engineless, engineless_state
from operations import __main__ as operations_main
from operations.__main__ import CHANGES, SUPPORT_DRY_RUN, VERBS, main
from operations.common import checkout, console
from operations.common import stack as stack_module
from operations.common.console import StopError
from operations.common.stack import Stack
from operations.deployment import copy_preview, deploy, end, engine_for, pin, preview, prune
from operations.engine import backend, cli, encrypted, recovery
from operations.engine import engine as engine_module
from operations.engine.engine import Engine
from operations.engine.output import worth_showing
from operations.engine.plan import Plan
from operations.engine.state import State
from operations.engine.write_back import write_back_secrets
from operations.host import addresses, capacity, checks, containers, docker_daemon, images, ports
from operations.observe import access, doctor, hostname, logs, secrets, status
from runtime.address import client_certificates, resolve_host
from runtime.daemon import Daemon
from settings import names, packages
from settings.names import DATA_KEY, GENERATOR
from tests.shipped import stack_file

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def bare_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Set a home folder without any Pulumi or Docker configuration, and no terminal."""
    for name in list(os.environ):
        if name.startswith(("PULUMI_", "DOCKER_", "XDG_")) or name in ("YES", "CONFIRM", "STACK", "ARGS"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(console, "interactive", lambda: False)


@pytest.fixture
def stack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stack:
    """Return the stack dev, in a temporary checkout."""
    (tmp_path / "Pulumi.yaml").write_text((ROOT / "Pulumi.yaml").read_text())
    (tmp_path / "Pulumi.dev.yaml").write_text(stack_file("dev"))
    for module in (stack_module, backend):
        monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(engine_module, "ROOT", tmp_path)
    monkeypatch.setattr(cli, "LOCAL_CLI", tmp_path / ".pulumi-cli")
    monkeypatch.setattr(engine_module, "find_cli", lambda: Path("/bin/true"))
    return Stack("dev")


# --- the checkout ---------------------------------------------------------------------------------------------------


def test_a_clone_with_autocrlf_keeps_linux_line_endings(tmp_path: Path) -> None:
    clone = ["git", "-c", "core.autocrlf=true", "clone", "--quiet", str(ROOT), str(tmp_path / "clone")]
    subprocess.run(clone, check=True)
    shutil.copy(ROOT / ".gitattributes", tmp_path / "clone")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=tmp_path / "clone", capture_output=True, check=True).stdout
    for name in filter(None, listed.decode().split("\0")):
        if name.endswith(".png"):
            # Its signature has both characters. Git finds out that it is binary.
            assert (tmp_path / "clone" / name).read_bytes() == (ROOT / name).read_bytes()
            continue
        assert b"\r\n" not in (tmp_path / "clone" / name).read_bytes(), name


def test_scripts_with_windows_line_endings_are_refused_by_name(tmp_path: Path) -> None:
    for part in ("assets", "mlflow"):
        shutil.copytree(ROOT / part, tmp_path / part)
    checkout.require_line_ends(tmp_path)
    script = tmp_path / "mlflow" / "docker-entrypoint.sh"
    script.write_bytes(script.read_bytes().replace(b"\n", b"\r\n"))
    with pytest.raises(StopError, match=r"type: sed -i 's/\\r\$//' mlflow/docker-entrypoint\.sh"):
        checkout.require_line_ends(tmp_path)


def test_a_makefile_with_windows_line_endings_prints_the_fix(tmp_path: Path) -> None:
    (tmp_path / "operations").mkdir()
    for name in ("Makefile", "operations/bootstrap.sh"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes().replace(b"\n", b"\r\n"))
    done = subprocess.run(["make", "url"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode
    assert done.stderr.startswith("error: the files of this checkout have Windows line endings (CRLF)")
    assert r"xargs -0 sed -i 's/\r$//'" in done.stderr


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("stack=acme", r"stack=: no such variable; did you mean STACK=\?"),
        ("dryrun=1", r"dryrun=: no such variable"),
        ("OLDER-THAN=1d", r"OLDER-THAN=: no such variable"),
    ],
)
def test_an_unknown_make_variable_is_refused_with_the_nearest_name(given: str, said: str) -> None:
    done = subprocess.run(["make", "url", given], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode
    assert re.search(said, done.stderr)
    assert "variables: SECRET STACK YES CONFIRM" in done.stderr


def test_a_stack_that_is_named_in_lower_case_in_the_environment_is_refused() -> None:
    environment = {**os.environ, "stack": "acme"}
    done = subprocess.run(["make", "url"], cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode
    assert "stack=: no such variable; did you mean STACK=?" in done.stderr


def spoken(path: Path) -> Iterator[str]:
    """Yield every string of a program that is not a docstring, parts of f-strings included."""
    tree = ast.parse(path.read_text())
    documented = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    } | {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documented:
            yield node.value


@pytest.mark.parametrize("folder", ["operations", "components", "assets", "mlflow", "offline", "runtime", "settings"])
def test_every_printed_make_command_names_its_stack(folder: str) -> None:
    found = [
        f"{path.relative_to(ROOT)}: {text.strip()}"
        for path in sorted((ROOT / folder).rglob("*"))
        if path.suffix in (".py", ".sh") and path.name not in ("reference.py", "lock.sh")
        for text in (spoken(path) if path.suffix == ".py" else path.read_text().splitlines())
        if re.search(rf"(type|see|again|another|or): make ({'|'.join(VERBS)})(?![\w-])(?! [A-Z_=$<>{{}}]*STACK=)", text)
    ]
    assert found == []


@pytest.mark.parametrize(
    ("encoding", "called"), [("utf-16", "UTF-16"), ("utf-16-le-bom", "UTF-16"), ("latin-1", "ISO-8859-1")]
)
def test_a_stack_file_that_is_not_utf8_is_refused_with_the_fix(stack: Stack, encoding: str, called: str) -> None:
    text = "config:\n  mlflow:hostname: caf\u00e9.example.com\n"
    content = b"\xff\xfe" + text.encode("utf-16-le") if encoding == "utf-16-le-bom" else text.encode(encoding)
    stack.path.write_bytes(content)
    with pytest.raises(StopError, match=f"not UTF-8(.|\n)*type: iconv -f {called} -t UTF-8 Pulumi.dev.yaml"):
        stack.settings  # noqa: B018


# --- the stack file ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "config:\n  mlflow:server:\n    workers: 3\n    workers: 2\n",
            "Pulumi.dev.yaml:4: the key workers is there twice; remove one of the two",
        ),
        ("config:\n  mflow:server:\n    workers: 3\n", "mflow:server: unknown namespace; did you mean mlflow?"),
        ("config:\n  server:\n    workers: 3\n", "server: write it as mlflow:server"),
        ("konfig:\n  mlflow:hostname: a\n", "konfig: unknown top-level key; did you mean config?"),
        (
            "config:\n  mlflow:server.workers: 3\n",
            "mlflow:server.workers: write it as a section: mlflow:server: and, below that, workers:",
        ),
        ("- mlflow\n", "it must have the key config:"),
    ],
    ids=["duplicate key", "unknown namespace", "no namespace", "no config", "a path", "a list"],
)
def test_keys_that_would_be_ignored_are_refused(stack: Stack, text: str, words: str) -> None:
    stack.path.write_text(text)
    with pytest.raises(StopError) as caught:
        stack.settings  # noqa: B018 - raises
    assert words in str(caught.value)
    assert str(caught.value).startswith("Pulumi.dev.yaml")


def test_invalid_yaml_is_reported_with_file_and_line(stack: Stack) -> None:
    stack.path.write_text("config:\n  mlflow:server: {workers: 3\n")
    with pytest.raises(StopError) as caught:
        stack.settings  # noqa: B018 - raises
    assert str(caught.value).startswith("Pulumi.dev.yaml:3: cannot be read as YAML: expected ',' or '}'")


@pytest.mark.parametrize(
    "text",
    [
        "mlflow:backupPassword: of-the-backup\n  mlflow:backupPassword: of-the-backup",
        "mlflow:backupPassword: 'of-the-backup",
    ],
    ids=["twice", "an open quote"],
)
def test_a_stack_file_that_cannot_be_read_is_refused_without_its_values(stack: Stack, text: str) -> None:
    stack.path.write_text(f"config:\n  {text}\n")
    with pytest.raises(StopError) as caught:
        stack.settings  # noqa: B018 - raises
    assert "Pulumi.dev.yaml:" in str(caught.value)
    assert "of-the-backup" not in str(caught.value)


def test_a_stack_deployed_from_another_checkout_is_reported(
    stack: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stack.report_other_checkout()
    stack.remember_checkout()
    stack.report_other_checkout()
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(stack_module, "ROOT", tmp_path / "second")
    stack.report_other_checkout()
    assert f"note: dev was last deployed from {tmp_path}; this is {tmp_path / 'second'}" in capsys.readouterr().err


# --- where Docker is -----------------------------------------------------------------------------------------------


def context(home: Path, name: str, host: str) -> None:
    folder = home / ".docker" / "contexts" / "meta" / "abc"
    folder.mkdir(parents=True)
    (folder / "meta.json").write_text(json.dumps({"Name": name, "Endpoints": {"docker": {"Host": host}}}))
    (home / ".docker" / "config.json").write_text(json.dumps({"currentContext": name}))


def test_the_docker_host_is_resolved_as_the_docker_cli_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_host() == "unix:///var/run/docker.sock"
    context(tmp_path / "home", "colima", "unix:///colima.sock")
    assert resolve_host() == "unix:///colima.sock"
    monkeypatch.setenv("DOCKER_CONTEXT", "colmia")
    with pytest.raises(DockerException, match="the Docker context 'colmia' does not exist"):
        resolve_host()
    monkeypatch.setenv("DOCKER_CONTEXT", "default")
    assert resolve_host() == "unix:///var/run/docker.sock"
    monkeypatch.setenv("DOCKER_HOST", "ssh://prod")
    assert resolve_host() == "ssh://prod"
    assert resolve_host("tcp://stack:2376") == "tcp://stack:2376"


def test_a_docker_context_with_certificates_is_refused_with_the_variables_to_set(tmp_path: Path) -> None:
    home = tmp_path / "home"
    context(home, "builder", "tcp://builder:2376")
    (home / ".docker" / "contexts" / "tls" / "abc" / "docker").mkdir(parents=True)
    with pytest.raises(DockerException, match=r"'builder' has TLS certificates.*set DOCKER_HOST, DOCKER_TLS_VERIFY=1"):
        resolve_host()


def test_an_empty_variable_of_docker_counts_as_unset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context(tmp_path / "home", "colima", "unix:///colima.sock")
    monkeypatch.setenv("DOCKER_CONFIG", "")
    assert resolve_host() == "unix:///colima.sock"
    asked: list[str] = []
    monkeypatch.setattr(docker, "TLSConfig", lambda **given: asked.append(given["ca_cert"]))
    monkeypatch.setenv("DOCKER_TLS_VERIFY", "1")
    monkeypatch.setenv("DOCKER_CERT_PATH", "")
    client_certificates()
    assert asked == [str(tmp_path / "home" / ".docker" / "ca.pem")]


class Old:
    host = "unix:///var/run/docker.sock"

    @property
    def api(self) -> Any:  # noqa: ANN401
        return self

    def version(self) -> dict[str, str]:
        return {"ApiVersion": "1.40", "Version": "19.03.15"}


def test_an_old_docker_is_refused_with_both_versions() -> None:
    assert docker_daemon.docker_problem(Old()) == (  # type: ignore[arg-type]
        "this project needs Docker 20.10 or newer, but unix:///var/run/docker.sock has 19.03.15\n"
        "  to upgrade: https://docs.docker.com/engine/install/"
    )


class Failing:
    host = "unix:///var/run/docker.sock"

    def __init__(self, error: Exception) -> None:
        self.error = error

    @property
    def api(self) -> Any:  # noqa: ANN401
        raise self.error


def test_a_denied_docker_socket_is_reported_with_the_fix() -> None:
    denied = DockerException("Error while fetching server API version: PermissionError(13, 'Permission denied')")
    said = docker_daemon.docker_problem(Failing(denied))  # type: ignore[arg-type]
    assert said is not None
    assert "sudo usermod -aG docker $USER && newgrp docker" in said


def test_a_docker_daemon_that_does_not_answer_is_reported(tmp_path: Path) -> None:
    (tmp_path / "docker.sock").write_text("")
    failing = Failing(requests.exceptions.ConnectionError("timed out"))
    failing.host = f"unix://{tmp_path}/docker.sock"
    said = docker_daemon.docker_problem(failing)  # type: ignore[arg-type]
    assert said is not None
    assert "does not answer" in said


# --- the host ------------------------------------------------------------------------------------------------------


class Host:
    """A daemon on a small host."""

    host = "unix:///var/run/docker.sock"

    published_on = "0.0.0.0"

    def __init__(self, root: str = "/", cpus: int = 2, memory_mb: int = 8192) -> None:
        self.root, self.cpus, self.memory_mb = root, cpus, memory_mb

    @property
    def api(self) -> Any:  # noqa: ANN401
        return self

    def info(self) -> dict[str, Any]:
        return {"NCPU": self.cpus, "MemTotal": self.memory_mb * 2**20, "DockerRootDir": self.root}

    def services(self, _stack: str, **_: bool) -> dict[str, str]:
        return {}

    def containers(self, **asked: Any) -> list[dict[str, Any]]:  # noqa: ANN401
        if asked.get("filters", {}).get("status") == "paused":
            return []
        return [{"Id": "x", "Names": ["/web"], "Labels": {}, "Ports": [{"PublicPort": 5000, "IP": self.published_on}]}]

    def has_image(self, _name: str) -> bool:
        return False

    def inspect(self, _container: str) -> None:
        return None

    def networks(self) -> set[str]:
        return set()

    def subnets(self) -> dict[str, list[str]]:
        return {}

    def volumes(self) -> set[str]:
        return set()


def host_problems(stack: Stack, host: Host, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(Stack, "daemon", property(lambda _: host))
    with pytest.raises(StopError) as caught:
        checks.require_host(stack)
    return str(caught.value)


ALL_TAKEN = {f"n{second}": [f"172.{second}.0.0/16"] for second in range(17, 31)} | {"home": ["192.168.0.0/16"]}


def test_an_exhausted_address_pool_is_reported_with_the_setting_to_add(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Host, "subnets", lambda _: ALL_TAKEN)
    monkeypatch.setattr(addresses, "host_routes", lambda: [("tun0", "172.16.0.0/12")])
    said = host_problems(stack, Host(), monkeypatch)
    assert "Docker has addresses for 0 more networks, but the stack needs 2 (backend, edge)\n" in said
    assert "in Pulumi.dev.yaml: mlflow:networks: {subnets: {backend: 10.213.0.0/26}}" in said
    stack.set("networks", subnets={"backend": "10.213.0.0/26", "edge": "10.213.0.64/26"})
    assert "Docker has addresses" not in host_problems(stack, Host(cpus=1), monkeypatch)


def test_a_change_of_the_stack_file_keeps_who_may_read_it(stack: Stack) -> None:
    stack.path.chmod(0o600)
    stack.set("networks", subnets={"backend": "10.213.0.0/26"})
    assert stack.path.stat().st_mode & 0o777 == 0o600


def test_existing_networks_need_no_new_addresses(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    there = {"mlflow-dev-backend": ["172.31.0.0/16"], "mlflow-dev-edge": ["10.0.0.0/24"]}
    monkeypatch.setattr(Host, "subnets", lambda _: ALL_TAKEN | there)
    monkeypatch.setattr(addresses, "host_routes", list)
    assert "Docker has addresses" not in host_problems(stack, Host(cpus=1), monkeypatch)


def test_configured_subnets_that_overlap_are_refused_by_name(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Host, "subnets", lambda _: {"theirs": ["10.213.0.0/24"], "mlflow-dev-edge": ["10.214.0.0/26"]})
    monkeypatch.setattr(addresses, "host_routes", lambda: [("tun0", "10.8.0.0/16"), ("tun0", "10.9.0.0/16")])
    stack.set("networks", subnets={"backend": "10.213.0.0/26", "edge": "10.214.0.0/26"})
    said = host_problems(stack, Host(), monkeypatch)
    assert "mlflow:networks.subnets.backend: 10.213.0.0/26 overlaps with 10.213.0.0/24 (theirs)\n" in said
    # A subnet that the network of this stack already has is no conflict.
    assert "subnets.edge" not in said
    stack.set("networks", subnets={"backend": "10.8.1.0/26"})
    assert "10.8.1.0/26 overlaps with 10.8.0.0/16 (a route of this host through tun0)" in host_problems(
        stack, Host(), monkeypatch
    )


def test_host_routes_are_read_without_those_of_docker_bridges(tmp_path: Path) -> None:
    table = tmp_path / "route"
    table.write_text(
        "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n"
        "eth0\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n"
        "docker0\t000011AC\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0\n"
        "tun0\t000010AC\t00000000\t0001\t0\t0\t0\t0000F0FF\t0\t0\t0\n"
        "tun0\t0000080A\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0\n"
        # The two routes with which OpenVPN redirects all traffic.
        "tun0\t00000000\t0108080A\t0003\t0\t0\t0\t00000080\t0\t0\t0\n"
        "tun0\t00000080\t0108080A\t0003\t0\t0\t0\t00000080\t0\t0\t0\n"
    )
    assert list(addresses.host_routes(table)) == [("tun0", "172.16.0.0/12"), ("tun0", "10.8.0.0/16")]
    assert list(addresses.host_routes(tmp_path / "none")) == []


def test_all_problems_of_the_host_are_reported_at_once(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capacity, "MINIMUM_FREE_GB", 10**6)
    said = host_problems(stack, Host(cpus=1, memory_mb=1024), monkeypatch)
    assert said.startswith("nothing was changed\n")
    assert "mlflow:server.cpus: is 2, but the Docker host has 1 CPUs" in said
    assert "add up to 3328 MB, but the host has 1024 MB" in said
    assert "GB are free in /; the stack needs 1000000 GB" in said
    assert "mlflow:server.port: port 5000 of 127.0.0.1 is in use by the container web" in said
    assert "set another port in Pulumi.dev.yaml, under mlflow:server: port: 5001" in said


def test_free_disk_space_is_checked_when_only_a_build_is_missing(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    host = Host()
    monkeypatch.setattr(host, "has_image", lambda name: not name.startswith("localhost/"))
    monkeypatch.setattr(capacity, "MINIMUM_FREE_GB", 10**6)
    assert "GB are free in /; the stack needs 1000000 GB" in host_problems(stack, host, monkeypatch)


def test_a_port_taken_on_another_host_address_is_no_conflict(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    host = Host()
    host.published_on = "10.0.0.5"
    monkeypatch.setattr(ports, "_is_port_in_use", lambda _address, _port: False)
    monkeypatch.setattr(Stack, "daemon", property(lambda _: host))
    checks.require_host(stack)


def test_a_deployment_is_refused_while_a_restore_runs(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    class Restoring(Host):
        def inspect(self, name: str) -> dict[str, Any] | None:  # type: ignore[override]
            return {"State": {"Running": True}} if name == "mlflow-dev-restore" else None

    monkeypatch.setattr(Stack, "daemon", property(lambda _: Restoring()))
    with pytest.raises(StopError, match=r"a restore is running[^$]*docker logs -f mlflow-dev-restore"):
        checks.require_host(stack)


@pytest.mark.parametrize("service", ["prometheus", "alertmanager", "grafana"])
def test_host_ports_of_the_monitoring_are_checked(stack: Stack, monkeypatch: pytest.MonkeyPatch, service: str) -> None:
    monkeypatch.setattr(ports, "_is_port_in_use", lambda _address, port: port == 9999)
    stack.set("monitoring", **{"mode": "bundled", f"{service}Port": 9999})
    assert f"mlflow:monitoring.{service}Port: port 9999 of 127.0.0.1 is in use by another program" in host_problems(
        stack, Host(), monkeypatch
    )


class Generated(Engine):
    """An engine whose state has a generated data key, and either another one in use or no outputs yet."""

    used = False

    def call(self, *arguments: str, stdin: str | None = None) -> str:
        if arguments[:2] == ("config", "set"):
            self.written = (arguments[-1], stdin)
        if arguments == ("config", "--json"):
            return "{}"
        assert arguments[:2] != ("stack", "output")
        secret = {"4dabf18193072939515e22adb298388d": "1b47061264138c4ac30d75fd1eb44270", "plaintext": '"made"'}
        generator = {"type": GENERATOR, "urn": "urn:pulumi:dev::mlflow::a$b::backup-password"}
        kept = {"type": DATA_KEY, "urn": "urn:pulumi:dev::mlflow::a::backup-password"}
        resources = [
            {"type": "pulumi:pulumi:Stack", "urn": "x::y"},
            *([{**kept, "outputs": {"value": secret | {"plaintext": '"in use"'}}}] if self.used else [kept]),
            {**generator, "outputs": {"result": secret}},
        ]
        return json.dumps({"deployment": {"resources": resources}})


def test_a_data_key_generated_by_a_killed_deployment_is_saved(stack: Stack) -> None:
    engine = Generated(stack)
    assert write_back_secrets(engine) == ["backupPassword"]
    assert engine.written == ("backupPassword", "made")


def test_the_data_key_in_use_is_saved_rather_than_the_generated_one(stack: Stack) -> None:
    engine = Generated(stack)
    engine.used = True
    assert write_back_secrets(engine) == ["backupPassword"]
    assert engine.written == ("backupPassword", "in use")


SEALED = {
    "encryptionsalt": "v1:1cJaGh6Zbn4=:v1:l/5v2aF5I0IiAPwE:oIZ4ir0BtC+MWzqPrkQRGoNnCm9vWg==",
    "config": {
        "mlflow:adminPassword": {"secure": "v1:fvbexFr2iOvsIQC4:mg9i1sQeA4fpL0iLEs9w1Xun/T5SOgPhc9QPaX6m"},
        "mlflow:server": {"port": 5000},
    },
}
"""Written by Pulumi 3.260 with the passphrase `correct-horse`."""


def test_encrypted_secrets_are_decrypted_by_their_passphrase_only() -> None:
    assert encrypted.decrypt_secrets(SEALED, "correct-horse") == {"adminPassword": "a secret value"}
    assert encrypted.decrypt_secrets(SEALED, "another") is None
    assert encrypted.decrypt_secrets({**SEALED, "encryptionsalt": None}, "correct-horse") is None


def test_a_credential_in_the_stack_file_is_read_without_the_engine(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    stack.path.write_text(yaml.safe_dump(SEALED))
    monkeypatch.setenv("PULUMI_CONFIG_PASSPHRASE", "correct-horse")
    monkeypatch.setattr(engine_for, "engine_of", lambda *_, **__: pytest.fail("the engine was called"))
    assert secrets.credential(stack, "adminPassword") == "a secret value"


def test_an_address_of_another_host_is_refused(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Stack, "daemon", property(lambda _: Host()))
    stack.set("server", bindAddress="192.0.2.7")
    with pytest.raises(StopError, match=r"this host has no address 192\.0\.2\.7\n    set one of its addresses"):
        checks.require_host(stack)


def test_a_nearly_full_disk_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=2**28))
    problem = capacity.disk_problem(cast("Daemon", Host()))
    assert problem is not None
    assert problem.startswith("disk: 0.2 GB are free in /; the stack needs 1 GB\n    to see what uses it: docker")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=2**31))
    assert capacity.disk_problem(cast("Daemon", Host())) is None


def test_a_disk_that_this_user_may_not_look_at_is_not_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(shutil, "disk_usage", refused)
    assert capacity.disk_problem(cast("Daemon", Host())) is None


def test_a_closed_output_pipe_is_not_reported_as_a_docker_error() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "operations", "url"], cwd=ROOT, stdout=writer, stderr=subprocess.PIPE, check=False
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, b"")


# --- backend and passphrase ----------------------------------------------------------------------------------------


def test_a_fresh_machine_gets_a_local_backend_and_a_private_passphrase(stack: Stack, tmp_path: Path) -> None:
    first = Engine(stack)
    first._create_passphrase()
    exports = first.exports
    assert exports["PULUMI_BACKEND_URL"] == f"file://{tmp_path}/home/.local/state/pulumi-mlflow"
    path = Path(exports["PULUMI_CONFIG_PASSPHRASE_FILE"])
    assert path == tmp_path / "home/.config/pulumi-mlflow/dev.passphrase"
    assert path.stat().st_mode & 0o777 == 0o600
    assert len(path.read_text().strip()) > 40
    assert Engine(stack).exports == exports, "the second call must find the existing passphrase"


class NewStack(Engine):
    """An engine whose backend does not know the stack."""

    def has_stack(self) -> bool:
        return False

    def plan(self, *_: str) -> Plan:
        pytest.fail("the stack was planned")


@pytest.fixture
def new(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> Stack:
    monkeypatch.setattr(preview, "engine_of", NewStack)
    return stack


def test_a_preview_of_an_undeployed_stack_uses_a_copy_and_leaves_nothing(
    new: Stack, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    planned: list[str] = []
    monkeypatch.setattr(copy_preview, "preview", lambda stack: planned.append(stack.name))
    before = new.path.read_text()
    preview.preview(new)
    assert planned == ["dev"]
    assert new.path.read_text() == before
    assert not (tmp_path / "home" / ".config").exists()


def test_the_drift_of_an_undeployed_stack_is_unknown(
    new: Stack, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with pytest.raises(StopError, match="could not check dev for drift"):
        preview.drift(new)
    said = capsys.readouterr().out
    assert "dev was never deployed with this backend" in said
    assert said.endswith("<!-- drift: unknown -->\n")
    assert not (tmp_path / "home" / ".config").exists()


def test_a_preview_copy_has_every_file_that_the_program_reads() -> None:
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    top = {Path(name).parts[0] for name in tracked}
    known = {*copy_preview.FOLDERS, *copy_preview.FILES, "Pulumi.dev.yaml", "Pulumi.staging.yaml", "Pulumi.prod.yaml"}
    not_read = {"docs", "tests", ".github", ".ci", "Makefile", "pyproject.toml"}
    assert {name for name in top - known - not_read if name.endswith(".py") or (ROOT / name).is_dir()} == set()
    assert set(copy_preview.FOLDERS) <= top


@pytest.mark.parametrize(
    ("chosen", "said", "advice"),
    [
        ("login", 'unable to open state directory "file:///x": stat /x: no such file or directory', "pulumi logout"),
        ("PULUMI_BACKEND_URL", 'unable to open bucket "s3://x"', "unset PULUMI_BACKEND_URL"),
        ("PULUMI_BACKEND_URL", "PULUMI_ACCESS_TOKEN must be set for login", "unset PULUMI_BACKEND_URL"),
        ("nothing", "mkdir .pulumi: read-only file system", "check the folder: ls -ld "),
    ],
)
def test_an_unusable_backend_is_reported_with_the_fix(
    stack: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chosen: str, said: str, advice: str
) -> None:
    if chosen == "login":
        folder = tmp_path / "home" / ".pulumi"
        folder.mkdir(parents=True)
        (folder / "credentials.json").write_text('{"current": "file:///x"}')
    elif chosen != "nothing":
        monkeypatch.setenv(chosen, "file:///x")
    failed = subprocess.CompletedProcess([], 255, stdout="", stderr=f"warning: old\nerror: {said}\n")
    monkeypatch.setattr(Engine, "_run_captured", lambda *_, **__: failed)
    with pytest.raises(StopError) as told:
        Engine(stack).has_stack()
    words = str(told.value)
    assert words.startswith("Pulumi cannot use the backend file:///")
    assert said in words
    assert advice in words
    assert words.endswith("nothing was changed")


NO_OP = """\
Updating (dev):

 ~  pulumi:pulumi:Stack mlflow-dev refreshing (0s)
 ~  docker:index:Container server refresh (0.00s)
@ refreshing....
    docker:index:Container server
    pulumi:pulumi:Stack mlflow-dev
Resources:
    57 unchanged

Duration: 7s
"""


@pytest.mark.parametrize(
    ("printed", "kept", "said"),
    [
        (NO_OP, ["Updating (dev):", "", "Resources:", "    57 unchanged", "", "Duration: 7s"], ["nothing changed"]),
        (
            " ~  docker:index:Container server refresh (0.01s) [diff: ~memory]\n"
            " ~  docker:index:Container server updated (0.3s) [diff: ~memory]\n    ~ 1 updated\n    56 unchanged\n",
            [
                " ~  docker:index:Container server refresh (0.01s) [diff: ~memory]",
                " ~  docker:index:Container server updated (0.3s) [diff: ~memory]",
                "    ~ 1 updated",
                "    56 unchanged",
            ],
            [],
        ),
        (
            "    - 3 deleted\n"
            "All unprotected resources were destroyed. "
            "There are still 7 protected resources associated with this stack. \n"
            "The resources in the stack have been deleted, but the history and configuration are still maintained. \n"
            "If you want to remove the stack completely, run `pulumi stack rm dev`.\n",
            ["    - 3 deleted"],
            [],
        ),
    ],
    ids=["no change", "a change", "Pulumi's advice to delete the stack file"],
)
def test_output_without_a_terminal_shows_changes_only(
    stack: Stack,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    printed: str,
    kept: list[str],
    said: list[str],
) -> None:
    cli = tmp_path / "pulumi"
    # Pulumi prints blanks at the end of these lines.
    (tmp_path / "printed").write_text(re.sub(r"(?m)^(    \w+:.*| ~ .*)$", r"\1  ", printed))
    cli.write_text(f"#!/bin/sh\ncat {tmp_path}/printed\n")
    cli.chmod(0o755)
    running = Engine(stack)
    running.cli = cli
    capsys.readouterr()
    assert running.show("up") == 0
    told = capsys.readouterr()
    assert [line.rstrip() for line in told.out.splitlines()] == kept
    assert told.err.splitlines() == said


def test_doctor_reports_every_problem_of_every_kind_once(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    def stops(words: str) -> Callable[[object], None]:
        def stop(_: object) -> None:
            raise StopError(words)

        return stop

    monkeypatch.setattr(Engine, "has_stack", stops("Pulumi cannot use the backend"))
    monkeypatch.setattr(doctor, "find_cli", lambda: Path("/bin/true"))
    monkeypatch.setattr(docker_daemon, "docker_problem", lambda _: None)
    monkeypatch.setattr(doctor, "servers", lambda _: SimpleNamespace(running=True))
    monkeypatch.setattr(checks, "host_problems", lambda _: ["port 5000 is in use", "paused:\n    type: x"])
    monkeypatch.setattr(doctor, "status", stops("not running as expected: server\npaused:\n  type: x"))
    monkeypatch.setattr(doctor, "_check_ingress", stops("no route"))
    with pytest.raises(StopError) as told:
        doctor.doctor(stack)
    assert str(told.value).splitlines() == [
        "Pulumi cannot use the backend",
        "port 5000 is in use",
        "not running as expected: server",
        "paused:",
        "  type: x",
        "no route",
    ]


@pytest.mark.parametrize(
    ("states", "log"),
    [
        ({"server": "starting", "postgres": "missing"}, None),
        ({"server": "missing", "migrate": "failed", "postgres": "healthy"}, "migrate"),
        ({"server": "missing", "postgres": "restarting"}, "postgres"),
        ({"server": "unhealthy", "postgres": "exited"}, "postgres"),
        ({"server": "unhealthy", "postgres": "starting"}, "postgres"),
        ({"server": "exited", "postgres": "starting"}, "server"),
        ({"server": "unhealthy"}, "server"),
    ],
)
def test_the_status_names_the_log_that_tells_why(stack: Stack, states: dict[str, str], log: str | None) -> None:
    wrong = [{"name": f"mlflow-dev-{service}", "state": state} for service, state in states.items()]
    said = status._not_running(stack, [entry for entry in wrong if entry["state"] != "healthy"])
    assert re.findall(r"make logs STACK=dev SERVICE=(\S+)", said) == ([log] if log else [])
    assert "type: make up STACK=dev" in said


def test_doctor_reports_containers_that_this_state_does_not_have(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Engine, "has_stack", lambda _: False)
    monkeypatch.setattr(doctor, "find_cli", lambda: Path("/bin/true"))
    monkeypatch.setattr(docker_daemon, "docker_problem", lambda _: None)
    monkeypatch.setattr(checks, "host_problems", lambda _: [])
    for name in ("status", "_check_ingress"):
        monkeypatch.setattr(doctor, name, lambda _: None)
    monkeypatch.setattr(doctor, "servers", lambda _: SimpleNamespace(running=True))
    monkeypatch.setattr(Engine, "state", State({}))
    monkeypatch.setattr(Stack, "daemon", property(lambda _: DeployedElsewhere()))
    with pytest.raises(StopError, match="1 containers of a stack dev exist, but are not in this Pulumi state"):
        doctor.doctor(stack)


class DeployedElsewhere:
    """A Docker daemon with a container of dev."""

    host = "unix:///d.sock"

    @property
    def api(self) -> "DeployedElsewhere":
        return self

    def containers(self, **_: object) -> list[dict[str, Any]]:
        return [{"Names": ["/mlflow-dev-server"], "Labels": {}}]

    def networks(self, **_: object) -> list[dict[str, Any]]:
        return []


def test_a_stack_of_another_state_is_refused_before_anything_is_created_or_asked(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Engine, "has_stack", lambda _: False)
    monkeypatch.setattr(Engine, "state", State({}))
    monkeypatch.setattr(Engine, "create", lambda _: pytest.fail("a stack was created"))
    monkeypatch.setattr(deploy, "approval", lambda *_: pytest.fail("an approval was asked for"))
    monkeypatch.setattr(Stack, "daemon", property(lambda _: DeployedElsewhere()))
    monkeypatch.setattr(engine_module, "require_providers", lambda _: None)
    with pytest.raises(StopError, match="are not in this Pulumi state"):
        deploy._deploy(stack)


def test_doctor_reports_the_engine_and_docker_together(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(_: Engine) -> bool:
        raise StopError("Pulumi cannot use the backend")

    monkeypatch.setattr(Engine, "has_stack", refused)
    monkeypatch.setattr(doctor, "find_cli", lambda: Path("/bin/true"))
    monkeypatch.setattr(docker_daemon, "docker_problem", lambda _: "there is no Docker daemon")
    with pytest.raises(StopError, match=r"^Pulumi cannot use the backend\nthere is no Docker daemon$"):
        doctor.doctor(stack)


def test_secrets_encrypted_elsewhere_require_their_passphrase(stack: Stack, tmp_path: Path) -> None:
    stack.path.write_text(stack.path.read_text() + "encryptionsalt: v1:abc\n")
    with pytest.raises(
        StopError, match=r"the secrets in Pulumi\.dev\.yaml are encrypted, and this machine has no passphrase"
    ):
        Engine(stack)
    assert not (tmp_path / "home/.config/pulumi-mlflow/dev.passphrase").exists()


def a_state(home: Path, resources: list[dict[str, str]] | None) -> Path:
    """Write the state of a deployed dev whose passphrase file is missing."""
    path = home / ".local/state/pulumi-mlflow/.pulumi/stacks/mlflow/dev.json"
    path.parent.mkdir(parents=True)
    latest = {"secrets_providers": {"type": "passphrase"}} | ({"resources": resources} if resources else {})
    path.write_text(json.dumps({"version": 3, "checkpoint": {"latest": latest}}))
    return path


def test_a_state_without_its_passphrase_is_reported_with_both_paths(stack: Stack, tmp_path: Path) -> None:
    path = a_state(tmp_path / "home", [{"urn": "x::y"}])
    with pytest.raises(StopError) as told:
        Engine(stack)
    assert str(told.value).startswith(
        f"{path}: the state of dev is encrypted, and this machine has no passphrase for it\n"
    )
    assert f"or put it into {tmp_path}/home/.config/pulumi-mlflow/dev.passphrase" in str(told.value)


def test_a_destroyed_stack_without_its_passphrase_is_created_anew(
    stack: Stack, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    called: list[tuple[str, ...]] = []

    class Recorded(Engine):
        def call(self, *arguments: str, stdin: str | None = None) -> str:
            assert stdin is None
            called.append(arguments)
            return ""

    a_state(tmp_path / "home", None)
    engine = Recorded(stack)
    assert not engine.has_stack()
    assert engine.select()
    assert called == [("stack", "rm", "--yes", "--preserve-config"), ("stack", "init", "--no-select")]
    assert (tmp_path / "home/.config/pulumi-mlflow/dev.passphrase").exists()
    assert "the passphrase of an earlier, destroyed dev is missing; creating a new one" in capsys.readouterr().err


@pytest.mark.parametrize("variable", ["PULUMI_CONFIG_PASSPHRASE", "PULUMI_CONFIG_PASSPHRASE_FILE"])
def test_a_passphrase_in_the_environment_takes_precedence(
    stack: Stack, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv(variable, "")
    assert "PULUMI_CONFIG_PASSPHRASE_FILE" not in Engine(stack).exports


def test_an_exported_passphrase_file_of_another_stack_is_ignored(
    stack: Stack, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    prod = tmp_path / "home/.config/pulumi-mlflow/prod.passphrase"
    monkeypatch.setenv("PULUMI_CONFIG_PASSPHRASE_FILE", str(prod))
    assert Engine(stack).exports["PULUMI_CONFIG_PASSPHRASE_FILE"].endswith("/dev.passphrase")


def test_a_docker_host_in_the_stack_file_is_not_exported(stack: Stack) -> None:
    assert "DOCKER_HOST" in Engine(stack).exports
    stack.path.write_text(stack.path.read_text() + "  docker:host: ssh://prod\n")
    assert "DOCKER_HOST" not in Engine(stack).exports


def test_a_secrets_provider_needs_no_passphrase(stack: Stack) -> None:
    stack.path.write_text(stack.path.read_text() + "secretsprovider: awskms://alias/pulumi\n")
    assert "PULUMI_CONFIG_PASSPHRASE_FILE" not in Engine(stack).exports


def test_a_stack_of_pulumi_cloud_that_was_created_with_a_passphrase_gets_it(
    stack: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PULUMI_ACCESS_TOKEN", "pul-123")
    stack.path.write_text(yaml.safe_dump(SEALED))
    passphrase = tmp_path / "home/.config/pulumi-mlflow/dev.passphrase"
    passphrase.parent.mkdir(parents=True)
    passphrase.write_text("correct-horse\n")
    assert Engine(Stack("dev")).exports["PULUMI_CONFIG_PASSPHRASE_FILE"] == str(passphrase)


@pytest.mark.parametrize("variable", ["XDG_STATE_HOME", "XDG_CONFIG_HOME"])
def test_a_relative_folder_of_the_xdg_base_directories_is_ignored(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, variable: str
) -> None:
    home = checkout.state_home if variable == "XDG_STATE_HOME" else checkout.config_home
    default = home()
    monkeypatch.setenv(variable, "relative")
    assert home() == default
    monkeypatch.setenv(variable, str(tmp_path / "own"))
    assert home() == tmp_path / "own" / "pulumi-mlflow"


@pytest.mark.parametrize("how", ["variable", "token", "login", "project"])
def test_a_configured_backend_takes_precedence(
    stack: Stack, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, how: str
) -> None:
    if how == "variable":
        monkeypatch.setenv("PULUMI_BACKEND_URL", "s3://states")
    elif how == "token":
        monkeypatch.setenv("PULUMI_ACCESS_TOKEN", "pul-123")
    elif how == "login":
        (tmp_path / "home" / ".pulumi").mkdir(parents=True)
        (tmp_path / "home" / ".pulumi" / "credentials.json").write_text('{"current": "https://api.pulumi.com"}')
    else:
        (tmp_path / "Pulumi.yaml").write_text("name: mlflow\nbackend: {url: 's3://states'}\n")
    exports = Engine(stack).exports
    assert "PULUMI_BACKEND_URL" not in exports
    # Pulumi Cloud keeps secrets itself; a bucket does not.
    assert ("PULUMI_CONFIG_PASSPHRASE_FILE" in exports) == (how in ("variable", "project"))


# --- the CLI -------------------------------------------------------------------------------------------------------


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_arguments: object) -> None:
        pass


@pytest.fixture
def release(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, Path]:
    """Serve a release of the CLI on this machine; return its URL and its file of checksums."""
    monkeypatch.setattr(platform, "system", lambda: "Linux")
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(cli, "LOCAL_CLI", tmp_path / ".pulumi-cli")
    folder = tmp_path / "served" / f"v{cli.INSTALLED_VERSION}"
    folder.mkdir(parents=True)
    name = f"pulumi-v{cli.INSTALLED_VERSION}-linux-x64.tar.gz"
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as archive:
        entry = tarfile.TarInfo("pulumi/pulumi")
        script = f"#!/bin/sh\necho v{cli.INSTALLED_VERSION}\n".encode()
        entry.size, entry.mode = len(script), 0o755
        archive.addfile(entry, io.BytesIO(script))
    (folder / name).write_bytes(content.getvalue())
    digest = hashlib.sha256(content.getvalue()).hexdigest()
    sums = folder / f"pulumi-{cli.INSTALLED_VERSION}-checksums.txt"
    sums.write_text(f"{'0' * 64}  another.tar.gz\n{digest}  {name}\n")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=tmp_path / "served"))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{server.server_address[1]}", sums


def test_a_missing_cli_is_installed_into_the_checkout(release: tuple[str, Path]) -> None:
    installed = cli.install_cli(release[0])
    assert installed == cli.LOCAL_CLI / "pulumi" / "pulumi"
    assert cli._version(installed) >= cli.MINIMUM_VERSION


def test_a_cli_with_another_checksum_is_not_installed(release: tuple[str, Path]) -> None:
    release[1].write_text(re.sub(r"(?m)^[0-9a-f]{64}", "0" * 64, release[1].read_text()))
    with pytest.raises(StopError, match="expected"):
        cli.install_cli(release[0])
    assert not cli.LOCAL_CLI.exists()


def test_an_error_page_instead_of_checksums_is_refused(release: tuple[str, Path]) -> None:
    release[1].write_text("<html>\n<body>This site is blocked</body>\n")
    with pytest.raises(cli.NoEngineError, match="is not the checksums file of a release"):
        cli.install_cli(release[0])


def test_a_failed_cli_download_is_reported_with_what_to_do() -> None:
    with pytest.raises(StopError, match=r"install Pulumi 3\.250 or newer yourself"):
        cli.install_cli("http://127.0.0.1:9")


def test_an_outdated_cli_is_reported_as_outdated_not_as_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = tmp_path / "pulumi"
    old.write_text("#!/bin/sh\necho v3.201.0\n")
    old.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(cli.NoEngineError, match=rf"on the PATH \({old}\) is 3\.201, older than 3\.250"):
        cli.install_cli("http://127.0.0.1:9")


# --- locks ---------------------------------------------------------------------------------------------------------


def test_only_a_running_pulumi_process_counts_as_alive() -> None:
    assert not recovery._alive(os.getpid()), "this process is not pulumi"
    gone = subprocess.Popen(["true"])
    gone.wait()
    assert not recovery._alive(gone.pid)


def test_a_zombie_holds_no_lock(tmp_path: Path) -> None:
    program = tmp_path / "pulumi"
    program.write_bytes(Path("/bin/sleep").read_bytes())
    program.chmod(0o755)
    running = subprocess.Popen([program, "60"])
    try:
        assert recovery._alive(running.pid)
    finally:
        running.kill()
    while "Z" not in Path(f"/proc/{running.pid}/stat").read_text().rpartition(")")[2].split()[0]:
        pass
    assert not recovery._alive(running.pid)
    running.wait()


# --- answers -------------------------------------------------------------------------------------------------------


def test_a_question_without_a_terminal_fails_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StopError, match="approve with YES=1"):
        console.confirmed("Install Docker?")
    monkeypatch.setenv("YES", "1")
    assert console.confirmed("Install Docker?")


def test_deleting_requires_confirm_and_yes_is_not_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("YES", "1")
    with pytest.raises(StopError, match="CONFIRM=prod"):
        console.require_confirmation("prod", "This deletes everything.")
    monkeypatch.setenv("CONFIRM", "prod")
    console.require_confirmation("prod", "This deletes everything.")


@pytest.mark.parametrize("name", ["Prod", "my_stack", "-x", "a" * 40, "../x"])
def test_a_stack_name_must_be_valid_in_docker_names(name: str) -> None:
    with pytest.raises(StopError, match="a stack's name is part of Docker names"):
        Stack(name)


# --- digests -------------------------------------------------------------------------------------------------------


def test_pin_writes_digests_and_names_images_without_one(
    stack: Stack, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[str] = []

    def ask(_stack: Stack, ref: str) -> str:
        asked.append(ref)
        if "python" in ref:
            raise APIError("no such manifest", explanation="no such manifest")
        return "sha256:" + "a" * 64

    calls: list[tuple[str, ...]] = []
    monkeypatch.setattr(pin, "digest", ask)
    monkeypatch.setattr(Engine, "select", lambda _engine: False)
    monkeypatch.setattr(Engine, "call", lambda _engine, *arguments: calls.append(arguments))
    with pytest.raises(StopError, match=r"python:3\.13-slim-trixie: no such manifest"):
        pin.pin(stack)
    assert ("config", "set", "--path", "mlflow:images.postgres.ref", "docker.io/library/postgres:18.6") in calls
    assert ("config", "set", "--path", "mlflow:images.postgres.digest", "sha256:" + "a" * 64) in calls
    assert "mlflow:images.postgres: docker.io/library/postgres:18.6@sha256:aaa" in capsys.readouterr().out
    # Images that this stack does not run are not pinned.
    assert [ref.rpartition("/")[2].partition(":")[0] for ref in asked] == ["postgres", "silo", "mc", "python"]


def test_locally_built_images_are_not_pinned(
    stack: Stack, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(pin, "digest", lambda _stack, ref: asked.append(ref))
    stack.set("images", source="packages")
    stack.set("objectStore", kind="seaweedfs", memoryMb=1024)
    pin.pin(stack)
    assert asked == []
    assert capsys.readouterr().out == "every image of dev has a digest or is built here\n"


@pytest.mark.parametrize("proxy", ["", "http://proxy.example.com:3128"])
def test_client_prints_a_proxy_exception_for_this_host_behind_a_proxy(
    stack: Stack, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], proxy: str
) -> None:
    for name in ("no_proxy", "NO_PROXY", "http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)
    if proxy:
        monkeypatch.setenv("http_proxy", proxy)
    access.client(stack)
    line = 'export NO_PROXY="${NO_PROXY:+$NO_PROXY,}127.0.0.1,localhost"'
    assert (line in capsys.readouterr().out.splitlines()) == bool(proxy)


def test_a_loopback_url_on_a_remote_host_is_printed_with_its_ssh_tunnel(stack: Stack) -> None:
    assert hostname.ssh_forward_hint(stack) is None
    stack.path.write_text(stack.path.read_text() + "  docker:host: ssh://me@prod:2222\n")
    assert hostname.ssh_forward_hint(stack) == (
        "that is a loopback address of prod; to use it on this machine, keep this running: "
        "ssh -nNT -L 5000:127.0.0.1:5000 -p 2222 me@prod"
    )


def test_the_json_status_reports_a_stack_that_is_not_deployed(
    stack: Stack, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def nothing(_: Stack) -> None:
        raise StopError("dev is not deployed")

    monkeypatch.setattr(status, "require_containers", nothing)
    monkeypatch.setenv("JSON", "1")
    with pytest.raises(StopError, match="dev is not deployed"):
        status.status(stack)
    assert json.loads(capsys.readouterr().out) == {"stack": "dev", "services": [], "problems": ["dev is not deployed"]}


BUILT = "#16 naming to localhost/mlflow-server:0f9b 0.1s done\n#16 DONE 11.4s\n\n"
TAGGED = "Successfully built 53f6\nSuccessfully tagged localhost/mlflow-server:0f9b\n"
BROKEN = "#15 3.1 the trim is broken\n#15 ERROR: exit code: 3\n------\nERROR: failed to solve: exit code: 3\n"


@pytest.mark.parametrize(
    ("log", "shown"),
    [(BUILT, False), (TAGGED, False), (BROKEN, True), (BUILT + BROKEN, True), (BROKEN + BUILT, False)],
    ids=["built", "built by the old builder", "broken", "broken after it was built", "fixed"],
)
def test_the_build_log_is_shown_when_the_build_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], log: str, *, shown: bool
) -> None:
    monkeypatch.setattr(deploy, "ROOT", tmp_path)
    (tmp_path / "build-mlflow.log").write_text(log)
    # Another image is built at the same time and succeeds later.
    (tmp_path / "build-backup.log").write_text(BUILT)
    deploy._show_build_log(0)
    said = capsys.readouterr().err
    assert ("the trim is broken" in said) is shown
    assert ("full log: build-mlflow.log" in said) is shown
    assert "build-backup.log" not in said


# --- without the engine --------------------------------------------------------------------------------------------


def without_provider(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Install a Pulumi CLI that cannot download anything."""
    command = tmp_path / "pulumi"
    command.write_text(
        "#!/bin/sh\necho 'warning: no such host' >&2\necho 'error: failed all 5 attempts' >&2\nexit 255\n"
    )
    command.chmod(0o755)
    monkeypatch.setattr(engine_module, "find_cli", lambda: command)


def test_an_unavailable_provider_is_reported_before_any_change(
    stack: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_provider(tmp_path, monkeypatch)
    words = (
        r"provider docker [0-9.]+ is not installed.*: error: failed all 5 attempts\n"
        r".*pulumi plugin install resource docker"
    )
    with pytest.raises(cli.NoEngineError, match=words):
        Engine(stack)


def test_dev_is_deployed_without_the_engine_when_the_engine_is_unavailable(
    stack: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_provider(tmp_path, monkeypatch)
    reasons: list[str] = []
    monkeypatch.setattr(engineless, "up", lambda _, reason: reasons.append(reason))
    deploy._deploy(stack)
    assert "could not be downloaded" in reasons[0]


@pytest.mark.parametrize("why", ["another stack", "protected data"])
def test_other_stacks_and_protected_data_are_not_deployed_without_the_engine(
    stack: Stack, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    monkeypatch.setenv("ENGINELESS", "0" if why == "another stack" else "1")
    if why == "another stack":
        stack.name = "other"
    else:
        text = stack.path.read_text()
        stack.path.write_text(text.replace('protectData: "false"', 'protectData: "true"'))
    words = "to deploy other without" if why == "another stack" else r"\(not deployed.* is true for dev"
    with pytest.raises(StopError, match=rf"no engine\n  {words}"):
        engineless.up(stack, "no engine")


@pytest.mark.parametrize(
    ("strangers", "volumes", "words"),
    [
        (["mlflow-dev-server"], set(), "dev exists already, and was deployed with the engine: mlflow-dev-server"),
        ([], {"mlflow-dev-minio-data"}, "dev has data, but you do not have its secrets: mlflow-dev-minio-data"),
    ],
)
def test_an_engineless_deployment_is_refused_beside_foreign_containers_or_data(
    stack: Stack, monkeypatch: pytest.MonkeyPatch, strangers: list[str], volumes: set[str], words: str
) -> None:
    monkeypatch.setattr("offline.host.Host.foreign_resources", lambda _: strangers)
    monkeypatch.setattr(Stack, "daemon", property(lambda _: SimpleNamespace(volumes=lambda: volumes)))
    with pytest.raises(StopError, match=words):
        engineless.up(stack, "no engine")
    assert not stack.is_engineless


class Engineless:
    """An engine whose config already has `secrets`, and whose plans succeed or fail."""

    def __init__(self, stack: Stack, secrets: dict[str, str], *, plans: bool = True) -> None:
        self.stack = stack
        self.secrets = secrets
        self.plans = plans
        self.written: list[str] = []

    def call(self, *arguments: str, stdin: str | None = None) -> str:
        if arguments[:2] == ("config", "set"):
            self.written.append(f"{arguments[-1]}={stdin}")
        return json.dumps({f"mlflow:{key}": {"value": value, "secret": True} for key, value in self.secrets.items()})

    def show(self, *_: str) -> int:
        return 0 if self.plans else 1


@pytest.mark.parametrize(
    ("secrets", "plans", "words"),
    [
        (
            {"postgresPassword": "another"},
            True,
            "Pulumi.dev.yaml and the engine-less deployment differ in postgresPassword",
        ),
        ({}, False, "Pulumi cannot plan this stack"),
    ],
)
def test_an_engineless_deployment_is_kept_when_the_engine_cannot_take_over(
    stack: Stack, monkeypatch: pytest.MonkeyPatch, secrets: dict[str, str], *, plans: bool, words: str
) -> None:
    engineless_stack_with(stack, monkeypatch, "postgres-password")
    before = engineless_state.passwords_of(stack).read()
    host = Engineless(stack, secrets, plans=plans)
    with pytest.raises(StopError, match=words):
        engineless.hand_over(host, approved=True)  # type: ignore[arg-type]
    assert host.written == []
    assert engineless_state.passwords_of(stack).read() == before


def test_the_status_names_the_configured_image(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    # Postgres has no digest, as shipped; MinIO has one, which is not part of its tag.
    stack.set("images", minio={"digest": f"sha256:{'0' * 64}"})
    tags = {"minio": ["pgsty/silo:RELEASE.2026-09-16T00-00-00Z"], "postgres": ["postgres:18.6"], "mine": []}
    api = SimpleNamespace(inspect_image=lambda image: {"RepoTags": ["another/name:1", *tags[image]]})
    monkeypatch.setattr(Stack, "daemon", property(lambda _: SimpleNamespace(api=api)))
    for image, asked in tags.items():
        assert status._image(stack, {"Image": image}) == [*asked, "another/name:1"][0]


@pytest.mark.parametrize("verb", ["down", "destroy"])
def test_generated_secrets_are_saved_before_down_and_destroy(
    stack: Stack, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], verb: str
) -> None:
    done: list[str] = []

    def asked(*arguments: str) -> int:
        done.append(arguments[0])
        return 0

    for name in ("recover", "report_what_to_keep", "report_kept_backups"):
        monkeypatch.setattr(end, name, lambda *_: None)
    monkeypatch.setattr(end, "write_back_secrets", lambda _: asked("saved"))
    for name in ("require_no_operation", "require_no_foreign_containers"):
        monkeypatch.setattr(containers, name, lambda *_: None)
    engine = SimpleNamespace(show=asked, call=asked)
    monkeypatch.setattr(end, "engine_for_removal", lambda _: engine)
    for name in ("data_volumes", "kept_volumes", "leftovers"):
        monkeypatch.setattr(end, name, lambda _: [])
    monkeypatch.setattr(Stack, "daemon", property(lambda _: None))
    monkeypatch.setenv("CONFIRM", "dev")
    getattr(end, verb)(stack)
    assert done.index("saved") < done.index("destroy")
    assert "`pulumi stack rm`" in capsys.readouterr().err


@pytest.mark.parametrize("verb", sorted(CHANGES - SUPPORT_DRY_RUN))
def test_a_verb_without_dry_run_refuses_it_and_changes_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], verb: str
) -> None:
    monkeypatch.setenv("DRY_RUN", "1")
    monkeypatch.setattr(operations_main, "_run", lambda *_: pytest.fail("the verb ran"))
    assert main([verb]) == 1
    said = capsys.readouterr().err
    assert f"make {verb} does not support DRY_RUN; nothing was changed" in said
    assert ("type: make preview" in said) is (verb == "up")


@pytest.mark.parametrize(
    ("word", "meant"), [("acme", "STACK=acme"), ("statsu", "make status"), ("Up", "make up"), ("YES", "YES=1")]
)
def test_a_word_that_is_no_command_is_refused_before_any_command_runs(word: str, meant: str) -> None:
    done = subprocess.run(
        ["make", "--no-print-directory", "url", word], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert f"{word}: no such command; did you mean {meant}? To list the commands, type: make" in done.stderr


@pytest.mark.parametrize(("approved", "asked"), [([], True), (["--yes"], False)])
def test_a_change_that_was_declined_is_not_only_reported_as_failed(
    stack: Stack, monkeypatch: pytest.MonkeyPatch, approved: list[str], *, asked: bool
) -> None:
    for name in ("require_no_operation", "require_no_foreign_containers"):
        monkeypatch.setattr(containers, name, lambda *_: None)
    monkeypatch.setattr(Stack, "daemon", property(lambda _: None))
    monkeypatch.setattr(end, "engine_for_removal", lambda _: SimpleNamespace(show=lambda *_: 255))
    monkeypatch.setattr(end, "recover", lambda _: None)
    monkeypatch.setattr(end, "write_back_secrets", lambda _: [])
    monkeypatch.setattr(end, "approval", lambda *_: approved)
    with pytest.raises(StopError) as told:
        end.down(stack)
    assert ("if you answered no: the plan was not carried out" in str(told.value)) is asked
    assert "type: make down STACK=dev" in str(told.value)


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_every_verb_has_a_function_in_its_module(verb: str) -> None:
    module, _, function = VERBS[verb].partition(":")
    assert callable(getattr(importlib.import_module(f"operations.{module}"), function))


@pytest.mark.parametrize(
    ("verbs", "without"),
    [
        (("url", "client", "open", "images"), ("pulumi", "docker")),
        (("up", "down", "status", "logs", "preview"), ("pulumi",)),
    ],
    ids=["those that read the settings only", "those that leave the SDK to the program"],
)
def test_a_verb_imports_neither_pulumi_nor_docker_without_using_it(
    verbs: tuple[str, ...], without: tuple[str, ...]
) -> None:
    # In one process, because each takes half a second. If one of them imports it, the output names the first.
    modules = [VERBS[verb].partition(":")[0] for verb in verbs]
    code = "import importlib, sys, operations.__main__\n" + "".join(
        f"importlib.import_module('operations.{module}'); print({{*{without}}} & set(sys.modules), '{module}')\n"
        for module in modules
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [f"set() {module}" for module in modules]


@pytest.mark.parametrize(
    ("docker_says", "code", "state"),
    [("healthy", 0, "healthy"), ("healthy", 1, "unhealthy"), ("unhealthy", 0, "healthy"), ("starting", 1, "starting")],
)
def test_the_status_of_a_service_is_that_of_a_health_check_now(
    stack: Stack, monkeypatch: pytest.MonkeyPatch, docker_says: str, code: int, state: str
) -> None:
    ran: list[Any] = []

    def run(_: str, command: list[str], environment: dict[str, str] | None = None) -> tuple[int, str]:
        ran.append((command, environment))
        return code, ""

    found = {
        "State": {
            "Running": True,
            "Paused": False,
            "Health": {"Status": docker_says},
            "Status": "running",
            "StartedAt": "2026-01-01T00:00:00",
        },
        "Config": {"Healthcheck": {"Test": ["CMD", "check"]}},
        "RestartCount": 0,
    }
    monkeypatch.setattr(status, "inspect", lambda *_: found)
    monkeypatch.setattr(status, "_image", lambda *_: "image")
    monkeypatch.setattr(Stack, "daemon", property(lambda _: SimpleNamespace(run=run)))
    assert status._service(stack, "server")["state"] == state
    # Docker's own run is the one that fails after a worker was killed.
    assert ran[0] == (["check"], {"HEALTHCHECK_OBSERVES": "1"})


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (PermissionError(13, "Permission denied", "Pulumi.dev.part"), "Permission denied: 'Pulumi.dev.part'"),
        (requests.ConnectionError("refused"), "Docker: refused\n  type: make doctor"),
    ],
)
def test_a_file_error_is_not_reported_as_a_docker_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception, said: str
) -> None:
    def fails(*_: object) -> None:
        raise error

    monkeypatch.setattr(operations_main, "_run", fails)
    assert main(["status"]) == 1
    printed = capsys.readouterr().err
    assert said in printed
    assert ("Docker" in printed) is ("Docker" in said)


@pytest.mark.parametrize("text", ["", "config:\n", "config:\n  mlflow:images:\n", "# a comment\n"])
def test_a_setting_can_be_added_to_an_empty_stack_file(stack: Stack, text: str) -> None:
    stack.path.write_text(text)
    stack.set("images", source="packages")
    assert yaml.safe_load(stack.path.read_text()) == {"config": {"mlflow:images": {"source": "packages"}}}


def test_reading_a_credential_does_not_create_a_stack(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = SimpleNamespace(has_stack=lambda: False)
    monkeypatch.setattr(engine_for, "engine_of", lambda *_, **__: engine)
    with pytest.raises(StopError, match=r"has no such stack(.|\n)*PULUMI_BACKEND_URL"):
        secrets.credential(stack, "adminPassword")


@pytest.mark.parametrize(
    ("address", "folder"),
    [
        ("file:///srv/pulumi%20state", "/srv/pulumi state/.pulumi"),
        ("file://./state", "CHECKOUT/state/.pulumi"),
        ("file://~/state", "HOME/state/.pulumi"),
        ("file:///srv/a~b/state", "/srv/a~b/state/.pulumi"),
        ("s3://bucket", None),
    ],
)
def test_the_folder_of_a_file_backend_is_found(
    stack: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str, folder: str | None
) -> None:
    monkeypatch.setenv("PULUMI_BACKEND_URL", address)
    engine = Engine.__new__(Engine)
    engine.stack = stack
    known = {"CHECKOUT": str(tmp_path), "HOME": str(Path.home())}
    expected = folder and re.sub("CHECKOUT|HOME", lambda found: known[found[0]], folder)
    assert engine.state_folder == (Path(expected) if expected else None)


FAILED_OUTPUT = """    docker:index:Volume a\x20\x20
 +  docker:index:Container server creating (0s)


Diagnostics:
  pulumi:pulumi:Stack (mlflow-dev):
    error: mlflow-dev-server: it keeps crashing
    error: an unhandled error occurred: program exited with non-zero exit code: 1
"""
DIED_OUTPUT = "    error: an unhandled error occurred: program exited with non-zero exit code: 1\n"
KILLED_OUTPUT = """Diagnostics:
  docker:index:Container (server):
    error: the name is taken
  pulumi:pulumi:Stack (mlflow-dev):
    error: an unhandled error occurred: program exited with non-zero exit code: 137
"""


def test_output_without_a_terminal_leaves_out_what_repeats_but_never_the_only_reason() -> None:
    shown = list(worth_showing(FAILED_OUTPUT.splitlines(keepends=True)))
    assert [line.strip() for line in shown] == [
        "+  docker:index:Container server creating (0s)",
        "",
        "Diagnostics:",
        "error: mlflow-dev-server: it keeps crashing",
    ]
    assert list(worth_showing([DIED_OUTPUT])) == [DIED_OUTPUT]
    killed = KILLED_OUTPUT.splitlines(keepends=True)
    assert list(worth_showing(killed)) == killed


BUILD_FAILED_OUTPUT = """Diagnostics:
    error: update failed

  docker:index:RemoteImage (mlflow-image):
    error:   sdk-v2/provider2.go:571: sdk.helper_schema: exit code: 3: provider=docker@5.2.0
    error: 1 error occurred:
    \t* exit code: 3

Resources:
"""


def test_an_error_that_the_provider_prints_twice_is_shown_once() -> None:
    shown = list(worth_showing(BUILD_FAILED_OUTPUT.splitlines(keepends=True)))
    assert [line.strip() for line in shown] == [
        "Diagnostics:",
        "docker:index:RemoteImage (mlflow-image):",
        "error:   sdk-v2/provider2.go:571: sdk.helper_schema: exit code: 3: provider=docker@5.2.0",
        "",
        "Resources:",
    ]
    other = BUILD_FAILED_OUTPUT.replace("* exit code: 3", "* another reason").splitlines(keepends=True)
    assert "    \t* another reason\n" in list(worth_showing(other))
    alone = ["Diagnostics:\n", "    error: update failed\n"]
    assert list(worth_showing(alone)) == alone


@pytest.fixture
def fake_cli(stack: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put a Pulumi CLI on the PATH that logs its arguments and changes nothing; return the log."""
    folder, log, state = tmp_path / "bin", tmp_path / "asked", tmp_path / "exported.json"
    folder.mkdir()
    secret = {"plaintext": '"made"'}
    generators = [{"type": GENERATOR, "urn": f"u::{stack.name}::backup-password", "outputs": {"result": secret}}]
    state.write_text(json.dumps({"deployment": {"resources": generators}}))
    (folder / "pulumi").write_text(
        f'#!/bin/sh\necho "$*" >>{log}\ncase "$*" in\nversion) echo v3.260.0 ;;\n"stack export"*) cat {state} ;;\n'
        "up*) echo '    1 unchanged' ;;\nesac\n"
    )
    for provider in cli.PROVIDERS:
        (folder / f"pulumi-resource-{provider}").write_text("#!/bin/sh\n")
    for path in folder.iterdir():
        path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setattr(engine_module, "find_cli", cli.find_cli)
    api = SimpleNamespace(containers=lambda **_: [], networks=lambda **_: [])
    monkeypatch.setattr(Stack, "daemon", property(lambda _: SimpleNamespace(host="unix:///d.sock", api=api)))
    return log


def test_an_up_that_changes_nothing_calls_pulumi_three_times(stack: Stack, tmp_path: Path, fake_cli: Path) -> None:
    (tmp_path / "home" / ".config" / "pulumi-mlflow").mkdir(parents=True)
    (tmp_path / "home" / ".config" / "pulumi-mlflow" / "dev.passphrase").write_text("right")
    (tmp_path / "exported.json").write_text(with_salt("ours", '"made-by-hand"').replace("::x", "::backup-password"))
    stack.path.write_text("encryptionsalt: ours\n" + stack.path.read_text() + "  mlflow:backupPassword: made-by-hand\n")
    deploy._deploy(stack)
    asked = [line.partition(" --stack ")[0] for line in fake_cli.read_text().splitlines()]
    assert asked == ["version", "stack export --show-secrets", "up --refresh --suppress-outputs --yes --skip-preview"]


def test_the_first_up_of_a_stack_exports_its_state_only_to_look_for_it_and_after_the_deployment(
    stack: Stack, fake_cli: Path
) -> None:
    program = fake_cli.parent / "bin" / "pulumi"
    unknown = f"grep -q ^up {fake_cli} || {{ echo 'error: no stack named dev' >&2; exit 1; }}"
    written = program.read_text().replace('"stack export"*)', f'"stack export"*) {unknown};')
    program.write_text(written.replace("1 unchanged", "+ 1 created"))
    deploy._deploy(stack)
    asked = [line.partition(" --stack ")[0] for line in fake_cli.read_text().splitlines()]
    export, up = "stack export --show-secrets", "up --refresh --suppress-outputs --yes --skip-preview"
    assert asked[:5] == ["version", export, "stack init --no-select", up, export]
    assert all(line.startswith("config set ") for line in asked[5:])


def test_an_interrupted_deployment_is_not_reported_as_one_that_needs_a_fix(
    stack: Stack, fake_cli: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = fake_cli.parent / "bin" / "pulumi"
    program.write_text(program.read_text().replace("up*)", "up*) exit 1 ;;\nnever)"))
    monkeypatch.setattr(engine_module, "wait_gracefully", lambda *_, **__: (1, True))
    with pytest.raises(StopError, match="was interrupted; no data is lost\n  to continue it, type: make up") as told:
        deploy._deploy(stack)
    assert "fix the cause" not in str(told.value)


@pytest.mark.parametrize("saved", [False, True])
def test_a_failed_deployment_names_the_secrets_that_only_the_state_has(
    stack: Stack, fake_cli: Path, *, saved: bool
) -> None:
    if saved:
        stack.path.write_text(stack.path.read_text() + "  mlflow:backupPassword: made-by-hand\n")
    program = fake_cli.parent / "bin" / "pulumi"
    program.write_text(program.read_text().replace("up*)", "up*) exit 1 ;;\nnever)"))
    with pytest.raises(StopError, match="did not complete") as told:
        deploy._deploy(stack)
    assert ("only Pulumi's state has backupPassword" in str(told.value)) is not saved


def test_the_state_is_exported_again_after_a_command_that_may_change_it(stack: Stack, fake_cli: Path) -> None:
    engine = Engine(stack)
    for change in (lambda: None, lambda: engine.call("config"), lambda: engine.call("refresh"), engine.forget_state):
        change()
        assert engine.state.generated() == {"backupPassword": "made"}
    assert fake_cli.read_text().count("stack export") == 3


@pytest.mark.parametrize("where", ["environment", "project"])
def test_a_secret_from_outside_the_stack_file_is_not_written_into_it(
    stack: Stack, tmp_path: Path, fake_cli: Path, where: str
) -> None:
    if where == "project":
        (tmp_path / "Pulumi.yaml").write_text((ROOT / "Pulumi.yaml").read_text() + "config: {mlflow:x: y}\n")
    else:
        stack.path.write_text(stack.path.read_text() + "environment: [ours]\n")
    engine = Engine(stack)
    engine.cli.write_text(
        engine.cli.read_text().replace("esac", "config*) echo '{\"mlflow:backupPassword\": {}}' ;;\nesac")
    )
    assert write_back_secrets(engine) == []
    assert "config set" not in fake_cli.read_text()


def with_salt(salt: str, plaintext: str) -> str:
    """Return an exported state with one secret, encrypted by a passphrase with `salt`."""
    generator = {"type": GENERATOR, "urn": "u::dev::x", "outputs": {"result": {"plaintext": plaintext}}}
    providers = {"type": "passphrase", "state": {"salt": salt}}
    return json.dumps({"deployment": {"secrets_providers": providers, "resources": [generator]}})


@pytest.mark.parametrize(
    "exported",
    [
        '{"deployment": null}',
        '{"deployment": {"resources": [{"type": "x", "urn": "u::dev::x", "outputs": {"id": "y"}}]}}',
        with_salt("another", '"made"'),
        with_salt("ours", "null"),
    ],
    ids=["no resource", "no secret", "another salt", "a secret that was not decrypted"],
)
def test_the_passphrase_is_checked_if_the_export_of_the_state_does_not_prove_it(
    stack: Stack, tmp_path: Path, fake_cli: Path, exported: str
) -> None:
    (tmp_path / "home" / ".config" / "pulumi-mlflow").mkdir(parents=True)
    (tmp_path / "home" / ".config" / "pulumi-mlflow" / "dev.passphrase").write_text("wrong")
    stack.path.write_text("encryptionsalt: ours\n" + stack.path.read_text())
    (tmp_path / "exported.json").write_text(exported)
    engine = Engine(stack)
    engine.cli.write_text(
        engine.cli.read_text().replace("esac", "config*) echo 'error: incorrect passphrase' >&2; exit 1 ;;\nesac")
    )
    with pytest.raises(StopError, match="does not decrypt its secrets"):
        engine.has_stack()
    assert "config --json --show-secrets" in fake_cli.read_text()


def test_a_state_from_before_the_lock_was_checked_is_read_again(
    stack: Stack, tmp_path: Path, fake_cli: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Another run was creating the server when this one read the state, and has completed since.
    server = {"type": recovery.CONTAINER, "urn": "u::s::server", "outputs": {"name": "mlflow-dev-server"}}
    removed: list[str] = []
    api = SimpleNamespace(
        containers=lambda **_: [{"Names": ["/mlflow-dev-server"]}],
        networks=lambda **_: [],
        inspect_container=lambda _: {"Config": {"Labels": {names.STACK_LABEL: stack.name}}},
        remove_container=lambda name, **_: removed.append(name),
    )
    monkeypatch.setattr(Stack, "daemon", property(lambda _: SimpleNamespace(host="unix:///d.sock", api=api)))
    pending = {"type": "creating", "resource": {**server, "inputs": {"name": "mlflow-dev-server"}}}
    exported = tmp_path / "exported.json"
    exported.write_text(json.dumps({"deployment": {"resources": [], "pending_operations": [pending]}}))
    engine = Engine(stack)
    assert engine.has_stack()
    exported.write_text(json.dumps({"deployment": {"resources": [server]}}))
    recovery.recover(engine)
    assert removed == []
    assert "refresh" not in fake_cli.read_text()


@pytest.mark.parametrize(("times", "told"), [(2, "it is there"), (9, None)])
def test_a_state_that_is_being_written_is_retried(
    stack: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, times: int, told: str | None
) -> None:
    monkeypatch.setattr("operations.engine.engine.PARTIAL_STATE_RETRY_SECONDS", (0.01,) * 5)
    engine = Engine.__new__(Engine)
    engine.stack, engine.environment, engine.cli = stack, dict(os.environ), tmp_path / "pulumi"
    engine.cli.write_text(
        f"#!/bin/sh\necho >> {tmp_path}/asked\n"
        f'[ "$(wc -l < {tmp_path}/asked)" -gt {times} ] && echo "it is there" && exit 0\n'
        'echo "error: failed to load checkpoint: EOF" >&2; exit 255\n'
    )
    engine.cli.chmod(0o755)
    if told:
        assert engine.call("config").strip() == told
    else:
        with pytest.raises(StopError, match="failed to load checkpoint: EOF"):
            engine.call("config")
        assert (tmp_path / "asked").read_text().count("\n") == 6


@pytest.mark.parametrize("left", [[], ["mlflow-dev-server"]])
def test_down_creates_no_stack_unless_containers_are_left(
    stack: Stack, monkeypatch: pytest.MonkeyPatch, left: list[str]
) -> None:
    made: list[bool] = []
    engine = SimpleNamespace(has_stack=lambda: False, select=lambda: made.append(True))
    monkeypatch.setattr(engine_for, "engine_of", lambda _: engine)
    monkeypatch.setattr(engine_for, "leftovers", lambda _: left)
    monkeypatch.setattr(Stack, "daemon", property(lambda _: SimpleNamespace(host="unix:///d.sock")))
    if left:
        # Containers that the backend no longer knows can still be removed.
        assert cast("object", engine_for.engine_for_removal(stack)) is engine
    else:
        with pytest.raises(StopError, match=r"dev is not deployed on unix:///d\.sock"):
            engine_for.engine_for_removal(stack)
    assert made == [True] * len(left)


def test_a_lock_that_vanishes_while_it_is_read_is_ignored(stack: Stack, tmp_path: Path) -> None:
    folder = tmp_path / "locks" / "organization" / "mlflow" / "dev"
    folder.mkdir(parents=True)
    # The lock file was listed, but cannot be read any more.
    (folder / "a.json").symlink_to(folder / "nothing")
    cancelled: list[str] = []
    engine = SimpleNamespace(stack=stack, state_folder=tmp_path, call=cancelled.append)
    recovery._clear_stale_locks(cast("Engine", engine))
    assert not cancelled


@pytest.fixture
def broken(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> Stack:
    """Return a stack that runs, and whose stack file was broken since its last deployment."""
    stack.path.write_text(stack.path.read_text().replace("memoryMb", "memroyMb"))
    names_of = ["server", "postgres", "minio"]
    asked = {"label": ["mlflow.stack=dev", "mlflow.role=service"]}
    found = {
        "State": {"Running": True, "Paused": False, "Status": "running", "StartedAt": "2026-01-01T00:00:00"},
        "Config": {"Healthcheck": {"Test": ["CMD", "check"]}, "Labels": {names.STACK_LABEL: "dev"}},
        "RestartCount": 0,
        "Image": "sha256:0123456789ab",
    }

    def containers(*, filters: dict[str, Any], **_: object) -> list[dict[str, Any]]:
        assert filters in (asked, {"label": "mlflow.stack=dev"})
        return [{"Names": [f"/mlflow-dev-{name}"]} for name in names_of]

    daemon = SimpleNamespace(
        api=SimpleNamespace(containers=containers, inspect_image=lambda _: {"RepoTags": []}),
        inspect=lambda name: found if name.removeprefix("mlflow-dev-") in names_of else None,
        run=lambda *_: (0, ""),
        logs=lambda name, **_: f"a line of {name}",
    )
    monkeypatch.setattr(Stack, "daemon", property(lambda _: daemon))
    return stack


@pytest.mark.parametrize("as_json", ["0", "1"])
def test_the_status_of_a_stack_with_wrong_settings_shows_what_runs(
    broken: Stack, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], as_json: str
) -> None:
    monkeypatch.setenv("JSON", as_json)
    with pytest.raises(StopError, match=r"memroyMb: no such setting; did you mean memoryMb\?"):
        status.status(broken)
    told = capsys.readouterr().out
    if as_json == "1":
        parsed = json.loads(told)
        assert [service["state"] for service in parsed["services"]] == ["healthy"] * 3
        assert "memroyMb" in parsed["problems"][0]
    else:
        assert [line.split()[:2] for line in told.splitlines()] == [
            ["mlflow-dev-minio", "healthy"],
            ["mlflow-dev-postgres", "healthy"],
            ["mlflow-dev-server", "healthy"],
        ]


def test_the_logs_of_a_stack_with_wrong_settings_can_be_read(broken: Stack, capsys: pytest.CaptureFixture[str]) -> None:
    logs.logs(broken)
    told = capsys.readouterr().out
    for service in ("server", "postgres", "minio"):
        assert f"==> mlflow-dev-{service}\na line of mlflow-dev-{service}\n" in told


PROBE = 'INFO:     127.0.0.1:40000 - "GET /api/2.0/mlflow/experiments/search?max_results=1 HTTP/1.1" {} OK'


def test_logs_skip_health_checks_and_missing_containers(
    stack: Stack, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [PROBE.format(200), PROBE.format(401), PROBE.format(500), "a client's request"]
    monkeypatch.delenv("SERVICE", raising=False)
    monkeypatch.setattr(logs, "require_containers", lambda _: None)
    monkeypatch.setattr(logs, "inspect", lambda _, service: {} if service in ("server", "minio") else None)
    monkeypatch.setattr(Stack, "daemon", property(lambda _: SimpleNamespace(logs=lambda *_, **__: "\n".join(lines))))
    logs.logs(stack)
    told = capsys.readouterr().out
    assert f"==> mlflow-dev-server\n{PROBE.format(500)}\na client's request\n" in told
    assert "mlflow-dev-postgres is missing; type: make up STACK=dev\n==> mlflow-dev-minio" in told
    monkeypatch.setenv("SERVICE", "server")
    logs.logs(stack)
    assert PROBE.format(200) in capsys.readouterr().out
    monkeypatch.setenv("SERVICE", "sever")
    with pytest.raises(
        StopError,
        match=r"mlflow-dev-sever; did you mean SERVICE=server\? If not, set SERVICE to a job or one of: server",
    ):
        logs.logs(stack)


class WithNetworks:
    """A daemon with the networks of dev, and with foreign containers, the `guests`, on one of them."""

    def __init__(self, *guests: str) -> None:
        self.guests = guests

    def containers(self, **_: object) -> list[dict[str, Any]]:
        return [{"Id": "ours"}]

    def networks(self, **_: object) -> list[dict[str, Any]]:
        return [{"Id": "edge-id", "Name": "mlflow-dev-edge"}]

    def inspect_network(self, _: str) -> dict[str, Any]:
        return {"Containers": {"ours": {"Name": "mlflow-dev-server"}} | {name: {"Name": name} for name in self.guests}}


def test_an_engineless_deployment_is_kept_when_foreign_containers_use_it(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = engineless_stack_with(stack, monkeypatch, "postgres-password")
    daemon = SimpleNamespace(volumes=set, api=WithNetworks("jupyter"))
    monkeypatch.setattr(Stack, "daemon", property(lambda _: daemon))
    with pytest.raises(StopError, match="docker network disconnect mlflow-dev-edge jupyter"):
        engineless.hand_over(Engineless(stack, {}), approved=True)  # type: ignore[arg-type]
    assert (done, stack.is_engineless) == ([], True)


def engineless_stack_with(stack: Stack, monkeypatch: pytest.MonkeyPatch, *passwords: str) -> list[str]:
    """Turn `stack` into an engine-less deployment with these passwords; return what is done to its containers."""
    done: list[str] = []
    monkeypatch.setattr("offline.host.Host.prune", lambda _: done.append("pruned"))
    monkeypatch.setattr(Stack, "daemon", property(lambda _: SimpleNamespace(volumes=set, api=WithNetworks())))
    for name in passwords:
        engineless_state.passwords_of(stack).get(name, 32)
    return done


@pytest.mark.parametrize("written", ["mine", {"secure": "v1:abc"}], ids=["plain text", "encrypted since"])
def test_a_secret_in_the_stack_file_is_handed_over_unchanged(
    stack: Stack, monkeypatch: pytest.MonkeyPatch, written: object
) -> None:
    engineless_stack_with(stack, monkeypatch, "crypto-kek-passphrase")
    monkeypatch.setattr(Stack, "values", property(lambda _: {"mlflow:cryptoKekPassphrase": written}))
    known = written if isinstance(written, str) else engineless_state.generated_secrets(stack)["cryptoKekPassphrase"]
    host = Engineless(stack, {"cryptoKekPassphrase": known})
    told = [] if known == "mine" else ["cryptoKekPassphrase"]
    assert engineless.hand_over(host, approved=True) == told  # type: ignore[arg-type]
    assert host.written == []
    assert not stack.is_engineless


def test_the_engine_takes_over_only_after_an_approval(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    done = engineless_stack_with(stack, monkeypatch, "postgres-password")
    monkeypatch.setattr(engineless, "confirmed", lambda _: False)
    host = Engineless(stack, {})
    with pytest.raises(StopError, match="nothing was changed"):
        engineless.hand_over(host, approved=False)  # type: ignore[arg-type]
    assert (done, host.written, stack.is_engineless) == ([], [], True)
    monkeypatch.setattr(engineless, "confirmed", lambda _: True)
    engineless.hand_over(host, approved=False)  # type: ignore[arg-type]
    assert (done, stack.is_engineless) == (["pruned"], False)


@pytest.mark.parametrize(("passwords", "kept"), [(["postgres-password"], False), (["backup-password"], True)])
def test_destroying_an_engineless_deployment_keeps_the_backup_password(
    stack: Stack, monkeypatch: pytest.MonkeyPatch, passwords: list[str], *, kept: bool
) -> None:
    assert engineless_stack_with(stack, monkeypatch, *passwords) == []
    monkeypatch.setenv("CONFIRM", stack.name)
    engineless.destroy(stack)
    assert stack.is_engineless == kept


# --- images from an archive ----------------------------------------------------------------------------------------


class Offline(Host):
    """A daemon that cannot reach a registry."""

    def __init__(self, *, broken: str = "") -> None:
        super().__init__()
        self.images: set[str] = set()
        self.loaded: list[str] = []
        self.broken = broken

    def has_image(self, name: str) -> bool:
        return name in self.images

    def pull(self, _name: str) -> str:
        return "no such host"

    def load(self, archive: Path) -> str | None:
        self.loaded.append(archive.name)
        if archive.name == self.broken:
            return "unexpected EOF"
        self.images.add(archive.read_text())
        return None


def offline(stack: Stack, monkeypatch: pytest.MonkeyPatch, archive: str, **daemon: str) -> Offline:
    """Configure dev to load its images from `archive`, on a daemon that has none of them."""
    document = stack.document
    document["config"]["mlflow:images"] |= {"archive": archive, "mlflow": {"ref": "localhost/mlflow-server:1"}}
    stack.path.write_text(yaml.safe_dump(document))
    found = Offline(**daemon)
    monkeypatch.setattr(images, "ROOT", stack.path.parent)
    monkeypatch.setattr(Stack, "daemon", property(lambda _: found))
    return found


def test_missing_images_are_loaded_once_from_the_archive(
    stack: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = offline(stack, monkeypatch, "saved")
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "README").write_text("no image")
    for number, image in enumerate(stack.settings.pulled_images):
        (tmp_path / "saved" / f"{number}.tar").write_text(image.name)
    images.require_images(stack)
    assert host.loaded == ["0.tar", "1.tar", "2.tar", "3.tar"]
    images.require_images(stack)
    assert len(host.loaded) == 4


def test_an_archive_folder_without_files_is_reported(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    offline(stack, monkeypatch, "nowhere")
    with pytest.raises(StopError, match=r"mlflow:images\.archive: there is no \.tar.* file in .*/nowhere"):
        images.require_images(stack)


def test_every_unreadable_archive_file_is_reported(
    stack: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offline(stack, monkeypatch, ".", broken="half.tar")
    for name in ("half.tar", "whole.tgz"):
        (tmp_path / name).write_text("x")
    with pytest.raises(StopError, match=r"could not be loaded\n  .*/half\.tar: unexpected EOF$"):
        images.require_images(stack)


def test_images_missing_from_the_archive_are_reported_with_the_fix(
    stack: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offline(stack, monkeypatch, ".")
    (tmp_path / "some.tar").write_text("docker.io/library/postgres:18.6")
    with pytest.raises(StopError, match=r"3 of 4 images are not available(.|\n)*without-a-registry\.md"):
        images.require_images(stack)


@pytest.fixture
def unreachable(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Put dev on a host that cannot reach a registry; return the images that are built instead."""
    host = Offline()
    built: list[str] = []
    monkeypatch.setattr(images, "RETRY_SECONDS", 0)
    monkeypatch.setattr(Stack, "daemon", property(lambda _: host))
    monkeypatch.setattr(build, "can_build", lambda: True)
    monkeypatch.setattr(images, "require_host", lambda _: None)

    def built_from_packages(_daemon: object, names: list[str], _sources: list[str]) -> None:
        missing = [name for name in names if not host.has_image(packages.ref(name))]
        built.extend(missing)
        host.images |= {packages.ref(name) for name in (*missing, packages.BUILDER)}

    monkeypatch.setattr(build, "build", built_from_packages)
    return built


def test_dev_switches_to_packages_images_when_no_registry_is_reachable(stack: Stack, unreachable: list[str]) -> None:
    images.require_images(stack)
    assert unreachable == ["postgres", "python", "seaweedfs"]
    settings = stack.settings
    assert (settings.images.source, settings.object_store.kind, settings.object_store.memory_mb) == (
        "packages",
        "seaweedfs",
        1024,
    )
    text = stack.path.read_text()
    assert "# For a laptop: a host port on 127.0.0.1" in text
    assert "# No digests: an image with the right name" in text
    assert 'mlflow:protectData: "false"' in text


@pytest.mark.parametrize(
    "error",
    [
        "Credentials store error: StoreError('docker-credential-desktop not installed or not available in PATH')",
        'Get "https://registry-1.docker.io/v2/": proxyconnect tcp: dial tcp 10.0.0.1:3128: connect: connection refused',
        "toomanyrequests: You have reached your pull rate limit",
        "manifest for postgres:18.6 not found: manifest unknown",
        "x509: certificate signed by unknown authority",
        "an unknown error",
    ],
)
def test_an_error_other_than_an_unreachable_registry_keeps_the_image_source(
    stack: Stack, unreachable: list[str], monkeypatch: pytest.MonkeyPatch, error: str
) -> None:
    monkeypatch.setattr(Offline, "pull", lambda *_: error)
    before = stack.path.read_text()
    with pytest.raises(StopError) as told:
        images.require_images(stack)
    assert error in str(told.value)
    if "Credentials store" in error:
        assert "remove credsStore (or credHelpers) from ~/.docker/config.json" in str(told.value)
    if "proxyconnect" in error:
        assert "the proxy of the Docker daemon does not answer" in str(told.value)
    assert stack.path.read_text() == before
    assert unreachable == []


def test_a_registry_that_recovers_keeps_the_image_source(
    stack: Stack, unreachable: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    refusals = ["lookup registry-1.docker.io: server misbehaving"] * 4

    def pull(host: Offline, name: str) -> str | None:
        if refusals:
            return refusals.pop()
        host.images.add(name)
        return None

    monkeypatch.setattr(Offline, "pull", pull)
    before = stack.path.read_text()
    images.require_images(stack)
    said = capsys.readouterr().err
    assert said.index("no registry answers here (lookup registry-1.docker.io: server misbehaving)") < said.index(
        "the registry answers again: Pulumi.dev.yaml is unchanged"
    )
    assert stack.path.read_text() == before
    assert unreachable


@pytest.mark.parametrize("end", [StopError("no mirror answers"), KeyboardInterrupt()], ids=["failed", "interrupted"])
def test_a_failed_switch_to_packages_images_keeps_the_stack_file(
    stack: Stack, unreachable: list[str], monkeypatch: pytest.MonkeyPatch, end: BaseException
) -> None:
    def fail(*_: object) -> None:
        raise end

    monkeypatch.setattr(build, "build", fail)
    before = stack.path.read_text()
    with pytest.raises(type(end)):
        images.require_images(stack)
    assert stack.path.read_text() == before
    assert unreachable == []


@pytest.mark.parametrize("why", ["an answer", "a mirror", "an archive", "data", "no tools", "another stack"])
def test_configured_images_and_existing_data_keep_the_image_source(
    stack: Stack, unreachable: list[str], monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    if why == "an answer":
        monkeypatch.setattr(Offline, "pull", lambda *_: "manifest for postgres:18.6 not found: manifest unknown")
    elif why == "a mirror":
        stack.set("images", postgres={"ref": "mirror.example.com/postgres:18.6"})
    elif why == "an archive":
        monkeypatch.setattr(images, "_load", lambda *_: None)
        stack.set("images", archive="saved")
    elif why == "data":
        monkeypatch.setattr(Offline, "volumes", lambda _: {"mlflow-dev-minio-data"})
    elif why == "no tools":
        monkeypatch.setattr(build, "can_build", lambda: False)
    else:
        stack.name = "other"
    before = stack.path.read_text()
    with pytest.raises(StopError, match="images are not available; nothing was deployed"):
        images.require_images(stack)
    assert stack.path.read_text() == before
    assert unreachable == []


def test_a_port_in_use_is_seen() -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        assert ports._is_port_in_use("127.0.0.1", port)
    assert not ports._is_port_in_use("127.0.0.1", port)


@pytest.mark.parametrize(("content", "left"), [("", 0), ('{"user.cont', 0), ('{"user.content_type": "x"}', 1)])
def test_a_truncated_attributes_file_of_the_state_is_removed(tmp_path: Path, content: str, left: int) -> None:
    folder = tmp_path / "stacks" / "mlflow"
    folder.mkdir(parents=True)
    state, note = folder / "dev.json", folder / "dev.json.attrs"
    state.write_text("{}")
    note.write_text(content)
    backend.remove_truncated_attributes(tmp_path, "dev")
    assert (state.exists(), note.exists()) == (True, bool(left))
    backend.remove_truncated_attributes(None, "dev")


def test_prune_removes_only_unused_images_of_earlier_versions(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    current = stack.settings.images.built(stack.settings.parts)["mlflow"].name
    images = {
        "old": "localhost/mlflow-mlflow:0a1b",
        "used": "localhost/mlflow-backup:2c3d",
        "now": current,
        "else": "postgres:18.6",
    }
    removed: list[str] = []
    api = SimpleNamespace(
        containers=lambda **_: [{"ImageID": "used"}],
        images=lambda: (
            [{"Id": key, "RepoTags": [tag], "Size": 10**9} for key, tag in images.items()]
            + [{"Id": "none", "RepoTags": None, "Size": 1}]
        ),
        remove_image=removed.append,
    )
    monkeypatch.setattr(Stack, "daemon", property(lambda _: SimpleNamespace(api=api)))
    monkeypatch.setenv("YES", "1")
    prune.prune(stack)
    assert removed == ["localhost/mlflow-mlflow:0a1b"]


@pytest.mark.parametrize(
    ("printed", "kills", "recent"),
    [
        ("oom 1\noom_kill 2\noom_group_kill 0\nnow 2000\nlast 1990\n", 2, True),
        ("oom_kill_disable 0\nunder_oom 0\noom_kill 2\nnow 9000\nlast 1990\n", 2, False),
        ("low 0\noom_kill 0\nnow 9000\nlast\n", 0, False),
        ("sh: not found", 0, True),
    ],
    ids=["just now", "an hour ago", "never", "no shell"],
)
def test_an_out_of_memory_kill_is_a_problem_for_a_limited_time(
    stack: Stack,
    monkeypatch: pytest.MonkeyPatch,
    printed: str,
    kills: int,
    recent: bool,  # noqa: FBT001
) -> None:
    monkeypatch.setattr(Stack, "daemon", property(lambda _: SimpleNamespace(run=lambda *_: (0, printed))))
    found = status._memory(stack, "mlflow-dev-server", running=True)
    assert found["oomKills"] == kills
    assert found["oomRecent"] is recent


def test_a_paused_container_is_reported_before_any_waiting(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(containers, "paused", lambda *_: ["mlflow-dev-server"])
    said = host_problems(stack, Host(), monkeypatch)
    assert "paused containers: mlflow-dev-server\n    type: docker unpause mlflow-dev-server" in said
