"""Test the engine-less deployment on a real daemon: it equals that of the engine, and the engine takes it over."""

import json
import os
import re
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from offline.host import FOLLOWS_LABEL, HASH_LABEL
from tests.stack.deployment import HAS_ENGINE, HAS_MINIO, Deployment, free_port
from tests.stack.edge import HOSTNAME, Edge, Listener, until
from tests.stack.probes import is_on_disk
from tests.stack.test_deployment import search
from tests.stack.writer import Writer

# Without the engine, every stack of the tests is engine-less, so these tests deploy none of their own.
pytestmark = [pytest.mark.ci] if HAS_ENGINE else []


def ids(deployment: Deployment) -> dict[str, str]:
    return {name: deployment.api.inspect_container(name)["Id"] for name in deployment.containers()}


def works(deployment: Deployment) -> None:
    deployment.make("up")
    deployment.make("status")
    assert search(deployment.url)


def test_an_engineless_deployment_announces_that_it_is_not_pulumi(engineless: Deployment) -> None:
    said = engineless.make("up").stderr
    assert "DEPLOYING WITHOUT THE PULUMI ENGINE" in said
    assert str(engineless.passwords.path) in said
    assert engineless.passwords.path.stat().st_mode & 0o777 == 0o600


@pytest.mark.skipif(not HAS_ENGINE and not HAS_MINIO, reason="test_deployment does the same here, with 600 MB")
def test_a_client_works_with_the_packages_images(engineless: Deployment) -> None:
    assert "60 MB up" in engineless.client_day(engineless.url, megabytes=60)
    assert engineless.inspect("seaweedfs")["RestartCount"] == 0


def test_a_second_run_replaces_nothing(engineless: Deployment) -> None:
    before = ids(engineless)
    said = engineless.make("up").stderr
    assert ids(engineless) == before
    assert f"  kept {engineless.name('server')}" in said
    assert "  created " not in said


def test_resources_that_the_program_no_longer_declares_are_removed(engineless: Deployment) -> None:
    before = engineless.file.read_text()
    engineless.set("postgres.port", free_port())
    try:
        engineless.make("up")
        assert engineless.api.networks(names=[engineless.name("access")])
    finally:
        engineless.file.write_text(before)
    works(engineless)
    assert not engineless.api.networks(names=[engineless.name("access")])


def test_a_new_password_replaces_only_its_holders(engineless: Deployment) -> None:
    before = ids(engineless)
    known = engineless.passwords.read()
    engineless.passwords.path.write_text(json.dumps(known | {"postgres-password": "n" * 32}))
    works(engineless)
    after = ids(engineless)
    kept = {name.removeprefix(f"mlflow-{engineless.stack}-") for name in before if before[name] == after[name]}
    assert kept == {"seaweedfs", "seaweedfs-files", "seaweedfs-bootstrap"}


def test_images_contain_no_network_configuration_of_the_host(engineless: Deployment) -> None:
    if engineless.values.get("mlflow:images", {}).get("source") != "packages":
        pytest.skip("built on an image of the host, whose content is in the result, too")
    _, shipped = engineless.run("server", "cat", "/etc/ssl/certs/ca-certificates.crt")
    assert "BEGIN CERTIFICATE" in shipped
    assert engineless.run("server", "ls", "/etc/pip.conf")[0] != 0
    own = [path.read_text() for path in Path("/usr/local/share/ca-certificates").rglob("*.crt")]
    if not own:
        pytest.skip("this host has no authority of its own, which an image could contain")
    assert not any(certificate.split("-----")[2].strip() in shipped for certificate in own)


@pytest.mark.ci
@pytest.mark.parametrize(
    "moment",
    [
        pytest.param("postgres-files", marks=pytest.mark.long),
        "migrate",
        pytest.param("server", marks=pytest.mark.long),
    ],
)
def test_the_next_run_repairs_a_killed_engineless_deployment(engineless: Deployment, moment: str) -> None:
    engineless.make("down")
    assert engineless.containers() == []
    with engineless.begun(lambda line: line.strip() == f"created {engineless.name(moment)}") as running:
        os.killpg(running.pid, signal.SIGKILL)
    works(engineless)


@pytest.mark.long
def test_a_concurrent_engineless_deployment_is_refused(engineless: Deployment) -> None:
    engineless.make("down")
    with engineless.begun(lambda line: line.strip() == f"created {engineless.name('postgres-files')}") as first:
        assert "is being changed by another run" in engineless.make("up", ok=False).stderr
        rest = first.communicate()[0]
        assert first.returncode == 0, rest
    works(engineless)


