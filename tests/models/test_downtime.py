"""Test the measured downtime of a deployment: what counts, from the events of the daemon."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import pytest

from operations.common.console import StopError
from operations.host.downtime import Downtime, Watch, reported, watched

Event = tuple[str, str, float]
HEALTHY = "a health check that succeeds"


@pytest.mark.parametrize(
    ("serving", "events", "seconds"),
    [
        (["a"], [("a", "kill", 10), ("a", "die", 12), ("a", HEALTHY, 25)], 15),
        (["a", "b"], [("a", "kill", 10), ("a", HEALTHY, 20), ("b", "kill", 21), ("b", HEALTHY, 30)], 0),
        (["a", "b"], [("a", "kill", 10), ("b", "die", 11), ("b", HEALTHY, 15), ("a", HEALTHY, 20)], 4),
        (["a"], [("a", "health_status: unhealthy", 5), ("a", HEALTHY, 8), ("a", "kill", 50)], 3 + 50),
        (["a"], [], 0),
    ],
    ids=["one replica", "one after another", "both at once", "two times, the second still lasts", "nothing"],
)
def test_the_downtime_is_the_time_in_which_no_replica_serves(
    serving: list[str], events: list[Event], seconds: float
) -> None:
    downtime = Downtime(serving)
    for number, (name, action, at) in enumerate(events):
        if action == HEALTHY:
            check(downtime, name, at, number=str(number))
        else:
            downtime.note(name, action, at)
    assert downtime.seconds(now=100) == seconds
    assert downtime.lasts == (bool(events) and events[-1][1] == "kill")


def check(
    downtime: Downtime, name: str, at: float, code: str = "0", command: str = "healthcheck.py", **ids: str
) -> None:
    """Let a command run in a replica and end, as Docker reports it."""
    number = ids.get("number", "x")
    downtime.note(name, f"exec_create: python /opt/mlflow-stack/{command}", at - 0.1, {"execID": number})
    downtime.note(name, "exec_die", at, {"execID": number, "exitCode": code})


def test_a_health_check_that_fails_and_another_command_do_not_end_a_downtime() -> None:
    downtime = Downtime(["a"])
    downtime.note("a", "kill", 10)
    check(downtime, "a", 12, code="1", number="1")
    check(downtime, "a", 13, command="gc.py", number="2")
    check(downtime, "a", 20, number="3")
    assert downtime.seconds(now=100) == 10


@pytest.mark.parametrize(
    ("seconds", "lasts", "words"),
    [
        (None, False, None),
        (0.0, False, None),
        (0.2, False, "the server did not serve for 1 s of this deployment"),
        (12.4, False, "the server did not serve for 12 s of this deployment"),
        (12.4, True, "the server did not serve for 12 s of this deployment, and does not serve now"),
    ],
)
def test_a_downtime_is_printed_in_seconds_and_none_is_not(
    seconds: float | None,
    lasts: bool,  # noqa: FBT001
    words: str | None,
) -> None:
    watch = Watch()
    watch.seconds, watch.lasts = seconds, lasts
    assert watch.words == words


@pytest.mark.parametrize("fails", [False, True])
def test_a_deployment_that_fails_tells_its_downtime_too(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    *,
    fails: bool,
) -> None:
    @contextmanager
    def seven_seconds(_stack: Any) -> Iterator[Watch]:  # noqa: ANN401
        watch = Watch()
        try:
            yield watch
        finally:
            watch.seconds = 7

    monkeypatch.setattr("operations.host.downtime.watched", seven_seconds)
    stack: Any = None
    with pytest.raises(StopError) if fails else nullcontext(), reported(stack):
        if fails:
            raise StopError("the deployment did not complete")
    assert "the server did not serve for 7 s of this deployment" in capsys.readouterr().err


class Stream:
    """Docker's events: some, and then none until the stream is closed, or its end if the connection is cut off."""

    def __init__(self, *events: dict[str, Any], cut_off: bool = False) -> None:
        self.events, self.cut_off = events, cut_off
        self.read, self.closed = threading.Event(), threading.Event()

    def __iter__(self) -> Iterator[dict[str, Any]]:
        yield from self.events
        self.read.set()
        if not self.cut_off:
            self.closed.wait(10)

    def close(self) -> None:
        self.closed.set()
        raise OSError("transport endpoint is not connected")


def event(action: str, at: float, **attributes: str) -> dict[str, Any]:
    actor = {"Attributes": {"name": "mlflow-dev-server", **attributes}}
    return {"Action": action, "timeNano": int(at * 1e9), "Actor": actor}


@pytest.mark.parametrize(
    ("cut_off", "health", "code", "seconds"),
    [
        (False, "healthy", None, 7),
        (True, "healthy", None, None),
        # An earlier deployment has just replaced it, and Docker has not asked it yet.
        (False, "starting", 0, 7),
        (False, "starting", 1, None),
        (False, "unhealthy", None, None),
    ],
)
def test_the_events_of_a_deployment_are_watched_and_an_incomplete_record_says_nothing(
    cut_off: bool,  # noqa: FBT001
    health: str,
    code: int | None,
    seconds: int | None,
) -> None:
    found = {
        "State": {"Running": True, "Health": {"Status": health}},
        "Config": {"Healthcheck": {"Test": ["CMD", "python", "healthcheck.py"]}},
    }

    def run(name: str, command: list[str], environment: dict[str, str]) -> tuple[int, str]:
        assert (name, command) == ("mlflow-dev-server", ["python", "healthcheck.py"])
        assert environment == {"HEALTHCHECK_OBSERVES": "1"}
        assert code is not None, "Docker has told already"
        return code, ""

    stream = Stream(
        event("kill", 100),
        event("exec_create: python healthcheck.py", 106, execID="1"),
        event("exec_die", 107, execID="1", exitCode="0"),
        event("exec_die", 109),
        cut_off=cut_off,
    )
    api = SimpleNamespace(events=lambda **_: stream)
    daemon = SimpleNamespace(
        api=api,
        inspect=lambda name: {"Name": f"/{name}", **found},
        run=run,
        services=lambda _, *, stopped: {"server": "mlflow-dev-server"} if stopped else {},
    )
    stack: Any = SimpleNamespace(name="dev", daemon=daemon, settings=SimpleNamespace(on_swarm=False))
    others = set(threading.enumerate())
    with watched(stack) as watch:
        if seconds is not None or cut_off:
            assert stream.read.wait(10)
        if cut_off:
            # Its record counts as incomplete once it has ended.
            for reader in set(threading.enumerate()) - others:
                reader.join(10)
    assert watch.seconds == seconds
