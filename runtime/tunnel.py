"""The SSH tunnel to a remote Docker daemon: one `ssh` process that forwards the remote socket to a local one.

Docker's Python library would start one `ssh` for each of its connections. For that it forks, which crashes gRPC in
Pulumi programs. It also fails if the remote end closes the connection first, as after every command in a container.
"""

import atexit
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from contextlib import suppress
from functools import cache
from pathlib import Path
from urllib.parse import unquote, urlsplit

from docker.errors import DockerException

from runtime.ssh import destination

REMOTE_SOCKET = "/var/run/docker.sock"
CONNECT_SECONDS = 20
OPTIONS = ("BatchMode=yes", "ExitOnForwardFailure=yes", "ConnectTimeout=10", "ServerAliveInterval=15", "LogLevel=ERROR")
_lock = threading.Lock()


def local_address(host: str) -> str:
    """Return the local address of the daemon at `host`, `ssh://[user@]name[:port][/path/to/its.sock]`.

    Opens the tunnel, or reopens it at the same address if it has ended. The configuration of `ssh` applies: keys,
    agent, jump hosts, known hosts. Raises `DockerException` with the message of `ssh` if it cannot connect without
    asking the user.
    """
    with _lock:
        return _tunnel_to(host).opened()


@cache
def _tunnel_to(host: str) -> "_Tunnel":
    return _Tunnel(host)


class _Tunnel:
    """The tunnel to one host. It is opened when first needed, and ends with this process."""

    def __init__(self, host: str) -> None:
        path = unquote(urlsplit(host).path)
        remote = path if path.strip("/") else REMOTE_SOCKET
        self.folder = Path(tempfile.mkdtemp(prefix="docker-"))
        self.local = self.folder / "docker.sock"
        self.command = [
            "ssh",
            *(option for value in OPTIONS for option in ("-o", value)),
            *("-L", f"{self.local}:{remote}"),
            *destination(host),
            # `cat` ends when its input closes, which it does when this process ends for any reason.
            "cat",
        ]
        self.running: subprocess.Popen[bytes] | None = None
        atexit.register(self._close)

    def opened(self) -> str:
        if self.running is None or self.running.poll() is not None:
            self._open()
        return f"unix://{self.local}"

    def _open(self) -> None:
        self._end()
        # A killed `ssh` leaves its socket file behind, which looks open and blocks the next tunnel.
        self.local.unlink(missing_ok=True)
        self.running = subprocess.Popen(  # noqa: S603 - no shell, and the host is a setting of the operator
            self.command,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            # Ctrl-C must not end `ssh`: this process still needs it to clean up on the remote host.
            start_new_session=True,
        )
        deadline = time.monotonic() + CONNECT_SECONDS
        while not self._listens():
            if self.running.poll() is not None or time.monotonic() > deadline:
                self.running.terminate()
                said = self.running.communicate()[1].decode(errors="replace").strip()
                raise DockerException(said or f"ssh did not connect within {CONNECT_SECONDS} s")
            time.sleep(0.02)

    def _listens(self) -> bool:
        # The socket file exists a moment before `ssh` listens on it.
        with socket.socket(socket.AF_UNIX) as probe, suppress(OSError):
            probe.connect(str(self.local))
            return True
        return False

    def _end(self) -> None:
        if self.running:
            with self.running:
                self.running.terminate()

    def _close(self) -> None:
        self._end()
        shutil.rmtree(self.folder, ignore_errors=True)
