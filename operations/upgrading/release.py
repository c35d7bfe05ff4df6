"""The releases of MLflow on the package index, and what a newer one changes for the image and the database."""

import hashlib
import re
import subprocess
import sys
from dataclasses import dataclass, replace
from email.parser import HeaderParser
from pathlib import Path
from tempfile import TemporaryDirectory
from zipfile import ZipFile

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from operations.common.checkout import ROOT

PIN = Path("mlflow") / "mlflow.in"
LOCK = Path("mlflow") / "mlflow.txt"
REQUIREMENTS = Path("mlflow") / "requirements.txt"
PYTHON = "3.13"
"""The Python of the MLflow image, for which a release is looked up and its requirements are read."""
DOWNLOAD = ("-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps", "--only-binary=:all:")
DATABASE = re.compile(r"mlflow/store/db_migrations/versions/([^/]+)\.py")
USERS = re.compile(r"mlflow/server/auth/db/migrations/versions/([^/]+)\.py")
"""A migration of the database, and one of MLflow's own users."""
IMAGE = {"python_version": PYTHON, "python_full_version": f"{PYTHON}.0", "sys_platform": "linux", "extra": ""}
"""The environment markers of the MLflow image."""
TIMEOUT_S = 300
"""For a download of 10 MB."""


class PackageIndexError(Exception):
    """The package index does not answer, or does not have the release. The message is pip's."""


@dataclass(frozen=True)
class Release:
    """A release of MLflow, as its wheel tells it."""

    version: str
    sha256: str
    """Of the wheel. It has no compiled code, so that the same one is for every architecture."""
    migrations: frozenset[str]
    user_migrations: frozenset[str]
    """Those of MLflow's own users."""
    requirements: dict[str, Requirement]
    """By normalized name; those that MLflow needs on the MLflow image, without extras."""


def pinned() -> str:
    """Return the version of MLflow in this checkout."""
    return (ROOT / PIN).read_text().strip().partition("==")[2]


def release(requirement: str) -> Release:
    """Return the newest release that satisfies `requirement`, such as `mlflow<4`; raise `PackageIndexError`."""
    with TemporaryDirectory() as folder:
        command = [sys.executable, *DOWNLOAD, f"--python-version={PYTHON}", f"--dest={folder}", requirement]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
        except subprocess.TimeoutExpired:
            raise PackageIndexError(f"no answer in {TIMEOUT_S} s") from None
        wheels = list(Path(folder).glob("*.whl"))
        if done.returncode or not wheels:
            said = done.stderr.strip().splitlines() or [f"pip exited with code {done.returncode}"]
            raise PackageIndexError(said[-1].removeprefix("ERROR: "))
        return read(wheels[0])


def completed(found: Release) -> tuple[Release, list[str]]:
    """Return the release with the requirements of its companions, such as mlflow-skinny; and those not found.

    The package `mlflow` names only a part of what it needs: mlflow-skinny has the rest.
    """
    requirements, missing = dict(found.requirements), []
    for name in [name for name in requirements if name.startswith("mlflow-")]:
        needed = requirements.pop(name)
        try:
            theirs = release(f"{name}{needed.specifier}").requirements
        except PackageIndexError:
            missing.append(f"{name}{needed.specifier}")
            continue
        requirements |= {key: one for key, one in theirs.items() if not key.startswith("mlflow-")}
    return replace(found, requirements=requirements), missing


def read(wheel: Path) -> Release:
    """Return the release in a wheel."""
    with ZipFile(wheel) as archive:
        files = archive.namelist()
        metadata = next(name for name in files if name.endswith(".dist-info/METADATA"))
        headers = HeaderParser().parsestr(archive.read(metadata).decode())
    requirements = map(Requirement, headers.get_all("Requires-Dist", []))
    return Release(
        version=str(headers["Version"]),
        sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(),
        migrations=frozenset(found[1] for found in map(DATABASE.fullmatch, files) if found),
        user_migrations=frozenset(found[1] for found in map(USERS.fullmatch, files) if found),
        requirements={
            canonicalize_name(one.name): one for one in requirements if not one.marker or one.marker.evaluate(IMAGE)
        },
    )


def is_newer(found: str, than: str) -> bool:
    """Return whether a version is newer than another."""
    return Version(found) > Version(than)


def locked() -> dict[str, str]:
    """Return the versions of the packages that the MLflow image has besides MLflow, by normalized name."""
    text = (ROOT / REQUIREMENTS).read_text()
    return {canonicalize_name(name): version for name, version in re.findall(r"^([\w.-]+)==(\S+)", text, re.MULTILINE)}


def conflicts(new: Release, installed: dict[str, str]) -> list[str]:
    """Return the packages of the image that the release does not accept, in words. Their bounds must be changed."""
    return [
        f"it needs {requirement}, and {REQUIREMENTS} has {installed[name]}"
        for name, requirement in sorted(new.requirements.items())
        if name in installed and not requirement.specifier.contains(installed[name], prereleases=True)
    ]


def new_requirements(old: Release, new: Release, installed: dict[str, str]) -> list[str]:
    """Return the packages that the release needs, the earlier one did not need, and the image does not have."""
    return sorted(new.requirements.keys() - old.requirements.keys() - installed.keys())


def pin(new: Release) -> None:
    """Write the release into `mlflow.in` and `mlflow.txt`."""
    header = "".join(f"{line}\n" for line in (ROOT / LOCK).read_text().splitlines() if line.startswith("#"))
    contents = {
        LOCK: f"{header}mlflow=={new.version} \\\n    --hash=sha256:{new.sha256}\n",
        PIN: f"mlflow=={new.version}\n",
    }
    parts = {path: (ROOT / path).with_name(f"{path.name}.part") for path in contents}
    for path, part in parts.items():
        part.write_text(contents[path])
    for path, part in parts.items():
        part.rename(ROOT / path)
