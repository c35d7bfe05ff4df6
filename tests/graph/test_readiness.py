"""Test the readiness checks: what `pulumi up` waits for, and how a failure is reported."""

import asyncio
import time
from collections.abc import Coroutine
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pulumi
import pytest
import requests
from docker.errors import APIError

from runtime import compatibility, readiness
from runtime.compatibility import Compatible, _until_compatible
from runtime.credentials import InUse
from runtime.daemon import NO_ANSWER_ERRORS, Daemon, State
from runtime.readiness import until_balanced, until_done, until_healthy
from runtime.workload import Balance, HealthCheck


@pytest.fixture(autouse=True)
def stack(monkeypatch: pytest.MonkeyPatch) -> None:
    """Name the stack, whichever program ran before in this process."""
    monkeypatch.setattr(pulumi, "get_stack", lambda: "stack")


HEALTH = HealthCheck(command=["check"], ready_within_s=1)


def state(status: str = "running", **changes: Any) -> State:  # noqa: ANN401
    values = {
        "image": "old",
        "running": status == "running",
        "status": status,
        "exit_code": 0,
        "started_at": "2999-01-01T00:00:00Z",
        "restarts": 0,
        "oom_killed": False,
        "error": "",
    }
    return State(**{**values, **changes})


@dataclass
class Script:
    """A daemon that answers from a list and repeats its last answer, and a platform with this daemon."""

    states: list[State | None]
    checks: list[tuple[int, str]] = field(default_factory=lambda: [(0, "")])
    started: int = 0
    restarted: int = 0
    stopped: int = 0
    stopped_for_good: bool = False
    made: datetime | None = None
    lines: int = 0
    """How many lines of the log were requested last."""
    ahead: timedelta = timedelta()
    """Of this machine's clock."""
    files: dict[tuple[str, str], bytes | None] = field(default_factory=dict)
    """By container and path."""
    labels: dict[str, str] = field(default_factory=dict)
    environment: dict[str, str] | None = None
    """Of the last command in a container."""

    def clock(self) -> datetime:
        return datetime.now(UTC) + self.ahead

    def volume_created_at(self, _name: str) -> datetime | None:
        return self.made

    @property
    def daemon(self) -> "Script":
        return self

    def state(self, _container: str) -> State | None:
        return self.states.pop(0) if len(self.states) > 1 else self.states[0]

    def inspect(self, _container: str) -> dict[str, Any]:
        return {"Config": {"Labels": self.labels}}

    def read_file(self, container: str, path: str) -> bytes | None:
        return self.files[container, path]

    def run(self, _container: str, _command: list[str], environment: dict[str, str] | None = None) -> tuple[int, str]:
        self.environment = environment
        return self.checks.pop(0) if len(self.checks) > 1 else self.checks[0]

    def logs(self, _container: str, lines: int = 15) -> str:
        self.lines = lines
        return "last words"

    def start(self, _container: str) -> None:
        self.started += 1

    def stop(self, _container: str, *, for_good: bool = False) -> None:
        self.stopped += 1
        self.stopped_for_good = for_good

    def restart(self, _container: str) -> None:
        self.restarted += 1


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readiness, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(readiness, "PROBE_SECONDS", 0.01)


def in_a_loop_of_its_own(gate: Coroutine[Any, Any, None]) -> None:
    # asyncio.run() would leave the thread without an event loop, which Pulumi's mocks need.
    loop = asyncio.new_event_loop()
    try:
        loop.run_until_complete(gate)
    finally:
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()


def test_a_health_check_of_an_update_takes_no_failure_from_docker() -> None:
    script = Script([state()])
    wait_healthy(script)
    assert script.environment == {"HEALTHCHECK_OBSERVES": "1"}


def wait_healthy(script: Script, prepares: str | None = None) -> None:
    in_a_loop_of_its_own(until_healthy(script, "id", "mlflow-dev-x", HEALTH, prepares))  # type: ignore[arg-type]


def wait_done(script: Script, timeout_s: int = 60, prepares: str | None = None) -> None:
    in_a_loop_of_its_own(until_done(script, "id", "mlflow-dev-x", timeout_s, prepares))  # type: ignore[arg-type]


def failure(wait: Any, script: Script) -> str:  # noqa: ANN401
    with pytest.raises(pulumi.RunError) as caught:
        wait(script)
    return str(caught.value)


def test_a_service_is_ready_when_its_health_check_succeeds() -> None:
    wait_healthy(Script([state()], [(1, "no"), (1, "no"), (0, "yes")]))


