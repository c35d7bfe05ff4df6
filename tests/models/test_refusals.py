"""Test that a command without what it needs says what is missing and what to type, before it changes anything."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from operations.common.console import StopError
from operations.data import backup, encrypt, export, migration, restore, upgrade_postgres
from operations.deployment import end, preview
from operations.engine.change import Change
from operations.engine.plan import Plan
from operations.host import containers, nodes
from operations.importing import importing
from operations.observe import access, secrets
from operations.rotation import rotate

TYPE_UP = r"type: make up STACK=prod"
CHANGE = Change(verb="create", type="docker:index/container:Container", name="server")


class Nothing:
    """A Docker daemon with nothing of the stack on it. Whatever a command would change fails the test."""

    host = "unix:///var/run/docker.sock"

    def inspect(self, _name: str) -> None:
        return None

    def services(self, *_: object, **__: object) -> dict[str, str]:
        return {}


@pytest.fixture
def stack(monkeypatch: pytest.MonkeyPatch) -> Any:  # noqa: ANN401 - has the parts of a stack that these commands use
    """Return the stack prod, whose settings are complete, with nothing deployed."""
    for name in ("CONFIRM", "DRY_RUN", "FOR", "FROM", "SAFETY", "SERVICE", "YES"):
        monkeypatch.delenv(name, raising=False)
    for module in (encrypt, export, importing):
        monkeypatch.setattr(module, "require_containers", lambda _stack: None)
    settings = SimpleNamespace(
        backup=SimpleNamespace(enabled=True),
        monitoring=SimpleNamespace(grafana_port=None),
        object_store=SimpleNamespace(encryption=True),
        on_swarm=False,
    )
    return SimpleNamespace(
        name="prod", path=Path("Pulumi.prod.yaml"), daemon=Nothing(), settings=settings, is_engineless=False
    )


@pytest.mark.parametrize(
    "command",
    [
        encrypt.encrypt,
        export._require_alone,
        importing._require_alone,
        lambda stack: upgrade_postgres._go_forward(stack, None, "19", 19, set(), dry=False),  # type: ignore[arg-type]
    ],
    ids=["encrypt", "export", "import", "upgrade-postgres"],
)
def test_a_command_that_works_on_the_server_needs_one(stack: Any, command: Callable[[Any], None]) -> None:  # noqa: ANN401
    with pytest.raises(StopError, match=rf"^prod has no server; {TYPE_UP}$"):
        command(stack)


@pytest.mark.parametrize("state", [None, {"State": {"Running": False}}], ids=["removed", "stopped"])
def test_a_command_of_the_backup_needs_its_container(stack: Any, state: dict[str, Any] | None) -> None:  # noqa: ANN401
    stack.daemon.inspect = lambda _name: state
    with pytest.raises(StopError, match=rf"(?s)^the backup container of prod does not run.*{TYPE_UP}$"):
        backup.backups(stack)
    with pytest.raises(StopError, match=rf"(?s)^make import works with the programs of the backup, and .*{TYPE_UP}$"):
        importing._require_backup(stack)


def test_a_restore_does_not_guess_which_backup_is_meant(stack: Any, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: ANN401
    monkeypatch.setattr(restore, "require_container", lambda _stack: None)
    with pytest.raises(StopError, match=r"(?s)^FROM= is not set.*STACK=prod FROM=latest, or FROM=<id>.*STACK=prod$"):
        restore.restore(stack)


def test_a_database_is_not_migrated_without_the_job(stack: Any) -> None:  # noqa: ANN401
    with pytest.raises(StopError, match=rf"^there is no container mlflow-prod-migrate; {TYPE_UP}$"):
        migration.migrate(stack)


def test_secrets_of_a_stack_that_was_deployed_elsewhere_are_not_rotated(
    stack: Any,  # noqa: ANN401
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rotate, "require_docker", lambda _stack: None)
    monkeypatch.setattr(rotate, "engine_of", lambda *_, **__: SimpleNamespace(has_stack=lambda: False))
    with pytest.raises(StopError, match=rf"^prod was not deployed from here; {TYPE_UP}$"):
        rotate.rotate(stack)


def test_an_unknown_person_is_refused(stack: Any, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: ANN401
    monkeypatch.setenv("FOR", "colleage")
    with pytest.raises(StopError, match=r"^FOR=colleage: write FOR=colleague for another machine, or leave it out$"):
        access.client(stack)


def test_the_password_of_grafana_needs_grafana(stack: Any, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: ANN401
    monkeypatch.setenv("SERVICE", "grafana")
    with pytest.raises(StopError, match=r"^prod has no Grafana: mlflow:monitoring\.grafanaPort is not set$"):
        secrets.password(stack)


def test_a_scrape_configuration_needs_a_deployed_monitoring(stack: Any, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: ANN401
    state = SimpleNamespace(outputs=lambda kind: {kind: {}})
    monkeypatch.setattr(secrets, "_engine_with_stack", lambda _stack: SimpleNamespace(state=state))
    with pytest.raises(
        StopError, match=r"(?s)^monitoring is not deployed with prod.*mode: exporters.*Pulumi\.prod\.yaml"
    ):
        secrets.scrape(stack)


@pytest.mark.parametrize(
    ("changes", "paused", "error"),
    [
        ([CHANGE], [], rf"(?s)^the Docker host differs .* of prod.*{TYPE_UP}"),
        ([], ["mlflow-prod-server"], r"(?s)^containers of prod are paused.*docker unpause mlflow-prod-server$"),
    ],
    ids=["changed", "paused"],
)
def test_drift_is_an_error_that_says_how_to_undo_it(
    stack: Any,  # noqa: ANN401
    changes: list[Change],
    paused: list[str],
    error: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    plan = Plan(stack="prod", changes=changes, complete=True)
    monkeypatch.setattr(preview, "_plan", lambda *_, **__: plan)
    monkeypatch.setattr(containers, "paused", lambda *_: paused)
    with pytest.raises(StopError, match=error):
        preview.drift(stack)
    assert capsys.readouterr().out.splitlines()[-1] == "<!-- drift: found -->"


@pytest.fixture
def doomed(stack: Any, monkeypatch: pytest.MonkeyPatch) -> Any:  # noqa: ANN401
    """Return a stack that may be deleted, by an engine that succeeds."""
    stack.report_other_checkout = stack.forget_checkout = lambda: None
    stack.daemon.api = SimpleNamespace(remove_volume=lambda _volume: None)
    engine = SimpleNamespace(call=lambda *_: "", show=lambda *_: 0)
    nothing: dict[str, Callable[..., Any]] = {
        "engine_for_removal": lambda _stack: engine,
        "recover": lambda _engine: None,
        "write_back_secrets": lambda _engine: [],
        "report_what_to_keep": lambda *_: None,
        "data_volumes": lambda _stack: ["mlflow-prod-postgres-18-data"],
        "kept_volumes": lambda _stack: [],
        "leftovers": lambda _stack: [],
        "_refreshed": lambda _stack: [],
        "approval": lambda *_: ["--yes"],
    }
    for name, function in nothing.items():
        monkeypatch.setattr(end, name, function)
    monkeypatch.setattr(nodes, "remove_checks", lambda _stack: None)
    monkeypatch.setattr(containers, "require_no_foreign_containers", lambda *_: None)
    monkeypatch.setenv("CONFIRM", "prod")
    stack.engine = engine
    return stack


@pytest.mark.parametrize(
    ("command", "error"),
    [
        (end.down, r"(?s)^prod is not stopped completely; .*to try again, type: make down STACK=prod$"),
        (end.destroy, r"(?s)^prod is not deleted completely; .*to try again, type: make destroy STACK=prod$"),
    ],
    ids=["down", "destroy"],
)
def test_an_incomplete_removal_is_an_error_with_the_command_to_repeat(
    doomed: Any,  # noqa: ANN401
    command: Callable[[Any], None],
    error: str,
) -> None:
    doomed.engine.show = lambda *_: 1
    with pytest.raises(StopError, match=error):
        command(doomed)


def test_what_a_removal_leaves_is_named(doomed: Any, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: ANN401
    monkeypatch.setattr(end, "leftovers", lambda _stack: ["network mlflow-prod-backend"])
    with pytest.raises(StopError, match=r"(?s)^not deleted: network mlflow-prod-backend\n.*docker network rm"):
        end.destroy(doomed)
