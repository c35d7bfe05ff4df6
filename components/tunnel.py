"""The way to a Docker daemon over SSH: one connection, through which the remote socket is a local one.

Docker's Python library would start an `ssh` for each of its connections. It forks for that, which gRPC in Pulumi's
programs does not survive, and fails where the other end hangs up first, as after every command in a container.
"""

import atexit
import shutil
import subprocess
import tempfile
import threading
import time
from functools import cache
from pathlib import Path
from urllib.parse import unquote, urlsplit

from docker.errors import DockerException

REMOTE_SOCKET = "/var/run/docker.sock"
CONNECT_SECONDS = 20
OPTIONS = ("BatchMode=yes", "ExitOnForwardFailure=yes", "ConnectTimeout=10", "ServerAliveInterval=15", "LogLevel=ERROR")
_one_at_a_time = threading.Lock()


def through(host: str) -> str:
    """Return the local address of the daemon at `host`, `ssh://[user@]name[:port][/path/to/its.sock]`.

    Everything else is `ssh`'s own: keys, agent, jump hosts, known hosts. Raises `DockerException` with its words where
    it does not get there without a question.
    """
    with _one_at_a_time:
        return _opened(host)


def destination(host: str) -> list[str]:
    """Return what `ssh` is told of `host`: the port, if it has one, and the name, with the user."""
    url = urlsplit(host)
    name = str(url.hostname)
    return [*(["-p", str(url.port)] if url.port else []), f"{url.username}@{name}" if url.username else name]


@cache
def _opened(host: str) -> str:
    path = unquote(urlsplit(host).path)
    remote = path if path.strip("/") else REMOTE_SOCKET
    folder = Path(tempfile.mkdtemp(prefix="docker-"))
    local = folder / "docker.sock"
    command = [
        "ssh",
        *(option for value in OPTIONS for option in ("-o", value)),
        *("-L", f"{local}:{remote}"),
        *destination(host),
        # Ends with its input, and that with this process, however it ends.
        "cat",
    ]
    running = subprocess.Popen(  # noqa: S603 - no shell, and the host is the operator's own setting
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        # Ctrl-C is for us, who still have things to wind up over there.
        start_new_session=True,
    )
    atexit.register(_close, running, folder)
    deadline = time.monotonic() + CONNECT_SECONDS
    while not local.exists():
        if running.poll() is not None or time.monotonic() > deadline:
            _close(running, folder)
            said = running.stderr.read().decode(errors="replace").strip() if running.stderr else ""
            raise DockerException(said or f"ssh did not connect within {CONNECT_SECONDS} s")
        time.sleep(0.02)
    return f"unix://{local}"


def _close(running: "subprocess.Popen[bytes]", folder: Path) -> None:
    running.terminate()
    running.wait()
    shutil.rmtree(folder, ignore_errors=True)
