"""Test how `make rotate` ends when something is in its way, and what a killed operation leaves: on fakes.

tests/stack/test_rotation.py rotates for real.
"""

import ast
import http.client
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from operations.common.checkout import ROOT
from operations.common.console import BusyError, CanceledError, StopError
from operations.common.lock import exclusive
from operations.data import data_keys
from operations.host import containers
from operations.observe import ages
from operations.rotation import proof, rotate
from preconditions import host
from settings import names
from settings.secrets import NEXT_KEYS

KEY, NEXT = next(iter(NEXT_KEYS.items()))


class Server:
    """The deployed server: what was done to it, in order."""

    def __init__(self, problem: str | None = None, fails: str | None = None) -> None:
        self.stop_problem, self.fails = problem, fails
        self.done: list[str] = []

    def stop(self, *, for_good: bool) -> None:
        assert for_good
        self.done.append("stop")
        if self.fails:
            raise StopError(self.fails)

    def resume(self) -> None:
        self.done.append("resume")


class Engine:
    """The stack file: the values that were set and removed."""

    def __init__(self) -> None:
        self.called: list[tuple[str, ...]] = []

    def call(self, *arguments: str, stdin: str = "") -> None:
        del stdin
        self.called.append(arguments)


@pytest.fixture
def stack() -> Any:  # noqa: ANN401 - a fake
    return SimpleNamespace(
        name="dev", path=SimpleNamespace(name="Pulumi.dev.yaml"), settings=SimpleNamespace(hostname="mlflow.example")
    )


def deployed(monkeypatch: pytest.MonkeyPatch, server: Server, *, locked: bool = False) -> Server:
    for module in (rotate, data_keys):
        monkeypatch.setattr(module, "servers", lambda _stack: server)
    monkeypatch.setattr(data_keys, "_run", lambda *_: int(locked))
    return server


@pytest.mark.parametrize("key", ["postgresPassword", KEY])
def test_a_server_that_cannot_be_stopped_is_named_before_anything_is_written(
    stack: Any,  # noqa: ANN401
    monkeypatch: pytest.MonkeyPatch,
    key: str,
) -> None:
    server = deployed(monkeypatch, Server(problem="node-2 of the cluster is down"))
    with pytest.raises(
        StopError, match=r"node-2 of the cluster is down\n  nothing was changed; .*make rotate STACK=dev"
    ):
        rotate._require_stoppable(stack, [key])
    assert server.done == []
    # The server stays up.
    rotate._require_stoppable(stack, ["backupPassword"])


