"""The artifacts: copies them from the object store into the staging folder, and back, with rclone.

Every copy is compared with its source. Rclone compares the checksum of each object that it transfers, if the store has
one, but it does not report an object whose name the file system cannot hold.
"""

import hashlib
import http.client
import itertools
import json
import os
import re
import select
import stat
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from manifest import Entry
from shell import Failure, first, make, run, say, show, trusted_authority

PREFIX = "artifacts"
"""Prefix of MLflow's artifacts in the bucket."""
COMMON = (
    *("--fast-list", "--transfers=4", "--checkers=8", "--buffer-size=4M", "--retries=3"),
    # Two names that differ only in their Unicode normalization are two artifacts.
    "--no-unicode-normalization",
)
PROGRESS = ("--stats=10s", "--stats-one-line", "--stats-log-level=NOTICE")
ANSWER_SECONDS = 60
"""How long a backup or a restore waits for an object store that does not answer, because it restarts for example."""
SEARCH_SECONDS = 10
"""How long `make status` and `make up` wait for the first artifact of a list."""
NO_FOLDER = 3
"""Exit code of rclone if a bucket or folder does not exist: nothing was ever stored in it."""
NAME_BYTES = 255
"""Maximum length of a file name on Linux."""
ASIDE_LIMIT = 1000
"""Maximum number of objects to copy one by one. With more, the cause is not their names, but the store."""


def _remote(path: str = PREFIX) -> str:
    return f"store:{os.environ['BUCKET']}/{path}"


def require_answer() -> None:
    """Wait until the object store answers; raise `Failure` if it does not within about `ANSWER_SECONDS`.

    Without this, rclone repeats its requests to a store that is down for more than ten minutes, and prints nothing.
    """
    endpoint, deadline = os.environ["RCLONE_CONFIG_STORE_ENDPOINT"], time.monotonic() + ANSWER_SECONDS
    told = False
    while True:
        try:
            with urllib.request.urlopen(endpoint, timeout=5, context=trusted_authority()):  # noqa: S310 - of the stack
                return
        except urllib.error.HTTPError:
            # It refuses a request without credentials, so it answers.
            return
        except (OSError, http.client.HTTPException) as error:
            words = f"the object store ({endpoint}) does not answer: {getattr(error, 'reason', error)}"
        if time.monotonic() > deadline:
            raise Failure(f"{words}\n  type: {make('status')}")
        if not told:
            say(f"waiting: {words}")
            told = True
        time.sleep(1)


def size() -> tuple[int, int]:
    """Return the number of artifacts in the bucket and their total size in bytes."""
    found = json.loads(run("rclone", "size", "--json", *COMMON, _remote()))
    return found["count"], found["bytes"]


def is_empty() -> bool:
    """Return whether the bucket has no artifact. Return False, too, if that is unknown after `SEARCH_SECONDS`.

    The first artifact ends the search. Folders do not count: SeaweedFS lists a folder even after its objects are gone.
    """
    command = ["rclone", "lsf", "--recursive", "--files-only", "--retries=1", "--low-level-retries=1", _remote()]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as running:
        assert running.stdout  # noqa: S101 - it is a pipe
        answered, _, _ = select.select([running.stdout], [], [], SEARCH_SECONDS)
        found = answered and running.stdout.read(1)
        if found or not answered:
            running.kill()
    return bool(answered) and not found and running.returncode in (0, NO_FOLDER)


def listed() -> dict[str, int]:
    """Return the sizes in bytes of all artifacts in the bucket, by name below the prefix."""
    printed = run(
        "rclone", "lsjson", "--recursive", "--files-only", "--no-modtime", "--no-mimetype", *COMMON, _remote()
    )
    return {found["Path"]: found["Size"] for found in json.loads(printed)}


@dataclass(frozen=True)
class Survey:
    """The differences between the bucket and its mirror, before the copy."""

    there: Mapping[str, int]
    """Sizes in bytes of the artifacts in the bucket, by name."""
    missing_bytes: int
    """Total size of the artifacts that the mirror does not have, or has with another size."""
    gone: Sequence[Path]
    """Files in the mirror of artifacts that are no longer in the bucket."""


