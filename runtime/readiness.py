"""The readiness checks: what `pulumi up` waits for, and the error when it waits in vain."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, TypeVar

import pulumi
import pulumi_docker as docker

from runtime.docker_host import DockerHost
from runtime.workload import Balance, HealthCheck, Workload
from settings import names

if TYPE_CHECKING:
    from runtime.daemon import Daemon, State

POLL_SECONDS = 0.1
PROBE_SECONDS = 0.5
"""Time between two runs of a health check. Each run takes CPU time from the service: see `HealthCheck.interval_s`."""
UNREADY_LOG_LINES = 7
"""Lines of the log of a service that runs but is not ready: its health check says why. Of others, the log says it."""
LAST_LINES, MARKERS = 8, " ~^"
"""Lines of the log of a service or job that has ended, without those of a traceback that only mark a place."""
RETRY_SECONDS = 10
MAX_RETRIES = 6
"""How often a request to Docker is repeated if it does not answer (under load, or while it restarts), and the seconds
between."""
_program_started = time.monotonic()
UNAVAILABLE = (502, 503, 504)
"""The HTTP statuses of a daemon that restarts, or of a proxy in front of it."""
Answer = TypeVar("Answer")


def when_checked(
    container: docker.Container, probe: Callable[[str], Awaitable[None]]
) -> pulumi.Output[docker.Container]:
    """Return the container when `probe` has succeeded. The probe runs in every `up`, and never in a preview."""

    async def check(container_id: str) -> docker.Container:
        if not pulumi.runtime.is_dry_run():
            await probe(container_id)
        return container

    return container.id.apply(check)


async def until_balanced(platform: DockerHost, name: str, balance: Balance) -> None:
    """Wait until the proxy sends requests to the replica `name`, if there is a proxy that knows it.

    Only then may the next replica be replaced. Raises `RunError` if the proxy does not find the replica ready.
    """
    daemon = platform.daemon
    if balance.listed_in:
        proxy, file = balance.listed_in
        state, listed = await call(daemon.state, proxy), await call(daemon.read_file, proxy, file)
        # A proxy that does not run is started after the replicas.
        if state is None or not state.running or f"//{name}:".encode() not in (listed or b""):
            return
    if not any([await _balanced(platform, peer, balance) for peer in balance.peers]):
        return
    deadline = time.monotonic() + balance.within_s
    while not await _balanced(platform, name, balance):
        if time.monotonic() > deadline:
            reason = f"it is ready, but the proxy has not found it ready for {balance.within_s} s; is Traefik running?"
            raise pulumi.RunError(failure_message(name, reason, await call(daemon.logs, name, UNREADY_LOG_LINES)))
        await asyncio.sleep(POLL_SECONDS)


async def _balanced(platform: DockerHost, name: str, balance: Balance) -> bool:
    """Return whether a proxy has found the replica `name` ready since its start."""
    state = await call(platform.daemon.state, name)
    # In a paused container, the command would block.
    if state is None or not state.running or state.status == "paused":
        return False
    code, _ = await asyncio.to_thread(platform.daemon.run, name, list(balance.command))
    return code == 0


async def until_ready(
    platform: DockerHost,
    container_id: str,
    name: str,
    health: HealthCheck,
    workload: Workload,
    balance: Balance | None,
) -> None:
    """Wait until a service is healthy and, if it is a replica, the proxy sends requests to it."""
    await until_healthy(platform, container_id, name, health, workload.prepares)
    if balance:
        await until_balanced(platform, name, balance)


async def until_healthy(
    platform: DockerHost, container_id: str, name: str, health: HealthCheck, prepares: str | None = None
) -> None:
    """Run the health check until it succeeds. Does not wait for Docker, which runs it less often."""
    daemon: Daemon = platform.daemon
    if prepares is not None and await call(_volume_is_newer, daemon, container_id, prepares):
        await call(daemon.restart, container_id)
    deadline = time.monotonic() + health.ready_within_s
    first: State | None = None
    while True:
        state = await call(daemon.state, container_id)
        first = first or state
        said = "it is not running"
        # In a paused container, the command would block.
        if state and state.running and state.status != "paused":
            code, said = await asyncio.to_thread(daemon.run, container_id, list(health.command), names.OBSERVES)
            if code == 0:
                return
        broken = _failure(name, state, first)
        if reason := broken or (f"not ready after {health.ready_within_s} s" if time.monotonic() > deadline else None):
            log = await call(daemon.logs, container_id, *([] if broken else [UNREADY_LOG_LINES]))
            raise pulumi.RunError(failure_message(name, f"{reason}; its health check says: {said or 'nothing'}", log))
        await asyncio.sleep(PROBE_SECONDS)


def _failure(name: str, state: "State | None", first: "State | None") -> str | None:
    """Return why the container `name` cannot become ready, or None if it still can."""
    if state is None or first is None:
        return "it was removed by hand"
    if state.oom_killed:
        return "it ran out of memory: raise its memoryMb"
    if state.restarts > first.restarts + 1:
        return f"it keeps crashing (exit code {state.exit_code}, {state.restarts} restarts)"
    if state.status == "paused":
        return f"it is paused; type: docker unpause {name}"
    if state.status in ("exited", "dead", "created"):
        return f"it is {state.status} (exit code {state.exit_code}) {state.error}".rstrip()
    return None


async def until_done(
    platform: DockerHost, container_id: str, name: str, timeout_s: int, prepares: str | None = None
) -> None:
    """Wait for the end of a job. Starts it again if it failed in an earlier `up`, or ran before its volume was lost."""
    daemon: Daemon = platform.daemon
    deadline = time.monotonic() + timeout_s
    state = await call(daemon.state, container_id)
    lost = prepares is not None and await call(_volume_is_newer, daemon, container_id, prepares)
    again = state is not None and not state.running and (_unfinished(state) or lost)
    if state and again and await call(_started_before_this_run, daemon, state):
        await call(daemon.start, container_id)
        state = await call(daemon.state, container_id)
    started = time.monotonic()
    while state and (state.running or state.status == "created") and time.monotonic() < deadline:
        # A job that takes hours is not polled ten times a second.
        await asyncio.sleep(min(5, POLL_SECONDS + (time.monotonic() - started) / 50))
        state = await call(daemon.state, container_id)
    if state and state.status == "exited" and state.exit_code == 0:
        return
    log = await call(daemon.logs, container_id)
    if state is None:
        reason = "it was removed by hand"
    elif state.running:
        raise pulumi.RunError(failure_message(name, f"still running after {timeout_s} s", log, advice=_STILL_RUNNING))
    else:
        reason = f"it exited with code {state.exit_code}"
    raise pulumi.RunError(failure_message(name, reason, log))


async def call(question: Callable[..., Answer], *arguments: object) -> Answer:
    """Send a request to the daemon, and repeat it if there is no answer. A restart of the daemon must not fail a job.

    Raises `RunError` if the daemon does not answer at all, or refuses the request.
    """
    # See DockerHost.daemon.
    from docker.errors import APIError  # noqa: PLC0415

    from runtime.daemon import NO_ANSWER_ERRORS  # noqa: PLC0415

    for retries in reversed(range(MAX_RETRIES + 1)):
        try:
            return await asyncio.to_thread(question, *arguments)
        except NO_ANSWER_ERRORS as error:
            reason = f"does not answer: {error}"
        except APIError as error:
            reason = f"refuses a request: {error.explanation or error}"
            if error.status_code not in UNAVAILABLE:
                break
        if retries:
            await asyncio.sleep(RETRY_SECONDS)
    raise pulumi.RunError(f"the Docker daemon {reason}\n  type: {names.make_command('doctor', pulumi.get_stack())}")


def since_start() -> timedelta:
    """Return how long this run of the program has taken until now."""
    return timedelta(seconds=time.monotonic() - _program_started)


def _started_before_this_run(daemon: "Daemon", state: "State") -> bool:
    """Return whether a container was last started before this run of the program, by the clock of the daemon's host."""
    begun = daemon.clock() - since_start()
    return datetime.fromisoformat(state.started_at) < begun


