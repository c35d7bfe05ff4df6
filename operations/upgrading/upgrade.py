"""`make upgrade`: list what is newer than the pins of MLflow and of the images, and write the newer pins if told to."""

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from docker.errors import APIError
from packaging.version import Version

from operations.common.console import StopError, confirmed, flag, interactive, make, output, progress
from operations.common.stack import Stack
from operations.deployment.pin import digest, pullable
from operations.upgrading import release
from operations.upgrading.registry import RegistryError, tags
from operations.upgrading.release import PackageIndexError, Release
from operations.upgrading.versions import newer
from runtime.daemon import UNREACHABLE_ERRORS
from settings.base import NO_DIGEST
from settings.images import Image
from settings.stack import major

PACKAGES = "packages images are not looked up: newer ones come with a newer checkout of this project"
MLFLOW = "mlflow"
"""MLflow itself, which is a Python package. With a set `mlflow:images.mlflow`, it is that image."""
PYTHON = "python"
"""The base of the MLflow image. Its tag names a Python version, for which the requirements are locked."""
WHAT_RESTARTS = {
    MLFLOW: "the server restarts",
    PYTHON: "the MLflow image is built again; the server restarts",
    "postgres": "Postgres restarts, and no request succeeds meanwhile; the backup image is built again",
    "minio": "MinIO restarts, and no artifact is read or written meanwhile",
    "seaweedfs": "SeaweedFS restarts, and no artifact is read or written meanwhile",
    "minioClient": "the job that creates the bucket runs again",
    "traefik": "Traefik restarts, and no request succeeds meanwhile",
    "backup": "the backup service restarts",
}
"""What deploying a newer image does, by key of the settings. Each other image is of the monitoring."""


@dataclass(frozen=True)
class Proposal:
    """A newer version, and how to write it."""

    name: str
    now: str
    newer: str
    changes: str
    write: Callable[[], str]
    """Write the version, and return where."""


@dataclass(frozen=True)
class Looked:
    """What was found about one version."""

    proposal: Proposal | None = None
    notes: tuple[str, ...] = ()
    failed: bool = False
    """Whether its registry or the package index did not tell."""


def upgrade(stack: Stack) -> None:
    """List what is newer; write it if `YES=1` is set or a person says yes. `SERVICE=` names one of them.

    Deploys nothing. `DRY_RUN=1` only lists. Raises `StopError` if nothing could be looked up.
    """
    dry = flag("DRY_RUN")
    looks = _looks(stack)
    command = f"{make('upgrade', stack.name)} YES=1"
    if only := os.environ.get("SERVICE"):
        if only not in looks:
            raise StopError(
                f"SERVICE={only}: {stack.name} has nothing of this name to look up (it has: {', '.join(looks)})"
                + (f"\n  {PACKAGES}" if stack.settings.images.source == "packages" else "")
            )
        looks = {only: looks[only]}
        command += f" SERVICE={only}"
    progress(f"asking for newer versions of: {', '.join(looks) or 'nothing'}")
    with ThreadPoolExecutor(max(1, len(looks))) as threads:
        found = dict(zip(looks, threads.map(lambda look: look(), looks.values()), strict=True))
    proposals = [one.proposal for one in found.values() if one.proposal]
    _print(proposals)
    notes = [note for one in found.values() for note in one.notes]
    if stack.settings.images.source == "packages" and not only:
        notes.append(PACKAGES)
    for note in notes:
        progress(f"note: {note}")
    failed = [name for name, one in found.items() if one.failed]
    if failed and len(failed) == len(found):
        raise StopError(f"nothing could be looked up: {', '.join(failed)}; the reasons are above")
    if failed:
        progress(f"not looked up: {', '.join(failed)}; the reasons are above")
    if not proposals:
        output(f"no newer version was found of: {', '.join(name for name in found if name not in failed)}")
    elif dry or (not flag("YES") and not interactive()):
        progress(f"nothing was changed; to write these versions, type: {command}")
    elif not confirmed("Write these versions? Nothing is deployed."):
        progress("nothing was changed")
    else:
        _write(stack, proposals)


def _looks(stack: Stack) -> dict[str, Callable[[], Looked]]:
    """Return what asks for a newer version, by name."""
    images = pullable(stack)
    looks: dict[str, Callable[[], Looked]] = {}
    if stack.settings.images.mlflow is None:
        looks[MLFLOW] = lambda: _look_for_mlflow(users=stack.settings.route.by_mlflow)
    for key, image in images.items():
        if key == PYTHON and image.digest == NO_DIGEST:
            # Its tag stays, and without a digest the tag decides.
            continue
        looks[key] = lambda key=key, image=image: _look_for_image(stack, key, image)  # type: ignore[misc]
    return looks


