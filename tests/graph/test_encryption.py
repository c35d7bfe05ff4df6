"""Test the encryption of artifacts: the stores get the key as files, and another key is refused."""

import base64
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pulumi
import pytest

from runtime.daemon import State
from tests.graph.conftest import bundled
from tests.graph.mocked import DATA_KEY, Graph, HealthyDaemon, plain_text_of, values_of

Program = Callable[..., Graph]
KEY = "k" * 32


def settings(kind: str, *, on: bool = True) -> dict[str, Any]:
    return values_of("prod") | {"mlflow:objectStore": {"kind": kind, "memoryMb": 1024, "encryption": on}}


def files(graph: Graph, consumer: str) -> dict[str, str]:
    return {upload["file"]: str(upload["content"]) for upload in graph.with_files[consumer].plain["uploads"]}


def test_without_the_setting_there_is_no_key(program: Program) -> None:
    graph = program("prod", values=bundled())
    assert "object-store-key" not in {key.name for key in graph.of(DATA_KEY)}
    assert "ENCRYPTION" not in graph.jobs["minio-bootstrap"].envs


def test_seaweedfs_gets_the_key_in_its_own_configuration_file(program: Program) -> None:
    graph = program("prod", values=settings("seaweedfs"), secrets={"objectStoreKey": KEY})
    assert files(graph, "seaweedfs")["/run/secrets/security.toml"] == f'[s3.sse]\nkek = "{KEY.encode().hex()}"\n'
    assert graph.services["seaweedfs"].plain["command"][0] == "-config_dir=/run/secrets"


def test_minio_gets_the_key_in_its_own_format(program: Program) -> None:
    graph = program("prod", values=settings("minio"), secrets={"objectStoreKey": KEY})
    expected = f"mlflow:{base64.b64encode(KEY.encode()).decode()}"
    assert files(graph, "minio")["/run/secrets/kms-secret-key"] == expected
    assert graph.services["minio"].envs["MINIO_KMS_SECRET_KEY_FILE"] == "/run/secrets/kms-secret-key"


@pytest.mark.parametrize("kind", ["minio", "seaweedfs"])
def test_the_key_is_a_protected_data_key_and_in_every_backup(program: Program, kind: str) -> None:
    graph = program("prod", values=settings(kind))
    (key,) = [found for found in graph.of(DATA_KEY) if found.name == "object-store-key"]
    assert key.request.protect
    assert files(graph, "backup")["/run/secrets/data-keys/object-store-key"] == "generated-object-store-keyxxxxxx"
    for resource in graph.resources:
        assert "generated-object-store-key" not in plain_text_of(resource.inputs), resource.name


@pytest.mark.parametrize("kind", ["minio", "seaweedfs"])
def test_a_store_that_was_encrypted_keeps_its_key_when_the_setting_is_turned_off(program: Program, kind: str) -> None:
    graph = program("prod", values=settings(kind, on=False), secrets={"objectStoreKey": KEY})
    own = "kms-secret-key" if kind == "minio" else "security.toml"
    assert f"/run/secrets/{own}" in files(graph, kind)
    assert graph.jobs[f"{kind}-bootstrap"].envs["ENCRYPTION"] == "off"


class WithAKey(HealthyDaemon):
    """A daemon whose bucket job has read stored data with another key."""

    def read_file(self, container: str, path: str) -> bytes | None:
        if path.endswith("/object-store-key"):
            return b"another-key-of-the-stored-objects"
        return super().read_file(container, path)


def test_another_key_than_that_of_the_stored_artifacts_is_refused_before_any_change(program: Program) -> None:
    with pytest.raises(pulumi.RunError) as told:
        program("prod", values=settings("seaweedfs"), secrets={"objectStoreKey": KEY}, daemon_class=WithAKey)
    assert re.search("mlflow:objectStoreKey: is not the key of the stored data.*nothing was changed", str(told.value))
    assert "docs/operations/restore.md#set-a-data-key-from-a-backup" in str(told.value)


class WithAnUnprovedKey(WithAKey):
    """A daemon whose bucket job has failed, because its key is not that of the stored data."""

    def state(self, container: str) -> State:
        found = super().state(container)
        return replace(found, exit_code=1) if container.endswith("-bootstrap") else found


def test_a_key_that_was_refused_may_be_replaced(program: Program) -> None:
    """Otherwise a wrong key on a new host could not be corrected. The job runs again, and proves the other one."""
    graph = program(
        "prod", values=settings("seaweedfs"), secrets={"objectStoreKey": KEY}, daemon_class=WithAnUnprovedKey
    )
    assert files(graph, "seaweedfs-bootstrap")["/run/secrets/object-store-key"] == KEY


def test_a_key_of_another_length_is_refused(program: Program) -> None:
    with pytest.raises(pulumi.RunError, match="mlflow:objectStoreKey: must be 32 letters"):
        program("prod", values=settings("minio"), secrets={"objectStoreKey": "k" * 31})
