"""Test the description of an export's target, and what its containers get."""

import io
import tarfile
from pathlib import Path
from typing import Any

import pytest

from operations.common.console import StopError
from operations.data import export
from operations.data.export import Target

COMPLETE = {
    "PGHOST": "db.example.com",
    "PGDATABASE": "mlflow",
    "PGUSER": "owner",
    "PGPASSWORD": "a:b\\c",
    "S3_BUCKET": "runs",
    "AWS_ACCESS_KEY_ID": "key",
    "AWS_SECRET_ACCESS_KEY": "secret",
}


def read(tmp_path: Path, *lines: str, **changes: str) -> Target:
    path = tmp_path / "target.env"
    path.write_text("\n".join([*lines, *(f"{key}={value}" for key, value in (COMPLETE | changes).items())]))
    return Target.read(path)


def test_a_target_is_read_as_a_shell_would_read_it(tmp_path: Path) -> None:
    found = read(tmp_path, "# a comment", "", "export PGPORT='6432'", PGUSER='"some one"', S3_BUCKET="a=b")
    assert found.values["PGPORT"] == "6432"
    assert found.values["PGUSER"] == "some one"
    assert found.values["S3_BUCKET"] == "a=b"
    assert found.values["PGSSLMODE"] == "prefer"


def test_everything_that_is_wrong_with_a_target_is_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(StopError) as caught:
        read(tmp_path, "PGPASS=x", "nonsense", PGHOST="", S3_BUCKET="")
    said = str(caught.value)
    for words in (
        "line 1: PGPASS: unknown",
        "line 2: nonsense: unknown",
        "PGHOST: is missing",
        "S3_BUCKET: is missing",
    ):
        assert words in said
    for secret in ("secret", COMPLETE["PGPASSWORD"]):
        assert secret not in said.replace("AWS_SECRET_ACCESS_KEY", "")


def test_a_password_with_special_characters_is_escaped_for_libpq(tmp_path: Path) -> None:
    assert read(tmp_path).pgpass == "*:*:*:*:a\\:b\\\\c\n"


def test_passwords_reach_a_container_as_files_of_its_user_only(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    started: dict[str, Any] = {}

    class Daemon:
        def inspect(self, _name: str) -> dict[str, Any]:
            return {"Image": "sha256:postgres"}

        def once(self, name: str, body: dict[str, Any], _tell: object, **more: Any) -> int:  # noqa: ANN401
            started.update(name=name, body=body, **more)
            return 0

    class Stack:
        name, daemon = "prod", Daemon()

    monkeypatch.setattr(export, "relay_output", lambda _: None)
    export._database(Stack(), read(tmp_path), "check")  # type: ignore[arg-type]
    assert COMPLETE["PGPASSWORD"] not in str(started["body"])
    with tarfile.open(fileobj=io.BytesIO(started["archive"])) as archive:
        for member in archive:
            assert (member.uid, member.mode) == (export.UID, 0o400), member.name
        content = archive.extractfile("run/export/pgpass")
        assert content
        assert b"a\\:b" in content.read()
    assert started["body"]["HostConfig"]["CapDrop"] == ["ALL"]
    assert started["networks"] == ["bridge", "mlflow-prod-backend"]
