"""The project's own requests to the Docker daemon, beside those of the Pulumi provider.

The provider creates containers, but does not report whether they work. The program sends these requests in an `up`
only: in a preview, only the provider connects to the daemon.
"""

import io
import tarfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import closing, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import docker
from docker.errors import APIError, DockerException, NotFound
from requests.exceptions import ConnectionError as NoConnection
from requests.exceptions import RequestException, Timeout
from urllib3.exceptions import HTTPError as CutOffError

from runtime import tunnel
from runtime.address import client_certificates
from runtime.execution import EXIT_UNKNOWN, exec_output, exit_code
from settings import names

REQUEST_TIMEOUT_SECONDS = 30
UNREACHABLE_ERRORS = (DockerException, RequestException, OSError)
"""The exceptions when no daemon answers."""


class NoAnswerError(DockerException):
    """There is no connection to the daemon, and none could be made."""


NO_ANSWER_ERRORS = (NoConnection, Timeout, NoAnswerError)
"""The exceptions when a daemon does not answer at the moment, because it is busy or restarts."""
EXIT_NOT_STARTED = 126
"""Exit code, as a shell exits: the command could not be started."""
RESTART_SECONDS = 120
"""How long a daemon may take to restart while a command runs."""
_clients = threading.local()


@dataclass(frozen=True)
class State:
    """The state of a container at one moment."""

    image: str
    """Id of the container's image."""
    running: bool
    status: str
    exit_code: int
    started_at: str
    restarts: int
    oom_killed: bool
    error: str


