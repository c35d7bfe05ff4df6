"""Everything that can be known to go wrong before anything is changed, said all at once."""

import errno
import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Collection
from pathlib import Path

from components import names, packaged, preconditions, tunnel
from components.backup import UID
from components.daemon import UNREACHABLE, Daemon
from components.images import DEFAULTS
from config import SEAWEEDFS_MB, UNATTENDED, StackConfig
from operations import addresses, packages
from operations.checkout import ROOT, Stack
from operations.console import StopError, confirmed, interactive, make, say

UNREACHED = re.compile(
    r"no such host|server misbehaving|name resolution|i/o timeout|Client\.Timeout|context deadline|handshake timeout"
    r"|connection refused|connection reset|no route to host|network is unreachable",
    re.IGNORECASE,
)
"""What Docker says where a registry does not answer. Whatever else it says has another reason."""
REASONS = {
    re.compile("credentials store", re.IGNORECASE): "Docker's configuration names a credential helper that is not "
    "installed\n    remove credsStore (or credHelpers) from ~/.docker/config.json, or install the helper",
    re.compile("proxyconnect", re.IGNORECASE): "the proxy of the Docker daemon does not answer\n    correct it: docker "
    "info --format '{{.HTTPSProxy}}' shows it; https://docs.docker.com/engine/daemon/proxy/",
    re.compile("toomanyrequests|rate limit", re.IGNORECASE): "the registry limits how much is pulled\n    type: docker "
    "login, or name a mirror",
}
"""Why an image cannot be had, by what Docker says, where its words alone do not tell what to type."""
ASK_AGAIN_SECONDS = 30
"""A name server that fails for a moment is no network without registries."""
UNTRUSTED = (
    "\n  Docker does not trust a certificate here, perhaps your network's own: put its authority into "
    "/usr/local/share/ca-certificates, then: update-ca-certificates && systemctl restart docker"
)
DEFAULT_REFS = {image["ref"] for image in DEFAULTS.values()}
MINIMUM_API = (1, 41)
"""Docker 20.10."""
MINIMUM_FREE_GB = 5
"""The images take 2 GB unpacked, their layers as much again while they are pulled; the rest is for the first data."""
NEARLY_FULL_GB = 1
"""Below this, uploads begin to fail: an artifact is spooled on this disk before it is stored on it."""


def require_docker(stack: Stack) -> None:
    """Make sure that a recent enough daemon answers. On Debian and Ubuntu, root gets one installed."""
    daemon = stack.daemon
    problem = docker_problem(daemon)
    if problem and _can_install(daemon):
        if interactive() and not confirmed("There is no Docker here. Install Debian's (apt-get install docker.io)?"):
            raise StopError(problem)
        _install_and_start()
        problem = docker_problem(daemon)
    if problem:
        raise StopError(problem)


def require_docker_as_it_is(stack: Stack) -> None:
    """Raise `StopError` if no recent enough daemon answers. Installs nothing."""
    if problem := docker_problem(stack.daemon):
        raise StopError(problem)


def docker_problem(daemon: Daemon) -> str | None:
    """Return why the daemon cannot be used, and what to type, or None."""
    try:
        version = daemon.api.version()
    except UNREACHABLE as error:
        return _unreachable(daemon.host, str(error))
    if tuple(int(part) for part in version["ApiVersion"].split(".")) < MINIMUM_API:
        return (
            f"needs Docker 20.10 or newer, found {version['Version']} at {daemon.host}\n"
            "  https://docs.docker.com/engine/install/"
        )
    return None


def _unreachable(host: str, error: str) -> str:
    path = Path(host.removeprefix("unix://"))
    if host.startswith("ssh://"):
        return (
            f"the Docker daemon at {host} cannot be reached: {error}\n"
            f"  this must work without a question: ssh {' '.join(tunnel.destination(host))} docker version"
        )
    if "Permission denied" in error:
        return (
            f"no permission on Docker's socket {path}\n"
            "  type: sudo usermod -aG docker $USER && newgrp docker\n"
            "  (members of that group are root on this machine), then try again"
        )
    if host.startswith("unix://") and not path.exists():
        where = "start Docker" if shutil.which("dockerd") else "install Docker: https://docs.docker.com/engine/install/"
        return (
            f"there is no Docker daemon at {host}\n  {where}\n"
            "  or say where it is: DOCKER_HOST, `docker context use`, or `pulumi config set docker:host`"
        )
    return f"the Docker daemon at {host} does not answer: {error}\n  start it, then try again"


