"""How long no replica of the server served during a deployment on one Docker host, from the events of the daemon."""

import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from types import MappingProxyType
from typing import Any

from operations.common.console import progress
from operations.common.stack import Stack
from operations.host.servers import servers
from runtime.daemon import UNREACHABLE_ERRORS, Daemon
from settings import names

HEALTH_CHECK = "healthcheck.py"
"""Part of the command with which Docker, and `make up` more often, ask a replica whether it serves."""
ENDS = ("kill", "die", "health_status: unhealthy")
"""Events after which a replica does not serve: it is told to stop, it has ended, or its health check fails."""
NANOSECONDS = 1e9


class Downtime:
    """Adds up the times in which no replica served. A replica serves from its first health check that succeeds."""

    def __init__(self, serving: Iterable[str]) -> None:
        """Begin with the names of the replicas that serve: at least one."""
        self._serving = set(serving)
        self._since: float | None = None
        self._total = 0.0
        self._checks: set[str | None] = set()

    def note(self, name: str, action: str, at: float, attributes: Mapping[str, str] = MappingProxyType({})) -> None:
        """Take an event of a replica into account. It happened at the time `at`."""
        if action.startswith("exec_create") and HEALTH_CHECK in action:
            self._checks.add(attributes.get("execID"))
        elif action == "exec_die" and attributes.get("execID") in self._checks and attributes.get("exitCode") == "0":
            self._serving.add(name)
            if self._since is not None:
                self._total += max(0.0, at - self._since)
                self._since = None
        elif action in ENDS:
            self._serving.discard(name)
            if not self._serving and self._since is None:
                self._since = at

    @property
    def lasts(self) -> bool:
        """Whether no replica serves now."""
        return self._since is not None

    def seconds(self, now: float) -> float:
        """Return the total until `now`."""
        return self._total + (max(0.0, now - self._since) if self._since is not None else 0.0)


class Watch:
    """What a deployment did to the server, as far as it is known."""

    seconds: float | None = None
    """How long no replica served. None: none served before, it runs on a cluster, or Docker did not tell."""
    lasts = False
    """Whether no replica serves at the end."""

    @property
    def words(self) -> str | None:
        """The downtime in words, or None if there was none or it is unknown."""
        if not self.seconds:
            return None
        told = f"the server did not serve for {max(1, round(self.seconds))} s of this deployment"
        return f"{told}, and does not serve now" if self.lasts else told


@contextmanager
def watched(stack: Stack) -> Iterator[Watch]:
    """Measure the downtime of the server while the context is entered. Raises nothing of its own."""
    watch = Watch()
    try:
        deployed = servers(stack).deployed
        found = [state for name in deployed if (state := stack.daemon.inspect(name)) is not None]
        serving = {state["Name"].lstrip("/") for state in found if _serves(stack.daemon, state)}
    except UNREACHABLE_ERRORS:
        serving = set()
    if stack.settings.on_swarm or not serving:
        yield watch
        return
    downtime = Downtime(serving)
    stream: Any = None
    with suppress(*UNREACHABLE_ERRORS):
        # Live: the daemon keeps the last 256 events only, and each health check causes three.
        stream = stack.daemon.api.events(decode=True, filters=_filters(stack))
    if stream is None:
        yield watch
        return
    reader = threading.Thread(target=_collect, args=(stack, stream, downtime), daemon=True)
    reader.start()
    try:
        yield watch
    finally:
        ended = time.time()
        # A stream that was cut off, as by a restart of the daemon, lacks what happened since.
        complete = reader.is_alive()
        # docker-py raises several errors if the connection has just ended.
        with suppress(Exception):
            stream.close()
        reader.join(1)
        if complete:
            watch.seconds, watch.lasts = downtime.seconds(ended), downtime.lasts


@contextmanager
def reported(stack: Stack) -> Iterator[None]:
    """Print the downtime of the server at the end, also of a deployment that fails."""
    watch = Watch()
    try:
        with watched(stack) as watch:
            yield
    finally:
        if watch.words:
            progress(watch.words)


def _filters(stack: Stack) -> dict[str, Any]:
    return {
        "type": "container",
        "label": f"{names.STACK_LABEL}={stack.name}",
        "event": ["kill", "die", "health_status", "exec_create", "exec_die"],
    }


def _serves(daemon: Daemon, found: Mapping[str, Any]) -> bool:
    """Return whether a container runs and its health check says that it serves."""
    if not found["State"]["Running"]:
        return False
    health = found["State"].get("Health", {}).get("Status")
    if health == "starting":
        # Docker asks every 30 s only, so a server that an earlier deployment has just replaced may serve already.
        return daemon.run(found["Name"].lstrip("/"), found["Config"]["Healthcheck"]["Test"][1:], names.OBSERVES)[0] == 0
    return bool(health == "healthy")


def _collect(stack: Stack, stream: Iterable[Mapping[str, Any]], downtime: Downtime) -> None:
    """Take every event of a replica into account, until the stream is closed or cut off."""
    # Also what docker-py raises when another thread closes the stream.
    with suppress(Exception):
        for event in stream:
            attributes = event["Actor"]["Attributes"]
            name = attributes.get("name", "")
            if names.is_replica(name.removeprefix(names.docker_name(stack.name, ""))):
                downtime.note(name, event["Action"], event["timeNano"] / NANOSECONDS, attributes)
