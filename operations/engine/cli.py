"""Finding and installing the Pulumi CLI and its providers."""

import hashlib
import http.client
import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import tarfile
import urllib.error
import urllib.request
from pathlib import Path

from operations.common.checkout import ROOT
from operations.common.console import StopError, progress

MINIMUM_VERSION = (3, 250)
"""The oldest version with `replaceWith`, which the program needs."""
INSTALLED_VERSION = importlib.metadata.version("pulumi")
"""Releases of the CLI and of the SDK have the same version, which the lock file pins."""
DOWNLOADS = "https://github.com/pulumi/pulumi/releases/download"
PROVIDERS = ("docker", "random")
MANUAL_INSTALL_HINT = (
    f"  install Pulumi {'.'.join(map(str, MINIMUM_VERSION))} or newer yourself (https://www.pulumi.com/docs/install/), "
    "then try again\n  on a network without internet access: docs/operations/without-the-engine.md"
)
LOCAL_CLI = ROOT / ".pulumi-cli"


def find_cli() -> Path | None:
    """Return the Pulumi CLI on the PATH if it is recent enough, else the one in this checkout, else None."""
    for candidate in (shutil.which("pulumi"), LOCAL_CLI / "pulumi" / "pulumi"):
        if candidate and Path(candidate).exists() and _version(Path(candidate)) >= MINIMUM_VERSION:
            return Path(candidate)
    return None


def _version(cli: Path) -> tuple[int, ...]:
    printed = subprocess.run([cli, "version"], capture_output=True, text=True, check=False).stdout
    match = re.match(r"v?(\d+)\.(\d+)", printed)
    return tuple(int(part) for part in match.groups()) if match else (0, 0)


def missing_cli() -> str:
    """Return the message that no CLI is on the PATH, or that it is too old."""
    wanted = ".".join(map(str, MINIMUM_VERSION))
    if (found := shutil.which("pulumi")) is None:
        return f"no Pulumi CLI ({wanted} or newer) is on the PATH"
    # A broken CLI prints no version, and is shown as 0.0.
    return f"the Pulumi CLI on the PATH ({found}) is {'.'.join(map(str, _version(Path(found))))}, older than {wanted}"


def require_cli() -> Path:
    """Return the Pulumi CLI, after installing it into this checkout if needed; raise `StopError` if that fails."""
    return find_cli() or install_cli()


def install_cli(downloads: str = DOWNLOADS) -> Path:
    """Download the pinned CLI into the checkout, verify it with the release's checksums, and return its path."""
    system = {"Linux": "linux", "Darwin": "darwin"}.get(platform.system(), "windows")
    machine = {"x86_64": "x64", "AMD64": "x64", "arm64": "arm64", "aarch64": "arm64"}.get(platform.machine(), "x64")
    archive = f"pulumi-v{INSTALLED_VERSION}-{system}-{machine}.tar.gz"
    release = f"{downloads}/v{INSTALLED_VERSION}"
    progress(f"downloading Pulumi {INSTALLED_VERSION} into {LOCAL_CLI.name}/ (its plugins go to ~/.pulumi)")
    try:
        checksums = _download(f"{release}/pulumi-{INSTALLED_VERSION}-checksums.txt").decode(errors="replace")
        content = _download(f"{release}/{archive}")
    except (OSError, http.client.HTTPException) as error:
        raise NoEngineError(
            f"{missing_cli()}, and {INSTALLED_VERSION} could not be downloaded: {error}\n{MANUAL_INSTALL_HINT}"
        ) from None
    expected = {name: digest for digest, name in re.findall(r"(?m)^([0-9a-f]{64})\s+\*?(\S+)$", checksums)}
    if archive not in expected:
        # Most likely a proxy's error page.
        raise NoEngineError(
            f"{missing_cli()}, and {INSTALLED_VERSION} could not be downloaded: the answer from {release} is not the "
            f"checksums file of a release\n{MANUAL_INSTALL_HINT}"
        )
    found = hashlib.sha256(content).hexdigest()
    if expected[archive] != found:
        raise StopError(
            f"{archive}: its SHA-256 is {found}, expected {expected[archive]}; it was not installed\n"
            "  try again; if the error repeats, install Pulumi yourself: https://www.pulumi.com/docs/install/"
        )
    part = LOCAL_CLI.with_suffix(".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    (part / archive).write_bytes(content)
    with tarfile.open(part / archive) as opened:
        # Added in a patch release of Python 3.11 that is newer than Debian 12's.
        if hasattr(tarfile, "data_filter"):
            opened.extraction_filter = staticmethod(tarfile.data_filter)
        opened.extractall(part)  # noqa: S202 - its checksum is verified
    (part / archive).unlink()
    shutil.rmtree(LOCAL_CLI, ignore_errors=True)
    part.rename(LOCAL_CLI)
    return LOCAL_CLI / "pulumi" / "pulumi"


def _download(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=60) as response:  # noqa: S310 - a constant https address
        return bytes(response.read())


def require_providers(cli: Path) -> None:
    """Install the providers of the locked packages if they are missing; raise `NoEngineError` if that fails.

    Otherwise Pulumi would fail in the middle of the first deployment.
    """
    folder = Path(os.environ.get("PULUMI_HOME") or Path.home() / ".pulumi") / "plugins"
    for name in PROVIDERS:
        version = importlib.metadata.version(f"pulumi-{name}")
        if (folder / f"resource-{name}-v{version}").exists() or shutil.which(f"pulumi-resource-{name}"):
            continue
        install = ["plugin", "install", "resource", name, version]
        progress(f"installing Pulumi's provider {name} {version} into {folder}")
        done = subprocess.run([cli, *install], capture_output=True, text=True, check=False)
        if done.returncode:
            reason = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]
            raise NoEngineError(
                f"Pulumi's provider {name} {version} is not installed and could not be downloaded: {''.join(reason)}\n"
                f"  if this machine can have another network: pulumi {' '.join(install)}\n"
                "  otherwise, install it from a file: docs/operations/without-the-engine.md#the-engine-from-files"
            )


class NoEngineError(StopError):
    """The Pulumi CLI or a provider is not installed, and could not be downloaded."""