def _can_install(daemon: Daemon) -> bool:
    local = daemon.host == "unix:///var/run/docker.sock" and not Path("/var/run/docker.sock").exists()
    release = Path("/etc/os-release")
    family = release.read_text() if release.exists() else ""
    return local and os.geteuid() == 0 and ("ID=debian" in family or "ID=ubuntu" in family)


def _install_and_start() -> None:
    if shutil.which("dockerd") is None:
        say("installing Docker (docker.io and iptables, from this distribution)")
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
    say("starting Docker")
    start_daemon()


def start_daemon() -> None:
    """Start dockerd by the init system, or beside it where none runs; raise `StopError` if it does not come up."""
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
    raise StopError(f"dockerd was started but does not answer; its log: {log} (or journalctl -u docker)")


def require_host(stack: Stack) -> None:
    """Raise `StopError` with everything about the host that stands in the way of this stack."""
    settings, daemon = stack.settings, stack.daemon
    problems = [
        *preconditions.unmet(
            daemon,
            stack=stack.name,
            postgres_major=settings.postgres_major,
            object_store=settings.object_store,
            traefik=settings.traefik,
        ),
        *_paused(daemon, stack.name),
        *addresses.problems(daemon, settings, stack.name),
        *_no_folder(daemon, settings),
        *_too_small(daemon, settings),
        *_address_elsewhere(daemon, settings),
        *_ports_taken(daemon, settings, stack.name),
    ]
    if problems:
        raise StopError("nothing was changed\n" + "\n".join(f"  {problem}" for problem in problems))


def paused(daemon: Daemon, stack: str) -> list[str]:
    """Return the containers of a stack that somebody has paused. Pulumi's provider takes them for running."""
    ours = {"label": f"{names.STACK_LABEL}={stack}", "status": "paused"}
    return sorted(container["Names"][0].lstrip("/") for container in daemon.api.containers(all=True, filters=ours))


def _paused(daemon: Daemon, stack: str) -> list[str]:
    # Each would be waited for until it answers.
    found = paused(daemon, stack)
    return [f"somebody has paused {', '.join(found)}\n    type: docker unpause {' '.join(found)}"] if found else []


def _no_folder(daemon: Daemon, settings: StackConfig) -> list[str]:
    """Find out that the folder of the backups is not there: Docker would say so once half of it was deployed."""
    folder = Path(settings.backup.target)
    if not settings.backup.enabled or settings.backup.where != "folder" or not daemon.host.startswith("unix://"):
        return []
    try:
        folder.stat()
    except (FileNotFoundError, NotADirectoryError):
        words = f"install -d -o {UID} -g {UID} -m 0700 {folder}"
        return [f"mlflow:backup.target: there is no folder {folder} on this host\n    type: {words}"]
    except OSError:
        # Not ours to see; it may be Docker's.
        pass
    return []


def end_of_restore(daemon: Daemon, stack: str) -> None:
    """Remove what a restore that was killed left; raise `StopError` where one is at work."""
    name = names.physical(stack, names.RESTORE)
    if preconditions.restore_at_work(daemon, stack):
        raise StopError(
            f"a restore of {stack} is at work; nothing was changed\n"
            f"  see how far it is: docker logs -f {name}; to end it, which loses nothing: docker kill {name}"
        )
    if daemon.inspect(name):
        daemon.api.remove_container(name, v=True)


