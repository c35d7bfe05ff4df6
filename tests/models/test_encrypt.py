"""Test `make encrypt`: what a call does after one that was killed."""

from types import SimpleNamespace
from typing import Any

import pytest

from operations.common.console import StopError
from operations.data import encrypt
from operations.host import containers


def test_the_erasure_of_old_copies_is_waited_for_without_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []

    class Daemon:
        """Has no request with a time limit."""

        def show(self, container: str, command: list[str], tell: Any) -> int:  # noqa: ANN401
            assert container == "mlflow-prod-seaweedfs"
            asked.append(command)
            tell("no master")
            return int(len(asked) > encrypt.VACUUMS)

    monkeypatch.setattr(encrypt, "DELETION_SECONDS", 0)
    store = SimpleNamespace(kind="seaweedfs")
    stack: Any = SimpleNamespace(name="prod", daemon=Daemon(), settings=SimpleNamespace(object_store=store))
    encrypt._erase_old_copies(stack)
    assert len(asked) == encrypt.VACUUMS
    assert all(encrypt.VACUUM in command for command in asked)
    with pytest.raises(StopError, match="has not erased their old copies: no master\n  type: docker exec"):
        encrypt._erase_old_copies(stack)


@pytest.mark.parametrize("running", [True, False])
def test_a_call_after_a_killed_one_erases_old_copies_and_starts_the_server(
    running: bool,  # noqa: FBT001
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    done: list[str] = []
    deployed = SimpleNamespace(
        deployed=["server"],
        running=running,
        resume=lambda: done.append("resumed"),
        start=lambda: done.append("started"),
    )
    monkeypatch.setattr(encrypt, "require_containers", lambda _: None)
    monkeypatch.setattr(containers, "require_no_operation", lambda *_: None)
    monkeypatch.setattr(encrypt, "servers", lambda _: deployed)
    monkeypatch.setattr(encrypt, "_erase_old_copies", lambda _: done.append("erased"))
    counted = "2 artifacts, 0 of them not encrypted, 0 MB"
    monkeypatch.setattr(encrypt, "_run", lambda _, __, ___, tell: tell(counted))
    store = SimpleNamespace(encryption=True)
    stack: Any = SimpleNamespace(name="prod", daemon=None, settings=SimpleNamespace(object_store=store))
    encrypt.encrypt(stack)
    assert done == ["erased", *([] if running else ["resumed", "started"])]