def test_an_unready_service_fails_with_health_check_output_and_log() -> None:
    assert failure(wait_healthy, Script([state()], [(1, "connection refused")])) == (
        "mlflow-dev-x: not ready after 1 s; its health check says: connection refused\n"
        "  its last lines:\n"
        "    last words\n"
        "  the whole log: docker logs mlflow-dev-x\n"
        "  fix the cause, then type: make up STACK=stack (or pulumi up --refresh)\n"
        "  the data is unchanged; until then, this container and those that need it may be down"
    )


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        (None, "it was removed by hand"),
        (state("exited", exit_code=3), "it is exited (exit code 3)"),
        (state("restarting", restarts=2, exit_code=1), "it keeps crashing (exit code 1, 2 restarts)"),
        (state("exited", oom_killed=True), "it ran out of memory: raise its memoryMb"),
        (state("created", error="port is already allocated"), "it is created (exit code 0) port is already allocated"),
    ],
)
def test_a_crashed_or_removed_service_fails_without_further_waiting(broken: State | None, reason: str) -> None:
    assert f"mlflow-dev-x: {reason}" in failure(wait_healthy, Script([state(), broken], [(1, "")]))


@pytest.mark.parametrize(("states", "lines"), [([state()], 7), ([state(), state("exited", exit_code=3)], 15)])
def test_a_service_whose_health_check_says_why_shows_fewer_lines_of_its_log(
    states: list[State | None], lines: int
) -> None:
    script = Script(states, [(1, "connection refused")])
    failure(wait_healthy, script)
    assert script.lines == lines


def test_one_restart_of_a_service_is_tolerated() -> None:
    wait_healthy(Script([state("restarting"), state(restarts=1)]))


def test_a_successful_job_is_not_started_again() -> None:
    script = Script([state(), state(), state("exited")])
    wait_done(script)
    assert script.started == 0


def test_a_job_that_failed_in_this_update_fails_it_with_its_last_lines() -> None:
    script = Script([state("exited", exit_code=7)])
    assert "mlflow-dev-x: it exited with code 7\n  its last lines:\n    last words" in failure(wait_done, script)
    assert script.started == 0


def test_a_traceback_is_shortened_to_its_end() -> None:
    log = "\n".join([f"line {number}\n     ~~~~^^^" for number in range(40)])
    said = readiness.failure_message("mlflow-dev-x", "it exited with code 7", log).splitlines()
    assert said[2 : 2 + readiness.LAST_LINES] == [f"    line {number}" for number in range(32, 40)]
    assert "~" not in "".join(said)


def test_a_job_that_failed_in_an_earlier_update_runs_again() -> None:
    script = Script([state("exited", exit_code=7, started_at="2000-01-01T00:00:00Z"), state(), state("exited")])
    wait_done(script)
    assert script.started == 1


def test_a_job_that_fails_again_fails_the_update() -> None:
    script = Script([state("exited", exit_code=7, started_at="2000-01-01T00:00:00Z"), state("exited", exit_code=8)])
    assert "it exited with code 8" in failure(wait_done, script)
    assert script.started == 1


def test_a_removed_job_is_reported_as_removed_by_hand() -> None:
    assert "it was removed by hand" in failure(wait_done, Script([None]))


COMPATIBLE = Compatible(files=["/schema", "/users-schema"], label="routes", value="")
OLD, NEW = "mlflow-dev-server", "mlflow-dev-verify"


def files(old: str | None, new: str) -> dict[tuple[str, str], bytes | None]:
    """Return the content of both schema files in a container of the old and in one of the new image."""
    found: dict[tuple[str, str], bytes | None] = {}
    for path in COMPATIBLE.files:
        found[OLD, path] = old.encode() if old is not None else None
        found[NEW, path] = new.encode()
    return found


def wait_compatible(script: Script, label: str = "") -> None:
    in_a_loop_of_its_own(_until_compatible(script, OLD, (NEW, label), COMPATIBLE))  # type: ignore[arg-type]


@pytest.mark.parametrize("states", [[None], [state("exited")]])
def test_a_migration_does_not_stop_a_server_that_does_not_run(states: list[State | None]) -> None:
    script = Script(states, files=files("a", "b"))
    wait_compatible(script)
    assert script.stopped == 0


def test_a_server_with_the_same_schema_serves_on_until_its_replacement() -> None:
    script = Script([state(image="old")], files=files("a", "a"))
    wait_compatible(script)
    assert script.stopped == 0


@pytest.mark.parametrize("states", [[state(), state("exited")], [state(), None]])
@pytest.mark.parametrize("old", ["a", None], ids=["another schema", "unknown schema"])
def test_a_migration_stops_the_old_server_once_and_waits_for_its_end(
    states: list[State | None], old: str | None
) -> None:
    script = Script(list(states), files=files(old, "b"))
    wait_compatible(script)
    assert script.stopped == 1
    assert script.stopped_for_good, "a restart of the daemon would start the server during the migration"


