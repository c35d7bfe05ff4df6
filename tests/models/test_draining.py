"""A draining replica: the proxy's health check is refused, and nothing else."""

import asyncio
import importlib.util
from pathlib import Path
from typing import Any

import pytest

MLFLOW = Path(__file__).parents[2] / "mlflow"
PROXY = [(b"host", b"localhost"), (b"x-health-check", b"proxy")]


@pytest.fixture
def plugin(tmp_path: Path) -> Any:  # noqa: ANN401 - loaded at run time
    """The plugin, with its files in a folder of the test."""
    spec = importlib.util.spec_from_file_location("draining", MLFLOW / "plugins" / "draining.py")
    assert spec
    assert spec.loader
    loaded: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    loaded.DRAINING, loaded.IN_BALANCE = tmp_path / "draining", tmp_path / "in-balance"
    return loaded


def status(plugin: Any, headers: list[tuple[bytes, bytes]], answers: int = 200, kind: str = "http") -> int:  # noqa: ANN401
    """Return the status of a request to an application that answers with `answers`."""
    sent: list[dict[str, Any]] = []

    async def application(_scope: Any, _receive: Any, send: Any) -> None:  # noqa: ANN401
        await send({"type": "http.response.start", "status": answers, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    asyncio.run(plugin.answering(application)({"type": kind, "headers": headers}, None, send))
    return int(sent[0]["status"])


def test_a_draining_replica_refuses_the_proxys_health_check_only(plugin: Any) -> None:  # noqa: ANN401
    plugin.DRAINING.touch()
    assert status(plugin, PROXY) == 503
    assert status(plugin, []) == 200, "a request that the proxy has sent already is served"


@pytest.mark.parametrize("drains", [True, False])
def test_a_draining_replica_closes_the_connections_that_the_proxy_keeps(
    plugin: Any,  # noqa: ANN401
    *,
    drains: bool,
) -> None:
    """On a cluster, the proxy has one name for all replicas, and would use its connections to this one further."""
    sent: list[dict[str, Any]] = []

    async def application(_scope: Any, _receive: Any, send: Any) -> None:  # noqa: ANN401
        await send({"type": "http.response.start", "status": 200, "headers": [(b"a", b"b")]})
        await send({"type": "http.response.body", "body": b"x"})

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    if drains:
        plugin.DRAINING.touch()
    asyncio.run(plugin.answering(application)({"type": "http", "headers": []}, None, send))
    assert sent[0]["headers"] == [(b"a", b"b"), *([(b"connection", b"close")] if drains else [])]
    assert sent[1]["body"] == b"x"


def test_the_first_successful_health_check_is_noted(plugin: Any) -> None:  # noqa: ANN401
    assert status(plugin, []) == 200
    assert not plugin.IN_BALANCE.exists(), "any request would count as the proxy's"
    assert status(plugin, PROXY, answers=500) == 500
    assert not plugin.IN_BALANCE.exists()
    assert status(plugin, PROXY) == 200
    assert plugin.IN_BALANCE.exists()


@pytest.mark.parametrize(("expected", "noted"), [(200, False), (401, True)])
def test_a_refused_user_is_a_successful_health_check_with_mlflows_users_only(
    plugin: Any,  # noqa: ANN401
    expected: int,
    *,
    noted: bool,
) -> None:
    plugin.READY = expected
    assert status(plugin, PROXY, answers=401) == 401
    assert plugin.IN_BALANCE.exists() is noted


def test_the_start_of_the_application_is_passed_on(plugin: Any) -> None:  # noqa: ANN401
    plugin.DRAINING.touch()
    assert status(plugin, [], kind="lifespan") == 200