class Daemon:
    """The Docker daemon at one address. It is thread-safe: each thread has its own connection."""

    def __init__(self, host: str) -> None:
        """Store the address. The first request connects."""
        self.host = host

    @property
    def api(self) -> docker.APIClient:
        """The connection of this thread. Raises `NoAnswerError` if no daemon answers."""
        client: docker.APIClient | None = getattr(_clients, "by_host", {}).get(self.host)
        if client is None:
            client = self._connected(REQUEST_TIMEOUT_SECONDS)
            _clients.by_host = {**getattr(_clients, "by_host", {}), self.host: client}
        else:
            # The client connects when needed, and the SSH tunnel may have ended since the last request.
            self._address()
        return client

    def _connected(self, timeout_s: int | None) -> docker.APIClient:
        address = self._address()
        tls = address == self.host and client_certificates()
        try:
            # None: no timeout.
            return docker.APIClient(base_url=address, tls=tls, version="auto", timeout=timeout_s)  # type: ignore[arg-type]
        except DockerException as error:
            raise NoAnswerError(str(error)) from error

    def _address(self) -> str:
        """Return the local address of the daemon. Opens the SSH tunnel if there is one."""
        try:
            return tunnel.local_address(self.host) if self.host.startswith("ssh://") else self.host
        except DockerException as error:
            raise NoAnswerError(str(error)) from error

    def inspect(self, container: str) -> dict[str, Any] | None:
        """Return the output of `docker inspect` for a container, by id or name, or None if it does not exist."""
        try:
            found: dict[str, Any] = self.api.inspect_container(container)
        except NotFound:
            return None
        return found

    def state(self, container: str) -> State | None:
        """Return the state of a container, by id or name, or None if it does not exist."""
        found = self.inspect(container)
        if found is None:
            return None
        state = found["State"]
        return State(
            image=found["Image"],
            running=state["Running"] and not state["Restarting"],
            status=state["Status"],
            exit_code=state["ExitCode"],
            started_at=state["StartedAt"],
            restarts=found["RestartCount"],
            oom_killed=state["OOMKilled"],
            error=state["Error"],
        )

    def run(self, container: str, command: list[str], environment: Mapping[str, str] | None = None) -> tuple[int, str]:
        """Run a command in a container. Return its exit code and its output.

        If it did not start, or its end is unknown: `EXIT_NOT_STARTED` or `EXIT_UNKNOWN`, and the reason.
        """
        answer: Future[tuple[int, str]] = Future()

        def ask(api: docker.APIClient) -> None:
            try:
                created = api.exec_create(container, command, environment=dict(environment or {}))
                output = b"".join(exec_output(api, created["Id"]))
                answer.set_result((exit_code(api, created["Id"]), output.decode(errors="replace").strip()))
            except BaseException as error:  # noqa: BLE001 - raised by answer.result()
                answer.set_exception(error)

        try:
            # The client's timeout does not apply to the output of a command, so a command that hangs would block. A
            # daemon thread blocks neither this method nor the end of the program.
            threading.Thread(target=ask, args=[self.api], daemon=True).start()
            return answer.result(timeout=REQUEST_TIMEOUT_SECONDS)
        except (APIError, NotFound) as error:
            return EXIT_NOT_STARTED, str(error)
        except TimeoutError:
            return EXIT_UNKNOWN, f"no answer within {REQUEST_TIMEOUT_SECONDS} s"
        except (NoAnswerError, RequestException) as error:
            return EXIT_UNKNOWN, str(error)

    def show(
        self,
        container: str,
        command: list[str],
        tell: Callable[[str], None],
        *,
        environment: Mapping[str, str] | None = None,
    ) -> int:
        """Run a command in a container without a timeout, pass its output to `tell`, and return its exit code."""
        with closing(self._connected(None)) as api:
            created = api.exec_create(container, command, environment=dict(environment or {}))
            for chunk in exec_output(api, created["Id"]):
                tell(chunk.decode(errors="replace"))
            return exit_code(api, created["Id"])

    def once(
        self,
        name: str,
        body: dict[str, Any],
        tell: Callable[[str], None],
        *,
        networks: Sequence[str] = (),
        archive: bytes = b"",
    ) -> int:
        """Run a container to its end, pass its output to `tell`, remove it, and return its exit code.

        The files of `archive`, a tar file, are in its root file system before it starts.

        A stopped container of this name from an earlier call is removed first. Raises `APIError` if one is running.
        """
        left = self.inspect(name)
        if left and not left["State"]["Running"]:
            self.api.remove_container(name, v=True)
        if networks:
            body = {**body, "HostConfig": {**body["HostConfig"], "NetworkMode": networks[0]}}
        with closing(self._connected(None)) as api:
            container = api.create_container_from_config(body, name)["Id"]  # type: ignore[no-untyped-call]
            try:
                for network in networks[1:]:
                    api.connect_container_to_network(container, network)
                if archive:
                    api.put_archive(container, "/", archive)
                api.start(container)
                return self._stream_until_exit(api, container, tell)
            finally:
                api.remove_container(container, v=True, force=True)

    def _stream_until_exit(self, api: docker.APIClient, container: str, tell: Callable[[str], None]) -> int:
        """Pass the output of a running container to `tell`, and return its exit code. Survives a restart of the daemon.

        With `live-restore`, a container keeps running while its daemon restarts. Raises the errors of
        `_wait_for_daemon` if the daemon does not come back.
        """
        tail: Literal["all"] | int = "all"
        while True:
            try:
                for chunk in api.logs(container, stream=True, follow=True, tail=tail):
                    tell(chunk.decode(errors="replace"))
                return int(api.wait(container, timeout=None)["StatusCode"])
            except (*NO_ANSWER_ERRORS, RequestException, CutOffError, APIError) as error:
                if isinstance(error, APIError) and not error.is_server_error():
                    raise
                self._wait_for_daemon()
                # Earlier output has been passed on already. Output during the restart stays in the container's log.
                tail = 0

    def _wait_for_daemon(self) -> None:
        """Wait until the daemon answers. Raises `NoAnswerError` after `RESTART_SECONDS` without an answer."""
        deadline = time.monotonic() + RESTART_SECONDS
        while True:
            try:
                self.api.ping()
            except (*NO_ANSWER_ERRORS, APIError) as error:
                if time.monotonic() > deadline:
                    raise NoAnswerError(f"no answer for {RESTART_SECONDS} s: {error}") from error
                time.sleep(1)
            else:
                return

    def stop(self, container: str, *, for_good: bool = False) -> None:
        """Stop a container with the stop grace period that it was created with. Does nothing if it does not exist.

        Docker starts a container with `restart: always` again when the daemon restarts, unless it was stopped
        `for_good`.
        """
        found = self.inspect(container)
        if found:
            with closing(self._connected(None)) as api, suppress(NotFound):
                if for_good:
                    api.update_container(container, restart_policy={"Name": "no"})  # type: ignore[arg-type]
                api.stop(container, timeout=found["Config"].get("StopTimeout") or 10)

    def read_file(self, container: str, path: str) -> bytes | None:
        """Return the content of a file of a container, which need not run; None if there is no such file or container.

        Volumes and the image are read, a tmpfs is not.
        """
        try:
            packed, _ = self.api.get_archive(container, path)
            with tarfile.open(fileobj=io.BytesIO(b"".join(packed))) as archive:
                content = next((archive.extractfile(member) for member in archive if member.isfile()), None)
                return content.read() if content else None
        except NotFound:
            return None

    def restart(self, container: str) -> None:
        """Stop a container with its stop grace period, and start it again."""
        self.stop(container)
        self.start(container)

    def resume(self, container: str) -> None:
        """Start a container that was stopped, also one that was stopped for good."""
        self.api.update_container(container, restart_policy={"Name": "always"})
        # An interrupted stop may still be in progress: Docker would take the container for started, and then end it.
        self.restart(container)

    def logs(self, container: str, lines: int = 15) -> str:
        """Return the last lines of a container's log, or an empty string if it does not exist."""
        try:
            return str(self.api.logs(container, tail=lines).decode(errors="replace")).rstrip()
        except (APIError, NotFound):
            return ""

    def start(self, container: str) -> None:
        """Start an existing container."""
        self.api.start(container)

    def services(self, stack: str, *, stopped: bool = False) -> dict[str, str]:
        """Return the running services of a stack, and with `stopped` all others: name to name of the container."""
        labels = [f"{names.STACK_LABEL}={stack}", f"{names.ROLE_LABEL}=service"]
        found = self.api.containers(all=stopped, filters={"label": labels})
        return {
            entry["Labels"][names.SERVICE_LABEL]: entry["Names"][0].lstrip("/")
            for entry in found
            # Swarm starts, stops and removes the containers of its tasks.
            if names.TASK_LABEL not in entry["Labels"]
        }

    def networks(self) -> set[str]:
        """Return the names of all networks."""
        return {network["Name"] for network in self.api.networks()}

    def subnets(self) -> dict[str, list[str]]:
        """Return the IPv4 subnets of every network, by its name."""
        return {
            network["Name"]: [
                entry["Subnet"] for entry in network["IPAM"]["Config"] or [] if ":" not in entry.get("Subnet", ":")
            ]
            for network in self.api.networks()
        }

    def volumes(self) -> set[str]:
        """Return the names of all volumes."""
        return {volume["Name"] for volume in self.api.volumes()["Volumes"] or []}

    def clock(self) -> datetime:
        """Return the current time on the daemon's host, which may be another host."""
        return datetime.fromisoformat(self.api.info()["SystemTime"])

    def volume_created_at(self, name: str) -> datetime | None:
        """Return when a volume was created, to the second, or None if it does not exist or its driver has no date.

        Before Docker 24, it is the time when an entry was last created or removed directly below its root.
        """
        try:
            made = self.api.inspect_volume(name).get("CreatedAt")
        except NotFound:
            return None
        return datetime.fromisoformat(made) if made else None

    def has_image(self, name: str) -> bool:
        """Return whether an image of this name is on the host."""
        try:
            self.api.inspect_image(name)  # type: ignore[no-untyped-call]
        except NotFound:
            return False
        return True

    def load(self, archive: Path) -> str | None:
        """Load the images in a file from `docker save`. Return the reason of a failure, or None."""
        try:
            with archive.open("rb") as content:
                for event in self.api.load_image(content):  # type: ignore[no-untyped-call]
                    if "error" in event:
                        return str(event["error"])
        except (APIError, DockerException, OSError) as error:
            return str(getattr(error, "explanation", None) or error)
        return None

    def pull(self, name: str) -> str | None:
        """Pull an image. Return the reason of a failure, or None."""
        try:
            for event in self.api.pull(name, stream=True, decode=True):
                if "error" in event:
                    return str(event["error"])
        except (APIError, DockerException) as error:
            return str(getattr(error, "explanation", None) or error)
        return None