def test_a_new_schema_of_the_users_stops_the_old_server() -> None:
    script = Script([state(), state("exited")], files=files("a", "a") | {(NEW, "/users-schema"): b"b"})
    wait_compatible(script)
    assert script.stopped == 1


@pytest.mark.parametrize(("theirs", "ours", "stops"), [("1", "1", 0), ("1", "2", 1), (None, "2", 1), ("1", "", 1)])
def test_replicas_with_other_routes_do_not_run_beside_each_other(theirs: str | None, ours: str, stops: int) -> None:
    labels = {"routes": theirs} if theirs else {}
    script = Script([state(), state("exited")], files=files("a", "a"), labels=labels)
    wait_compatible(script, ours)
    assert script.stopped == stops


def test_a_migration_fails_when_the_old_server_does_not_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compatibility, "STOP_TIMEOUT_SECONDS", 0.05)
    assert "mlflow-dev-server: still running after 0.05 s, and the new container must not start beside it" in failure(
        wait_compatible, Script([state()], files=files("a", "b"))
    )


class Proxied(Script):
    """A daemon whose containers run, with the answers to `test -e in-balance` by container."""

    def __init__(self, **balanced: list[int]) -> None:
        super().__init__([state()])
        self.balanced = balanced
        self.proxy_runs = True

    def state(self, container: str) -> State | None:
        return state("exited") if container == "traefik" and not self.proxy_runs else super().state(container)

    def run(self, container: str, *_: object) -> tuple[int, str]:
        codes = self.balanced[container]
        return (codes.pop(0) if len(codes) > 1 else codes[0], "")


def wait_balanced(script: Script, listed_in: tuple[str, str] | None = None) -> None:
    balance = Balance(command=["test"], peers=["one", "two"], listed_in=listed_in, within_s=1)
    in_a_loop_of_its_own(until_balanced(script, "three", balance))  # type: ignore[arg-type]


def test_a_replica_is_ready_when_the_proxy_has_found_it_ready() -> None:
    script = Proxied(one=[1], two=[0], three=[1, 1, 0])
    wait_balanced(script)
    assert script.balanced["three"] == [0], "the third answer was not waited for"


def test_a_replica_without_a_proxy_is_ready_at_once() -> None:
    wait_balanced(Proxied(one=[1], two=[1], three=[1]))


ROUTES = ("traefik", "/routes")


@pytest.mark.parametrize("listed", [b"http://one:5000", None], ids=["others only", "no proxy"])
def test_a_replica_that_the_proxy_does_not_list_yet_is_ready_at_once(listed: bytes | None) -> None:
    script = Proxied(one=[0], two=[0], three=[1])
    script.files = {ROUTES: listed}
    wait_balanced(script, ROUTES)


def test_a_replica_that_the_proxy_does_not_find_ready_fails_the_update() -> None:
    script = Proxied(one=[0], two=[0], three=[1])
    script.files = {ROUTES: b"http://three:5000"}
    said = failure(lambda given: wait_balanced(given, ROUTES), script)
    assert "three: it is ready, but the proxy has not found it ready for 1 s; is Traefik running?" in said


def test_a_proxy_that_was_stopped_does_not_block_the_update_that_starts_it() -> None:
    script = Proxied(one=[0], two=[0], three=[1])
    script.files, script.proxy_runs = {ROUTES: b"http://three:5000"}, False
    wait_balanced(script, ROUTES)


def test_a_paused_replica_does_not_block_the_next_one() -> None:
    script = Proxied(one=[0], two=[0], three=[1])
    script.states = [state("paused", running=True)]
    wait_balanced(script)


NEWER = pytest.mark.parametrize(("made", "runs"), [(3, 1), (1, 0), (None, 0)], ids=["newer", "older", "none"])
"""The day on which the volume was created; the container was started on day 2."""


@NEWER
def test_a_service_restarts_when_the_volume_it_prepares_is_newer(made: int | None, runs: int) -> None:
    running = state(started_at="2026-05-02T03:17:00.123456789Z")
    script = Script([running], made=datetime(2026, 5, made, tzinfo=UTC) if made else None)
    wait_healthy(script, prepares="mlflow-dev-postgres-18-data")
    assert script.restarted == runs


@NEWER
def test_a_job_runs_again_when_the_volume_it_prepares_is_newer(made: int | None, runs: int) -> None:
    done = state("exited", started_at="2026-05-02T03:17:00.123456789Z")
    script = Script([done], made=datetime(2026, 5, made, tzinfo=UTC) if made else None)
    wait_done(script, prepares="mlflow-dev-minio-data")
    assert script.started == runs


