"""Runs the program by Pulumi's own SDK, and answers its registrations in the engine's place.

The SDK keeps a resource back until its inputs and everything it depends on are known, so order and concurrency are
its own. What is used of it beyond its public interface is in this file; pulumi is pinned exactly because of it.
"""

import asyncio
import logging
import runpy
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pulumi
from google.protobuf import empty_pb2, json_format, struct_pb2
from pulumi.runtime import rpc
from pulumi.runtime.proto import engine_pb2, resource_pb2
from pulumi.runtime.settings import Settings, configure

from offline.bodies import EngineLessError
from offline.host import Host
from offline.passwords import Passwords

IMAGE = "docker:index/remoteImage:RemoteImage"
NETWORK = "docker:index/network:Network"
VOLUME = "docker:index/volume:Volume"
CONTAINER = "docker:index/container:Container"
PASSWORD = "random:index/randomPassword:RandomPassword"  # noqa: S105 - a type's name
THREADS = 32
"""A registration waits in a thread of its own until Docker is done."""
END_SECONDS = 5
REFUSED_OPTIONS = ("importId", "transforms", "deletedWith", "hooks", "remote")
"""Options of a resource that the rehearsal could not honour. (An alias speaks to a state, and here is none.)"""


class Monitor:
    """Answers the SDK as the engine's resource monitor would, one method for each of its calls."""

    def __init__(self, host: Host, passwords: Passwords, project: str, say: Callable[[str], None]) -> None:
        """Make what is registered on `host`, and tell of it by `say`."""
        self._host = host
        self._passwords = passwords
        self._project = project
        self._say = say
        self._made: dict[str, tuple[str, str]] = {}
        """URN of each container to its name and the hash of what it was made from."""
        self.failures: list[str] = []
        self.failed = asyncio.Event()
        self._loop = asyncio.get_event_loop()

    def GetDeploymentInfo(self, _: object) -> resource_pb2.DeploymentInfo:
        features = ("SECRETS", "RESOURCE_REFERENCES", "ALIAS_SPECS", "REPLACE_WITH")
        return resource_pb2.DeploymentInfo(
            supportedFeatures=[
                resource_pb2.ResourceMonitorFeature.Value(f"RESOURCE_MONITOR_FEATURE_{name}") for name in features
            ]
        )

    def RegisterResource(self, request: Any) -> resource_pb2.RegisterResourceResponse:
        parent = request.parent.split("::")[2] + "$" if request.parent else ""
        kind = "" if parent == "pulumi:pulumi:Stack$" else parent
        urn = f"urn:pulumi:{self._host.stack}::{self._project}::{kind}{request.type}::{request.name}"
        answer = struct_pb2.Struct()
        answer.CopyFrom(request.object)
        identity = ""
        if request.custom:
            try:
                identity, outputs = self._make(urn, request)
            except Exception as error:
                words = str(error) if isinstance(error, EngineLessError) else f"{type(error).__name__}: {error}"
                self.failures.append(f"{request.name} ({request.type}): {words}")
                self._loop.call_soon_threadsafe(self.failed.set)
                raise
            answer.update(outputs)
        return resource_pb2.RegisterResourceResponse(urn=urn, id=identity, object=answer)

    def _make(self, urn: str, request: Any) -> tuple[str, dict[str, Any]]:
        """Make one resource; return its id, and what it has beyond its inputs."""
        if refused := [name for name in REFUSED_OPTIONS if _is_set(request, name)]:
            raise EngineLessError(f"the rehearsal does not know the option {', '.join(refused)}")
        inputs = plain(json_format.MessageToDict(request.object))
        if request.type == PASSWORD:
            if inputs.get("special", True):
                raise EngineLessError("the rehearsal makes passwords of letters and digits only")
            value = self._passwords.get(request.name, inputs["length"])
            return "none", {"result": {rpc._special_sig_key: rpc._special_secret_sig, "value": value}}  # noqa: SLF001
        if request.type == IMAGE:
            if self._host.must_build(inputs):
                self._say(f"  building {inputs['name']} (a minute or two)")
            image = self._host.image(inputs)
            return image, {"imageId": image}
        if request.type == NETWORK:
            return self._host.network(inputs), {}
        if request.type == VOLUME:
            return self._host.volume(inputs), {}
        if request.type == CONTAINER:
            follows = dict(self._made[other] for other in request.replace_with)
            identity, made_from = self._host.container(inputs, follows)
            self._made[urn] = inputs["name"], made_from
            self._say(f"  {'made' if inputs['name'] in self._host.made else 'kept'} {inputs['name']}")
            return identity, {}
        raise EngineLessError("the rehearsal does not know this type of resource")

    def RegisterResourceOutputs(self, _: object) -> empty_pb2.Empty:
        return empty_pb2.Empty()

    def RegisterPackage(self, _: object) -> resource_pb2.RegisterPackageResponse:
        return resource_pb2.RegisterPackageResponse(ref="rehearsal")

    def SignalAndWaitForShutdown(self, _: object) -> empty_pb2.Empty:
        return empty_pb2.Empty()

    def Invoke(self, request: Any) -> None:
        raise EngineLessError(f"the rehearsal does not know the function {request.tok}")

    def ReadResource(self, request: Any) -> None:
        raise EngineLessError(f"the rehearsal does not read what is there: {request.type} {request.name}")


