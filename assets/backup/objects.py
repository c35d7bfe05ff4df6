"""The artifacts: copied from the object store into the staging folder, and back. All of it by rclone.

No copy is believed: each is compared with what was to be copied. Rclone itself compares the checksum of each object
that it transfers, where the store has one, and says nothing of one whose name the file system cannot hold.
"""

import hashlib
import itertools
import json
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from manifest import Entry, files
from shell import Failure, first, run, say, show

PREFIX = "artifacts"
"""Where MLflow's artifacts are in the bucket."""
COMMON = (
    *("--fast-list", "--transfers=4", "--checkers=8", "--buffer-size=4M", "--retries=3"),
    # Two names that differ in their Unicode form alone are two artifacts.
    "--no-unicode-normalization",
)
PROGRESS = ("--stats=10s", "--stats-one-line", "--stats-log-level=NOTICE")
NAME_BYTES = 255
"""Longest name of a file on Linux."""
ASIDE_LIMIT = 1000
"""Objects that are copied one by one. More are no odd names, but a store that does not answer."""


def _remote(path: str = PREFIX) -> str:
    return f"store:{os.environ['BUCKET']}/{path}"


def size() -> tuple[int, int]:
    """Return the number of artifacts and their bytes."""
    found = json.loads(run("rclone", "size", "--json", *COMMON, _remote()))
    return found["count"], found["bytes"]


def listed() -> dict[str, int]:
    """Return every artifact in the bucket: its name below the prefix, and its size in bytes."""
    printed = run(
        "rclone", "lsjson", "--recursive", "--files-only", "--no-modtime", "--no-mimetype", *COMMON, _remote()
    )
    return {found["Path"]: found["Size"] for found in json.loads(printed)}


@dataclass(frozen=True)
class Survey:
    """The bucket beside its mirror, before anything is copied."""

    there: Mapping[str, int]
    """Of the artifacts in the bucket, their sizes in bytes."""
    missing_bytes: int
    """Of those that the mirror does not have, or has in another size."""
    gone: Sequence[Path]
    """What the mirror has of those that are in the bucket no more."""


class Mirror:
    """A copy of the bucket in two folders: by name and, where a file system cannot hold the name, by its hash."""

    def __init__(self, folder: Path, aside: Path) -> None:
        """Keep it there. `aside` exists only where something is in it."""
        self.folder = folder
        self.aside = aside

    def hashed(self, name: str) -> Path:
        """Return the file of an artifact whose name a file system cannot hold."""
        return self.aside / hashlib.sha256(name.encode()).hexdigest()

    def place(self, name: str) -> Path:
        """Return the file of an artifact: the one under its hash, if there is one."""
        hashed = self.hashed(name)
        return hashed if hashed.is_file() else self.folder / name

    def surveyed(self) -> Survey:
        """Compare the bucket with the mirror, by names and sizes."""
        there = listed()
        known = {self.place(name) for name in there}
        missing = sum(there[name] for name in self.different(there))
        return Survey(there, missing, [path for path in self._files() if path not in known])

    def different(self, wanted: Mapping[str, int]) -> list[str]:
        """Return which of the artifacts `wanted` are not in the mirror, or in another size."""
        return sorted(name for name, size in wanted.items() if _size(self.place(name)) != size)

    def fill(self, survey: Survey) -> list[str]:
        """Copy every artifact that the mirror does not have yet, or has in another version.

        Return the names of those that cannot be copied. What came or went since the survey is not among them. Deletes
        nothing but what is in the way: a file that was deleted from the bucket, where a folder has its name now.
        """
        odd = odd_names(survey.there)
        self._clear_the_way(survey, odd)
        failure = None
        try:
            # The time of the last change is the store's own. Asking for the one that a client may have kept beside the
            # object would be a request for each of them.
            show("rclone", "copy", "--use-server-modtime", *COMMON, *PROGRESS, _remote(), str(self.folder))
        except Failure as error:
            failure = error
        now = listed()
        unchanged = {name: size for name, size in survey.there.items() if now.get(name) == size}
        left = set(self.different(unchanged))
        if failure and (not odd or left - odd):
            raise failure
        if len(left) > ASIDE_LIMIT:
            raise Failure(f"{len(left)} artifacts were not copied:{first(sorted(left))}\n  try again")
        for name in sorted(left | (odd & unchanged.keys())):
            self.aside.mkdir(exist_ok=True)
            source = _remote(f"{PREFIX}/{name}")
            try:
                run("rclone", "copyto", "--use-server-modtime", *COMMON, source, str(self.hashed(name)))
                # Rclone may have taken the file rather than the folder. One name has one place.
                self.prune([path for path in [self.folder / name] if _size(path) is not None])
            except Failure as error:
                say(f"{name} cannot be copied: {error}")
        return self.different(unchanged)

    def _clear_the_way(self, survey: Survey, odd: Collection[str]) -> None:
        parents = folders(survey.there)
        wanted = {self.folder / parent for parent in parents}
        to_come = {self.folder / name for name in survey.there}
        self.prune([path for path in survey.gone if path in wanted or to_come.intersection(path.parents)])
        # Mirrored by its name when there was no folder of that name yet.
        self.prune([self.folder / name for name in odd if _size(self.folder / name) is not None])
        # One that a file system holds again is found by its name.
        self.prune([self.hashed(name) for name in survey.there if name not in odd and self.hashed(name).is_file()])

    def prune(self, gone: Sequence[Path]) -> None:
        """Delete what is `gone` from the mirror. Call it when a snapshot has it."""
        for path in gone:
            path.unlink(missing_ok=True)
            # An artifact may have the name of a folder that there was.
            for parent in itertools.takewhile(lambda parent: parent not in (self.folder, self.aside), path.parents):
                if not parent.is_dir() or any(parent.iterdir()):
                    break
                parent.rmdir()

    def upload(self, entries: Iterable[Entry], kept: str) -> None:
        """Copy everything in the mirror into the bucket, and compare what is there then, byte by byte.

        What it has to overwrite stays in the bucket, under `kept`. Raises `Failure` where something differs.
        """
        upload(self.folder, kept)
        for entry in entries:
            if not entry.aside:
                continue
            target = _remote(f"{PREFIX}/{entry.path}")
            run("rclone", "copyto", "--checksum", *COMMON, str(self.hashed(entry.path)), target)
            printed = run("rclone", "hashsum", "SHA256", "--download", *COMMON, target)
            if printed.split(maxsplit=1)[:1] != [entry.sha256]:
                raise Failure(f"{entry.path} differs after it was copied: the store cannot hold this name")

    def _files(self) -> Iterator[Path]:
        yield from files(self.folder)
        yield from files(self.aside)


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size if path.is_file() else None
    except OSError:
        # Its name is too long.
        return None


def folders(names: Iterable[str]) -> set[str]:
    """Return every folder that these names are in."""
    return {str(parent) for name in names for parent in PurePosixPath(name).parents}


def odd_names(names: Collection[str]) -> set[str]:
    """Return those that a file system cannot hold beside the others: too long, or there is a folder of this name."""
    taken = folders(names)
    return {name for name in names if name in taken or any(len(part.encode()) > NAME_BYTES for part in name.split("/"))}


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
            raise Failure(f"{len(left)} artifacts differ after they were copied:{first(left)}\n  try again")
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