def no_strangers(daemon: Daemon, stack: str, *, kept: Collection[str] = ()) -> None:
    """Raise `StopError` with every container of somebody else's on a network that is to go: Docker would keep it."""
    ours = {"label": f"{names.STACK_LABEL}={stack}"}
    known = {container["Id"] for container in daemon.api.containers(all=True, filters=ours)}
    lines = [
        f"  docker network disconnect {network['Name']} {container['Name']}"
        for network in daemon.api.networks(filters=ours)
        if network["Name"] not in {names.physical(stack, service) for service in kept}
        for key, container in daemon.api.inspect_network(network["Id"])["Containers"].items()
        if key not in known
    ]
    if lines:
        raise StopError(
            f"networks of {stack} are in use by containers that are not its own, and could not be removed; nothing was "
            "changed\n" + "\n".join(lines)
        )


def _too_small(daemon: Daemon, settings: StackConfig) -> list[str]:
    info = daemon.api.info()
    problems = []
    asked_for = {
        "server": settings.server.cpus,
        "postgres": settings.postgres.cpus,
        "objectStore": settings.object_store.cpus,
        "backup": settings.backup.cpus if settings.backup.enabled else 0,
        "traefik": settings.traefik.cpus if "traefik" in settings.parts else 0,
        "monitoring": settings.monitoring.cpus if settings.monitoring.mode == "bundled" else 0,
    }
    for key, cpus in asked_for.items():
        if cpus > info["NCPU"]:
            problems.append(f"mlflow:{key}.cpus: {cpus:g} asked for, the Docker host has {info['NCPU']}; lower it")
    stores = len(settings.object_store.kinds)
    memory = {
        "server": settings.server.memory_mb,
        "postgres": settings.postgres.memory_mb,
        "objectStore": stores * settings.object_store.memory_mb,
        "backup": settings.backup.memory_mb if settings.backup.enabled else 0,
        "traefik": settings.traefik.memory_mb if "traefik" in settings.parts else 0,
        "monitoring": settings.monitoring.memory_mb if settings.monitoring.mode == "bundled" else 0,
    }
    available = info["MemTotal"] // 2**20
    if sum(memory.values()) > available:
        each = ", ".join(f"mlflow:{section} {megabytes}" for section, megabytes in memory.items() if megabytes)
        problems.append(
            f"memory: the limits of all services add up to {sum(memory.values())} MB, the host has {available}\n"
            f"    lower memoryMb of one: {each}"
        )
    wanted = [image.name for image in settings.pulled_images]
    wanted += [image.name for image in settings.images.built(settings.parts).values()]
    # With everything here already, a full disk is no reason not to start what was stopped.
    if not all(daemon.has_image(name) for name in wanted) and (problem := disk_problem(daemon, MINIMUM_FREE_GB)):
        problems.append(problem)
    return problems


def disk_problem(daemon: Daemon, minimum_gb: int = NEARLY_FULL_GB) -> str | None:
    """Return what to do about a Docker disk with less than `minimum_gb` GiB free, or None. A remote one is not seen."""
    root = Path(daemon.api.info()["DockerRootDir"])
    if not daemon.host.startswith("unix://") or not root.exists():
        return None
    free = shutil.disk_usage(root).free / 2**30
    if free >= minimum_gb:
        return None
    return (
        f"disk: {free:.1f} GB free in {root}, needs {minimum_gb}\n"
        f"    see what takes it: docker system df; images of earlier versions: {make('prune')}; of others: "
        "docker image prune"
    )


def _address_elsewhere(daemon: Daemon, settings: StackConfig) -> list[str]:
    """Return what is wrong with an address that is to be published on, if it is not this host's."""
    if not daemon.host.startswith("unix://"):
        return []
    wanted = {"server": settings.server.bind_address} if settings.route.published_port else {}
    if "traefik" in settings.parts:
        wanted["traefik"] = settings.traefik.bind_address
    return [
        f"mlflow:{section}.bindAddress: this host has no address {address}\n"
        "    choose one of those that it has (ip -4 addr), 0.0.0.0 for all of them, or 127.0.0.1"
        for section, address in wanted.items()
        if not _is_here(address)
    ]


