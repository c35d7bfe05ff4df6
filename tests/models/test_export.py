"""Test the description of an export's target, and what its containers get."""

import io
import tarfile
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from operations.common.checkout import ROOT
from operations.common.console import StopError
from operations.data import export
from operations.data.export import Target
from operations.host import once
from preconditions.host import OPERATIONS

COMPLETE = {
    "PGHOST": "db.example.com",
    "PGDATABASE": "mlflow",
    "PGUSER": "owner",
    "PGPASSWORD": "'a:b\\c'",
    "S3_BUCKET": "runs",
    "AWS_ACCESS_KEY_ID": "key",
    "AWS_SECRET_ACCESS_KEY": "secret",
}


def read(tmp_path: Path, *lines: str, **changes: str) -> Target:
    path = tmp_path / "target.env"
    path.write_text("\n".join([*lines, *(f"{key}={value}" for key, value in (COMPLETE | changes).items())]))
    return Target.read(path)


def test_a_target_is_read_as_a_shell_would_read_it(tmp_path: Path) -> None:
    found = read(
        tmp_path, "# a comment", "", "export PGPORT='6432' # inline", PGUSER='"some one"  # too', S3_BUCKET="a=b"
    )
    assert found.values["PGPORT"] == "6432"
    assert found.values["PGUSER"] == "some one"
    assert found.values["S3_BUCKET"] == "a=b"
    assert found.values["PGSSLMODE"] == "prefer"


def test_everything_that_is_wrong_with_a_target_is_said_at_once(tmp_path: Path) -> None:
    lines = ["PGPASS=x", "the-rest-of-a-password", "PGUSER=two words", "PGDATABASE='open"]
    with pytest.raises(StopError) as caught:
        read(tmp_path, *lines, PGHOST="", S3_BUCKET="")
    said = str(caught.value)
    for words in (
        "line 1: PGPASS: unknown",
        "line 2: must be KEY=value",
        "line 3: PGUSER: quote a value with spaces",
        "line 4: No closing quotation",
        "PGHOST: is missing",
        "S3_BUCKET: is missing",
    ):
        assert words in said
    for secret in ("secret", COMPLETE["PGPASSWORD"], "the-rest"):
        assert secret not in said.replace("AWS_SECRET_ACCESS_KEY", "")


def test_an_empty_target_names_every_variable_that_is_missing(tmp_path: Path) -> None:
    (tmp_path / "target.env").write_text("")
    with pytest.raises(StopError) as caught:
        Target.read(tmp_path / "target.env")
    for key in COMPLETE:
        assert f"{key}: is missing" in str(caught.value)


def test_every_value_is_checked_that_can_be(tmp_path: Path) -> None:
    wrong = {"PGPORT": "abc", "PGSSLMODE": "yes", "S3_ENDPOINT_URL": "s3.example.com", "S3_BUCKET": "s3://runs"}
    with pytest.raises(StopError) as caught:
        read(tmp_path, **wrong)
    for key in wrong:
        assert f"{key}: must be " in str(caught.value)


def test_the_documented_target_can_be_read(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "operations" / "kubernetes.md").read_text()
    (tmp_path / "cluster.env").write_text(page.split("```sh\n")[1].split("```")[0])
    values = Target.read(tmp_path / "cluster.env").values
    assert values["PGHOST"] == "postgres.example.com"
    assert values["PGSSLMODE"] == "require"


def test_a_password_with_special_characters_is_escaped_for_libpq(tmp_path: Path) -> None:
    assert read(tmp_path).pgpass == "*:*:*:*:a\\:b\\\\c\n"


