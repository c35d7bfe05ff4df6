"""Test when the old server is started again after a deployment that failed: on a fake host."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import pytest

from operations.common.console import BusyError, CanceledError, StopError
from operations.deployment import deploy, fall_back
from operations.host import capacity, checks, containers, docker_daemon, downtime, images, nodes
from settings.server import SCHEMA_FILES, USERS_TABLE

MAIN, USERS = SCHEMA_FILES.values()


class Host:
    """A host with a server of the schemas `abc` and `def`, its database, and an earlier migration that succeeded.

    It stands for the server as well, and records whether that is started again.
    """

    def __init__(self) -> None:
        self.files = {MAIN: b"abc\n", USERS: b"def\n"}
        self.database: dict[str, str] | None = {"alembic_version": "abc", USERS_TABLE: "def"}
        self.migrate: Any = migration(exit_code=0, started_at="yesterday")
        self.deployed = ["mlflow-prod-server"]
        self.server_id = "old"
        self.running = True
        self.environment = {"MLFLOW_AUTH_CONFIG_PATH": "/run/secrets/auth.ini"}
        self.resumed = False

    def state(self, name: str) -> Any:  # noqa: ANN401
        assert name == "mlflow-prod-migrate"
        return self.migrate

    def inspect(self, name: str) -> dict[str, str]:
        assert name == "mlflow-prod-server"
        return {"Id": self.server_id}

    def read_file(self, _: str, file: str) -> bytes | None:
        return self.files.get(file)

    def run(self, name: str, command: list[str]) -> tuple[int, str]:
        assert name == "mlflow-prod-postgres"
        table = command[-1].rpartition(" ")[2]
        if self.database is None or table not in self.database:
            return 1, "no answer"
        return 0, self.database[table]

    def resume(self) -> None:
        self.resumed = True

    def start(self) -> None:
        assert self.resumed


def migration(*, status: str = "exited", exit_code: int = 1, started_at: str = "now") -> Any:  # noqa: ANN401
    return SimpleNamespace(status=status, running=status == "running", exit_code=exit_code, started_at=started_at)


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Host:
    host = Host()
    monkeypatch.setattr(fall_back, "servers", lambda _: host)
    return host


@contextmanager
def failed(host: Host) -> Iterator[None]:
    """Deploy while the body changes what is there: the server is stopped, and the deployment fails."""
    stack: Any = SimpleNamespace(name="prod", daemon=host, settings=SimpleNamespace(on_swarm=False))
    before = fall_back.Before.of(stack)
    host.running = False
    yield
    fall_back.fall_back(stack, before)


@pytest.mark.parametrize(
    "migrate",
    [
        migration(),
        # Docker could not create it, or not start it.
        None,
        migration(status="created", exit_code=0),
        # The earlier one: another part of the deployment failed before this one was created.
        migration(exit_code=0, started_at="yesterday"),
    ],
    ids=["failed", "missing", "created", "earlier"],
)
def test_the_old_server_serves_again_after_a_migration_that_changed_nothing(host: Host, migrate: object) -> None:
    with failed(host):
        host.migrate = migrate
    assert host.resumed


@pytest.mark.parametrize("status", ["running", "exited"])
def test_the_old_server_stays_down_during_and_after_a_migration(host: Host, status: str) -> None:
    with failed(host):
        host.migrate = migration(status=status, exit_code=0)
    assert not host.resumed


def test_a_new_server_that_fails_is_not_taken_for_the_old_one(host: Host) -> None:
    with failed(host):
        host.server_id = "new"
    assert not host.resumed


def test_a_server_that_was_down_before_the_deployment_stays_down(host: Host) -> None:
    host.running = False
    with failed(host):
        pass
    assert not host.resumed


@pytest.mark.parametrize("table", SCHEMA_FILES)
def test_the_old_server_stays_down_if_either_schema_has_changed(host: Host, table: str) -> None:
    with failed(host):
        assert host.database
        host.database[table] = "newer"
    assert not host.resumed


def test_a_server_without_users_does_not_need_their_schema(host: Host) -> None:
    host.environment = {}
    with failed(host):
        assert host.database
        host.database[USERS_TABLE] = "of an earlier release"
    assert host.resumed


def test_the_old_server_stays_down_if_the_database_does_not_answer(host: Host) -> None:
    with failed(host):
        host.database = None
    assert not host.resumed


@pytest.mark.parametrize(("error", "falls_back"), [(BusyError, False), (CanceledError, True), (StopError, True)])
def test_a_deployment_that_another_run_keeps_from_beginning_repairs_nothing(
    monkeypatch: pytest.MonkeyPatch,
    error: type[StopError],
    falls_back: bool,  # noqa: FBT001
) -> None:
    def stops(*_: object, **__: object) -> None:
        raise error("stopped")

    for module, name in (
        (deploy, "require_line_ends"),
        (docker_daemon, "require_docker"),
        (checks, "require_host"),
        (containers, "remove_ended_operations"),
        (containers, "require_no_foreign_containers"),
        (images, "require_images"),
        (nodes, "require_image_on_nodes"),
        (capacity, "disk_problem"),
        (deploy, "_show_build_log"),
    ):
        monkeypatch.setattr(module, name, lambda *_, **__: None)
    repaired: list[bool] = []
    monkeypatch.setattr(fall_back.Before, "of", lambda _: None)
    monkeypatch.setattr(downtime, "reported", lambda _: nullcontext())
    monkeypatch.setattr(deploy, "_deploy", stops)
    monkeypatch.setattr(deploy, "fall_back", lambda *_: repaired.append(True))
    stack: Any = SimpleNamespace(
        name="prod", daemon=None, settings=None, network_names=(), report_other_checkout=lambda: None
    )
    with pytest.raises(error):
        deploy.up(stack)
    assert bool(repaired) is falls_back
