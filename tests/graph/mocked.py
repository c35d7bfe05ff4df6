"""Runs the whole program under Pulumi's mocks and keeps everything that it registered, options included."""

import asyncio
import json
import runpy
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pulumi
import pytest
import yaml
from google.protobuf import json_format
from pulumi.runtime import rpc, settings
from pulumi.runtime.mocks import MockCallArgs, MockMonitor, MockResourceArgs, Mocks

from runtime import daemon
from runtime.daemon import State
from tests.shipped import stack_file

ROOT = Path(__file__).parents[2]
ENVELOPE = rpc._special_sig_key
"""The key under which Pulumi marks a value as secret on the wire."""
CONTAINER = "docker:index/container:Container"
VOLUME = "docker:index/volume:Volume"
NETWORK = "docker:index/network:Network"
IMAGE = "docker:index/remoteImage:RemoteImage"
DATA_KEY = "mlflow:components:DataKey"
PASSWORD = "random:index/randomPassword:RandomPassword"


class Provider(Mocks):
    """Answers as the providers do: ids, image ids, and passwords that are secret."""

    def new_resource(self, args: MockResourceArgs) -> tuple[str | None, dict[str, Any]]:
        outputs = dict(args.inputs)
        if args.typ == PASSWORD:
            # The engine marks it; the mocks do not.
            outputs["result"] = pulumi.Output.secret(f"generated-{args.name}".ljust(32, "x"))
        if args.typ == IMAGE:
            outputs["imageId"] = f"sha256:{args.name}"
        return f"{args.name}-id", outputs

    def call(self, args: MockCallArgs) -> tuple[dict[str, Any], None]:
        raise AssertionError(f"the program asked the provider for {args.token}")


class Recorder(MockMonitor):
    """Keeps every registration, and refuses two of one name, as the engine would."""

    def __init__(self, mocks: Mocks) -> None:
        super().__init__(mocks)
        self.requests: dict[str, Any] = {}
        self.outputs: dict[str, Any] = {}

    def RegisterResource(self, request: Any) -> Any:  # noqa: ANN401, N802 - as in Pulumi
        urn = self.make_urn(request.parent, request.type, request.name)
        assert urn not in self.requests, f"registered twice: {urn}"
        self.requests[urn] = request
        return super().RegisterResource(request)  # type: ignore[no-untyped-call]

    def RegisterResourceOutputs(self, request: Any) -> Any:  # noqa: ANN401, N802 - as in Pulumi
        self.outputs[request.urn] = json_format.MessageToDict(request.outputs)
        return super().RegisterResourceOutputs(request)  # type: ignore[no-untyped-call]


@dataclass(frozen=True)
class Resource:
    urn: str
    type: str
    name: str
    inputs: dict[str, Any]
    """Secrets still in their envelope."""
    request: Any

    @property
    def plain(self) -> dict[str, Any]:
        found: dict[str, Any] = unwrapped(self.inputs)
        return found

    @property
    def labels(self) -> dict[str, str]:
        return {label["label"]: label["value"] for label in self.plain["labels"]}

    @property
    def envs(self) -> dict[str, str]:
        return dict(entry.split("=", 1) for entry in self.plain.get("envs", []))

    @property
    def networks(self) -> list[str]:
        return [network["name"] for network in self.plain.get("networksAdvanced", [])]