def test_a_job_that_exceeds_its_timeout_keeps_running() -> None:
    said = failure(partial(wait_done, timeout_s=0), Script([state()]))
    assert "still running after 0 s" in said
    assert "the job continues, and the next up waits for it" in said
    assert "do not undo your change" in said
    assert "the data is unchanged" not in said


def refusal(status: int, reason: str) -> APIError:
    """Return the error of Docker's client for an answer with an HTTP status."""
    response = requests.Response()
    response.status_code = status
    return APIError(reason, response=response, explanation=reason)


@dataclass
class Busy(Script):
    """A daemon that fails some requests before it answers."""

    silences: int = 0
    error: Exception = field(default_factory=lambda: requests.ReadTimeout("read timed out"))

    def state(self, container: str) -> State | None:
        self.silences -= 1
        if self.silences >= 0:
            raise self.error
        return super().state(container)


@pytest.mark.parametrize("silences", [1, 6, 7])
@pytest.mark.parametrize(
    ("error", "words"),
    [
        (requests.ReadTimeout("read timed out"), "does not answer: read timed out"),
        (refusal(503, "shutting down"), "refuses a request: shutting down"),
    ],
    ids=["no answer", "503"],
)
def test_a_daemon_that_does_not_answer_is_retried_a_limited_number_of_times(
    monkeypatch: pytest.MonkeyPatch, silences: int, error: Exception, words: str
) -> None:
    monkeypatch.setattr(readiness, "RETRY_SECONDS", 0.01)
    script = Busy([state("exited")], silences=silences, error=error)
    if silences <= readiness.MAX_RETRIES:
        wait_done(script)
    else:
        assert failure(wait_done, script) == f"the Docker daemon {words}\n  type: make doctor STACK=stack"


def test_a_request_that_the_daemon_refuses_for_good_is_not_repeated() -> None:
    script = Busy([state("exited")], silences=1, error=refusal(500, "no space left on device"))
    said = failure(wait_done, script)
    assert said == "the Docker daemon refuses a request: no space left on device\n  type: make doctor STACK=stack"
    assert script.silences == 0


def test_a_data_key_in_use_is_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readiness, "RETRY_SECONDS", 0.01)
    files: Any = {("mlflow-stack-job", "/run/secrets/key"): b"the key"}
    script: Any = Busy([state("exited")], silences=1, files=files)
    in_use = InUse(platform=script, container="job", file="key", proved_by_job=True)
    assert asyncio.run(in_use.required("objectStoreKey", "the key", configured=True)) == "the key"
    with pytest.raises(pulumi.RunError, match="is not the key of the stored data"):
        asyncio.run(in_use.required("objectStoreKey", "another", configured=True))


def test_requests_about_volumes_and_restarts_are_retried_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    silent = {"volume_made", "restart"}

    def answer(question: str) -> None:
        if question in silent:
            silent.remove(question)
            raise requests.ConnectionError("connection refused")

    class Silent(Script):
        def volume_created_at(self, name: str) -> datetime | None:
            answer("volume_made")
            return super().volume_created_at(name)

        def restart(self, container: str) -> None:
            answer("restart")
            super().restart(container)

    monkeypatch.setattr(readiness, "RETRY_SECONDS", 0.01)
    script = Silent([state(started_at="2026-01-01T00:00:00Z")], made=datetime(2026, 1, 2, tzinfo=UTC))
    wait_healthy(script, "volume")
    assert script.restarted == 1
    assert silent == set()


def test_a_failed_connection_counts_as_a_daemon_that_does_not_answer() -> None:
    with pytest.raises(NO_ANSWER_ERRORS, match="Error while fetching server API version"):
        Daemon("tcp://127.0.0.1:1").state("id")


@pytest.mark.parametrize("ahead", [timedelta(hours=-1), timedelta(0), timedelta(hours=1)])
@pytest.mark.parametrize(("seconds", "runs"), [(-60, 1), (60, 0)], ids=["before this update", "in this update"])
def test_a_shifted_host_clock_does_not_change_when_a_failed_job_runs_again(
    ahead: timedelta, seconds: int, runs: int
) -> None:
    begun = datetime.now(UTC) - timedelta(seconds=time.monotonic() - readiness._program_started)
    started = (begun + ahead + timedelta(seconds=seconds)).isoformat()
    script = Script([state("exited", exit_code=7, started_at=started)], ahead=ahead)
    failure(wait_done, script)
    assert script.started == runs
