"""The readiness checks: what `pulumi up` waits for, and the error when it waits in vain."""

import asyncio
import functools
import time
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import pulumi
import pulumi_docker as docker

from runtime.docker_host import DockerHost
from runtime.workload import HealthCheck
from settings import names

if TYPE_CHECKING:
    from runtime.daemon import Daemon, State

POLL_SECONDS = 0.1
PROBE_SECONDS = 1.0
"""Time between two runs of a health check. Each run takes CPU time from the service: see `HealthCheck.interval_s`."""
UNREADY_LOG_LINES = 7
"""Lines of the log of a service that runs but is not ready: its health check says why. Of others, the log says it."""
RETRY_SECONDS = 10
MAX_RETRIES = 6
"""How often a request to Docker is repeated if it does not answer (under load, or while it restarts), and the seconds
between."""
STOP_TIMEOUT_SECONDS = 120
_program_started = time.monotonic()
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


def previous_stopped(
    service: str, *, image: pulumi.Input[str], once: pulumi.Output[docker.Container], platform: DockerHost
) -> pulumi.Output[docker.Container]:
    """Return `once` when no container of `service` runs from another image. Stops such a container.

    The engine deletes it as well, but later if the job is new and replaces nothing, as after
    `docker container prune`.
    """
    name = names.docker_name(pulumi.get_stack(), service)

    async def check(values: list[Any]) -> docker.Container:
        container: docker.Container = values[0]
        if not pulumi.runtime.is_dry_run():
            await _until_stopped(platform, name, values[1])
        return container

    return pulumi.Output.all(once, image).apply(check)


async def _until_stopped(platform: DockerHost, name: str, image: str) -> None:
    """Stop the container `name`, unless it runs from `image`, and wait until it has stopped."""

    async def runs() -> bool:
        state = await _call(platform.daemon.state, name)
        return state is not None and state.running and state.image != image

    if await runs():
        # For good: a migration of a large database takes hours, and Docker may be restarted meanwhile.
        await _call(functools.partial(platform.daemon.stop, for_good=True), name)
    deadline = time.monotonic() + STOP_TIMEOUT_SECONDS
    while await runs():
        if time.monotonic() > deadline:
            reason = f"still running after {STOP_TIMEOUT_SECONDS} s, and the new container must not start beside it"
            raise pulumi.RunError(failure_message(name, reason, await _call(platform.daemon.logs, name)))
        await asyncio.sleep(POLL_SECONDS)


async def until_healthy(
    platform: DockerHost, container_id: str, name: str, health: HealthCheck, prepares: str | None = None
) -> None:
    """Run the health check until it succeeds. Does not wait for Docker, which runs it less often."""
    daemon: Daemon = platform.daemon
    if prepares is not None and await _call(_volume_is_newer, daemon, container_id, prepares):
        await _call(daemon.restart, container_id)
    deadline = time.monotonic() + health.ready_within_s
    first: State | None = None
    while True:
        state = await _call(daemon.state, container_id)
        first = first or state
        said = "it is not running"
        # In a paused container, the command would block.
        if state and state.running and state.status != "paused":
            code, said = await asyncio.to_thread(daemon.run, container_id, list(health.command))
            if code == 0:
                return
        broken = _failure(name, state, first)
        if reason := broken or (f"not ready after {health.ready_within_s} s" if time.monotonic() > deadline else None):
            log = await _call(daemon.logs, container_id, *([] if broken else [UNREADY_LOG_LINES]))
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
    state = await _call(daemon.state, container_id)
    lost = prepares is not None and await _call(_volume_is_newer, daemon, container_id, prepares)
    again = state is not None and not state.running and (_unfinished(state) or lost)
    if state and again and await _call(_started_before_this_run, daemon, state):
        await _call(daemon.start, container_id)
        state = await _call(daemon.state, container_id)
    started = time.monotonic()
    while state and (state.running or state.status == "created") and time.monotonic() < deadline:
        # A job that takes hours is not polled ten times a second.
        await asyncio.sleep(min(5, POLL_SECONDS + (time.monotonic() - started) / 50))
        state = await _call(daemon.state, container_id)
    if state and state.status == "exited" and state.exit_code == 0:
        return
    log = await _call(daemon.logs, container_id)
    if state is None:
        reason = "it was removed by hand"
    elif state.running:
        raise pulumi.RunError(failure_message(name, f"still running after {timeout_s} s", log, advice=_STILL_RUNNING))
    else:
        reason = f"it exited with code {state.exit_code}"
    raise pulumi.RunError(failure_message(name, reason, log))


async def _call(question: Callable[..., Answer], *arguments: object) -> Answer:
    """Send a request to the daemon, and repeat it if there is no answer. A restart of the daemon must not fail a job.

    Raises `RunError` if the daemon does not answer at all.
    """
    # See DockerHost.daemon.
    from runtime.daemon import NO_ANSWER_ERRORS  # noqa: PLC0415

    for _ in range(MAX_RETRIES):
        try:
            return await asyncio.to_thread(question, *arguments)
        except NO_ANSWER_ERRORS:
            await asyncio.sleep(RETRY_SECONDS)
    try:
        return await asyncio.to_thread(question, *arguments)
    except NO_ANSWER_ERRORS as error:
        raise pulumi.RunError(
            f"the Docker daemon does not answer: {error}\n  type: {names.make_command('doctor', pulumi.get_stack())}"
        ) from None


def _started_before_this_run(daemon: "Daemon", state: "State") -> bool:
    """Return whether a container was last started before this run of the program, by the clock of the daemon's host."""
    begun = daemon.clock() - timedelta(seconds=time.monotonic() - _program_started)
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
    last = "\n".join(f"    {line}" for line in log.splitlines()) or "    (it printed nothing)"
    advice = advice.format(stack=pulumi.get_stack())
    return f"{name}: {reason}\n  its last lines:\n{last}\n  the whole log: docker logs {name}\n{advice}"