@pytest.mark.long
@pytest.mark.skipif(
    os.geteuid() != 0 or sys.platform != "linux", reason="needs root on Linux to read the volume of the object store"
)
def test_tls_and_encryption_work_without_the_engine(tmp_path_factory: pytest.TempPathFactory) -> None:
    deployment, port = Deployment(tmp_path_factory.mktemp("sealed"), "dev", engineless=True), free_port()
    deployment.set("hostname", HOSTNAME)
    deployment.set("server", {"workers": 1, "memoryMb": 1024})
    deployment.set("authentication", "password")
    ports = {"bindAddress": "127.0.0.1", "httpPort": free_port(), "httpsPort": port}
    deployment.set("traefik", {"mode": "bundled", **ports})
    deployment.set("tls.internal", value=True)
    deployment.use("seaweedfs")
    deployment.set("objectStore.encryption", value=True)
    deployment.set("images.source", "packages")
    try:
        deployment.make("up")
        edge = Edge(deployment, Listener(port), "")
        edge.opened()
        before = ids(deployment)
        with Writer(f"https://127.0.0.1:{port}", HOSTNAME, "mlflow", lambda: edge.password) as writer:
            until(lambda: len(writer.runs) > 3, 60)
        assert writer.lost() == []
        server = dict(entry.partition("=")[::2] for entry in deployment.inspect("server")["Config"]["Env"])
        assert server["PGSSLMODE"] == "verify-full"
        assert server["MLFLOW_S3_ENDPOINT_URL"].startswith("https://")
        artifact = os.urandom(100_000)
        path = "/api/2.0/mlflow-artifacts/artifacts/0/sealed/artifacts/data.bin"
        writer.asked("PUT", path, artifact)
        assert writer.asked("GET", path) == artifact
        # What is not encrypted, such as the names of its files, shows that this is the disk of the store.
        assert is_on_disk(deployment, b"data.bin")
        assert not is_on_disk(deployment, artifact[1000:1064])
        deployment.make("up")
        assert ids(deployment) == before
    finally:
        deployment.remove()


def test_a_stack_with_protected_data_requires_the_engine(engineless: Deployment) -> None:
    before = engineless.file.read_text()
    try:
        engineless.set("protectData", "true")
        assert "protected data always needs the engine" in engineless.make("up", ok=False).stderr
    finally:
        engineless.file.write_text(before)


def test_secrets_that_only_pulumi_reads_are_refused_by_name(engineless: Deployment) -> None:
    before = engineless.file.read_text()
    try:
        engineless.set("postgresPassword", {"secure": "AAAA"})
        said = engineless.make("up", ok=False).stderr
    finally:
        engineless.file.write_text(before)
    assert "has secrets that only Pulumi can read: mlflow:postgresPassword" in said
    assert "AAAA" not in said


@pytest.mark.long
@pytest.mark.engine
def test_an_engineless_deployment_refuses_a_stack_deployed_by_pulumi(dev: Deployment) -> None:
    before = ids(dev)
    plain = dev.file.read_text()
    dev.file.write_text(re.sub(r"(?m)^  mlflow:\w+:\n    secure: .*\n", "", plain))
    try:
        said = dev.make("up", ok=False, ENGINELESS="1").stderr
    finally:
        dev.file.write_text(plain)
    assert "exists already, and was deployed with the engine" in said
    assert ids(dev) == before
    assert not dev.passwords.path.exists()


# --- the engine takes over: the last test, since the stack belongs to the engine afterwards -----------------------


def picture(deployment: Deployment) -> dict[str, Any]:
    """Return all that Docker reports about a deployment, without what differs between two equal ones."""
    found: dict[str, Any] = {}
    for name in deployment.containers():
        inspected = deployment.api.inspect_container(name)
        config, host = inspected["Config"], inspected["HostConfig"]
        config.pop("Hostname")
        config.pop("Image")
        config["Env"].sort()
        for mark in (HASH_LABEL, FOLLOWS_LABEL):
            config["Labels"].pop(mark, None)
        host["Binds"] = sorted(host["Binds"] or [])
        found[name] = {
            "Config": config,
            "HostConfig": host,
            "Networks": sorted(inspected["NetworkSettings"]["Networks"]),
            "Mounts": sorted((mount["Destination"], mount["RW"]) for mount in inspected["Mounts"]),
        }
    label = f"mlflow.stack={deployment.stack}"
    for network in deployment.api.networks(filters={"label": label}):
        kept = ("Driver", "Internal", "Attachable", "Ingress", "EnableIPv6", "Options")
        found[network["Name"]] = {key: network[key] for key in kept}
    for volume in deployment.api.volumes()["Volumes"]:
        if volume["Name"].startswith(f"mlflow-{deployment.stack}-"):
            found[volume["Name"] + " (volume)"] = volume["Driver"], volume["Options"]
    return found


def tags(deployment: Deployment) -> dict[str, set[str]]:
    """Return the tags of the image of each container, including those that other stacks gave to the same image."""
    image = {name: deployment.api.inspect_container(name)["Image"] for name in deployment.containers()}
    return {name: set(deployment.api.inspect_image(it)["RepoTags"]) for name, it in image.items()}  # type: ignore[no-untyped-call]


@pytest.mark.long
@pytest.mark.engine
def test_the_engine_takes_over_with_all_data_and_equal_containers(engineless: Deployment) -> None:
    engineless.client_day(engineless.url, megabytes=5)
    experiments, before, secrets = search(engineless.url), picture(engineless), engineless.credentials()
    called = tags(engineless)
    pictured = {name.removeprefix(f"mlflow-{engineless.stack}-") for name in before}
    assert pictured >= {"server", "server-files", "migrate", "backend", "server-secrets (volume)"}
    engineless.environment["ENGINELESS"] = "0"
    said = engineless.make("up")
    engineless.engineless = False
    assert "was deployed without the engine; handing it over to Pulumi" in said.stderr
    assert "has new generated secrets (5), encrypted" in said.stderr
    assert picture(engineless) == before
    # Do not compare IDs, because there may be two builders, nor all tags, because other stacks add and remove theirs.
    assert all(called[name] & tagged for name, tagged in tags(engineless).items())
    assert engineless.credentials() == secrets
    assert search(engineless.url) == experiments
    assert not engineless.passwords.path.exists()
    engineless.pulumi("preview", "--expect-no-changes")
