"""The one place where containers are made.

A component says what its service needs; what every container owes its host is decided here: no capability that was
not asked for, no new privileges, a root that it cannot write to, limits, rotated logs, a grace period, labels. So is
what "deployed" means: a `Service` is ready when its own health check says so, a `Job` is done when it exited with 0,
and `pulumi up` fails, again and again, until that is the case.
"""

import asyncio
import functools
import hashlib
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar

import pulumi
import pulumi_docker as docker

from components import names
from components.platform import Platform

if TYPE_CHECKING:
    from components.daemon import Daemon, State

POLL_SECONDS = 0.1
PROBE_SECONDS = 1.0
"""Between two runs of a health check. Each takes 0.13 s of a processor (measured) from what it waits for."""
JOB_TIMEOUT_SECONDS = 900
"""A job that takes longer is said to hang."""
SILENCE_SECONDS = 10
SILENCES = 6
"""How often Docker may leave a question unanswered, under load or when it restarts, and how long until the next."""
STOP_TIMEOUT_SECONDS = 120
_program_started = time.monotonic()
Answer = TypeVar("Answer")


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a container may use at most."""

    memory_mb: int
    cpus: float


@dataclass(frozen=True, kw_only=True)
class HealthCheck:
    """A command that succeeds in the container when the service does what its clients need."""

    command: Sequence[str]
    interval_s: int = 10
    timeout_s: int = 5
    retries: int = 3
    start_period_s: int = 60
    ready_within_s: int = 120
    """How long `up` waits for the first success. Longer where a crash recovery may come first."""


@dataclass(frozen=True, kw_only=True)
class Publish:
    """A port of the host."""

    port: int
    target: int
    address: str = "127.0.0.1"


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """Where a service tells Prometheus how it is."""

    port: int
    path: str = "/metrics"


SECRETS = "/run/secrets"
"""Where a consumer finds its secrets."""
CONFIG = "/run/config"
"""Where it finds what is no secret: configuration, scripts."""
NOBODY = "65534:65534"
"""User and group of what needs none, and owns nothing in any image."""


@dataclass(frozen=True, kw_only=True)
class Files:
    """What a consumer reads: secrets, found in `SECRETS`, and configuration, found in `CONFIG`; file name to content.

    They are root's, mode 0444. A service has them in volumes of its own, see `_Writer`; a job in itself, where it runs
    as somebody who may not change them.
    """

    secrets: Mapping[str, pulumi.Input[str]] = field(default_factory=dict)
    config: Mapping[str, str] = field(default_factory=dict)
    after: Sequence[pulumi.Input[pulumi.Resource]] = ()
    """Of a service: what must be proved while the one before it still runs. New files end that."""

    @property
    def folders(self) -> dict[str, Mapping[str, pulumi.Input[str]]]:
        """The two that there are, or one: path to contents."""
        given: dict[str, Mapping[str, pulumi.Input[str]]] = {SECRETS: self.secrets, CONFIG: self.config}
        return {path: contents for path, contents in given.items() if contents}

    @property
    def uploads(self) -> list[docker.ContainerUploadArgsDict]:
        """All of them, as the provider takes them."""
        return [
            {"file": f"{path}/{file}", "content": content, "permissions": "0444"}
            for path, contents in self.folders.items()
            for file, content in sorted(contents.items())
        ]

    @property
    def labels(self) -> list[docker.ContainerLabelArgsDict]:
        """One secret among the files hides all of them in every plan. These tell which of the others changed."""
        return [_label(f"{names.CONFIG_LABEL}/{file}", _digest(text)) for file, text in sorted(self.config.items())]


class _Writer:
    """Writes the files of one service into volumes: one for its secrets, one for its configuration.

    Docker cannot upload into a container with a read-only root. So the files are uploaded into the volumes through a
    container that never starts: it needs nothing but an image, and no program in it. Nobody but the service mounts
    the volumes.
    """

    volumes: dict[str, pulumi.Output[str]]
    """Path at which the service finds them, to volume name."""
    container: docker.Container
    """Is replaced when a file changes; whoever read the files must be replaced with it."""

    def __init__(self, service: str, files: Files, *, image: pulumi.Input[str], parent: pulumi.Resource | None) -> None:
        """Write them; the service is deleted first where they are others than before."""
        stack = pulumi.get_stack()
        self.volumes = {
            path: self._volume(f"{service}-{Path(path).name}", contents, parent)
            for path, contents in files.folders.items()
        }
        name = f"{service}-files"
        self.container = docker.Container(
            name,
            name=names.physical(stack, name),
            image=image,
            # Never started, so never given anything else: only the daemon writes through it.
            start=False,
            must_run=False,
            network_mode="none",
            volumes=[{"volume_name": volume, "container_path": path} for path, volume in self.volumes.items()],
            uploads=files.uploads,
            labels=[*_labels(stack, name, "files"), *files.labels],
            opts=pulumi.ResourceOptions(parent=parent, depends_on=[*files.after], delete_before_replace=True),
        )

    def _volume(
        self, name: str, contents: Mapping[str, pulumi.Input[str]], parent: pulumi.Resource | None
    ) -> pulumi.Output[str]:
        # A file that is no longer among them would stay in the volume, and open what it opened: other names, another
        # volume. It has the old one's name, so that has to go first, with whoever uses it.
        return docker.Volume(
            name,
            name=names.physical(pulumi.get_stack(), name),
            labels=[
                {"label": names.STACK_LABEL, "value": pulumi.get_stack()},
                {"label": names.FILES_LABEL, "value": _digest("\0".join(sorted(contents)))},
            ],
            opts=pulumi.ResourceOptions(parent=parent, delete_before_replace=True),
        ).name


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What a container needs. Everything else is the same for all."""

    image: pulumi.Input[str]
    limits: Limits
    networks: Sequence[pulumi.Input[str]]
    entrypoint: Sequence[str] | None = None
    command: Sequence[str] | None = None
    env: Mapping[str, pulumi.Input[str]] = field(default_factory=dict)
    """Never a secret: those are files."""
    files: Files = field(default_factory=Files)
    data: Mapping[str, pulumi.Input[str]] = field(default_factory=dict)
    """Path to volume name."""
    tmpfs: Mapping[str, str] = field(default_factory=dict)
    """Path to mount options. Counts as memory of the container."""
    user: str | None = None
    labels: Mapping[str, pulumi.Input[str]] = field(default_factory=dict)
    shm_mb: int | None = None
    prepares: str | None = None
    """Physical name of the volume in which it makes something when it starts, and does so again where that is lost."""