class Mirror:
    """A copy of the bucket in two folders: by name or, if a file system cannot hold the name, by its hash."""

    def __init__(self, folder: Path, aside: Path) -> None:
        """Use these folders. `aside` exists only if it has files."""
        self.folder = folder
        self.aside = aside

    def hashed(self, name: str) -> Path:
        """Return the path in `aside` of an artifact whose name a file system cannot hold."""
        return self.aside / hashlib.sha256(name.encode()).hexdigest()

    def place(self, name: str) -> Path:
        """Return the file of an artifact, by its name as rclone lists it: the file named by its hash, if it exists."""
        hashed = self.hashed(name)
        return hashed if hashed.is_file() else self.folder / local(name)

    def file(self, entry: Entry) -> Path:
        """Return the file of an entry. Its path is the file's path or, for an entry aside, the artifact's name."""
        return self.hashed(entry.path) if entry.aside else self.folder / entry.path

    def surveyed(self) -> Survey:
        """Compare the bucket with the mirror, by name and size."""
        there = listed()
        missing = sum(there[name] for name in self.different(there))
        known = {local(name) for name in there}
        gone = [self.folder / name for name in _names(self.folder) if name not in known]
        if self.aside.is_dir():
            hashes = {self.hashed(name).name for name in there}
            gone += [self.aside / name for name in _names(self.aside) if name not in hashes]
        return Survey(there, missing, gone)

    def different(self, wanted: Mapping[str, int]) -> list[str]:
        """Return the names in `wanted` that are not in the mirror, or have another size there."""
        any_aside = self.aside.is_dir()
        return sorted(
            name
            for name, size in wanted.items()
            if _size(self.place(name) if any_aside else f"{self.folder}/{local(name)}") != size
        )

    def fill(self, survey: Survey) -> list[str]:
        """Copy every artifact that the mirror does not have yet, or has in another version.

        Return the names of those that cannot be copied, without those that appeared or vanished since the survey.
        Deletes only a file whose artifact is gone from the bucket and whose name a folder has now. Raises `Failure`.
        """
        odd = odd_names(survey.there)
        self._clear_the_way(survey, odd)
        failure = None
        try:
            # Use the change time that the store lists. The time that a client may have stored as metadata would need
            # one request per object.
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
        # If none of several can be copied, the cause is not their names, but the store.
        if failure and len(left) > 1 and not copied:
            raise failure
        return self.different(unchanged)

    def _copied_aside(self, name: str) -> bool:
        """Copy one artifact to a file named by the hash of its name; return whether that succeeded."""
        self.aside.mkdir(exist_ok=True)
        source = _remote(f"{PREFIX}/{name}")
        try:
            run("rclone", "copyto", "--use-server-modtime", *COMMON, source, str(self.hashed(name)))
        except Failure as error:
            say(f"{name} cannot be copied: {error}")
            return False
        # Rclone may have copied the file instead of the folder. Keep one file for one name.
        self.prune([path for path in [self.folder / local(name)] if _size(path) is not None])
        return True

    def _clear_the_way(self, survey: Survey, odd: Collection[str]) -> None:
        wanted = {self.folder / local(parent) for parent in folders(survey.there)} if survey.gone else set()
        to_come = {self.folder / local(name) for name in survey.there} if survey.gone else set()
        self.prune([path for path in survey.gone if path in wanted or to_come.intersection(path.parents)])
        # It was mirrored by its name when there was no folder of that name yet.
        self.prune([self.folder / local(name) for name in odd if _size(self.folder / local(name)) is not None])
        if self.aside.is_dir():
            # If a file system can hold the name again, the artifact is mirrored by its name.
            self.prune([self.hashed(name) for name in survey.there if name not in odd and self.hashed(name).is_file()])

    def prune(self, gone: Sequence[Path]) -> None:
        """Delete the files in `gone` from the mirror. Call it only after the snapshot."""
        for path in gone:
            path.unlink(missing_ok=True)
            # A new artifact may have the name of a former folder.
            for parent in itertools.takewhile(lambda parent: parent not in (self.folder, self.aside), path.parents):
                if not parent.is_dir() or any(parent.iterdir()):
                    break
                parent.rmdir()

    def upload(self, entries: Collection[Entry], kept: str) -> None:
        """Copy the mirror into the bucket, then compare the bucket byte by byte.

        Overwritten artifacts stay in the bucket, under the prefix `kept`. Raises `Failure` if an artifact differs.
        """
        upload(self.folder, kept)
        aside = [entry for entry in entries if entry.aside]
        for entry in aside:
            target = _remote(f"{PREFIX}/{entry.path}")
            kept_aside = ("--backup-dir", _remote(kept))
            run("rclone", "copyto", "--checksum", *kept_aside, *COMMON, str(self.hashed(entry.path)), target)
            printed = run("rclone", "hashsum", "SHA256", "--download", *COMMON, target)
            if printed.split(maxsplit=1)[:1] != [entry.sha256]:
                raise Failure(
                    f"{entry.path} differs after the copy: the object store cannot hold this name\n"
                    "  see docs/artifact-names.md"
                )
        if aside:
            # A store that accepts one of two conflicting names may drop the other.
            there = {local(name): size for name, size in listed().items()}
            names = {local(entry.path) if entry.aside else entry.path: entry.size for entry in entries}
            if lost := sorted(name for name, size in names.items() if there.get(name) != size):
                raise Failure(
                    f"{len(lost)} artifacts are not in the object store after the copy:{first(lost)}\n"
                    "  two names may be in conflict: docs/artifact-names.md"
                )


