"""The artifacts: copied from the object store into the staging folder, and back. All of it by rclone.

No copy is believed: each is compared with what was to be copied. Rclone itself compares the checksum of each object
that it transfers, where the store has one, and says nothing of one whose name the file system cannot hold.
"""

import hashlib
import itertools
import json
import os
import re
import stat
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from manifest import Entry
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
        """Return the file of an artifact, by its name as rclone lists it: the one under its hash, if there is one."""
        hashed = self.hashed(name)
        return hashed if hashed.is_file() else self.folder / local(name)

    def file(self, entry: Entry) -> Path:
        """Return the file of an entry of a backup's list: its path is the file's, or aside the artifact's own name."""
        return self.hashed(entry.path) if entry.aside else self.folder / entry.path

    def surveyed(self) -> Survey:
        """Compare the bucket with the mirror, by names and sizes."""
        there = listed()
        missing = sum(there[name] for name in self.different(there))
        known = {local(name) for name in there}
        gone = [self.folder / name for name in _names(self.folder) if name not in known]
        if self.aside.is_dir():
            hashes = {self.hashed(name).name for name in there}
            gone += [self.aside / name for name in _names(self.aside) if name not in hashes]
        return Survey(there, missing, gone)

    def different(self, wanted: Mapping[str, int]) -> list[str]:
        """Return which of the artifacts `wanted` are not in the mirror, or in another size."""
        any_aside = self.aside.is_dir()
        return sorted(
            name
            for name, size in wanted.items()
            if _size(self.place(name) if any_aside else f"{self.folder}/{local(name)}") != size
        )

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
        if len(left) > ASIDE_LIMIT:
            words = f"{len(left)} artifacts were not copied:{first(sorted(left))}\n  try again"
            raise failure or Failure(words)
        again = sorted(left | (odd & unchanged.keys()))
        copied = [name for name in again if self._copied_aside(name)]
        # None of several: that is no matter of names, but of the store.
        if failure and len(left) > 1 and not copied:
            raise failure
        return self.different(unchanged)

    def _copied_aside(self, name: str) -> bool:
        """Copy one artifact under the hash of its name; return whether it could be."""
        self.aside.mkdir(exist_ok=True)
        source = _remote(f"{PREFIX}/{name}")
        try:
            run("rclone", "copyto", "--use-server-modtime", *COMMON, source, str(self.hashed(name)))
        except Failure as error:
            say(f"{name} cannot be copied: {error}")
            return False
        # Rclone may have taken the file rather than the folder. One name has one place.
        self.prune([path for path in [self.folder / local(name)] if _size(path) is not None])
        return True

    def _clear_the_way(self, survey: Survey, odd: Collection[str]) -> None:
        wanted = {self.folder / local(parent) for parent in folders(survey.there)} if survey.gone else set()
        to_come = {self.folder / local(name) for name in survey.there} if survey.gone else set()
        self.prune([path for path in survey.gone if path in wanted or to_come.intersection(path.parents)])
        # Mirrored by its name when there was no folder of that name yet.
        self.prune([self.folder / local(name) for name in odd if _size(self.folder / local(name)) is not None])
        if self.aside.is_dir():
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

    def upload(self, entries: Collection[Entry], kept: str) -> None:
        """Copy everything in the mirror into the bucket, and compare what is there then, byte by byte.

        What it has to overwrite stays in the bucket, under `kept`. Raises `Failure` where something differs.
        """
        upload(self.folder, kept)
        aside = [entry for entry in entries if entry.aside]
        for entry in aside:
            target = _remote(f"{PREFIX}/{entry.path}")
            kept_aside = ("--backup-dir", _remote(kept))
            run("rclone", "copyto", "--checksum", *kept_aside, *COMMON, str(self.hashed(entry.path)), target)
            printed = run("rclone", "hashsum", "SHA256", "--download", *COMMON, target)
            if printed.split(maxsplit=1)[:1] != [entry.sha256]:
                raise Failure(f"{entry.path} differs after it was copied: the store cannot hold this name")
        if aside:
            # A store that takes one of two names may give up the other.
            there = {local(name): size for name, size in listed().items()}
            names = {local(entry.path) if entry.aside else entry.path: entry.size for entry in entries}
            if lost := sorted(name for name, size in names.items() if there.get(name) != size):
                raise Failure(f"{len(lost)} artifacts are not listed after they were copied:{first(lost)}")


def local(name: str) -> str:
    """Return the name of a file that rclone makes of an artifact's name, as it lists that.

    It lists control characters as their pictures, and puts a mark before what would be taken for one. Source: rclone,
    lib/encoder, `Standard`.
    """
    if not ENCODED.search(name):
        return name
    return ENCODED.sub(
        lambda found: found[1] or (chr(127) if found[0] == PICTURE_OF_DELETE else chr(ord(found[0]) - PICTURES)), name
    )


PICTURES, PICTURE_OF_DELETE = 0x2400, "\u2421"
ENCODED = re.compile("\u201b(.)|[\u2400-\u241f\u2421]")


def _names(folder: Path) -> Iterator[str]:
    """Yield the name of every file below a folder. Text takes a fifth of the memory of paths."""
    skipped = len(str(folder)) + 1
    for place, _, found in os.walk(folder):
        yield from (f"{place}/{name}"[skipped:] for name in found)


def _size(path: Path | str) -> int | None:
    try:
        found = os.stat(path)  # noqa: PTH116 - of a million names
    except OSError:
        # Not there, or its name is too long.
        return None
    return found.st_size if stat.S_ISREG(found.st_mode) else None


def folders(names: Iterable[str]) -> set[str]:
    """Return every folder that these names are in."""
    found: set[str] = set()
    for name in names:
        parent = name.rpartition("/")[0]
        while parent and parent not in found:
            found.add(parent)
            parent = parent.rpartition("/")[0]
    return found


def odd_names(names: Collection[str]) -> set[str]:
    """Return those that a file system cannot hold beside the others: too long, or there is a folder of this name."""
    taken = folders(names)
    return {
        name
        for name in names
        if name in taken or (len(name.encode()) > NAME_BYTES and max(map(_bytes, name.split("/"))) > NAME_BYTES)
    }


def _bytes(part: str) -> int:
    return len(part.encode())


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