class Log:
    """Takes what the program logs, as the engine would; only errors are of use without a plan."""

    def __init__(self) -> None:
        """Keep every error."""
        self.errors: list[str] = []

    def Log(self, request: Any) -> empty_pb2.Empty:
        if request.severity == engine_pb2.ERROR:
            self.errors.append(request.message)
        return empty_pb2.Empty()


def run(
    program: Path,
    *,
    host: Host,
    passwords: Passwords,
    project: str,
    config: dict[str, str],
    say: Callable[[str], None],
) -> list[str]:
    """Run `program` with `config`, and return what went wrong; nothing if all of it is as the program wants it."""
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    pool = ThreadPoolExecutor(max_workers=THREADS)
    loop.set_default_executor(pool)
    # Tasks that nobody awaits any more are what a failed program leaves.
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    monitor, log = Monitor(host, passwords, project, say), Log()
    configure(Settings(project=project, stack=host.stack, monitor=monitor, engine=log, organization="organization"))
    pulumi.runtime.set_all_config(config, [])
    try:
        loop.run_until_complete(_until_failed(program, monitor))
    except EngineLessError as error:
        return monitor.failures or [str(error)]
    except pulumi.RunError as error:
        return [*monitor.failures, str(error)]
    except Exception:
        if not monitor.failures and not log.errors:
            raise
        return [*monitor.failures, *log.errors]
    finally:
        _end(loop, pool)
    return []


def _end(loop: asyncio.AbstractEventLoop, pool: ThreadPoolExecutor) -> None:
    """End what a failed program left waiting: for each other, or for what will never be made."""
    if waiting := asyncio.all_tasks(loop):
        for task in waiting:
            task.cancel()
        loop.run_until_complete(asyncio.wait(waiting, timeout=END_SECONDS))
    # Whoever still stops a container or builds an image does so under this run's lock.
    pool.shutdown(wait=True, cancel_futures=True)
    loop.close()


async def _until_failed(program: Path, monitor: Monitor) -> None:
    """Run the program, and stop waiting for the rest of it once a resource could not be made."""
    running = asyncio.ensure_future(pulumi.runtime.run_in_stack(lambda: _run(program)))
    failed = asyncio.ensure_future(monitor.failed.wait())
    await asyncio.wait({running, failed}, return_when=asyncio.FIRST_COMPLETED)
    if not running.done():
        running.cancel()
        raise EngineLessError(monitor.failures[0])
    failed.cancel()
    await running


def _run(program: Path) -> None:
    runpy.run_path(str(program), run_name="__main__")


def _is_set(request: Any, option: str) -> bool:
    """Whether a registration carries an option that says anything."""
    value = getattr(request, option)
    # Hooks are always there, and empty where there are none.
    return bool(value.ByteSize() if hasattr(value, "ByteSize") else value)


def plain(value: Any) -> Any:
    """Return a value from the wire as it was meant: secrets out of their envelope, whole numbers whole."""
    if isinstance(value, dict):
        if rpc._special_sig_key in value and "value" in value:  # noqa: SLF001
            return plain(value["value"])
        return {key: plain(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [plain(entry) for entry in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value
