"""Test the measured downtime of a deployment: what counts, from the events of the daemon."""

import pytest

from operations.host.downtime import Downtime, Watch

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
        ([], [("a", HEALTHY, 4)], 4),
    ],
    ids=["one replica", "one after another", "both at once", "two times, the second still lasts", "nothing", "stopped"],
)
def test_the_downtime_is_the_time_in_which_no_replica_serves(
    serving: list[str], events: list[Event], seconds: float
) -> None:
    downtime = Downtime(serving, now=0)
    for number, (name, action, at) in enumerate(events):
        if action == HEALTHY:
            check(downtime, name, at, number=str(number))
        else:
            downtime.note(name, action, at)
    assert downtime.seconds(now=100) == seconds


def check(
    downtime: Downtime, name: str, at: float, code: str = "0", command: str = "healthcheck.py", **ids: str
) -> None:
    """Let a command run in a replica and end, as Docker reports it."""
    number = ids.get("number", "x")
    downtime.note(name, f"exec_create: python /opt/mlflow-stack/{command}", at - 0.1, {"execID": number})
    downtime.note(name, "exec_die", at, {"execID": number, "exitCode": code})


def test_a_health_check_that_fails_and_another_command_do_not_end_a_downtime() -> None:
    downtime = Downtime(["a"], now=0)
    downtime.note("a", "kill", 10)
    check(downtime, "a", 12, code="1")
    check(downtime, "a", 13, command="gc.py")
    check(downtime, "a", 20)
    assert downtime.seconds(now=100) == 10


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (None, None),
        (0.0, None),
        (0.2, "the server did not serve for 1 s of this deployment"),
        (12.4, "the server did not serve for 12 s of this deployment"),
    ],
)
def test_a_downtime_is_printed_in_seconds_and_none_is_not(seconds: float | None, words: str | None) -> None:
    watch = Watch()
    watch.seconds = seconds
    assert watch.words == words
