"""Test the copy of artifacts to a bucket elsewhere, with both stores in memory and clocks that differ."""

import importlib.util
import io
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

ASSETS = Path(__file__).parents[2] / "assets"
NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)


@pytest.fixture(scope="module")
def program() -> Any:  # noqa: ANN401 - loaded at run time
    """The program, with the module beside it in the container."""
    for name, path in (("copy_artifacts", "copy/copy_artifacts.py"), ("artifacts", "export/artifacts.py")):
        spec = importlib.util.spec_from_file_location(name, ASSETS / path)
        assert spec
        assert spec.loader
        sys.modules[name] = loaded = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(loaded)
    yield sys.modules["artifacts"]
    del sys.modules["artifacts"], sys.modules["copy_artifacts"]


class Store:
    """An object store with one bucket and a clock of its own. The ETag is the content."""

    def __init__(self, error: type[Exception], ahead: int = 0) -> None:
        self.error, self.now = error, NOON + timedelta(minutes=ahead)
        self.objects: dict[str, tuple[bytes, datetime]] = {}
        self.written: list[str] = []
        self.garbles: set[str] = set()
        self.exists = True
        self.read: Any = lambda _key: None

    def put(self, key: str, body: bytes) -> None:
        self.objects[key] = (body, self.now)

    def get_paginator(self, _name: str) -> "Store":
        return self

    def paginate(self, **_bucket: str) -> list[dict[str, Any]]:
        return [
            {
                "Contents": [
                    {"Key": key, "Size": len(body), **self._about(key)} for key, (body, _) in self.objects.items()
                ]
            },
            {},
        ]

    def _about(self, key: str) -> dict[str, Any]:
        body, at = self.objects[key]
        return {"ETag": f'"{body.hex()}"', "LastModified": at}

    def get_object(self, **asked: str) -> dict[str, Any]:
        key = asked["Key"]
        if key not in self.objects:
            raise self.error({"Error": {"Code": "NoSuchKey"}}, "GetObject")
        body, about = self.objects[key][0], self._about(key)
        self.read(key)
        return {"Body": io.BytesIO(body), "ContentLength": len(body), **about}

    def head_bucket(self, **_bucket: str) -> None:
        if not self.exists:
            raise self.error({"Error": {"Code": "404"}}, "HeadBucket")

    def put_object(self, **asked: Any) -> None:  # noqa: ANN401
        self.put(asked["Key"], asked["Body"][::-1] if asked["Key"] in self.garbles else asked["Body"])

    def delete_object(self, **asked: str) -> None:
        del self.objects[asked["Key"]]

    def upload_fileobj(self, body: Any, _bucket: str, key: str, **_extra: object) -> None:  # noqa: ANN401
        self.written.append(key)
        content = body.read()
        self.put(key, content[::-1] if key in self.garbles else content)


@pytest.fixture
def stores(program: Any) -> tuple[Store, Store]:  # noqa: ANN401
    """A source with three objects, and a target whose clock is an hour ahead."""
    source, target = Store(program.ClientError), Store(program.ClientError, ahead=60)
    for key in ("a", "a/b", "c.png"):
        source.put(key, key.encode() * 3)
    return source, target


def run(program: Any, stores: tuple[Store, Store], *, finish: bool) -> int:  # noqa: ANN401
    return int(program.Export(*stores, ("mlflow", "elsewhere")).run(finish=finish))


def content(store: Store) -> dict[str, bytes]:
    return {key: body for key, (body, _) in store.objects.items()}


def test_everything_is_copied_and_nothing_twice(program: Any, stores: tuple[Store, Store]) -> None:  # noqa: ANN401
    source, target = stores
    assert run(program, stores, finish=False) == 0
    assert run(program, stores, finish=True) == 0
    assert content(target) == content(source), "the record is left, or an object is missing"
    assert sorted(target.written) == ["a", "a/b", "c.png"]


@pytest.mark.parametrize("body", [b"other", b"AAA"], ids=["another size", "the same size"])
def test_an_object_that_changed_between_the_copies_is_copied_again(
    program: Any,  # noqa: ANN401
    stores: tuple[Store, Store],
    body: bytes,
) -> None:
    """The target's object is newer by the target's clock, which is an hour ahead."""
    source, target = stores
    assert run(program, stores, finish=False) == 0
    source.put("a", body)
    assert run(program, stores, finish=True) == 0
    assert content(target)["a"] == body


def test_an_object_that_changes_while_it_is_copied_is_copied_again(
    program: Any,  # noqa: ANN401
    stores: tuple[Store, Store],
) -> None:
    source, target = stores
    source.read = lambda key: source.put(key, b"newer") if key == "a" else None
    assert run(program, stores, finish=False) == 0
    source.read = lambda _key: None
    assert content(target)["a"] == b"aaa"
    assert run(program, stores, finish=True) == 0
    assert content(target)["a"] == b"newer"


def test_an_interrupted_copy_is_not_taken_for_a_complete_one(
    program: Any,  # noqa: ANN401
    stores: tuple[Store, Store],
) -> None:
    source, target = stores
    # Uploaded, but not compared yet, when the program was killed.
    target.put("a", b"xxx")
    assert run(program, stores, finish=True) == 0
    assert content(target) == content(source)


def test_an_artifact_that_arrives_otherwise_fails_the_export(
    program: Any,  # noqa: ANN401
    stores: tuple[Store, Store],
    capsys: pytest.CaptureFixture[str],
) -> None:
    source, target = stores
    source.put("a", b"abc")
    target.garbles = {"a"}
    assert run(program, stores, finish=True) == 1
    assert "a: the target returns other bytes" in capsys.readouterr().out
    assert program.STATE in target.objects, "the record of the others is needed for the next run"
    target.garbles = set()
    assert run(program, stores, finish=True) == 0
    assert target.written.count("c.png") == 1


@pytest.mark.parametrize(
    ("exists", "garbles", "code", "said"),
    [
        (True, False, 0, "the bucket b can be written and read"),
        (False, False, 1, "error: cannot use the bucket b: "),
        (True, True, 1, "error: b returns other bytes"),
    ],
    ids=["usable", "missing", "other bytes"],
)
def test_a_check_writes_reads_and_deletes_one_object(
    program: Any,  # noqa: ANN401
    capsys: pytest.CaptureFixture[str],
    code: int,
    said: str,
    *,
    exists: bool,
    garbles: bool,
) -> None:
    target = Store(program.ClientError)
    target.exists = exists
    target.garbles = {f"{program.STATE}-check"} if garbles else set()
    assert program.check(target, "b") == code
    assert said in capsys.readouterr().out
    assert not target.objects
