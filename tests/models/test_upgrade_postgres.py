"""Test what `make upgrade-postgres` refuses before anything changes: on a fake stack.

tests/stack/test_upgrade_postgres.py moves a real database.
"""

from types import SimpleNamespace
from typing import Any

import pytest

from operations.common.console import StopError
from operations.data import upgrade_postgres
from settings import names, packages
from settings.images import Image

PACKAGES = f"{names.LOCAL_REGISTRY}/mlflow-packages/postgres:17-abc"


def a_stack(ref: str = "docker.io/library/postgres:18.6", major: int = 18, *, backup: str | None = None) -> Any:  # noqa: ANN401
    images = SimpleNamespace(postgres=Image(ref=ref), backup=Image(ref=backup) if backup else None)
    settings = SimpleNamespace(images=images, postgres_major=major, backup=SimpleNamespace(enabled=backup is not None))
    return SimpleNamespace(
        name="prod", settings=settings, settings_with=lambda **_: None, daemon=SimpleNamespace(inspect=lambda _: None)
    )


@pytest.mark.parametrize(
    ("to", "ref"),
    [
        ("18", "docker.io/library/postgres:18.6"),
        ("19", "docker.io/library/postgres:19"),
        ("19.2", "docker.io/library/postgres:19.2"),
        ("registry.example.com/postgres:19.2", "registry.example.com/postgres:19.2"),
    ],
)
def test_the_wanted_image_follows_from_a_version_or_is_named(
    monkeypatch: pytest.MonkeyPatch, to: str, ref: str
) -> None:
    monkeypatch.setenv("TO", to)
    assert upgrade_postgres._wanted(a_stack()) == ref


@pytest.mark.parametrize(
    ("stack", "to", "words"),
    [
        (
            a_stack(),
            "",
            "TO= is not set: the new major version, or an image such as docker.io/library/postgres:18.6\n"
            "  type: make upgrade-postgres STACK=prod TO=19",
        ),
        (
            a_stack(),
            "registry.example.com/postgres:latest",
            "TO=registry.example.com/postgres:latest: has no tag with a version\n"
            "  type: make upgrade-postgres STACK=prod TO=19",
        ),
        (
            a_stack(PACKAGES, 17),
            "18",
            "TO=18: Debian's packages have Postgres 17 only\n"
            "  name an image, such as: make upgrade-postgres STACK=prod TO=docker.io/library/postgres:18.6; "
            "docs/operations/upgrade.md#upgrade-postgres",
        ),
    ],
    ids=["nothing", "no version", "packages"],
)
def test_a_target_that_is_no_version_is_refused(
    monkeypatch: pytest.MonkeyPatch,
    stack: Any,  # noqa: ANN401
    to: str,
    words: str,
) -> None:
    monkeypatch.setenv("TO", to)
    with pytest.raises(StopError) as told:
        upgrade_postgres._wanted(stack)
    assert str(told.value) == words


def test_a_backup_image_of_the_old_version_is_refused() -> None:
    stack = a_stack(backup=packages.ref("backup"))
    image = Image(ref="docker.io/library/postgres:19")
    with pytest.raises(StopError, match="has the programs of Postgres 18, which cannot read a newer one") as told:
        upgrade_postgres._require_valid(stack, image)
    assert "name a backup image that was built on docker.io/library/postgres:19" in str(told.value)
    stack.settings.backup.enabled = False
    upgrade_postgres._require_valid(stack, image)


def test_another_minor_version_is_no_upgrade_of_the_data_format(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TO", "18.7")
    engine: Any = None
    with pytest.raises(StopError, match="has the data format of") as told:
        upgrade_postgres._finish(a_stack(), engine, "docker.io/library/postgres:18.7", 18, dry=False)
    assert "set mlflow:images.postgres.ref, then type: make up STACK=prod" in str(told.value)
