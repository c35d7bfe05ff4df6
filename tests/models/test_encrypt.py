"""Test `make encrypt`: what a call does after one that was killed."""

from types import SimpleNamespace
from typing import Any

import pytest

from operations.data import encrypt
from operations.host import containers


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
