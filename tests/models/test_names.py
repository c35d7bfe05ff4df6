"""Names, spellings and labels: small functions whose every output has to be right."""

from pathlib import Path

import pytest

from components import names
from components.credentials import fernet_key
from components.images import context_digest
from components.minio import policy
from components.runtime import _cpus, _duration


def test_a_data_volume_is_recognised_and_nothing_else_is() -> None:
    assert names.postgres_major("dev", "mlflow-dev-postgres-18-data") == 18
    assert names.postgres_major("dev", "mlflow-dev-2-postgres-18-data") is None
    assert names.is_data_volume("dev", "mlflow-dev-minio-data")
    assert not names.is_data_volume("dev", "mlflow-dev-minio-secrets")
    assert not names.is_data_volume("dev", "mlflow-prod-minio-data")


@pytest.mark.parametrize(("seconds", "spelled"), [(5, "5s"), (60, "1m0s"), (90, "1m30s"), (600, "10m0s")])
def test_a_duration_is_spelled_as_docker_reads_it_back(seconds: int, spelled: str) -> None:
    assert _duration(seconds) == spelled


@pytest.mark.parametrize(("number", "spelled"), [(1, "1.0"), (0.5, "0.5"), (2.0, "2.0"), (1.5, "1.5")])
def test_cpus_are_spelled_as_docker_reads_them_back(number: float, spelled: str) -> None:
    assert _cpus(number) == spelled


def test_a_fernet_key_is_made_of_a_password_and_one_that_is_a_key_already_is_left_alone() -> None:
    key = fernet_key("a" * 32)
    assert len(key) == 44
    assert fernet_key(key) == key


def test_the_policy_of_mlflow_names_its_bucket_and_no_other() -> None:
    resources = [resource for statement in policy("mlflow")["Statement"] for resource in statement["Resource"]]
    assert resources == ["arn:aws:s3:::mlflow", "arn:aws:s3:::mlflow/*"]


def test_the_digest_of_a_build_context_follows_names_contents_modes_and_the_base(tmp_path: Path) -> None:
    file = tmp_path / "a.sh"
    file.write_text("x")
    first = context_digest(tmp_path, "python:3.13")
    assert context_digest(tmp_path, "python:3.13") == first
    assert context_digest(tmp_path, "python:3.14") != first
    file.chmod(0o755)
    second = context_digest(tmp_path, "python:3.13")
    assert second != first
    file.write_text("y")
    assert context_digest(tmp_path, "python:3.13") != second
    file.rename(tmp_path / "b.sh")
    third = context_digest(tmp_path, "python:3.13")
    assert len({third, first, second}) == 3
    # A test that has run a script leaves its bytecode.
    (tmp_path / "__pycache__").mkdir()
    (tmp_path / "__pycache__" / "x.pyc").write_text("x")
    assert context_digest(tmp_path, "python:3.13") == third
