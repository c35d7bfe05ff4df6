"""Test the encryption of artifacts on a real deployment: what is on the disk, and who can read it."""

import hashlib
import os
import sys
from collections.abc import Iterator

import pytest
import urllib3

from tests.stack.backups import newest
from tests.stack.deployment import Deployment, free_port
from tests.stack.probes import is_on_disk

pytestmark = [
    pytest.mark.ci,
    pytest.mark.skipif(
        os.geteuid() != 0 or sys.platform != "linux",
        reason="needs root on Linux to read the volume of the object store",
    ),
]
SIZE = 3_000_000
NEEDLE = slice(1_000_000, 1_000_064)
"""A part of an artifact to search for. The artifacts are random, because SeaweedFS compresses others."""


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """Deploy a stack without encryption."""
    deployment = Deployment(tmp_path_factory.mktemp("encryption"), "dev")
    deployment.set("server", {"workers": 1, "memoryMb": 1024, "port": free_port()})
    deployment.use("seaweedfs")
    deployment.set("backup.enabled", value=True)
    try:
        deployment.make("up")
        yield deployment
    finally:
        deployment.remove()


def address(deployment: Deployment, name: str) -> str:
    return f"{deployment.url}/api/2.0/mlflow-artifacts/artifacts/0/{name}"


def uploaded(deployment: Deployment, name: str) -> bytes:
    content = os.urandom(SIZE)
    assert urllib3.request("PUT", address(deployment, name), body=content).status == 200
    return content


def read(deployment: Deployment, name: str) -> bytes:
    answer = urllib3.request("GET", address(deployment, name))
    assert answer.status == 200, answer.data[:300]
    return bytes(answer.data)


def test_encryption_covers_new_artifacts_at_once_and_all_others_after_make_encrypt(stored: Deployment) -> None:
    before = uploaded(stored, "before.bin")
    assert is_on_disk(stored, before[NEEDLE]), "the search does not find what it must find"
    assert "mlflow:objectStore.encryption is false" in stored.make("encrypt", ok=False).stderr
    stored.set("objectStore.encryption", value=True)
    stored.make("up")
    after = uploaded(stored, "after.bin")
    assert not is_on_disk(stored, after[NEEDLE])
    assert is_on_disk(stored, before[NEEDLE])
    assert "1 of them not encrypted" in stored.make("encrypt", DRY_RUN="1").stderr
    stored.make("encrypt")
    assert not is_on_disk(stored, before[NEEDLE])
    assert "0 of them not encrypted" in stored.make("encrypt").stderr
    assert (read(stored, "before.bin"), read(stored, "after.bin")) == (before, after)
    if not stored.engineless:
        assert not stored.plan()


@pytest.mark.long
def test_a_backup_and_a_restore_read_encrypted_artifacts(stored: Deployment) -> None:
    content = uploaded(stored, "saved.bin")
    stored.make("backup")
    stored.make("drill")
    stored.make("restore", FROM="latest", CONFIRM=stored.stack)
    assert hashlib.sha256(read(stored, "saved.bin")).digest() == hashlib.sha256(content).digest()
    key = stored.run("backup", "restic", "dump", newest(stored), "/run/secrets/data-keys/object-store-key")[1]
    assert key == stored.credentials()["objectStoreKey"]


@pytest.mark.engine
def test_another_key_is_refused_beside_the_store_and_on_a_new_host(stored: Deployment) -> None:
    content, key = uploaded(stored, "kept.bin"), stored.credentials()["objectStoreKey"]
    stored.pulumi("config", "set", "--secret", "mlflow:objectStoreKey", stdin="x" * 32)
    said = stored.make("up", ok=False)
    assert "mlflow:objectStoreKey: is not the key of the stored data" in said.stdout + said.stderr
    assert read(stored, "kept.bin") == content
    # The volume alone, as on a new host.
    stored.pulumi("config", "set", "--secret", "mlflow:objectStoreKey", stdin=key)
    stored.make("down")
    stored.pulumi("config", "set", "--secret", "mlflow:objectStoreKey", stdin="x" * 32)
    said = stored.make("up", ok=False)
    assert "mlflow:objectStoreKey does not decrypt the artifacts of this store" in said.stdout + said.stderr
    assert not stored.api.containers(all=True, filters={"name": f"^/{stored.name('server')}$"})
    stored.pulumi("config", "set", "--secret", "mlflow:objectStoreKey", stdin=key)
    stored.make("up")
    assert read(stored, "kept.bin") == content


@pytest.mark.engine
@pytest.mark.long
def test_a_rotation_of_the_key_is_refused_with_the_reason(stored: Deployment) -> None:
    said = stored.make("rotate", ok=False, SECRET="objectStoreKey").stderr
    assert "the object store cannot encrypt its artifacts with another key" in said
    assert "left out: objectStoreKey" in stored.make("rotate", DRY_RUN="1").stdout