@dataclass
class ADaemon:
    """Two replicas, of which the second was stopped before, and containers that end with the codes in `ends`."""

    ends: list[int] = field(default_factory=list)
    done: list[str] = field(default_factory=list)
    runs: tuple[str, ...] = ("mlflow-prod-server",)
    started: dict[str, Any] = field(default_factory=dict)

    @property
    def api(self) -> "ADaemon":
        return self

    def containers(self, **_: object) -> list[str]:
        return ["one"]

    def services(self, stack: str, *, stopped: bool) -> dict[str, str]:
        assert stopped
        return {name: f"mlflow-{stack}-{name}" for name in ("server", "server-2", "postgres")}

    def inspect(self, name: str) -> dict[str, Any] | None:
        return None if name.removeprefix("mlflow-prod-") in OPERATIONS else self.inspect_container(name)

    def inspect_container(self, _name: str) -> dict[str, Any]:
        networks: dict[str, Any] = {
            "NetworkSettings": {"Networks": {"mlflow-prod-backend": {}, "mlflow-prod-access": {}}}
        }
        env = ["MLFLOW_S3_ENDPOINT_URL=http://store", "MLFLOW_ARTIFACTS_DESTINATION=s3://mlflow/artifacts", "AWS_X=1"]
        return {"Image": "sha256:image", "Config": {"Env": env}, "State": {"Running": True}, **networks}

    def state(self, name: str) -> Any:  # noqa: ANN401
        return SimpleNamespace(running=name in self.runs, status="running" if name in self.runs else "exited")

    def read_file(self, _container: str, path: str) -> bytes:
        return b"[default]\nkey = ours\n" if "aws" in path else b"*:*:*:mlflow:ours\n"

    def once(self, name: str, body: dict[str, Any], _tell: object, **more: Any) -> int:  # noqa: ANN401
        self.started = {"name": name, "body": body, **more}
        self.done.append(" ".join(Path(word).name for word in body["Cmd"][1:]))
        return self.ends.pop(0) if self.ends else 0

    def stop(self, name: str, *, for_good: bool = False) -> None:
        self.done.append(f"stop {name}{' for good' if for_good else ''}")

    def resume(self, name: str) -> None:
        self.done.append(f"resume {name}")

    def update_container(self, name: str, *, restart_policy: dict[str, str]) -> None:
        self.done.append(f"{restart_policy['Name']} {name}")


def exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *ends: int) -> list[str]:
    """Export a stack whose containers end with these codes, and return what was done."""
    daemon = ADaemon(list(ends))
    read(tmp_path)
    monkeypatch.setenv("TARGET", str(tmp_path / "target.env"))
    monkeypatch.setenv("YES", "1")
    monkeypatch.setenv("DRY_RUN", "")
    stack: Any = SimpleNamespace(name="prod", daemon=daemon)
    if any(ends):
        with pytest.raises(StopError):
            export.export(stack)
    else:
        export.export(stack)
    return daemon.done


CHECKS = ["database.sh check", "artifacts.py check"]
BOTH = ("mlflow-prod-server", "mlflow-prod-server-2")


def test_an_export_stops_the_server_between_two_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = exported(tmp_path, monkeypatch)
    assert done[:3] == [*CHECKS, "artifacts.py copy"]
    # For good, so that Docker does not start it during the copy, when the daemon restarts.
    assert sorted(done[3:5]) == [f"stop {name} for good" for name in BOTH]
    assert done[5:] == ["artifacts.py finish", "database.sh copy"]


@pytest.mark.parametrize("ends", [(1,), (0, 1), (0, 0, 1)], ids=["database", "bucket", "first copy"])
def test_an_export_that_fails_early_stops_nothing(
    ends: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not [step for step in exported(tmp_path, monkeypatch, *ends) if step.startswith("stop")]


@pytest.mark.parametrize("ends", [(0, 0, 0, 1), (0, 0, 0, 0, 1)], ids=["artifacts", "database"])
def test_an_export_that_fails_later_restarts_what_ran_before(
    ends: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = exported(tmp_path, monkeypatch, *ends)
    # The second stays stopped, but Docker starts it again when the daemon restarts, as before.
    assert done[-2:] == ["resume mlflow-prod-server", "always mlflow-prod-server-2"]


def test_passwords_reach_a_container_as_files_of_its_user_only(tmp_path: Path) -> None:
    daemon = ADaemon()
    export._artifacts(SimpleNamespace(name="prod", daemon=daemon), read(tmp_path), "copy")  # type: ignore[arg-type]
    started = daemon.started
    for secret in ("ours", "secret"):
        assert secret not in str(started["body"]).replace("/secrets", "")
    with tarfile.open(fileobj=io.BytesIO(started["archive"])) as archive:
        for member in archive:
            assert (member.uid, member.mode) == (once.UID, 0o400), member.name
        content = archive.extractfile("run/export/credentials")
        assert content
        assert content.read().decode().splitlines()[:3] == ["[source]", "key = ours", ""]
    assert started["body"]["HostConfig"]["CapDrop"] == ["ALL"]
    assert started["networks"] == ["bridge", "mlflow-prod-backend"]
    assert "AWS_X=1" in started["body"]["Env"]
