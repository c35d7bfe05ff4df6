"""Test names, notations, digests and certificates: small functions whose exact output matters."""

import contextlib
import os
import shutil
import socket
import ssl
import threading
from pathlib import Path

import pytest
from docker.utils.build import exclude_paths

from components.certificates import self_signed
from components.minio import policy
from components.mlflow_credentials import fernet_key
from operations.observe.disk import is_encrypted
from runtime.container import _cpus, go_duration
from settings import names, packages
from settings.images import BACKUP_CONTEXT, CONTEXT, build_context_files, context_digest

ROOT = Path(__file__).parents[2]


def test_only_data_volumes_are_recognized_as_data_volumes() -> None:
    assert names.postgres_major("dev", "mlflow-dev-postgres-18-data") == 18
    assert names.postgres_major("dev", "mlflow-dev-2-postgres-18-data") is None
    assert names.is_data_volume("dev", "mlflow-dev-minio-data")
    assert not names.is_data_volume("dev", "mlflow-dev-minio-secrets")
    assert not names.is_data_volume("dev", "mlflow-prod-minio-data")


@pytest.mark.parametrize(("seconds", "spelled"), [(5, "5s"), (60, "1m0s"), (90, "1m30s"), (600, "10m0s")])
def test_durations_are_written_as_docker_returns_them(seconds: int, spelled: str) -> None:
    assert go_duration(seconds) == spelled


@pytest.mark.parametrize(("number", "spelled"), [(1, "1.0"), (0.5, "0.5"), (2.0, "2.0"), (1.5, "1.5")])
def test_cpus_are_written_as_docker_returns_them(number: float, spelled: str) -> None:
    assert _cpus(number) == spelled


def test_a_fernet_key_is_derived_once() -> None:
    key = fernet_key("a" * 32)
    assert len(key) == 44
    assert fernet_key(key) == key


def test_the_bucket_policy_of_mlflow_covers_its_own_bucket_only() -> None:
    resources = [resource for statement in policy("mlflow")["Statement"] for resource in statement["Resource"]]
    assert resources == ["arn:aws:s3:::mlflow", "arn:aws:s3:::mlflow/*"]


def test_the_build_context_digest_depends_on_names_content_modes_and_base(tmp_path: Path) -> None:
    file = tmp_path / "a.sh"
    file.write_text("x")
    (tmp_path / ".dockerignore").write_text("*\n!*.sh\n")
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
    # No build reads the files that a test, macOS or an editor leaves.
    (tmp_path / "__pycache__").mkdir()
    for name in ("__pycache__/x.pyc", ".DS_Store", "b.sh~", "requirements.in"):
        (tmp_path / name).write_text("x")
    assert context_digest(tmp_path, "python:3.13") == third


@pytest.mark.parametrize("context", [CONTEXT, BACKUP_CONTEXT])
def test_the_digest_covers_exactly_the_files_that_docker_reads(context: str, tmp_path: Path) -> None:
    folder = tmp_path / "context"
    shutil.copytree(ROOT / context, folder)
    for name in (".DS_Store", "notes.md", "requirements.in", "logs/x.pyc", "sub/Dockerfile"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("x")
    patterns = (folder / ".dockerignore").read_text().split()
    # Docker always sends this file along, to read it.
    sent = exclude_paths(str(folder), patterns) - {".dockerignore"}
    hashed = {path.relative_to(folder).as_posix() for path in build_context_files(folder)}
    assert hashed == {name for name in sent if (folder / name).is_file()}
    assert context_digest(folder, "x") == context_digest(ROOT / context, "x")


def test_an_unsupported_dockerignore_is_refused(tmp_path: Path) -> None:
    (tmp_path / ".dockerignore").write_text("*.md\n")
    with pytest.raises(ValueError, match="must begin with"):
        build_context_files(tmp_path)


def test_the_tag_of_a_recipe_depends_on_the_built_files_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(packages.FOLDER, tmp_path / "packages")
    before = packages.ref("postgres")
    monkeypatch.setattr(packages, "FOLDER", tmp_path / "packages")
    assert packages.ref("postgres") == before
    folder = tmp_path / "packages" / "postgres"
    (folder / "__pycache__").mkdir()
    (folder / ".DS_Store").write_text("x")
    with (folder / "recipe.toml").open("a") as file:
        file.write("# a comment\n")
    assert packages.ref("postgres") == before
    (folder / "setup.sh").write_text("other")
    assert packages.ref("postgres") != before


def test_a_self_signed_certificate_is_stable_and_valid_for_its_hostname(tmp_path: Path) -> None:
    certificate, key = self_signed("m.example.com", "x" * 32)
    assert (certificate, key) == self_signed("m.example.com", "x" * 32), "every plan would replace the bundled Traefik"
    assert self_signed("m.example.com", "y" * 32)[1] != key
    (tmp_path / "cert.pem").write_text(certificate)
    (tmp_path / "key.pem").write_text(key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    trusting = ssl.create_default_context(cafile=str(tmp_path / "cert.pem"))

    def shaken(hostname: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listening:
            thread = threading.Thread(target=answered, args=(listening,))
            thread.start()
            try:
                with socket.create_connection(listening.getsockname(), timeout=5) as plain:
                    trusting.wrap_socket(plain, server_hostname=hostname).close()
            finally:
                thread.join()

    def answered(listening: socket.socket) -> None:
        with contextlib.suppress(ssl.SSLError, OSError):
            context.wrap_socket(listening.accept()[0], server_side=True).close()

    shaken("m.example.com")
    with pytest.raises(ssl.SSLCertVerificationError, match="mismatch"):
        shaken("other.example.com")


def test_dm_crypt_is_found_below_a_file_system_and_below_lvm(tmp_path: Path) -> None:
    number = tmp_path.stat().st_dev
    device = tmp_path / "sys" / f"{os.major(number)}:{os.minor(number)}"
    assert is_encrypted(tmp_path, tmp_path / "sys") is None
    device.mkdir(parents=True)
    assert is_encrypted(tmp_path, tmp_path / "sys") is False
    below = device / "slaves" / "dm-1" / "dm"
    below.mkdir(parents=True)
    (below / "uuid").write_text("LVM-abc\n")
    assert is_encrypted(tmp_path, tmp_path / "sys") is False
    (below / "uuid").write_text("CRYPT-LUKS2-abc-docker\n")
    assert is_encrypted(tmp_path, tmp_path / "sys") is True
    assert is_encrypted(tmp_path / "missing", tmp_path / "sys") is None
