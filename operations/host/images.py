"""The images that a stack needs: loaded, built or pulled before an update."""

import re
import time
from pathlib import Path

from offline import build
from operations.common.checkout import ROOT
from operations.common.console import StopError, progress
from operations.common.stack import Stack
from operations.host.checks import require_host
from runtime.daemon import Daemon
from settings import names, packages
from settings.checks import SEAWEEDFS_MB
from settings.images import DEFAULTS
from settings.stack import DEV, StackConfig

REGISTRY_UNREACHABLE = re.compile(
    r"no such host|server misbehaving|name resolution|i/o timeout|Client\.Timeout|context deadline|handshake timeout"
    r"|connection refused|connection reset|no route to host|network is unreachable",
    re.IGNORECASE,
)
"""Docker's errors if a registry does not answer. Any other error has another cause."""
REASONS = {
    re.compile("credentials store", re.IGNORECASE): "Docker's configuration names a credential helper that is not "
    "installed\n    remove credsStore (or credHelpers) from ~/.docker/config.json, or install the helper",
    re.compile("proxyconnect", re.IGNORECASE): "the proxy of the Docker daemon does not answer\n    to see it, type: "
    "docker info --format '{{.HTTPSProxy}}'; to correct it: https://docs.docker.com/engine/daemon/proxy/",
    re.compile("toomanyrequests|rate limit", re.IGNORECASE): "the registry limits your pulls\n    type: docker "
    "login, or use a mirror",
}
"""Causes and fixes by Docker's error when it pulls an image, for errors that do not say what to type."""
RETRY_SECONDS = 30
"""How long to wait before a second attempt: a name server may fail for a moment only."""
UNTRUSTED_CERTIFICATE_HINT = (
    "\n  Docker does not trust a certificate, perhaps that of your network's proxy: copy its CA certificate into "
    "/usr/local/share/ca-certificates, then type: update-ca-certificates && systemctl restart docker"
)
DEFAULT_REFS = {image["ref"] for image in DEFAULTS.values()}


def require_images(stack: Stack) -> None:
    """Load, build or pull the missing images; raise `StopError` with every image that is not available."""
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
            progress(f"pulling {image.name}")
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
        lines = "\n".join(f"  {name}\n    {_error_message(error)}" for name, error in missing)
        raise StopError(
            f"{len(missing)} of {len(missing) + len(present)} images are not available; nothing was deployed\n{lines}\n"
            f"  to use a mirror, set it in {stack.path.name}, under mlflow:images: "
            "postgres: {ref: MIRROR/postgres:18.6}\n"
            "  for an image that was built or loaded on this host, set digest: none (it has no digest)\n"
            "  without a registry, build them from Debian and Python packages (source: packages, with "
            "mlflow:objectStore.kind: seaweedfs), or copy them "
            "from a machine that has them: docs/operations/without-a-registry.md"
            + (UNTRUSTED_CERTIFICATE_HINT if any("x509" in error for _, error in missing) else "")
        )


def _error_message(error: str) -> str:
    """Return Docker's error, followed by its cause and the fix if they are known."""
    reason = next((words for pattern, words in REASONS.items() if pattern.search(error)), None)
    return f"{error}\n    {reason}" if reason else error


def _is_registry_unreachable(error: str) -> bool:
    """Return whether the cause of an error is that a registry does not answer."""
    return bool(REGISTRY_UNREACHABLE.search(error)) and not any(pattern.search(error) for pattern in REASONS)


def _without_registry(stack: Stack, missing: list[tuple[str, str]]) -> bool:
    """Return whether this is the first `make up` of dev on a network without a registry, and packages can be used.

    False if the user has configured where images come from: such an error must be fixed, not worked around.
    """
    chosen = stack.settings.images
    return (
        stack.name == DEV
        and chosen.source == "registry"
        and chosen.archive is None
        and stack.settings.object_store.console_port is None
        and all(name.partition("@")[0] in DEFAULT_REFS and _is_registry_unreachable(error) for name, error in missing)
        and not any(names.is_data_volume(stack.name, volume) for volume in stack.daemon.volumes())
        and build.can_build()
    )


def _build_packages(daemon: Daemon, settings: StackConfig) -> None:
    """Build the packages images that are not on the host yet."""
    wanted = {image.ref for image in settings.pulled_images}
    if of_packages := [name for name in packages.NAMES if packages.ref(name) in wanted]:
        build.build(daemon, of_packages, list(settings.images.debian_sources))


def _switch_to_packages(stack: Stack, asked: str, error: str) -> None:
    """Build the stack's images from packages, and then set `images.source: packages` in its stack file.

    Nothing is written if the registry, which failed with `error` for the image `asked`, answers after the build.
    """
    memory = max(SEAWEEDFS_MB, stack.settings.object_store.memory_mb)
    images, store = {"source": "packages"}, {"kind": "seaweedfs", "memoryMb": memory}
    progress(
        f"no registry answers here ({error})\n"
        "  building the images from Debian and Python packages instead. When they are built, images.source: packages "
        f"(with Postgres 17 instead of 18) and objectStore.kind: seaweedfs (MinIO has no package) are written into "
        f"{stack.path.name}"
    )
    begun = time.monotonic()
    # Build before writing: if the build fails or is interrupted, dev is unchanged and can use a registry later.
    _build_packages(stack.daemon, stack.settings_with(images=images, objectStore=store))
    time.sleep(max(0, RETRY_SECONDS - (time.monotonic() - begun)))
    again = stack.daemon.pull(asked)
    if again is None or not _is_registry_unreachable(again):
        progress(f"the registry answers again: {stack.path.name} is unchanged")
        return
    stack.set("images", **images)
    stack.set("objectStore", **store)
    progress(
        f"{stack.path.name} now has images.source: packages and objectStore.kind: seaweedfs, memoryMb: {memory}\n"
        "  commit it if you keep it: a stack with data cannot switch back automatically\n"
        f"  to undo it before the stack has data: make destroy STACK={stack.name} CONFIRM={stack.name} && "
        f"git checkout {stack.path.name} && make up STACK={stack.name}"
    )


def _load(daemon: Daemon, folder: Path) -> None:
    """Load every saved image from `folder`; raise `StopError` with every file that cannot be loaded."""
    archives = sorted(path for path in folder.glob("*") if path.name.endswith((".tar", ".tar.gz", ".tgz")))
    if not archives:
        raise StopError(f"mlflow:images.archive: there is no .tar, .tar.gz or .tgz file in {folder}")
    broken = []
    for path in archives:
        progress(f"loading {path}")
        if error := daemon.load(path):
            broken.append(f"  {path}: {error}")
    if broken:
        raise StopError("mlflow:images.archive: these files could not be loaded\n" + "\n".join(broken))
