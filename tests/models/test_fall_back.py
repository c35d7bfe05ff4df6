"""Test when the old server is started again after a deployment that failed: on a fake host."""

from types import SimpleNamespace
from typing import Any

import pytest

from operations.deployment import fall_back
from settings.server import SCHEMA_FILES, USERS_TABLE

MAIN, USERS = SCHEMA_FILES.values()


class Host:
    """A host with a stopped server of schema `abc`, and the database. Records whether the server is started."""

    def __init__(self) -> None:
        self.files = {MAIN: b"abc\n", USERS: b"def\n"}
        self.database: dict[str, str] | None = {"alembic_version": "abc", USERS_TABLE: "def"}
        self.migrate: Any = SimpleNamespace(status="exited", running=False, exit_code=1)
        self.started = False

    def state(self, name: str) -> Any:  # noqa: ANN401
        assert name == "mlflow-prod-migrate"
        return self.migrate

    def read_file(self, _: str, file: str) -> bytes | None:
        return self.files.get(file)

    def run(self, name: str, command: list[str]) -> tuple[int, str]:
        assert name == "mlflow-prod-postgres"
        if self.database is None:
            return 1, "no such container"
        query = command[-1]
        table = next(table for table in reversed(SCHEMA_FILES) if table in query)
        if "to_regclass" in query:
            return 0, table if table in self.database else ""
        return (0, self.database[table]) if table in self.database else (1, "no such table")


@pytest.fixture
def host() -> Host:
    return Host()


def serves_again(host: Host, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Return whether the old server is started after a failed deployment."""
    server = SimpleNamespace(
        deployed=["mlflow-prod-server"],
        running=False,
        resume=lambda: None,
        start=lambda: setattr(host, "started", True),
    )
    monkeypatch.setattr(fall_back, "servers", lambda _: server)
    stack: Any = SimpleNamespace(name="prod", daemon=host, settings=SimpleNamespace(on_swarm=False))
    fall_back.fall_back(stack)
    return host.started


def test_the_old_server_serves_again_after_a_failed_migration(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    assert serves_again(host, monkeypatch)


@pytest.mark.parametrize("state", [None, SimpleNamespace(status="created", running=False, exit_code=0)])
def test_the_old_server_serves_again_if_the_migration_could_not_even_start(
    host: Host, state: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.migrate = state
    assert serves_again(host, monkeypatch)


@pytest.mark.parametrize("running", [True, False], ids=["runs", "has succeeded"])
def test_the_old_server_stays_down_after_a_migration_that(
    host: Host, monkeypatch: pytest.MonkeyPatch, *, running: bool
) -> None:
    host.migrate = SimpleNamespace(status="running" if running else "exited", running=running, exit_code=0)
    assert not serves_again(host, monkeypatch)


@pytest.mark.parametrize("table", SCHEMA_FILES)
def test_the_old_server_stays_down_if_either_schema_has_changed(
    host: Host, table: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert host.database
    host.database[table] = "newer"
    assert not serves_again(host, monkeypatch)


def test_a_database_that_never_had_users_of_mlflow_is_unchanged(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    assert host.database
    del host.database[USERS_TABLE]
    assert serves_again(host, monkeypatch)


def test_the_old_server_stays_down_if_the_database_does_not_answer(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    host.database = None
    assert not serves_again(host, monkeypatch)