def local(name: str) -> str:
    """Return the file name that rclone uses for an artifact, from the name that rclone lists.

    Rclone lists control characters as Unicode control pictures, and puts a quote character before a real control
    picture. Source: rclone, lib/encoder, `Standard`.
    """
    if not ENCODED.search(name):
        return name
    return ENCODED.sub(
        lambda found: found[1] or (chr(127) if found[0] == PICTURE_OF_DELETE else chr(ord(found[0]) - PICTURES)), name
    )


PICTURES, PICTURE_OF_DELETE = 0x2400, "\u2421"
ENCODED = re.compile("\u201b(.)|[\u2400-\u241f\u2421]")


def _names(folder: Path) -> Iterator[str]:
    """Yield the name of every file below a folder. As text, because paths need five times the memory."""
    skipped = len(str(folder)) + 1
    for place, _, found in os.walk(folder):
        yield from (f"{place}/{name}"[skipped:] for name in found)


def _size(path: Path | str) -> int | None:
    try:
        found = os.stat(path)  # noqa: PTH116 - of a million names
    except OSError:
        # It does not exist, or its name is too long.
        return None
    return found.st_size if stat.S_ISREG(found.st_mode) else None


def folders(names: Iterable[str]) -> set[str]:
    """Return every folder that contains one of these names."""
    found: set[str] = set()
    for name in names:
        parent = name.rpartition("/")[0]
        while parent and parent not in found:
            found.add(parent)
            parent = parent.rpartition("/")[0]
    return found


def odd_names(names: Collection[str]) -> set[str]:
    """Return the names that a file system cannot hold: too long, or also the name of a folder."""
    taken = folders(names)
    return {
        name
        for name in names
        if name in taken or (len(name.encode()) > NAME_BYTES and max(map(_bytes, name.split("/"))) > NAME_BYTES)
    }


def _bytes(part: str) -> int:
    return len(part.encode())


def upload(folder: Path, kept: str) -> None:
    """Copy `folder` into the bucket, then compare the bucket byte by byte.

    Overwritten artifacts stay in the bucket, under the prefix `kept`. Raises `Failure` if an artifact differs.
    """
    aside = ("--backup-dir", _remote(kept))
    show("rclone", "copy", "--checksum", *aside, *COMMON, *PROGRESS, str(folder), _remote())
    say("comparing the bucket with the backup, byte by byte")
    differing = folder.parent / "differing"
    # An object that was uploaded in parts has no checksum: rclone skipped it if its size was the same.
    if _differing(folder, differing):
        show(
            "rclone", "copy", "--ignore-times", f"--files-from-raw={differing}", *aside, *COMMON, str(folder), _remote()
        )
        if left := _differing(folder, differing):
            raise Failure(f"{len(left)} artifacts differ after the copy:{first(left)}\n  try again")
    differing.unlink()


def _differing(folder: Path, report: Path) -> list[str]:
    """Return the paths of files that differ or are missing in the bucket; also write them to `report`."""
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
