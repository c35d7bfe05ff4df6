"""The releases of MLflow on the package index, and what a newer one changes for the image and the database."""

import hashlib
import re
import subprocess
import sys
from dataclasses import dataclass
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
DOWNLOAD = ("-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps", "--only-binary=:all:")
MIGRATION = re.compile(r"mlflow/(?:store/db_migrations|server/auth/db/migrations)/versions/([^/]+)\.py")
"""A migration of the database, or of MLflow's own users."""
IMAGE = {"python_version": "3.13", "python_full_version": "3.13.0", "sys_platform": "linux", "extra": ""}
"""The environment markers of the MLflow image, for which the requirements of a release are read."""
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
    requirements: dict[str, Requirement]
    """By normalized name; those that MLflow needs on the MLflow image, without extras."""


def pinned() -> str:
    """Return the version of MLflow in this checkout."""
    return (ROOT / PIN).read_text().strip().partition("==")[2]


def release(requirement: str) -> Release:
    """Return the newest release that satisfies `requirement`, such as `mlflow<4`; raise `PackageIndexError`."""
    with TemporaryDirectory() as folder:
        command = [sys.executable, *DOWNLOAD, f"--dest={folder}", requirement]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
        except subprocess.TimeoutExpired:
            raise PackageIndexError(f"no answer in {TIMEOUT_S} s") from None
        if done.returncode:
            raise PackageIndexError(done.stderr.strip().splitlines()[-1].removeprefix("ERROR: "))
        (wheel,) = Path(folder).glob("*.whl")
        return read(wheel)


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
        migrations=frozenset(found[1] for found in map(MIGRATION.fullmatch, files) if found),
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
    (ROOT / LOCK).write_text(f"{header}mlflow=={new.version} \\\n    --hash=sha256:{new.sha256}\n")
    (ROOT / PIN).write_text(f"mlflow=={new.version}\n")