class Service(pulumi.ComponentResource):
    """A container that runs for as long as the stack does, and is back after a reboot."""

    host: str
    """Its name on its networks."""
    ready: pulumi.Output[docker.Container]
    """For `depends_on` of whoever needs it to answer."""

    def __init__(
        self,
        name: str,
        workload: Workload,
        health: HealthCheck,
        *,
        platform: Platform,
        grace_s: int,
        publish: Sequence[Publish] = (),
        metrics: Metrics | None = None,
        after: Sequence[pulumi.Input[pulumi.Resource]] = (),
        replaced_with: Sequence[pulumi.Resource] = (),
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        """Run `workload`, started once everything in `after` is ready, stopped with `grace_s` seconds of notice.

        One with `metrics` is where Prometheus can reach it, in a stack that is monitored.
        """
        super().__init__("mlflow:runtime:Service", name, None, opts)
        if metrics and platform.monitored:
            workload = _watched(workload, metrics, platform)
        self.host = names.physical(pulumi.get_stack(), name)
        volumes: Mapping[str, pulumi.Output[str]] = {}
        writers: list[docker.Container] = []
        if workload.files.folders:
            writer = _Writer(name, workload.files, image=workload.image, parent=opts.parent if opts else None)
            volumes, writers = writer.volumes, [writer.container]
        container = docker.Container(
            name,
            **_arguments(self.host, name, "service", workload, read=volumes),
            read_only=True,
            # Not "unless-stopped": when dockerd 20.10 comes back after a crash it stops what survived, remembers that
            # as somebody's wish, and leaves it stopped.
            restart="always",
            # An init reaps what a health check that timed out leaves behind.
            init=True,
            healthcheck={
                "tests": ["CMD", *health.command],
                "interval": _duration(health.interval_s),
                "timeout": _duration(health.timeout_s),
                "start_period": _duration(health.start_period_s),
                "retries": health.retries,
            },
            ports=[
                {"internal": port.target, "external": port.port, "ip": port.address, "protocol": "tcp"}
                for port in sorted(publish, key=lambda port: port.target)
            ],
            stop_timeout=grace_s,
            # Unset, it means SIGTERM and SIGKILL in the same second.
            destroy_grace_seconds=grace_s,
            opts=_options(self, [*after, *writers], [*writers, *replaced_with]),
        )
        self.ready = _gate(
            container, lambda container_id: _until_healthy(platform, container_id, self.host, health, workload.prepares)
        )
        self.register_outputs({"host": self.host})


class Job(pulumi.ComponentResource):
    """A container that runs once, to its end, whenever anything about it changes. What it does is idempotent."""

    done: pulumi.Output[docker.Container]
    """For `depends_on` of whoever needs its result."""
    container: docker.Container
    """For `replaced_with` of whoever must not live on beside a new run."""

    def __init__(
        self,
        name: str,
        workload: Workload,
        *,
        platform: Platform,
        timeout_s: int = JOB_TIMEOUT_SECONDS,
        after: Sequence[pulumi.Input[pulumi.Resource]] = (),
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        """Run `workload` once everything in `after` is ready; one that failed is run again by the next `up`."""
        super().__init__("mlflow:runtime:Job", name, None, opts)
        physical = names.physical(pulumi.get_stack(), name)
        self.container = docker.Container(
            name,
            **_arguments(physical, name, "job", workload, labels=workload.files.labels),
            # Docker uploads into no other root. Whoever runs in it owns no program and no configuration there.
            read_only=not workload.files.folders,
            uploads=workload.files.uploads,
            restart="no",
            must_run=False,
            opts=_options(self, after),
        )
        self.done = _gate(
            self.container,
            lambda container_id: _until_done(platform, container_id, physical, timeout_s, workload.prepares),
        )
        self.register_outputs({"name": physical})


def _watched(workload: Workload, metrics: Metrics, platform: Platform) -> Workload:
    """Return `workload` on the network where Prometheus is, with labels for one that finds its targets by them."""
    labels = {
        "prometheus.io/scrape": "true",
        "prometheus.io/port": str(metrics.port),
        "prometheus.io/path": metrics.path,
    }
    return replace(
        workload,
        networks=[*workload.networks, *platform.networks.monitored_and()],
        labels={**workload.labels, **labels},
    )


def _arguments(
    physical: str,
    name: str,
    role: str,
    workload: Workload,
    *,
    read: Mapping[str, pulumi.Output[str]] = MappingProxyType({}),
    labels: Sequence[docker.ContainerLabelArgsDict] = (),
) -> dict[str, Any]:
    """Return the arguments that services and jobs have in common. `read` are volumes to be mounted read-only."""
    stack = pulumi.get_stack()
    # Values are spelled as the provider reads them back: any other spelling is a change in every plan.
    return {
        "name": physical,
        "image": workload.image,
        "entrypoints": workload.entrypoint,
        "command": workload.command,
        "envs": [_assignment(key, value) for key, value in sorted({"STACK": stack, **workload.env}.items())],
        "user": workload.user,
        "capabilities": {"drops": ["ALL"]},
        "security_opts": ["no-new-privileges:true"],
        "memory": workload.limits.memory_mb,
        "memory_swap": workload.limits.memory_mb,
        "cpus": _cpus(workload.limits.cpus),
        "shm_size": workload.shm_mb,
        "tmpfs": dict(workload.tmpfs),
        "network_mode": "bridge",
        "networks_advanced": [{"name": network} for network in workload.networks],
        "volumes": [
            *({"volume_name": volume, "container_path": path} for path, volume in sorted(workload.data.items())),
            *({"volume_name": volume, "container_path": path, "read_only": True} for path, volume in read.items()),
        ],
        "log_driver": "json-file",
        "log_opts": {"max-size": "10m", "max-file": "5"},
        "labels": [
            *_labels(stack, name, role),
            *(_label(key, value) for key, value in sorted(workload.labels.items())),
            *labels,
        ],
    }


def _assignment(key: str, value: pulumi.Input[str]) -> pulumi.Input[str]:
    # An output where none is needed is several tasks in the program, and there are sixty of these.
    return f"{key}={value}" if isinstance(value, str) else pulumi.Output.concat(key, "=", value)


def _options(
    parent: pulumi.Resource,
    after: Sequence[pulumi.Input[pulumi.Resource]],
    replaced_with: Sequence[pulumi.Resource] = (),
) -> pulumi.ResourceOptions:
    return pulumi.ResourceOptions(
        parent=parent,
        depends_on=[*after],
        # The name is fixed, so the old one has to go first; the engine does not see that by itself.
        delete_before_replace=True,
        # The provider reports these as updated and changes nothing.
        replace_on_changes=["healthcheck", "init", "tmpfs"],
        replace_with=[*replaced_with],
        # Reported in random order where a container has two networks.
        hide_diffs=["networkDatas"],
    )


def _labels(stack: str, service: str, role: str) -> list[docker.ContainerLabelArgsDict]:
    return [
        {"label": names.STACK_LABEL, "value": stack},
        {"label": names.SERVICE_LABEL, "value": service},
        {"label": names.ROLE_LABEL, "value": role},
    ]


def _label(name: str, value: pulumi.Input[str]) -> docker.ContainerLabelArgsDict:
    return {"label": name, "value": value}


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _duration(seconds: int) -> str:
    """Spell seconds as Go does: 90 is 1m30s, 60 is 1m0s."""
    minutes, rest = divmod(seconds, 60)
    return f"{minutes}m{rest}s" if minutes else f"{rest}s"


def _cpus(number: float) -> str:
    """Spell a number of processors as Docker does: 1 is 1.0, 0.50 is 0.5."""
    return str(float(number))


def _gate(container: docker.Container, probe: Callable[[str], Awaitable[None]]) -> pulumi.Output[docker.Container]:
    """Return the container once `probe` has passed. It runs at every `up`, and never in a preview."""

    async def check(container_id: str) -> docker.Container:
        if not pulumi.runtime.is_dry_run():
            await probe(container_id)
        return container

    return container.id.apply(check)


def predecessor_gone(
    service: str, *, image: pulumi.Input[str], once: pulumi.Output[docker.Container], platform: Platform
) -> pulumi.Output[docker.Container]:
    """Return `once` when no container of `service` runs from another image, and stop the one that does.

    The engine would delete it, too, but later where a job is new and replaces nothing, as after
    `docker container prune`.
    """
    name = names.physical(pulumi.get_stack(), service)

    async def check(values: list[Any]) -> docker.Container:
        container: docker.Container = values[0]
        if not pulumi.runtime.is_dry_run():
            await _until_gone(platform, name, values[1])
        return container

    return pulumi.Output.all(once, image).apply(check)


async def _until_gone(platform: Platform, name: str, image: str) -> None:
    """Stop container `name`, unless it runs from `image`, and wait until it has."""

    async def runs() -> bool:
        state = await _asked(platform.daemon.state, name)
        return state is not None and state.running and state.image != image

    if await runs():
        # For good: a migration takes hours on a large database, and Docker may be restarted meanwhile.
        await _asked(functools.partial(platform.daemon.stop, for_good=True), name)
    deadline = time.monotonic() + STOP_TIMEOUT_SECONDS
    while await runs():
        if time.monotonic() > deadline:
            reason = f"still running after {STOP_TIMEOUT_SECONDS} s, and its successor must not start beside it"
            raise pulumi.RunError(explain(name, reason, await _asked(platform.daemon.logs, name)))
        await asyncio.sleep(POLL_SECONDS)


async def _until_healthy(
    platform: Platform, container_id: str, name: str, health: HealthCheck, prepares: str | None = None
) -> None:
    """Ask the health check itself, rather than wait for Docker's next turn, until it succeeds."""
    daemon: Daemon = platform.daemon
    if prepares is not None and await _asked(_outlived, daemon, container_id, prepares):
        await _asked(daemon.restart, container_id)
    deadline = time.monotonic() + health.ready_within_s
    first: State | None = None
    while True:
        state = await _asked(daemon.state, container_id)
        first = first or state
        said = "it is not running"
        # Of one that is paused, Docker would wait for the answer.
        if state and state.running and state.status != "paused":
            code, said = await asyncio.to_thread(daemon.run, container_id, list(health.command))
            if code == 0:
                return
        if reason := _broken(state, first) or (
            f"not ready after {health.ready_within_s} s" if time.monotonic() > deadline else None
        ):
            log = await _asked(daemon.logs, container_id)
            raise pulumi.RunError(explain(name, f"{reason}; its health check says: {said or 'nothing'}", log))
        await asyncio.sleep(PROBE_SECONDS)


def _broken(state: "State | None", first: "State | None") -> str | None:
    """Return why waiting on would be in vain, if it would."""
    if state is None or first is None:
        return "it was removed by hand"
    if state.oom_killed:
        return "it ran out of memory: raise its memoryMb"
    if state.restarts > first.restarts + 1:
        return f"it keeps crashing (exit code {state.exit_code}, {state.restarts} restarts)"
    if state.status == "paused":
        return "somebody has paused it; type: docker unpause, and the name above"
    if state.status in ("exited", "dead", "created"):
        return f"it is {state.status} (exit code {state.exit_code}) {state.error}".rstrip()
    return None


async def _until_done(
    platform: Platform, container_id: str, name: str, timeout_s: int, prepares: str | None = None
) -> None:
    """Wait for a job's end. One that failed in an earlier `up`, or before its volume was lost, gets another run."""
    daemon: Daemon = platform.daemon
    deadline = time.monotonic() + timeout_s
    state = await _asked(daemon.state, container_id)
    lost = prepares is not None and await _asked(_outlived, daemon, container_id, prepares)
    again = state is not None and not state.running and (_unfinished(state) or lost)
    if state and again and await _asked(_earlier, daemon, state):
        await _asked(daemon.start, container_id)
        state = await _asked(daemon.state, container_id)
    started = time.monotonic()
    while state and (state.running or state.status == "created") and time.monotonic() < deadline:
        # A job of hours is not asked ten times a second.
        await asyncio.sleep(min(5, POLL_SECONDS + (time.monotonic() - started) / 50))
        state = await _asked(daemon.state, container_id)
    if state and state.status == "exited" and state.exit_code == 0:
        return
    log = await _asked(daemon.logs, container_id)
    if state is None:
        reason = "it was removed by hand"
    elif state.running:
        raise pulumi.RunError(explain(name, f"still running after {timeout_s} s", log, advice=_GOES_ON))
    else:
        reason = f"it exited with code {state.exit_code}"
    raise pulumi.RunError(explain(name, reason, log))


async def _asked(question: Callable[..., Answer], *arguments: object) -> Answer:
    """Ask the daemon something; again where it does not answer: a job of hours is not lost by a restart of it."""
    # See Platform.daemon.
    from components.daemon import SILENT  # noqa: PLC0415

    for _ in range(SILENCES):
        try:
            return await asyncio.to_thread(question, *arguments)
        except SILENT:
            await asyncio.sleep(SILENCE_SECONDS)
    try:
        return await asyncio.to_thread(question, *arguments)
    except SILENT as error:
        raise pulumi.RunError(
            f"the Docker daemon does not answer: {error}\n  type: {names.make('doctor', pulumi.get_stack())}"
        ) from None


def _earlier(daemon: "Daemon", state: "State") -> bool:
    """Whether a container was last started before this run of the program, by the clock of the daemon's host."""
    begun = daemon.clock() - timedelta(seconds=time.monotonic() - _program_started)
    return datetime.fromisoformat(state.started_at) < begun


def _outlived(daemon: "Daemon", container_id: str, volume: str) -> bool:
    """Whether a container was last started before its volume was made: what it left there is lost."""
    state, made = daemon.state(container_id), daemon.volume_made(volume)
    return state is not None and made is not None and datetime.fromisoformat(state.started_at) < made


def _unfinished(state: "State") -> bool:
    return not state.running and not (state.status == "exited" and state.exit_code == 0)


_MEND = (
    "  once the cause is mended, type: make up STACK={stack} (or pulumi up --refresh)\n"
    "  the data are as they were; what it was to replace does not run until then"
)
_GOES_ON = (
    "  it goes on, and the next one waits for it; type: make up STACK={stack} (or pulumi up --refresh)\n"
    "  do not take a change back meanwhile: what it does to the data may be done already"
)


def explain(name: str, reason: str, log: str, advice: str = _MEND) -> str:
    """Say what failed, what it printed last, and what to type."""
    last = "\n".join(f"    {line}" for line in log.splitlines()) or "    (it printed nothing)"
    advice = advice.format(stack=pulumi.get_stack())
    return f"{name}: {reason}\n  its last lines:\n{last}\n  the whole log: docker logs {name}\n{advice}"
