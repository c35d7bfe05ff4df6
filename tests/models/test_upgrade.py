"""Test what `make up` does before it deploys another MLflow version."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from docker.errors import NotFound

from operations.common.console import StopError
from operations.data import backup
from operations.deployment import deploy, up
from operations.host import docker_daemon
from settings.parsing import parse_settings

HERE, NEW = "sha256:here", "sha256:new"


class ADaemon:
    """A host on which the server runs one image; the image to deploy has the ID `wanted`, or is missing."""

    def __init__(self, *, wanted: str | None, containers: tuple[str, ...], stores: tuple[str, ...]) -> None:
        self.wanted = wanted
        self.containers = containers
        self.stores = stores
        self.api = self

    def inspect(self, name: str) -> dict[str, Any] | None:
        service = name.removeprefix("mlflow-prod-")
        return {"Image": HERE, "State": {"Running": True}} if service in self.containers else None

    def services(self, stack: str, *, stopped: bool) -> dict[str, str]:
        assert stopped, "a server that is stopped may have another image, too"
        return {service: f"mlflow-{stack}-{service}" for service in self.containers}

    def volumes(self) -> list[str]:
        databases = ["mlflow-prod-postgres-18-data"] if "postgres" in self.containers else []
        return [*databases, *(f"mlflow-prod-{store}-data" for store in self.stores)]

    def inspect_image(self, _: str) -> dict[str, str]:
        if self.wanted is None:
            raise NotFound("no such image")
        return {"Id": self.wanted}


def brought_up(
    monkeypatch: pytest.MonkeyPatch,
    *,
    wanted: str | None,
    containers: tuple[str, ...] = ("server", "backup", "postgres"),
    stores: tuple[str, ...] = ("minio",),
    enabled: bool = True,
    fails: bool = False,
    found: dict[str, object] | str = "there is no backup at volume yet",
) -> list[str]:
    """Run `make up`, and return the steps that it took."""
    done: list[str] = []

    def take(_: object) -> None:
        done.append("backup")
        if fails:
            raise StopError("the backup of prod failed")

    def look(*_: object) -> dict[str, object]:
        done.append("look")
        if isinstance(found, str):
            raise StopError(found)
        return found

    monkeypatch.setattr(backup, "backup", take)
    monkeypatch.setattr(backup, "restore_plan", look)
    monkeypatch.setattr(deploy, "up", lambda _, **__: done.append("up"))
    monkeypatch.setattr(docker_daemon, "require_docker", lambda _: None)
    stack: Any = SimpleNamespace(
        name="prod",
        path=Path("Pulumi.prod.yaml"),
        settings=parse_settings({"backup": {"enabled": enabled}}),
        values={},
        daemon=ADaemon(wanted=wanted, containers=containers, stores=stores),
    )
    up.up(stack)
    return done


@pytest.mark.parametrize("wanted", [NEW, None], ids=["image exists", "image is not built yet"])
def test_a_new_mlflow_version_is_deployed_after_a_backup(monkeypatch: pytest.MonkeyPatch, wanted: str | None) -> None:
    assert brought_up(monkeypatch, wanted=wanted) == ["backup", "up"]


def test_a_deployment_of_the_same_mlflow_takes_no_backup(monkeypatch: pytest.MonkeyPatch) -> None:
    assert brought_up(monkeypatch, wanted=HERE) == ["up"]


def test_no_backup_is_taken_without_a_server_or_with_backups_disabled(monkeypatch: pytest.MonkeyPatch) -> None:
    assert brought_up(monkeypatch, wanted=NEW, enabled=False) == ["up"]
    assert brought_up(monkeypatch, wanted=NEW, containers=("postgres", "backup")) == ["up"]


def test_an_upgrade_that_first_enables_the_backup_is_warned_about(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert brought_up(monkeypatch, wanted=NEW, containers=("server", "postgres")) == ["up", "look"]
    assert "no backup is taken first" in capsys.readouterr().err


def test_a_failed_backup_stops_the_upgrade_unless_safety_is_0(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StopError, match=r"failed\n  nothing was changed; .*: make up STACK=prod SAFETY=0"):
        brought_up(monkeypatch, wanted=NEW, fails=True)
    monkeypatch.setenv("SAFETY", "0")
    assert brought_up(monkeypatch, wanted=NEW, fails=True) == ["up"]


@pytest.mark.parametrize("kept", [(), ("seaweedfs",)], ids=["no volume", "the volume of the previous store"])
def test_a_new_object_store_is_deployed_with_a_hint_at_an_existing_backup(
    kept: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found: dict[str, object] = {"stack": "prod", "runs": 7, "used": True, "lost_artifacts": 9}
    assert brought_up(monkeypatch, wanted=HERE, stores=kept, found=found) == ["up", "look"]
    said = capsys.readouterr().err
    assert "warning: the object store of this stack is empty, but the newest backup has 9 artifacts" in said
    assert "type: make restore STACK=prod FROM=latest" in said


@pytest.mark.parametrize(
    ("found", "told"),
    [
        ({"stack": "prod", "runs": 7, "used": False, "lost_artifacts": 9}, True),
        ({"stack": "prod", "runs": 0, "used": False, "lost_artifacts": 0}, False),
        ({"stack": "staging", "runs": 7, "used": False, "lost_artifacts": 9}, False),
    ],
    ids=["has runs", "has no runs", "of another stack"],
)
def test_a_new_database_is_deployed_with_a_hint_at_an_existing_backup(
    found: dict[str, object],
    told: bool,  # noqa: FBT001
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert brought_up(monkeypatch, wanted=HERE, containers=(), found=found) == ["up", "look"]
    assert ("the newest backup has 7 runs" in (said := capsys.readouterr().err)) is told
    assert ("type: make restore STACK=prod FROM=latest" in said) is told


@pytest.mark.parametrize(
    ("error", "told"),
    [("there is no backup at volume yet", False), ("the target s3:https://b does not do what it is asked to", True)],
)
def test_a_faulty_backup_target_is_reported_at_the_first_deployment(
    error: str,
    told: bool,  # noqa: FBT001
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert brought_up(monkeypatch, wanted=HERE, containers=(), found=error) == ["up", "look"]
    assert (f"warning: {error}" in capsys.readouterr().err) is told