def _is_here(address: str) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        try:
            probe.bind((address, 0))
        except OSError as error:
            return error.errno != errno.EADDRNOTAVAIL
    return True


def _ports_taken(daemon: Daemon, settings: StackConfig, stack: str) -> list[str]:
    wanted = {
        "server.port": (settings.server.bind_address, settings.route.published_port),
        "postgres.port": ("127.0.0.1", settings.postgres.port),
        "objectStore.consolePort": ("127.0.0.1", settings.object_store.console_port),
    }
    if "traefik" in settings.parts:
        traefik = settings.traefik
        wanted["traefik.httpPort"] = (traefik.bind_address, traefik.http_port)
        wanted["traefik.httpsPort"] = (traefik.bind_address, traefik.https_port)
    for service, published in settings.monitoring.addresses.items():
        wanted[f"monitoring.{service.lower()}Port"] = ("127.0.0.1", published)
    addresses = {address for address, _ in wanted.values()}
    running = daemon.api.containers(filters={"status": ["running", "restarting", "paused"]})
    # Of our own, what they ask for: one that is about to be restarted holds no port for a moment.
    ours = {
        port
        for container in running
        if container["Labels"].get(names.STACK_LABEL) == stack
        for port in _asked_for(daemon, container["Id"])
    }
    by_container = {
        (port["PublicPort"], host_address): container
        for container in running
        for port in container["Ports"]
        if "PublicPort" in port
        for host_address in ([port["IP"], "0.0.0.0"] if port["IP"] not in ("0.0.0.0", "::") else addresses)  # noqa: S104
    }
    problems = []
    for key, (address, port) in wanted.items():
        if not port:
            continue
        if port in ours:
            continue
        if container := by_container.get((port, address)):
            holder = f"the container {container['Names'][0].lstrip('/')}"
        elif daemon.host.startswith("unix://") and _bound(address, port):
            holder = f"another program (ss -ltnp 'sport = :{port}' names it)"
        else:
            continue
        section, _, name = key.partition(".")
        problems.append(
            f"mlflow:{key}: port {port} of {address} is taken by {holder}\n"
            f"    stop it, or choose another in Pulumi.{stack}.yaml, under mlflow:{section}: {name}: {port + 1}"
        )
    return problems


def _asked_for(daemon: Daemon, container: str) -> list[int]:
    """Return the ports of the host that a container publishes, whether or not it holds them just now."""
    found = daemon.inspect(container)
    bindings = (found["HostConfig"]["PortBindings"] or {}) if found else {}
    return [int(binding["HostPort"]) for published in bindings.values() for binding in published or []]


