"""The artifacts: copied from the object store into the staging folder, and back. All of it by rclone."""

import itertools
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from manifest import files
from shell import Failure, run, say, show

PREFIX = "artifacts"
"""Where MLflow's artifacts are in the bucket."""
COMMON = ("--fast-list", "--transfers=4", "--checkers=8", "--buffer-size=4M", "--retries=3")
PROGRESS = ("--stats=10s", "--stats-one-line", "--stats-log-level=NOTICE")


def _remote(path: str = PREFIX) -> str:
    return f"store:{os.environ['BUCKET']}/{path}"


def size() -> tuple[int, int]:
    """Return the number of artifacts and their bytes."""
    found = json.loads(run("rclone", "size", "--json", *COMMON, _remote()))
    return found["count"], found["bytes"]


@dataclass(frozen=True)
class Survey:
    """The bucket beside its mirror, before anything is copied."""

    count: int
    """Of the artifacts in the bucket."""
    missing_bytes: int
    """Of those that the mirror does not have, or has in another size."""
    gone: Sequence[Path]
    """What the mirror has of those that are in the bucket no more."""


def surveyed(folder: Path) -> Survey:
    """Compare the bucket with its mirror in `folder`, by names and sizes."""
    listed = run("rclone", "lsf", "--recursive", "--files-only", "--format=sp", "--separator=/", *COMMON, _remote())
    mirrored = {path: path.stat().st_size for path in files(folder)}
    count = missing = 0
    # At these only: a name may hold what Python takes for the end of a line.
    for line in filter(None, listed.split("\n")):
        size_text, _, path = line.partition("/")
        count += 1
        if mirrored.pop(folder / path, None) != int(size_text):
            missing += int(size_text)
    return Survey(count, missing, list(mirrored))


def mirror(folder: Path) -> None:
    """Copy every artifact that `folder` does not have yet, or has in another version. Deletes nothing."""
    # The time of the last change is the store's own. Asking for the one that a client may have kept beside the object
    # would be a request for each of them.
    show("rclone", "copy", "--use-server-modtime", *COMMON, *PROGRESS, _remote(), str(folder))


def prune(folder: Path, gone: Sequence[Path]) -> None:
    """Delete what is `gone` from the mirror in `folder`. Call it when a snapshot has it."""
    for path in gone:
        path.unlink(missing_ok=True)
        # An artifact may have the name of a folder that there was.
        for parent in itertools.takewhile(lambda parent: parent != folder, path.parents):
            if any(parent.iterdir()):
                break
            parent.rmdir()


def upload(folder: Path, kept: str) -> None:
    """Copy everything in `folder` into the bucket, and compare what is there then, byte by byte.

    What it has to overwrite stays in the bucket, under `kept`.
    """
    aside = ("--backup-dir", _remote(kept))
    show("rclone", "copy", "--checksum", *aside, *COMMON, *PROGRESS, str(folder), _remote())
    say("comparing what is in the bucket with the backup, byte by byte")
    differing = folder.parent / "differing"
    # An object that was uploaded in parts has no checksum, so one of the same size was taken for the same.
    if _differing(folder, differing):
        show(
            "rclone", "copy", "--ignore-times", f"--files-from-raw={differing}", *aside, *COMMON, str(folder), _remote()
        )
        if left := _differing(folder, differing):
            raise Failure(
                f"{len(left)} artifacts differ after they were copied, the first of them {left[0]}; try again"
            )
    differing.unlink()


def _differing(folder: Path, report: Path) -> list[str]:
    """Return the paths of what is in the bucket in another version, or not at all; they are in `report`, too."""
    missing = report.with_suffix(".missing")
    for path in (report, missing):
        path.write_text("")
    try:
        show(
            *("rclone", "check", "--download", "--one-way", f"--differ={report}", f"--missing-on-dst={missing}"),
            *(*COMMON, *PROGRESS, str(folder), _remote()),
        )
    except Failure:
        with report.open("a") as file:
            file.write(missing.read_text())
        if not report.read_text():
            raise
    missing.unlink()
    return list(filter(None, report.read_text().split("\n")))