def _volume_is_newer(daemon: "Daemon", container_id: str, volume: str) -> bool:
    """Return whether a container was last started before its volume was created, so what it created there is lost."""
    state, made = daemon.state(container_id), daemon.volume_created_at(volume)
    return state is not None and made is not None and datetime.fromisoformat(state.started_at) < made


def _unfinished(state: "State") -> bool:
    return not state.running and not (state.status == "exited" and state.exit_code == 0)


_RETRY = (
    "  fix the cause, then type: make up STACK={stack} (or pulumi up --refresh)\n"
    "  the data is unchanged; until then, this container and those that need it may be down"
)
_STILL_RUNNING = (
    "  the job continues, and the next up waits for it; type: make up STACK={stack} (or pulumi up --refresh)\n"
    "  do not undo your change meanwhile: the job may already have changed the data"
)


def failure_message(name: str, reason: str, log: str, advice: str = _RETRY) -> str:
    """Return a message: what failed and why, the last lines of its log, and the command to type."""
    printed = [line for line in log.splitlines() if line.strip(MARKERS)][-LAST_LINES:]
    last = "\n".join(f"    {line}" for line in printed) or "    (it printed nothing)"
    advice = advice.format(stack=pulumi.get_stack())
    return f"{name}: {reason}\n  its last lines:\n{last}\n  the whole log: docker logs {name}\n{advice}"
