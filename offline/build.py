"""Building images from packages, where the settings say `images.source: packages`.

Debian's packages come by this host's apt, and Python's by this host's pip: its mirrors, proxy and certificates are
used as they are, and are not in what is built. An image that is there is not built again.
"""

import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

from docker.errors import APIError

from offline.sources import PIP_KEYS, host_sources, pip_settings, with_keyring
from operations.common.console import StopError, confirmed, interactive, make, say
from runtime.daemon import Daemon
from settings import packages

HOST_LABEL = "mlflow.packages.host"
"""Of the image that MLflow is installed on: the SHA-256 of what it has of this host."""
NEEDED_GB = 3
"""In the folder for temporary files: two root file systems at once, each with its archive."""
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
CREDENTIALS = re.compile(r"//[^/@\s]*@")
TOOLS = "mmdebstrap debian-archive-keyring gpg uidmap"
"""What builds, who vouches for Debian's packages, and what lets a user do without root."""
SCRATCH = "mlflow-packages-"
"""What the temporary folders begin with; the process that uses one comes next."""
LAST_LINES = 6


def build(daemon: Daemon, names: list[str], sources: list[str]) -> None:
    """Build the images `names` (of `packages.NAMES`) that are not on the host yet.

    `sources` are lines of apt's sources.list, or none for this host's own mirror. Raises `StopError` with everything
    that went wrong; what could be built stays, and is not built again.
    """
    missing = [name for name in names if not daemon.has_image(packages.ref(name))]
    if missing:
        _require_tools(daemon)
        say(f"building {', '.join(missing)} from Debian's packages (a minute or two, once)")
        with ThreadPoolExecutor(max_workers=2) as pool:
            failures = [problem for problem in pool.map(lambda name: _built(daemon, name, sources), missing) if problem]
        if failures:
            raise StopError(
                f"{len(failures)} of {len(missing)} images could not be built; nothing was deployed\n"
                + "\n".join(failures)
                + f"\n  once the cause is mended, type: {make('up')}"
                + ("; what was built is kept" if len(failures) < len(missing) else "")
            )
    if "python" in names:
        _build_builder(daemon)


def can_build() -> bool:
    """Whether this host has what builds images from packages, or can be given it."""
    return bool(shutil.which("mmdebstrap")) or (os.geteuid() == 0 and bool(shutil.which("apt-get")))