def test_a_backup_that_does_not_end_is_waited_for_before_anything_is_written(
    stack: Any,  # noqa: ANN401
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server = deployed(monkeypatch, Server(), locked=True)
    with pytest.raises(StopError, match="nothing was changed: the data keys were not rotated"):
        rotate._require_stoppable(stack, [KEY])
    assert server.done == []
    rotate._require_stoppable(stack, ["postgresPassword"])


def test_a_server_that_does_not_stop_is_started_again(
    stack: Any,  # noqa: ANN401
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server = deployed(monkeypatch, Server(fails="tasks of mlflow-dev-server still run on node-3"))
    with pytest.raises(data_keys.UnchangedError, match=r"could not be stopped: tasks of(.|\n)*make rotate STACK=dev"):
        data_keys.encrypt(stack, {KEY: "old"}, {KEY: "new"})
    assert server.done == ["stop", "resume"]


def test_an_empty_data_key_is_refused_before_the_server_stops(
    stack: Any,  # noqa: ANN401
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server = deployed(monkeypatch, Server())
    with pytest.raises(data_keys.UnchangedError, match=f"mlflow:{KEY}: a value is empty; nothing was changed"):
        data_keys.encrypt(stack, {KEY: ""}, {KEY: "new"})
    assert server.done == []


def test_a_server_whose_secret_files_are_lost_is_started_again(
    stack: Any,  # noqa: ANN401
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def lost(*_: object) -> int:
        raise StopError("the server has no secret file pgpass")

    server = deployed(monkeypatch, Server())
    monkeypatch.setattr(data_keys, "encrypt_rows", lost)
    monkeypatch.setattr(data_keys, "is_running", lambda _stack: False)
    with pytest.raises(StopError, match="no secret file pgpass"):
        data_keys.encrypt(stack, {KEY: "old"}, {KEY: "new"})
    assert server.done == ["stop", "resume"]


@pytest.mark.parametrize("error", [BusyError, CanceledError])
def test_a_deployment_that_was_not_tried_to_the_end_gives_up_no_data_key(
    stack: Any,  # noqa: ANN401
    monkeypatch: pytest.MonkeyPatch,
    error: type[StopError],
) -> None:
    def stops(*_: object, **__: object) -> None:
        raise error("another run, or Ctrl-C")

    monkeypatch.setattr(rotate.up, "up", stops)  # type: ignore[attr-defined]
    monkeypatch.setattr(data_keys, "interrupted", lambda _engine: [KEY])
    monkeypatch.setattr(data_keys, "adopt", lambda *_: pytest.fail("the old data key was given up"))
    with pytest.raises(error):
        rotate._deploy_with_either(stack, Engine())  # type: ignore[arg-type]


def test_the_value_of_an_unknown_secret_is_not_printed(
    stack: Any,  # noqa: ANN401
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rotate, "_rotatable", lambda _stack: ["postgresPassword", KEY])
    monkeypatch.setattr(rotate, "left_out", lambda _settings: {})
    monkeypatch.setenv("SECRET", "postgrespasswrd")
    with pytest.raises(StopError, match="SECRET=: no such secret; did you mean postgresPassword") as told:
        rotate._chosen(stack, Engine())  # type: ignore[arg-type]
    assert "postgrespasswrd" not in str(told.value)


def test_data_keys_that_were_not_used_are_forgotten_and_other_values_are_named(
    stack: Any,  # noqa: ANN401
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    deployed(monkeypatch, Server(fails="it hangs"))
    engine: Any = Engine()
    monkeypatch.setattr(rotate, "_values", lambda *_, **__: {KEY: "old", "postgresPassword": "old"})
    monkeypatch.setattr(rotate, "_copied", lambda _stack: tmp_path / "copy")
    monkeypatch.setattr(rotate, "note_value", lambda *_: None)
    monkeypatch.setattr(data_keys, "interrupted", lambda _engine: [])
    monkeypatch.setattr(data_keys, "prepare", lambda _engine, values: values)
    with pytest.raises(StopError, match=r"Pulumi.dev.yaml has new values already, not deployed: postgresPassword$"):
        rotate._rotate(stack, engine, ["postgresPassword", KEY])
    assert engine.called == [("config", "set", "--secret", "postgresPassword"), ("config", "rm", NEXT)]


@pytest.mark.parametrize("unfinished", [[], [KEY]], ids=["", "interrupted"])
def test_a_stack_file_that_the_policies_refuse_is_refused_before_the_server_stops(
    stack: Any,  # noqa: ANN401
    monkeypatch: pytest.MonkeyPatch,
    unfinished: list[str],
) -> None:
    monkeypatch.setattr(data_keys, "interrupted", lambda _engine: unfinished)
    monkeypatch.setattr(rotate, "policy_options", lambda *_: ["--policy-pack", "policy"])
    plan = SimpleNamespace(errors=[], refused=["images are pinned"], empty=False, markdown=lambda: "images are pinned")
    asked: list[tuple[str, ...]] = []

    def planned(*options: str) -> object:
        asked.append(options)
        return plan

    engine: Any = SimpleNamespace(plan=planned)
    with pytest.raises(StopError, match=r"images are pinned\n  nothing was changed; fix Pulumi.dev.yaml"):
        rotate._require_deployed(stack, engine)
    assert asked == [("--policy-pack", "policy")]


def test_the_status_tells_a_running_rotation_from_an_interrupted_one(
    stack: Any,  # noqa: ANN401
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    stack.values = {}
    monkeypatch.setattr(ages, "rotation_lock", lambda _stack: tmp_path / "lock")
    monkeypatch.setattr(ages, "rotation_copy", lambda _stack: tmp_path / "copy")
    assert ages.problems(stack) == []
    (tmp_path / "copy").touch()
    with exclusive(tmp_path / "lock", ""):
        assert ages.problems(stack) == [
            "a rotation of dev is running; the server is away for part of it, and make up has to wait"
        ]
        with pytest.raises(StopError, match="another one"), exclusive(tmp_path / "lock", "another one"):
            pass
    (problem,) = ages.problems(stack)
    assert problem.startswith("a rotation was interrupted")


@pytest.mark.parametrize("error", [TimeoutError("timed out"), http.client.BadStatusLine("")])
def test_a_traefik_that_this_machine_does_not_reach_leaves_the_password_untried(
    stack: Any,  # noqa: ANN401
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
) -> None:
    def fails(*_: object) -> int:
        raise error

    monkeypatch.setattr(proof, "listeners", lambda _stack: ["172.18.0.2:443"])
    monkeypatch.setattr(proof, "_status", fails)
    assert proof._at_traefik(stack, "password") == "not tried: Traefik cannot be reached from here"
    monkeypatch.setattr(proof, "_status", lambda *_: 401)
    assert proof._at_traefik(stack, "password") == "refused"


@pytest.mark.parametrize("operation", host.OPERATIONS)
@pytest.mark.parametrize("running", [False, True])
def test_a_deployment_removes_what_a_killed_operation_has_left_and_nothing_that_runs(
    operation: str, *, running: bool
) -> None:
    name, removed = names.docker_name("dev", operation), []
    daemon: Any = SimpleNamespace(
        inspect=lambda asked: {"State": {"Running": running}} if asked == name else None,
        api=SimpleNamespace(remove_container=lambda asked, v: removed.append((asked, v))),
    )
    containers.remove_ended_operations(daemon, "dev")
    assert removed == ([] if running else [(name, True)])


def test_every_container_beside_a_stack_is_one_of_a_known_operation() -> None:
    started = {
        ast.unparse(call.args[1])
        for path in (ROOT / "operations").rglob("*.py")
        for call in ast.walk(ast.parse(path.read_text()))
        if isinstance(call, ast.Call) and ast.unparse(call.func) == "run_once"
    }
    assert len(started) > 1
    assert started <= {f"names.{word.upper().partition('-')[0]}" for word in host.OPERATIONS}
