"""Test a daemon over SSH with a stand-in for `ssh`: its arguments, its connections, and its end."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
from docker.errors import DockerException

from operations.host import docker_daemon
from runtime import tunnel
from runtime.address import DEFAULT_HOST, resolve_host
from runtime.daemon import NO_ANSWER_ERRORS, Daemon
from runtime.ssh import destination
from tests.stack.edge import image

ROOT = Path(__file__).parents[2]
FORWARDS = f"""#!{sys.executable}
import os, select, socket, sys, threading

def pump(one, other):
    while data := one.recv(65536):
        # Send the head of the answer and the first output of a command in one piece, as may happen on any connection.
        while b"raw-stream" in data and data.find(b"\\r\\n\\r\\n") in (-1, len(data) - 4) and (more := one.recv(65536)):
            data += more
        other.sendall(data)
    try:
        other.shutdown(socket.SHUT_WR)
    except OSError:
        pass

def forward(listener, remote):
    while True:
        near, _ = listener.accept()
        far = socket.socket(socket.AF_UNIX)
        far.connect(remote)
        for pair in ((near, far), (far, near)):
            threading.Thread(target=pump, args=pair, daemon=True).start()

open(os.environ["SSH_SAYS"], "a").write(" ".join([str(os.getpid()), *sys.argv[1:]]) + "\\n")
local, _, remote = sys.argv[sys.argv.index("-L") + 1].partition(":")
listener = socket.socket(socket.AF_UNIX)
listener.bind(local)
listener.listen()
threading.Thread(target=forward, args=(listener, remote), daemon=True).start()
sys.stdin.read()
open(os.environ["SSH_SAYS"], "a").write("ended\\n")
"""
REFUSES = "#!/bin/sh\necho 'me@elsewhere: Permission denied (publickey).' >&2\nexit 255\n"


@pytest.fixture
def ssh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Path]]:
    """Return a function that puts a program in place of `ssh`; it returns the file that records the arguments."""
    says = tmp_path / "says"

    def becomes(text: str) -> Path:
        (tmp_path / "ssh").write_text(text)
        (tmp_path / "ssh").chmod(0o755)
        return says

    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("SSH_SAYS", str(says))
    yield becomes
    tunnel._tunnel_to.cache_clear()


def over_ssh() -> str:
    """Return the address of the daemon of this host, as written on another host."""
    local = resolve_host()
    if not local.startswith("unix://"):
        pytest.skip("needs a Docker daemon at a Unix socket")
    return f"ssh://me@elsewhere:2222{local.removeprefix('unix://')}"


def test_all_requests_share_one_ssh_connection(ssh: Callable[[str], Path]) -> None:
    says = ssh(FORWARDS)
    daemon = Daemon(over_ssh())
    here = Daemon(resolve_host())
    container = here.api.create_container(image("prometheus"), entrypoint=["sleep", "60"])["Id"]
    try:
        here.start(container)
        # After each command, the other end closes its connection first.
        assert [daemon.run(container, ["echo", str(number)]) for number in range(20)] == [
            (0, str(number)) for number in range(20)
        ]
    finally:
        here.api.remove_container(container, force=True)
        daemon.api.close()
    (told,) = says.read_text().splitlines()
    assert told.endswith(" -p 2222 me@elsewhere cat")
    assert "BatchMode=yes" in told


def cut(daemon: Daemon, says: Path) -> None:
    os.kill(int(says.read_text().splitlines()[-1].split()[0]), 9)
    tunnel._tunnel_to(daemon.host).running.wait()  # type: ignore[union-attr]


def test_a_cut_ssh_connection_is_opened_again(ssh: Callable[[str], Path]) -> None:
    says = ssh(FORWARDS)
    daemon = Daemon(over_ssh())

    def ask() -> str:
        with closing(daemon.api):
            return str(daemon.api.info()["ID"])

    with closing(daemon.api):
        known = daemon.api.info()["ID"]
        cut(daemon, says)
        assert daemon.api.info()["ID"] == known
    cut(daemon, says)
    with ThreadPoolExecutor() as threads:
        assert threads.submit(ask).result() == known
    assert len(says.read_text().splitlines()) == 3


def test_an_ssh_connection_that_cannot_be_reopened_counts_as_no_answer(ssh: Callable[[str], Path]) -> None:
    says = ssh(FORWARDS)
    daemon = Daemon(over_ssh())
    with closing(daemon.api):
        daemon.networks()
        ssh(REFUSES)
        cut(daemon, says)
        with pytest.raises(NO_ANSWER_ERRORS, match=r"Permission denied \(publickey\)"):
            daemon.networks()


def test_the_ssh_connection_ends_with_its_process(ssh: Callable[[str], Path]) -> None:
    says = ssh(FORWARDS)
    program = f"import os; from runtime import tunnel; tunnel.local_address({over_ssh()!r}); os.kill(os.getpid(), 9)"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False)
    assert done.returncode == -9
    deadline = time.monotonic() + 10
    while not says.read_text().endswith("ended\n"):
        assert time.monotonic() < deadline, says.read_text()
        time.sleep(0.05)


def test_an_ssh_error_is_reported_with_the_command_to_try(ssh: Callable[[str], Path]) -> None:
    ssh(REFUSES)
    with pytest.raises(DockerException, match=r"Permission denied \(publickey\)"):
        tunnel.local_address("ssh://me@elsewhere")
    problem = docker_daemon.docker_problem(Daemon("ssh://me@elsewhere:2222"))
    assert problem is not None
    assert "me@elsewhere: Permission denied (publickey)." in problem
    assert "this command must work without a prompt: ssh -p 2222 me@elsewhere docker version" in problem


@pytest.mark.parametrize(
    ("host", "told"),
    [
        ("ssh://prod", ["prod"]),
        ("ssh://me@prod", ["me@prod"]),
        ("ssh://me@prod:2222", ["-p", "2222", "me@prod"]),
        ("ssh://me@GPU-Box/run/docker.sock", ["me@GPU-Box"]),
        ("ssh://me@prod:", ["me@prod"]),
        ("ssh://prod:0022", ["-p", "22", "prod"]),
        ("ssh://[fd00::1]", ["fd00::1"]),
        ("ssh://[fd00::1]:2222", ["-p", "2222", "fd00::1"]),
    ],
)
def test_the_ssh_arguments_follow_from_the_docker_host(host: str, told: list[str]) -> None:
    assert destination(host) == told


def test_the_remote_socket_defaults_to_that_of_docker(ssh: Callable[[str], Path]) -> None:
    says = ssh(FORWARDS)
    tunnel.local_address("ssh://prod/")
    tunnel.local_address("ssh://prod/run/user/1000/docker.sock")
    first, second = says.read_text().splitlines()
    assert f":{DEFAULT_HOST.removeprefix('unix://')} prod cat" in first
    assert ":/run/user/1000/docker.sock prod cat" in second
