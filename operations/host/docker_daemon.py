"""The Docker daemon: whether it can be used; its installation on a bare Debian or Ubuntu."""

import os
import shutil
import subprocess
import time
from pathlib import Path

from operations.common.console import StopError, confirmed, interactive, progress
from operations.common.stack import Stack
from runtime.daemon import UNREACHABLE_ERRORS, Daemon
from runtime.ssh import destination

MINIMUM_API = (1, 41)
"""Docker 20.10."""


def require_docker(stack: Stack) -> None:
    """Raise `StopError` if no recent enough daemon answers. On Debian and Ubuntu, as root, install one."""
    daemon = stack.daemon
    problem = docker_problem(daemon)
    if problem and _can_install(daemon):
        if interactive() and not confirmed("Docker is not installed. Install it (apt-get install docker.io)?"):
            raise StopError(problem)
        _install_and_start()
        problem = docker_problem(daemon)
    if problem:
        raise StopError(problem)


def docker_problem(daemon: Daemon) -> str | None:
    """Return the problem with the daemon and what to type, or None."""
    try:
        version = daemon.api.version()
    except UNREACHABLE_ERRORS as error:
        return _unreachable(daemon.host, str(error))
    if tuple(int(part) for part in version["ApiVersion"].split(".")) < MINIMUM_API:
        return (
            f"this project needs Docker 20.10 or newer, but {daemon.host} has {version['Version']}\n"
            "  to upgrade: https://docs.docker.com/engine/install/"
        )
    return None


def _unreachable(host: str, error: str) -> str:
    path = Path(host.removeprefix("unix://"))
    if host.startswith("ssh://"):
        return (
            f"the Docker daemon at {host} cannot be reached: {error}\n"
            f"  this command must work without a prompt: ssh {' '.join(destination(host))} docker version"
        )
    if "Permission denied" in error:
        return (
            f"no permission to use Docker's socket {path}\n"
            "  type: sudo usermod -aG docker $USER && newgrp docker\n"
            "  (members of that group have root rights on this machine), then try again"
        )
    if host.startswith("unix://") and not path.exists():
        where = (
            "start Docker: sudo systemctl start docker"
            if shutil.which("dockerd")
            else "install Docker: https://docs.docker.com/engine/install/"
        )
        return (
            f"there is no Docker daemon at {host}\n  {where}\n"
            "  or set the address of another one: DOCKER_HOST, `docker context use`, or `pulumi config set docker:host`"
        )
    return f"the Docker daemon at {host} does not answer: {error}\n  type on its host: sudo systemctl restart docker"


def _can_install(daemon: Daemon) -> bool:
    local = daemon.host == "unix:///var/run/docker.sock" and not Path("/var/run/docker.sock").exists()
    release = Path("/etc/os-release")
    family = release.read_text() if release.exists() else ""
    return local and os.geteuid() == 0 and ("ID=debian" in family or "ID=ubuntu" in family)


def _install_and_start() -> None:
    if shutil.which("dockerd") is None:
        progress("installing Docker (docker.io and iptables, from this distribution)")
        for command in (["apt-get", "update", "-qq"], ["apt-get", "install", "-y", "-qq", "docker.io", "iptables"]):
            done = subprocess.run(
                command,
                env=os.environ | {"DEBIAN_FRONTEND": "noninteractive"},
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode:
                raise StopError(f"{' '.join(command)} failed:\n{done.stderr.strip()}")
    progress("starting Docker")
    start_daemon()


def start_daemon() -> None:
    """Start dockerd with systemd, or directly if systemd does not run; raise `StopError` if it does not answer."""
    log = Path("/var/log/dockerd.log")
    if Path("/run/systemd/system").exists():
        subprocess.run(["systemctl", "enable", "--now", "docker"], check=False, capture_output=True)
    else:
        with log.open("ab") as output:
            subprocess.Popen(
                ["dockerd"], stdout=output, stderr=output, stdin=subprocess.DEVNULL, start_new_session=True
            )
    for _ in range(60):
        if docker_problem(Daemon("unix:///var/run/docker.sock")) is None:
            return
        time.sleep(0.5)
    raise StopError(f"dockerd was started, but does not answer; its log: {log} (or: journalctl -u docker)")
