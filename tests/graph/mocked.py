"""Run the whole program under Pulumi's mocks and record everything that it registers, options included."""

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
from pulumi.runtime import stack as pulumi_stack
from pulumi.runtime.mocks import MockCallArgs, MockMonitor, MockResourceArgs, Mocks

from runtime import cluster, daemon
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
    """Answers as the providers do: with IDs, image IDs, and passwords marked as secret."""

    def new_resource(self, args: MockResourceArgs) -> tuple[str | None, dict[str, Any]]:
        outputs = dict(args.inputs)
        if args.typ == PASSWORD:
            # The engine marks the password as secret; the mocks do not.
            outputs["result"] = pulumi.Output.secret(f"generated-{args.name}".ljust(32, "x"))
        if args.typ == IMAGE:
            outputs["imageId"] = f"sha256:{args.name}"
        return f"{args.name}-id", outputs

    def call(self, args: MockCallArgs) -> tuple[dict[str, Any], list[tuple[str, str]]]:
        # Only on a cluster: a plan of a stack on one host needs no Docker daemon.
        on_swarm = pulumi.runtime.get_config("mlflow:runtime") == "swarm"
        assert on_swarm, f"the program asked the provider for {args.token}"
        assert args.token == "docker:index/getNetwork:getNetwork"
        return {**args.args, "id": f"{args.args['name']}-id"}, []


class Recorder(MockMonitor):
    """Records every registration, and refuses a second one of the same name, as the engine does."""

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
    """With secrets still in their envelope."""
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


def plain_text_of(value: Any) -> str:  # noqa: ANN401
    """Return, as text, everything in `value` that is not in the envelope of a secret."""
    if isinstance(value, dict):
        if ENVELOPE in value:
            return ""
        return " ".join(f"{key} {plain_text_of(entry)}" for key, entry in value.items())
    if isinstance(value, list):
        return " ".join(plain_text_of(entry) for entry in value)
    return str(value)


@dataclass
class Graph:
    stack: str
    resources: list[Resource]
    exports: dict[str, Any] = field(default_factory=dict)
    outputs: dict[str, Any] = field(default_factory=dict)
    """Outputs of the components by URN, with secrets still in their envelope."""
    asked: list[str] = field(default_factory=list)
    """The requests to the Docker daemon."""
    store: str = "minio"
    source: str = ""
    """The object store that artifacts are copied from; empty without one."""
    proxied: bool = True
    """Whether an existing Traefik routes to the server, outside dev."""

    watched: tuple[str, ...] = ()
    """The services of the monitoring."""

    @property
    def bundled(self) -> bool:
        """Whether the stack has the bundled Traefik."""
        return not self.proxied

    @property
    def backed_up(self) -> bool:
        """Whether the shipped settings of this stack enable the backup."""
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
        """The containers that run, by name: services and jobs."""
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
        """The containers that write the files of a service into its volumes, by name."""
        return {found.name: found for found in self.of(CONTAINER) if found.labels["mlflow.role"] == "files"}

    @property
    def with_files(self) -> dict[str, Resource]:
        """Every container that files are uploaded into, by their consumer: the writer of a service, or a job itself."""
        return {name.removesuffix("-files"): writer for name, writer in self.writers.items()} | self.jobs


class HealthyDaemon:
    """A Docker daemon on which every container is ready at once."""

    def __init__(self, host: str) -> None:
        self.host = host
        self.asked: list[str] = []
        _daemons.append(self)

    def _answer(self, question: str) -> None:
        self.asked.append(question)

    def volume_created_at(self, volume: str) -> datetime:
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

    def services(self, stack: str, *, stopped: bool = False) -> dict[str, str]:
        self._answer(f"services {stack} {stopped}")
        return {}

    def read_file(self, container: str, path: str) -> bytes | None:
        self._answer(f"read {container} {path}")
        # No container has the secret files of an earlier deployment.
        return None if path.startswith("/run/secrets/") else b"revision"

    def run(self, container: str, command: list[str], *_: object) -> tuple[int, str]:
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


class NoCluster:
    """The answers of a daemon that is no manager of a cluster."""

    def __init__(self, daemon: HealthyDaemon) -> None:
        self.daemon = daemon

    def services(self, _stack: str) -> dict[str, str]:
        return {}

    def inspect(self, _name: str) -> dict[str, Any] | None:
        return None


class WaitForAll:
    """The `asyncio` of Pulumi's module for stacks, without its time that grows with the square of the outputs.

    After each output that is ready, it begins to wait for all others again. That is 40 % of the time of a program under
    mocks.
    """

    FIRST_COMPLETED = asyncio.FIRST_EXCEPTION
    wait, sleep, get_running_loop, Task = asyncio.wait, asyncio.sleep, asyncio.get_running_loop, asyncio.Task


_daemons: list[HealthyDaemon] = []
_loop = asyncio.new_event_loop()
"""One event loop for all programs, as in Pulumi's own mocks."""


def _report(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    # A program that failed leaves outputs whose errors nobody asks for. Each would be printed with a traceback.
    if not context["message"].endswith("exception was never retrieved"):
        loop.default_exception_handler(context)


_loop.set_exception_handler(_report)


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
    cluster_class: type = NoCluster,
) -> Graph:
    """Run `__main__.py` as Pulumi does and return what it registered."""
    _daemons.clear()
    asyncio.set_event_loop(_loop)
    pulumi.runtime.reset_options()
    mocks = Provider()
    recorder = Recorder(mocks)
    # The program creates its own root resource, as under the engine; `pulumi.run` is refused beside that of the mocks.
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
    patched.setattr(cluster, "Cluster", cluster_class)
    patched.setattr(pulumi_stack, "asyncio", WaitForAll)

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
        # Tasks that a failed program leaves would continue in the next one.
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
