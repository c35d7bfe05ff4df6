"""Test the engine-less deployment on a real daemon: it equals that of the engine, and the engine takes it over."""

import json
import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest

from offline.host import FOLLOWS_LABEL, HASH_LABEL
from tests.stack.deployment import Deployment, free_port
from tests.stack.test_deployment import search


def ids(deployment: Deployment) -> dict[str, str]:
    return {name: deployment.api.inspect_container(name)["Id"] for name in deployment.containers()}


def works(deployment: Deployment) -> None:
    deployment.make("up")
    deployment.make("status")
    assert search(deployment.url)


def test_an_engineless_deployment_announces_that_it_is_not_pulumi(rehearsed: Deployment) -> None:
    said = rehearsed.make("up").stderr
    assert "DEPLOYING WITHOUT THE PULUMI ENGINE" in said
    assert str(rehearsed.passwords.path) in said
    assert rehearsed.passwords.path.stat().st_mode & 0o777 == 0o600


def test_a_second_run_replaces_nothing(rehearsed: Deployment) -> None:
    before = ids(rehearsed)
    said = rehearsed.make("up").stderr
    assert ids(rehearsed) == before
    assert f"  kept {rehearsed.name('server')}" in said
    assert "  created " not in said


def test_resources_that_the_program_no_longer_declares_are_removed(rehearsed: Deployment) -> None:
    before = rehearsed.file.read_text()
    rehearsed.set("postgres.port", free_port())
    try:
        rehearsed.make("up")
        assert rehearsed.api.networks(names=[rehearsed.name("access")])
    finally:
        rehearsed.file.write_text(before)
    works(rehearsed)
    assert not rehearsed.api.networks(names=[rehearsed.name("access")])


def test_a_new_password_replaces_only_its_holders(rehearsed: Deployment) -> None:
    before = ids(rehearsed)
    known = rehearsed.passwords.read()
    rehearsed.passwords.path.write_text(json.dumps(known | {"postgres-password": "n" * 32}))
    works(rehearsed)
    after = ids(rehearsed)
    kept = {name.removeprefix(f"mlflow-{rehearsed.stack}-") for name in before if before[name] == after[name]}
    assert kept == {"seaweedfs", "seaweedfs-files", "seaweedfs-bootstrap"}


def test_images_contain_no_network_configuration_of_the_host(rehearsed: Deployment) -> None:
    if rehearsed.values.get("mlflow:images", {}).get("source") != "packages":
        pytest.skip("built on an image of the host, whose content is in the result, too")
    _, shipped = rehearsed.run("server", "cat", "/etc/ssl/certs/ca-certificates.crt")
    assert "BEGIN CERTIFICATE" in shipped
    assert rehearsed.run("server", "ls", "/etc/pip.conf")[0] != 0
    own = [path.read_text() for path in Path("/usr/local/share/ca-certificates").rglob("*.crt")]
    assert not any(certificate.split("-----")[2].strip() in shipped for certificate in own)


@pytest.mark.parametrize(
    "moment",
    [
        pytest.param("postgres-files", marks=pytest.mark.long),
        "migrate",
        pytest.param("server", marks=pytest.mark.long),
    ],
)
def test_the_next_run_repairs_a_killed_engineless_deployment(rehearsed: Deployment, moment: str) -> None:
    rehearsed.make("down")
    assert rehearsed.containers() == []
    with rehearsed.begun(lambda line: line.strip() == f"created {rehearsed.name(moment)}") as running:
        os.killpg(running.pid, signal.SIGKILL)
    works(rehearsed)


@pytest.mark.long
def test_a_concurrent_engineless_deployment_is_refused(rehearsed: Deployment) -> None:
    rehearsed.make("down")
    with rehearsed.begun(lambda line: line.strip() == f"created {rehearsed.name('postgres-files')}") as first:
        assert "is being changed by another run" in rehearsed.make("up", ok=False).stderr
        rest = first.communicate()[0]
        assert first.returncode == 0, rest
    works(rehearsed)


def test_a_stack_with_protected_data_requires_the_engine(rehearsed: Deployment) -> None:
    before = rehearsed.file.read_text()
    try:
        rehearsed.set("protectData", "true")
        assert "protected data always needs the engine" in rehearsed.make("up", ok=False).stderr
    finally:
        rehearsed.file.write_text(before)


def test_secrets_that_only_pulumi_reads_are_refused_by_name(rehearsed: Deployment) -> None:
    before = rehearsed.file.read_text()
    try:
        rehearsed.set("postgresPassword", {"secure": "AAAA"})
        said = rehearsed.make("up", ok=False).stderr
    finally:
        rehearsed.file.write_text(before)
    assert "has secrets that only Pulumi can read: mlflow:postgresPassword" in said
    assert "AAAA" not in said


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


@pytest.mark.engine
def test_the_engine_takes_over_with_all_data_and_equal_containers(rehearsed: Deployment) -> None:
    rehearsed.client_day(rehearsed.url, megabytes=5)
    experiments, before, secrets = search(rehearsed.url), picture(rehearsed), rehearsed.credentials()
    called = tags(rehearsed)
    pictured = {name.removeprefix(f"mlflow-{rehearsed.stack}-") for name in before}
    assert pictured >= {"server", "server-files", "migrate", "backend", "server-secrets (volume)"}
    rehearsed.environment["ENGINELESS"] = "0"
    said = rehearsed.make("up")
    rehearsed.rehearsed = False
    assert "was deployed without the engine; handing it over to Pulumi" in said.stderr
    assert "now holds 5 generated secrets, encrypted" in said.stderr
    assert picture(rehearsed) == before
    # Do not compare IDs, because there may be two builders, nor all tags, because other stacks add and remove theirs.
    assert all(called[name] & tagged for name, tagged in tags(rehearsed).items())
    assert rehearsed.credentials() == secrets
    assert search(rehearsed.url) == experiments
    assert not rehearsed.passwords.path.exists()
    rehearsed.pulumi("preview", "--expect-no-changes")