def _look_for_mlflow(*, users: bool) -> Looked:
    """Ask the package index for a newer MLflow. `users`: whether the stack has MLflow's own users."""
    now = release.pinned()
    notes = []
    try:
        newest = release.release("mlflow")
        if Version(newest.version).major != Version(now).major:
            notes.append(
                f"MLflow {newest.version} is another major version, and not proposed: read its release notes, then "
                f"set it in {release.PIN}"
            )
            newest = release.release(f"mlflow<{Version(now).major + 1}")
    except PackageIndexError as error:
        return Looked(notes=(*notes, f"{MLFLOW}: the package index does not tell: {error}"), failed=True)
    if not release.is_newer(newest.version, than=now):
        return Looked(notes=tuple(notes))
    newest, unread = release.completed(newest)
    if unread:
        notes.append(
            f"the package index does not have {', '.join(unread)}, so that it is unknown whether MLflow "
            f"{newest.version} accepts every package of the image; if not, make up fails, and changes nothing"
        )
    installed = release.locked()
    if problems := release.conflicts(newest, installed):
        listed = "\n".join(f"    {problem}" for problem in problems)
        notes.append(
            f"MLflow {newest.version} is newer, and does not accept packages of the MLflow image:\n{listed}\n"
            f"    set it in {release.PIN}, change the bounds in mlflow/requirements.in, then type: make lock"
        )
        return Looked(notes=tuple(notes))
    try:
        current = release.completed(release.release(f"mlflow=={now}"))[0]
    except PackageIndexError as error:
        notes.append(f"MLflow {now} cannot be compared with {newest.version}: {error}")
        return Looked(Proposal(MLFLOW, now, newest.version, UNKNOWN, lambda: _pin(newest)), tuple(notes))
    if missing := release.new_requirements(current, newest, installed):
        notes.append(
            f"MLflow {newest.version} has new requirements: {', '.join(missing)}. If the build of the image fails, add "
            "them to mlflow/requirements.in, then type: make lock"
        )
    changes = _migrations(current, newest, users=users)
    return Looked(Proposal(MLFLOW, now, newest.version, changes, lambda: _pin(newest)), tuple(notes))


UNKNOWN = "the MLflow image is built again; the database may be migrated, which cannot be undone"


def _migrations(current: Release, newest: Release, *, users: bool) -> str:
    """Return what a release does to the database, in words."""
    added = len(newest.migrations - current.migrations)
    added += len(newest.user_migrations - current.user_migrations) if users else 0
    if not added:
        return "the MLflow image is built again, the server restarts; the database schema stays"
    return (
        f"the MLflow image is built again; {added} migration{'s' * (added > 1)} of the database, during which the "
        "server is stopped, and which cannot be undone"
    )


def _pin(newest: Release) -> str:
    release.pin(newest)
    return f"{release.PIN} and {release.LOCK}, for every stack of this checkout"


def _look_for_image(stack: Stack, key: str, image: Image) -> Looked:
    """Ask a registry for newer tags of an image, or for a newer image of the same tag if it has a digest."""
    repository, _, tag = image.ref.rpartition(":")
    ref = image.ref
    try:
        known = newer(tag, tags(repository))
        # A tag of Python names the version that the requirements are locked for: only its digest is renewed.
        newest = tag if key == PYTHON else known.same_major or tag
        ref = f"{repository}:{newest}"
        found = NO_DIGEST if image.digest == NO_DIGEST else digest(stack, ref)
    except RegistryError as error:
        return Looked(notes=(f"{key}: {error}",), failed=True)
    except APIError as error:
        return Looked(notes=(f"{key}: Docker did not get the digest of {ref}: {error.explanation}",), failed=True)
    except UNREACHABLE_ERRORS as error:
        return Looked(notes=(f"{key}: Docker did not get the digest of {ref}: {error}",), failed=True)
    notes = [_major_note(stack, key, repository, known.next_major)] if known.next_major and key != PYTHON else []
    if newest == tag and found == image.digest:
        return Looked(notes=tuple(notes))
    new = {"ref": ref}
    typed = (stack.values.get("mlflow:images") or {}).get(key) or {}
    if found != NO_DIGEST or "digest" in typed:
        new["digest"] = found

    def write() -> str:
        stack.set("images", **{key: new})
        return f"mlflow:images.{key} in {stack.path.name}"

    changes = WHAT_RESTARTS.get(key, "only the monitoring restarts")
    shown = newest if newest != tag else f"{tag} ({found[:19]})"
    return Looked(Proposal(key, tag, shown, changes, write), tuple(notes))


def _major_note(stack: Stack, key: str, repository: str, tag: str) -> str:
    """Return what to do about a newer major version."""
    if key == "postgres":
        return (
            f"Postgres {tag} is another major version; to move the database to it, type: "
            f"{make('upgrade-postgres', stack.name)} TO={major(f'{repository}:{tag}')}"
        )
    return (
        f"{repository}:{tag} is another major version, and not proposed: read its release notes, then set "
        f"mlflow:images.{key}.ref"
    )


def _print(proposals: Iterable[Proposal]) -> None:
    """Print the proposals, in columns."""
    rows = [("what", "now", "newer", "what it changes")]
    rows += [(one.name, one.now, one.newer, one.changes) for one in proposals]
    if not rows[1:]:
        return
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    for row in rows:
        output("  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[3]]))


def _write(stack: Stack, proposals: Iterable[Proposal]) -> None:
    """Write the versions, and say what to type next."""
    for one in proposals:
        output(f"{one.name} {one.newer}: written to {one.write()}")
    output(
        f"nothing was deployed; to see the plan, type: {make('preview', stack.name)}\n"
        f"  to deploy, type: {make('up', stack.name)}"
    )
