"""Test the job that copies artifacts between object stores, with both stores in memory."""

import importlib.util
import io
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

PATH = Path(__file__).parents[2] / "assets" / "copy" / "copy_artifacts.py"
spec = importlib.util.spec_from_file_location("copy_artifacts", PATH)
assert spec
assert spec.loader
copy_artifacts = importlib.util.module_from_spec(spec)
spec.loader.exec_module(copy_artifacts)

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)


class Store:
    """An object store with one bucket."""

    def __init__(self, objects: dict[str, tuple[bytes, int]]) -> None:
        """Take a mapping of key to content and minutes after noon."""
        self.objects = {key: (body, NOON + timedelta(minutes=at)) for key, (body, at) in objects.items()}
        self.loses: set[str] = set()
        self.garbles: set[str] = set()
        self.cuts: set[str] = set()
        self.written: list[str] = []

    def get_paginator(self, _name: str) -> "Store":
        return self

    def paginate(self, **_bucket: str) -> list[dict[str, Any]]:
        found = [{"Key": key, "Size": len(body), "LastModified": at} for key, (body, at) in self.objects.items()]
        return [{"Contents": found[:2]}, {"Contents": found[2:]}, {}]

    def get_object(self, **asked: str) -> dict[str, Any]:
        key = asked["Key"]
        body = self.objects[key][0] if key in self.objects else b""
        return {"Body": io.BytesIO(b"" if key in self.cuts else body), "ContentType": "text/plain"}

    def delete_object(self, **asked: str) -> None:
        self.objects.pop(asked["Key"], None)

    def upload_fileobj(self, body: io.BytesIO, _bucket: str, key: str, **_extra: object) -> None:
        self.written.append(key)
        if key not in self.loses:
            content = body.read()
            self.objects[key] = (content[::-1] if key in self.garbles else content, NOON + timedelta(hours=1))
        else:
            body.read()


def copy(source: Store, target: Store, monkeypatch: pytest.MonkeyPatch) -> int:
    stores = {"source": source, "target": target}

    class Session:
        def __init__(self, profile_name: str) -> None:
            self.role = profile_name

        def client(self, _service: str, endpoint_url: str) -> Store:
            assert endpoint_url == f"http://{self.role}"
            return stores[self.role]

    monkeypatch.setattr(copy_artifacts.boto3, "Session", Session)
    for key, value in {"BUCKET": "mlflow", "SOURCE": "minio", "TARGET": "seaweedfs"}.items():
        monkeypatch.setenv(key, value)
    for role in stores:
        monkeypatch.setenv(f"{role.upper()}_ENDPOINT", f"http://{role}")
    code: int = copy_artifacts.main()
    return code


def test_everything_is_copied_and_nothing_twice(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # The two stores list these names in different orders.
    source, target = Store({"a/b": (b"1", 0), "a.png": (b"22", 0), "a": (b"", 0)}), Store({})
    assert copy(source, target, monkeypatch) == 0
    assert {key: body for key, (body, _) in target.objects.items()} == {"a/b": b"1", "a.png": b"22", "a": b""}
    assert copy(source, target, monkeypatch) == 0
    assert len(target.written) == 3
    assert "every artifact of mlflow has been copied from minio to seaweedfs" in capsys.readouterr().out


def test_an_object_newer_in_the_source_is_copied_even_at_the_same_size(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = Store({"kept": (b"same", 0), "changed": (b"new!", 30), "grown": (b"longer", 5)})
    target = Store({"kept": (b"same", 5), "changed": (b"old!", 5), "grown": (b"short", 5), "older": (b"x", 0)})
    assert copy(source, target, monkeypatch) == 0
    assert target.written == ["changed", "grown"]
    assert target.objects["changed"][0] == b"new!"
    assert "older" in target.objects


def test_an_object_newer_in_the_target_is_not_overwritten(monkeypatch: pytest.MonkeyPatch) -> None:
    # After `make down && make up` with `copyFrom` still set, no server shows that it already uses the target.
    source, target = Store({"a": (b"old", 0)}), Store({"a": (b"written since", 5)})
    assert copy(source, target, monkeypatch) == 0
    assert target.objects["a"][0] == b"written since"


def test_a_missing_artifact_fails_the_copy_and_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    target = Store({})
    target.loses = {"b"}
    assert copy(Store({"a": (b"1", 0), "b": (b"2", 0)}), target, monkeypatch) == 1
    said = capsys.readouterr().out
    assert "1 artifacts differ after the copy, the first of them:\n  b: the target returns other bytes\n" in said


@pytest.mark.parametrize(
    ("fault", "reason"),
    [("garbles", "the target returns other bytes"), ("cuts", "the source lists 7 bytes, but returns 0")],
)
def test_an_artifact_with_other_content_fails_the_copy_and_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], fault: str, reason: str
) -> None:
    source, target = Store({"report": (b"content", 0), "report/page1": (b"page", 0)}), Store({})
    setattr(target if fault == "garbles" else source, fault, {"report"})
    assert copy(source, target, monkeypatch) == 1
    assert f"\n  report: {reason}\n" in capsys.readouterr().out
    # Docker runs the job again: it must not accept what its failed run left.
    assert copy(source, target, monkeypatch) == 1
    assert f"\n  report: {reason}\n" in capsys.readouterr().out


def test_a_store_that_cannot_be_listed_fails_the_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    source = Store({})
    monkeypatch.setattr(source, "paginate", lambda **_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        copy(source, Store({}), monkeypatch)