def unwrapped(value: Any) -> Any:  # noqa: ANN401
    if isinstance(value, dict):
        if ENVELOPE in value and "value" in value:
            return unwrapped(value["value"])
        return {key: unwrapped(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [unwrapped(entry) for entry in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def in_clear(value: Any) -> str:  # noqa: ANN401
    """Return everything in `value` that is not in a secret's envelope, as text."""
    if isinstance(value, dict):
        if ENVELOPE in value:
            return ""
        return " ".join(f"{key} {in_clear(entry)}" for key, entry in value.items())
    if isinstance(value, list):
        return " ".join(in_clear(entry) for entry in value)
    return str(value)


@dataclass
class Graph:
    stack: str
    resources: list[Resource]
    exports: dict[str, Any] = field(default_factory=dict)
    outputs: dict[str, Any] = field(default_factory=dict)
    """What components registered as theirs, by URN, secrets still in their envelope."""
    asked: list[str] = field(default_factory=list)
    """What the Docker daemon was asked."""
    store: str = "minio"
    source: str = ""
    """The store that is copied from, if there is one."""
    proxied: bool = True
    """Whether somebody else's Traefik routes to it, outside dev."""

    watched: tuple[str, ...] = ()
    """What watches it, service by service."""

    @property
    def bundled(self) -> bool:
        """Whether it has a Traefik of its own."""
        return not self.proxied

    @property
    def backed_up(self) -> bool:
        """Whether the settings that we ship for this stack have a backup."""
        return self.stack != "dev"

    @property
    def stores(self) -> list[str]:
        return [self.store, *([self.source] if self.source else [])]

    def of(self, kind: str) -> list[Resource]:
        return [resource for resource in self.resources if resource.type == kind]

    def named(self, kind: str, name: str) -> Resource:
        return next(resource for resource in self.of(kind) if resource.name == name)

    @property
    def containers(self) -> dict[str, Resource]:
        """The containers that run: services and jobs."""
        return {
            resource.name: resource
            for resource in self.of(CONTAINER)
            if resource.labels["mlflow.role"] in ("service", "job")
        }

    @property
    def services(self) -> dict[str, Resource]:
        return {name: found for name, found in self.containers.items() if found.labels["mlflow.role"] == "service"}

    @property
    def jobs(self) -> dict[str, Resource]:
        return {name: found for name, found in self.containers.items() if found.labels["mlflow.role"] == "job"}

    @property
    def writers(self) -> dict[str, Resource]:
        """What writes the files of a service."""
        return {found.name: found for found in self.of(CONTAINER) if found.labels["mlflow.role"] == "files"}

    @property
    def with_files(self) -> dict[str, Resource]:
        """Every container into which files are uploaded, by whose they are: a service's writer, or a job."""
        return {name.removesuffix("-files"): writer for name, writer in self.writers.items()} | self.jobs


class HealthyDaemon:
    """A Docker daemon on which everything works at once."""

    def __init__(self, host: str) -> None:
        self.host = host
        self.asked: list[str] = []
        _daemons.append(self)

    def _answer(self, question: str) -> None:
        self.asked.append(question)

    def volume_made(self, volume: str) -> datetime:
        self._answer(f"volume {volume}")
        return datetime(2026, 5, 6, tzinfo=UTC)

    def clock(self) -> datetime:
        return datetime.now(UTC)

    def state(self, container: str) -> State:
        self._answer(f"state {container}")
        job = any(job in container for job in ("bootstrap", "copy", "verify", "migrate"))
        return State(
            image="sha256:mlflow-image",
            running=not job,
            status="exited" if job else "running",
            exit_code=0,
            started_at="2999-01-01T00:00:00Z",
            restarts=0,
            oom_killed=False,
            error="",
        )

    def run(self, container: str, command: list[str]) -> tuple[int, str]:
        self._answer(f"run {container} {command[0]}")
        return 0, ""

    def logs(self, container: str, lines: int = 15) -> str:
        return f"{container} {lines}"

    def inspect(self, container: str) -> dict[str, Any] | None:
        self._answer(f"inspect {container}")
        return None

    def networks(self) -> set[str]:
        self._answer("networks")
        return {"shared-network"}

    def volumes(self) -> set[str]:
        self._answer("volumes")
        return set()


_daemons: list[HealthyDaemon] = []
_loop = asyncio.new_event_loop()
"""One for all programs, as Pulumi's own mocks have it."""


def values_of(stack: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(stack_file(stack))["config"]
    return found


def build(
    stack: str,
    *,
    preview: bool = False,
    values: dict[str, Any] | None = None,
    secrets: dict[str, str] | None = None,
    daemon_class: type = HealthyDaemon,
) -> Graph:
    """Run `__main__.py` as Pulumi would and return what it registered."""
    _daemons.clear()
    asyncio.set_event_loop(_loop)
    pulumi.runtime.reset_options()
    mocks = Provider()
    recorder = Recorder(mocks)
    # The program makes its own root, as it does under the engine; that of the mocks would refuse `pulumi.run`.
    settings.set_root_resource(object())  # type: ignore[arg-type]
    pulumi.runtime.set_mocks(mocks, project="mlflow", stack=stack, preview=preview, monitor=recorder)
    settings.set_root_resource(None)  # type: ignore[arg-type]
    config = {
        key: value if isinstance(value, str) else json.dumps(value)
        for key, value in (values if values is not None else values_of(stack)).items()
    }
    secret = {f"mlflow:{key}": value for key, value in (secrets or {}).items()}
    pulumi.runtime.set_all_config({**config, **secret}, secret_keys=list(secret))
    graph = Graph(stack, [])
    patched = pytest.MonkeyPatch()
    patched.setattr(daemon, "Daemon", daemon_class)

    def run() -> None:
        runpy.run_path(str(ROOT / "__main__.py"))

    async def program() -> None:
        await pulumi.runtime.run_in_stack(run)
        root = pulumi.runtime.get_root_resource()
        assert root is not None
        graph.exports = dict(root.outputs)  # type: ignore[attr-defined]

    try:
        _loop.run_until_complete(program())
    finally:
        # What a failed program leaves would go on in the next one.
        left = asyncio.all_tasks(_loop)
        for task in left:
            task.cancel()
        _loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
        patched.undo()
    graph.resources = [
        Resource(urn, request.type, request.name, json_format.MessageToDict(request.object), request)
        for urn, request in recorder.requests.items()
    ]
    graph.outputs = recorder.outputs
    graph.asked = [question for one in _daemons for question in one.asked]
    return graph