def _require_tools(daemon: Daemon) -> None:
    """Make sure that this host can build; raise `StopError` saying what it lacks."""
    if _machine(str(daemon.api.version()["Arch"])) != _machine(platform.machine()):
        raise StopError(
            f"mlflow:images.source: packages are of this machine ({platform.machine()}), and the Docker host at "
            f"{daemon.host} is another\n  build there, and bring the images: docs/operations/without-a-registry.md"
        )
    temporary = Path(tempfile.gettempdir())
    if (free := shutil.disk_usage(temporary).free / 2**30) < NEEDED_GB:
        raise StopError(
            f"disk: {free:.1f} GB free in {temporary}, needs {NEEDED_GB} to build images\n"
            f"  free some, or name another folder: TMPDIR=/path {make('up')}"
        )
    if shutil.which("mmdebstrap"):
        return
    install = f"apt-get install {TOOLS}"
    if shutil.which("apt-get") is None:
        raise StopError(
            "mlflow:images.source: packages are built with Debian's mmdebstrap, and this is neither Debian nor Ubuntu\n"
            "  build on one that is, and bring the images: docs/operations/without-a-registry.md"
        )
    if os.geteuid() != 0 or (interactive() and not confirmed(f"This needs mmdebstrap. Install it ({install})?")):
        raise StopError(f"mlflow:images.source: packages are built with mmdebstrap\n  type: sudo {install}")
    say("installing mmdebstrap (from this distribution)")
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    for command in ("apt-get update -qq", f"{install} -y -qq --no-install-recommends"):
        done = subprocess.run(command.split(), env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise StopError(f"{command} failed:\n{_last_lines(done.stderr)}\n  check: apt-get update")


def _machine(name: str) -> str:
    return {"x86_64": "amd64", "aarch64": "arm64"}.get(name, name)


def _built(daemon: Daemon, name: str, sources: list[str]) -> str | None:
    """Build one image; return why it could not be built, or None."""
    with _scratch(name) as scratch:
        try:
            wheels = _programs(name, scratch / "wheels")
        except subprocess.CalledProcessError as error:
            return f"  {name}: its wheels could not be had\n{_last_lines(error.stderr)}"
        archive = scratch / "root.tar"
        # Out of a home that is nobody else's to read: without root, the build is another user's.
        recipe = Path(shutil.copytree(packages.FOLDER / name, scratch / "recipe"))
        for path in [recipe, *recipe.iterdir(), wheels, *wheels.iterdir()]:
            path.chmod(0o755)
        lines = [with_keyring(line) for line in sources or host_sources()]
        done = subprocess.run(
            [
                # Its mounts end with it, however it ends. Without root, mmdebstrap sees to that itself.
                *(["unshare", "--mount"] if os.geteuid() == 0 else []),
                "sh",
                packages.FOLDER / "build.sh",
                packages.SUITE,
                recipe,
                archive,
                ",".join(packages.recipe(name).packages),
                *(["sources"] if lines else []),
            ],
            input="\n".join(lines),
            env=os.environ | {"WHEELS": str(wheels), "TMPDIR": str(scratch)},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            used = "".join(f"\n      {line}" for line in lines) or " mmdebstrap's own"
            words = (
                f"  {name}: mmdebstrap could not make it\n{_last_lines(done.stderr)}\n"
                f"    its sources (mlflow:images.debianSources names others):{used}"
            )
            return CREDENTIALS.sub("//", words)
        try:
            root = json.loads(daemon.api.import_image(src=str(archive)).splitlines()[-1])["status"]
        except APIError as error:
            return f"  {name}: Docker refused it: {error.explanation}"
    return _imaged(
        daemon, packages.ref(name), {"Dockerfile": (packages.FOLDER / name / "Dockerfile").read_bytes()}, root
    )


def _imaged(daemon: Daemon, name: str, files: dict[str, bytes], root: str) -> str | None:
    """Build an image from a context of a few files, its build argument ROOT being `root`; return why not, or None."""
    context = BytesIO()
    with tarfile.open(fileobj=context, mode="w") as tar:
        for path, content in files.items():
            entry = tarfile.TarInfo(path)
            entry.size, entry.mode = len(content), 0o644
            tar.addfile(entry, BytesIO(content))
    context.seek(0)
    events = daemon.api.build(
        fileobj=context, custom_context=True, tag=name, buildargs={"ROOT": root}, rm=True, forcerm=True, decode=True
    )
    error = next((event["error"] for event in events if "error" in event), None)
    return f"  {name}: Docker could not build it: {error}" if error else None


@contextmanager
def _scratch(name: str) -> Iterator[Path]:
    """Return an empty folder, and remove it; those that killed runs left are removed, too."""
    home = Path(tempfile.gettempdir())
    for left in home.glob(f"{SCRATCH}*"):
        if not Path(f"/proc/{left.name.removeprefix(SCRATCH).partition('-')[0]}").exists():
            shutil.rmtree(left, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=f"{SCRATCH}{os.getpid()}-{name}-", dir=home))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _programs(name: str, folder: Path) -> Path:
    """Fetch the wheels that a recipe names, and return the folder with the programs in them."""
    folder.mkdir()
    locked = packages.FOLDER / name / "wheels.txt"
    if locked.exists():
        subprocess.run(
            [
                *(sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"),
                *("--only-binary", ":all:", "--require-hashes", "--dest", folder, "-r", locked),
            ],
            check=True,
            capture_output=True,
            text=True,
        )
    for wheel in folder.glob("*.whl"):
        with zipfile.ZipFile(wheel) as content:
            for member in content.namelist():
                if ".data/scripts/" in member:
                    (folder / Path(member).name).write_bytes(content.read(member))
    return folder


def _build_builder(daemon: Daemon) -> None:
    """Build the image that MLflow is installed on: Python's, with the certificates and the package index of this host.

    It stays on this host. Its name says nothing of what it has of the host, so that plans are the same everywhere;
    a label does, and where that has changed it is built again.
    """
    settings = pip_settings()
    authorities = dict.fromkeys([CERTIFICATES, Path(settings.get("cert", CERTIFICATES))])
    lines = [f"{key} = {settings[key]}" for key in PIP_KEYS if key in settings]
    files = {
        "ca-certificates.crt": b"\n".join(path.read_bytes() for path in authorities if path.exists()),
        "pip.conf": "\n".join(["[global]", *lines, ""]).encode(),
    }
    content = hashlib.sha256(b"\0".join(files.values())).hexdigest()
    name = packages.ref(packages.BUILDER)
    if daemon.has_image(name):
        labels = daemon.api.inspect_image(name)["Config"]["Labels"] or {}  # type: ignore[no-untyped-call]
        if labels.get(HOST_LABEL) == content:
            return
    files["Dockerfile"] = (
        "ARG ROOT\nFROM ${ROOT}\nCOPY ca-certificates.crt /etc/ssl/certs/\nCOPY pip.conf /etc/\n"
        f"ENV PIP_CERT={CERTIFICATES}\nLABEL {HOST_LABEL}={content}\n"
    ).encode()
    if problem := _imaged(daemon, name, files, packages.ref("python")):
        raise StopError(problem)


def _last_lines(text: str) -> str:
    """Return what a program said of its failure: the lines that it marked as errors, else its last ones."""
    lines = [line for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith(("E: ", "ERROR", "error"))]
    return "\n".join(f"    {line}" for line in (errors or lines)[-LAST_LINES:])