def _bound(address: str, port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError as error:
            return error.errno == errno.EADDRINUSE
    return False


def require_images(stack: Stack) -> None:
    """Load, build or pull what is not on the host yet; raise `StopError` naming every image that cannot be had."""
    daemon = stack.daemon
    archive = stack.settings.images.archive
    if archive and not all(daemon.has_image(image.name) for image in stack.settings.pulled_images):
        _load(daemon, ROOT / archive)
    _build_packages(daemon, stack.settings)
    present: set[str] = set()
    pulled = False
    missing: list[tuple[str, str]] = []
    for image in stack.settings.pulled_images:
        if not daemon.has_image(image.name):
            say(f"pulling {image.name}")
            error = daemon.pull(image.name)
            if error:
                missing.append((image.name, error))
                continue
            pulled = True
        present.add(image.name)
    if missing and not pulled and _without_registry(stack, missing):
        _switch_to_packages(stack, *missing[0])
        require_host(stack)
        require_images(stack)
    elif missing:
        lines = "\n".join(f"  {name}\n    {_explained(error)}" for name, error in missing)
        raise StopError(
            f"{len(missing)} of {len(missing) + len(present)} images cannot be had; nothing was deployed\n{lines}\n"
            f"  behind a mirror, name it in {stack.path.name}, under mlflow:images: "
            "postgres: {ref: MIRROR/postgres:18.6}\n"
            "  one that is on this host already, built or loaded here, has no digest: say digest: none for it\n"
            "  without a registry, build them from Debian's and Python's packages (source: packages, with "
            "mlflow:objectStore.kind: seaweedfs), or bring them "
            "from a machine that has them: docs/operations.md#without-a-registry"
            + (UNTRUSTED if any("x509" in error for _, error in missing) else "")
        )


def _explained(error: str) -> str:
    """Return what Docker says and, where that is known, what it means and what to type."""
    reason = next((words for pattern, words in REASONS.items() if pattern.search(error)), None)
    return f"{error}\n    {reason}" if reason else error


def _unreached(error: str) -> bool:
    """Whether an error says that a registry does not answer, and has no other reason."""
    return bool(UNREACHED.search(error)) and not any(pattern.search(error) for pattern in REASONS)


def _without_registry(stack: Stack, missing: list[tuple[str, str]]) -> bool:
    """Whether this is a first `make up` of dev on a network without a registry, which packages can help.

    Not where somebody said where images are to come from: that is to be mended, and not worked around.
    """
    chosen = stack.settings.images
    return (
        stack.name == UNATTENDED
        and chosen.source == "registry"
        and chosen.archive is None
        and stack.settings.object_store.console_port is None
        and all(name.partition("@")[0] in DEFAULT_REFS and _unreached(error) for name, error in missing)
        and not any(names.is_data_volume(stack.name, volume) for volume in stack.daemon.volumes())
        and packages.can_build()
    )


def _build_packages(daemon: Daemon, settings: StackConfig) -> None:
    """Build those images that come from packages and are not on the host yet."""
    wanted = {image.ref for image in settings.pulled_images}
    if of_packages := [name for name in packaged.NAMES if packaged.ref(name) in wanted]:
        packages.build(daemon, of_packages, list(settings.images.debian_sources))


def _switch_to_packages(stack: Stack, asked: str, error: str) -> None:
    """Build from packages what the stack needs, and write into its file that this is where its images come from.

    Nothing is written where the registry, which gave `error` for the image `asked`, answers after all.
    """
    memory = max(SEAWEEDFS_MB, stack.settings.object_store.memory_mb)
    images, store = {"source": "packages"}, {"kind": "seaweedfs", "memoryMb": memory}
    say(
        f"no registry answers here ({error})\n"
        "  images are built from Debian's and Python's packages instead. Once they are there, images.source: packages "
        f"(Postgres 17 for 18) and objectStore.kind: seaweedfs (there is no package of MinIO) are written into "
        f"{stack.path.name}"
    )
    begun = time.monotonic()
    # First: what cannot be had today, or is cut off, leaves dev as it was, for a day with a registry.
    _build_packages(stack.daemon, stack.settings_with(images=images, objectStore=store))
    time.sleep(max(0, ASK_AGAIN_SECONDS - (time.monotonic() - begun)))
    again = stack.daemon.pull(asked)
    if again is None or not _unreached(again):
        say(f"a registry answers again: {stack.path.name} stays as it is")
        return
    stack.set("images", **images)
    stack.set("objectStore", **store)
    say(
        f"{stack.path.name} now says images.source: packages and objectStore.kind: seaweedfs, memoryMb: {memory}\n"
        "  commit it once you are content: a stack with data does not go back by itself\n"
        f"  to go back before it has data of yours: make destroy STACK={stack.name} CONFIRM={stack.name} && "
        f"git checkout {stack.path.name} && make up STACK={stack.name}"
    )


def _load(daemon: Daemon, folder: Path) -> None:
    """Load every image that was saved into `folder`; raise `StopError` naming every file that cannot be loaded."""
    archives = sorted(path for path in folder.glob("*") if path.name.endswith((".tar", ".tar.gz", ".tgz")))
    if not archives:
        raise StopError(f"mlflow:images.archive: there is no .tar, .tar.gz or .tgz file in {folder}")
    broken = []
    for path in archives:
        say(f"loading {path}")
        if error := daemon.load(path):
            broken.append(f"  {path}: {error}")
    if broken:
        raise StopError("mlflow:images.archive: these could not be loaded\n" + "\n".join(broken))
