"""Runs the program with Pulumi's own SDK, and answers its registrations instead of the engine.

The SDK registers a resource when its inputs and dependencies are known, so it determines order and concurrency. Only
this file uses the SDK beyond its public interface; because of this, pulumi is pinned to an exact version.
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
"""Each registration waits in its own thread until Docker is done."""
END_SECONDS = 5
REFUSED_OPTIONS = ("importId", "transforms", "deletedWith", "hooks", "remote")
"""Resource options that are not supported. (Aliases are ignored, because they only affect a state.)"""


class Monitor:
    """Answers the SDK in place of the engine's resource monitor, with one method for each of its calls."""

    def __init__(self, host: Host, passwords: Passwords, project: str, say: Callable[[str], None]) -> None:
        """Create registered resources on `host`, and report progress with `say`."""
        self._host = host
        self._passwords = passwords
        self._project = project
        self._say = say
        self._made: dict[str, tuple[str, str]] = {}
        """URN of each container to its name and the hash of its inputs."""
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
        """Create one resource; return its id, and its outputs beyond its inputs."""
        if refused := [name for name in REFUSED_OPTIONS if _is_set(request, name)]:
            raise EngineLessError(f"not supported without the engine: the option {', '.join(refused)}")
        inputs = unwrap(json_format.MessageToDict(request.object))
        if request.type == PASSWORD:
            if inputs.get("special", True):
                raise EngineLessError("not supported without the engine: passwords with special characters")
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
            self._say(f"  {'created' if inputs['name'] in self._host.made else 'kept'} {inputs['name']}")
            return identity, {}
        raise EngineLessError("not supported without the engine: this type of resource")

    def RegisterResourceOutputs(self, _: object) -> empty_pb2.Empty:
        return empty_pb2.Empty()

    def RegisterPackage(self, _: object) -> resource_pb2.RegisterPackageResponse:
        return resource_pb2.RegisterPackageResponse(ref="engineless")

    def SignalAndWaitForShutdown(self, _: object) -> empty_pb2.Empty:
        return empty_pb2.Empty()

    def Invoke(self, request: Any) -> None:
        raise EngineLessError(f"not supported without the engine: the function {request.tok}")

    def ReadResource(self, request: Any) -> None:
        raise EngineLessError(f"not supported without the engine: to read {request.type} {request.name}")


class Log:
    """Receives the program's log messages in place of the engine; keeps only the errors."""

    def __init__(self) -> None:
        """Start with no errors."""
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
    """Run `program` with `config`, and return the errors; an empty list if everything is deployed."""
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    pool = ThreadPoolExecutor(max_workers=THREADS)
    loop.set_default_executor(pool)
    # A failed program leaves tasks that are never awaited, about which asyncio would log.
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
        _shut_down(loop, pool)
    return []


def _shut_down(loop: asyncio.AbstractEventLoop, pool: ThreadPoolExecutor) -> None:
    """Cancel the tasks that a failed program left waiting, and close the loop and the pool."""
    if waiting := asyncio.all_tasks(loop):
        for task in waiting:
            task.cancel()
        loop.run_until_complete(asyncio.wait(waiting, timeout=END_SECONDS))
    # Wait for threads that still stop a container or build an image, so that they end before the lock is released.
    pool.shutdown(wait=True, cancel_futures=True)
    loop.close()


async def _until_failed(program: Path, monitor: Monitor) -> None:
    """Run the program until it ends, or until a resource fails."""
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
    """Return whether a registration has a non-empty option."""
    value = getattr(request, option)
    # Hooks are always present, and empty if there are none.
    return bool(value.ByteSize() if hasattr(value, "ByteSize") else value)


def unwrap(value: Any) -> Any:
    """Return a protocol value as a plain one: secrets without their envelope, whole numbers as integers."""
    if isinstance(value, dict):
        if rpc._special_sig_key in value and "value" in value:  # noqa: SLF001
            return unwrap(value["value"])
        return {key: unwrap(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [unwrap(entry) for entry in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value
