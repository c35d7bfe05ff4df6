"""The artifacts: copies them from the old place to the stack's object store with rclone, and compares every checksum.

Rclone's remote `old` is the old object store; a folder of the Docker host is below `FOLDERS`. The stack's own remote is
`store`, as in a backup.
"""

import hashlib
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from objects import COMMON, PREFIX, PROGRESS
from shell import Failure, amount, first, run, say, show
from source import FILES, WORK

BEFORE = "before_import"
"""Folder of the bucket, with the time of the import, for artifacts that it has overwritten."""
FOLDERS = Path("/source")
"""Where the folders of the Docker host are."""
SAMPLE = WORK / "sample"
FULL_BYTES = 256 << 20
"""With less free space, Postgres will soon stop."""
SAMPLE_FILES, SAMPLE_BYTES, SMALL_BYTES = 200, 32 << 20, 1 << 20
"""What the dry run reads at most of each place: for its estimate, and to see whether the key may read."""
SAMPLED = 3
"""How many places the dry run reads from."""
QUICK = ("--retries=1", "--low-level-retries=2", "--contimeout=10s")
"""For the first questions: an address with a typing error must not be tried for minutes."""
TRANSFERS = ("--transfers=16", "--checkers=16")
"""More than a backup has, because the server of the stack has nothing to do."""


@dataclass(frozen=True)
class Move:
    """A folder of artifacts: where it is, where it goes, and which files of it belong to it."""

    source: str
    """Bucket and folder in the old object store, or an absolute path of the Docker host."""
    target: str
    """Folder below the stack's artifacts; empty for the top."""
    filters: Sequence[str]
    """Rclone's filter rules."""

    @property
    def old(self) -> str:
        """The place as rclone names it."""
        return f"{FOLDERS}{self.source}" if self.source.startswith("/") else f"old:{self.source}"

    @property
    def new(self) -> str:
        """The place in the stack's object store as rclone names it."""
        return "/".join(part for part in (f"store:{os.environ['BUCKET']}", PREFIX, self.target) if part)

    @property
    def rules(self) -> list[str]:
        """Rclone's options for the files that belong to it."""
        return [*self.links, *(f"--filter={rule}" for rule in self.filters)]

    @property
    def aside(self) -> str:
        """Rclone's option for what the stack has under the same name, such as an artifact that was changed there."""
        return f"--backup-dir=store:{os.environ['BUCKET']}/{BEFORE}_{os.environ['STARTED']}/{self.target}".rstrip("/")

    @property
    def links(self) -> list[str]:
        """Rclone's option for a folder: a symbolic link stands for what it points to."""
        return ["--copy-links"] if self.source.startswith("/") else []


def moves() -> list[Move]:
    """Return the moves that `make import` has planned."""
    return [Move(**move) for move in json.loads((FILES / "moves.json").read_text())]


def old_options() -> tuple[str, ...]:
    """Return rclone's options for the old object store: whether its certificate is verified."""
    return ("--no-check-certificate",) if os.environ.get("OLD_INSECURE") else ()


@dataclass(frozen=True)
class File:
    """An artifact: its size in bytes, and its MD5 if the store knows it."""

    size: int
    md5: str | None


def listed(place: str, rules: Iterable[str] = (), *, hashes: bool = True) -> dict[str, File]:
    """Return every file below `place`, by its name. A place that does not exist has none. Raises `Failure`."""
    options = ("--hash", "--hash-type=md5") if hashes else ()
    command = ("rclone", "lsjson", "--recursive", "--files-only", "--no-modtime", "--no-mimetype", *options)
    try:
        printed = run(*command, *COMMON, *TRANSFERS, *(() if hashes else QUICK), *old_options(), *rules, place)
    except Failure as error:
        if "directory not found" in str(error) and not _bucket_is_missing(place):
            return {}
        raise
    return {
        found["Path"]: File(found["Size"], (found.get("Hashes") or {}).get("md5") or None)
        for found in json.loads(printed)
    }


def _bucket_is_missing(place: str) -> bool:
    """Return whether the old bucket or folder itself does not exist: then nothing can be read."""
    if place.startswith("/"):
        # A file store has no trash if nothing was deleted.
        return not Path(place).is_dir() and not place.endswith("/.trash")
    if not place.startswith("old:"):
        return False
    bucket = place.partition("/")[0]
    done = subprocess.run(
        ["rclone", "lsf", "--max-depth=1", *QUICK, *old_options(), bucket], capture_output=True, check=False
    )
    return bool(done.returncode)


def survey() -> list[dict[str, float]]:
    """Return for each move how many files and bytes it has, and how many of them the stack lacks. Raises `Failure`.

    It reads some files, so that a key that may list and not read is found before the copy.
    """
    found: list[dict[str, float]] = []
    problems = []
    for move in moves():
        try:
            there = listed(move.old, move.rules, hashes=False)
            here = listed(move.new, hashes=False)
        except Failure as error:
            problems.append(f"{move.source}: {error}")
            continue
        missing = [name for name, file in there.items() if here.get(name, File(-1, None)).size != file.size]
        found.append(
            {
                "files": len(there),
                "bytes": sum(file.size for file in there.values()),
                "missing": len(missing),
                "missing_bytes": sum(there[name].size for name in missing),
            }
        )
        if there and len(found) <= SAMPLED:
            try:
                found[-1] |= _sampled(move, there)
            except Failure as error:
                problems.append(f"{move.source}: its files can be listed, but not read\n{error}")
    if problems:
        raise Failure("\n  ".join(problems))
    return found


def _sampled(move: Move, there: Mapping[str, File]) -> dict[str, float]:
    """Read some small files, and the beginning of the largest one; return how long each took. Raises `Failure`.

    A small file costs a request, a large one its bytes.
    """
    small = [name for name, file in there.items() if file.size <= SMALL_BYTES]
    names = sorted(small, key=lambda name: hashlib.md5(name.encode(), usedforsecurity=False).hexdigest())
    chosen = names[:SAMPLE_FILES]
    found: dict[str, float] = {"sample_files": len(chosen), "sample_bytes": 0}
    if chosen:
        listing = WORK / "sample.names"
        listing.write_text("".join(f"{name}\n" for name in chosen))
        command = ("copy", "--no-traverse", f"--files-from-raw={listing}", move.old, str(SAMPLE))
        found["sample_seconds"] = _timed(move, *command)
        run("rm", "-rf", str(SAMPLE))
    largest = max(there, key=lambda name: there[name].size)
    if (size := min(there[largest].size, SAMPLE_BYTES)) > SMALL_BYTES:
        seconds = _timed(move, "cat", f"--count={size}", f"{move.old}/{largest}")
        found |= {"sample_bytes": size, "sample_byte_seconds": seconds}
    return found


def _timed(move: Move, *command: str) -> float:
    """Run a command of rclone that reads old files, and return how many seconds it took. Raises `Failure`."""
    started = time.monotonic()
    done = subprocess.run(
        ["rclone", *command, *COMMON, *TRANSFERS, *QUICK, *move.links, *old_options()],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode:
        raise Failure(f"    {first(done.stderr.strip().splitlines()[-3:])}")
    return time.monotonic() - started


def copy(*, again: bool = False) -> None:
    """Copy every file that the stack does not have with the same checksum. Raises `Failure`.

    `again`: quietly, what came during the first copy.
    """
    for move in moves():
        command = ("rclone", "copy", "--checksum", *COMMON, *TRANSFERS, *PROGRESS, *old_options(), move.aside)
        command = (*command, *move.rules, move.old, move.new)
        if again:
            run(*command)
        else:
            say(f"copying the artifacts of {move.source}")
            show(*command, check=require_space)


def require_space() -> None:
    """Raise `Failure` if the disk of the Docker host is almost full: rclone would try again for hours."""
    if (free := shutil.disk_usage(WORK).free) < FULL_BYTES:
        raise Failure(
            f"the disk of the Docker host is full ({amount(free)} are free), and the copy was stopped. The stack has "
            "its previous data\n  free space: docs/operations/capacity.md#disk-full, then type the same command again"
        )


def late() -> int:
    """Return how many files came, or were changed, after the copy. The next import copies them."""
    known: set[str] = set(json.loads((WORK / "artifacts.json").read_text()))
    return sum(
        _id(move, name, file) not in known for move in moves() for name, file in listed(move.old, move.rules).items()
    )


def compare() -> dict[str, int]:
    """Compare every file by its checksum. Return how many there are, and their bytes.

    A file that did not exist when the copy began, or was changed since, is left to the next import. Raises `Failure` if
    any other file differs.
    """
    known: set[str] = set(json.loads((WORK / "artifacts.json").read_text()))
    total = size = 0
    for move in moves():
        there, here = listed(move.old, move.rules), listed(move.new)
        wrong = [name for name, file in there.items() if not _equal(file, here.get(name))]
        unsure = [name for name in wrong if name in here and here[name].size == there[name].size]
        if unsure:
            say(f"reading {len(unsure)} artifacts again: a store has no MD5 of them")
            theirs, ours = _digests(move.old, unsure), _digests(move.new, unsure)
            wrong = [name for name in wrong if name not in ours or ours[name] != theirs.get(name)]
        missed = [name for name in wrong if _id(move, name, there[name]) not in known]
        if wrong:
            # Rclone does not copy a file again that has the same size, and no MD5.
            again = WORK / "again.names"
            again.write_text("".join(f"{name}\n" for name in wrong))
            show(
                *("rclone", "copy", "--ignore-times", "--no-traverse", *COMMON, *TRANSFERS, *old_options()),
                *(move.aside, f"--files-from-raw={again}", *move.links, move.old, move.new),
            )
            theirs, ours = _digests(move.old, wrong), _digests(move.new, wrong)
            wrong = [name for name in wrong if name not in ours or ours[name] != theirs.get(name)]
        if lost := [name for name in wrong if name not in set(missed)]:
            raise Failure(f"{len(lost)} artifacts of {move.source} are not in the object store:{first(lost)}")
        total += len(there) - len(missed)
        size += sum(file.size for name, file in there.items() if name not in set(missed))
    say(f"{total} artifacts, {amount(size)}: every checksum is equal")
    return {"artifacts": total, "artifact_bytes": size}


def remember() -> None:
    """Note which files there are: every one of them must be in the stack after the copy that follows."""
    known = [_id(move, name, file) for move in moves() for name, file in listed(move.old, move.rules).items()]
    WORK.mkdir(parents=True, exist_ok=True)
    (WORK / "artifacts.json").write_text(json.dumps(known))


def _id(move: Move, name: str, file: File) -> str:
    return f"{move.source} {name} {file.size} {file.md5}"


def _equal(old: File, new: File | None) -> bool:
    return new is not None and old.size == new.size and old.md5 is not None and old.md5 == new.md5


def _digests(place: str, names: Sequence[str]) -> dict[str, str]:
    """Read files and return their SHA-256, by name. For stores that have no MD5 of a file, as of one in parts."""
    chosen = WORK / "compare.names"
    chosen.write_text("".join(f"{name}\n" for name in names))
    printed = run(
        *("rclone", "hashsum", "sha256", "--download", *COMMON, *TRANSFERS, *old_options()),
        *(f"--files-from-raw={chosen}", *(["--copy-links"] if place.startswith("/") else []), place),
    )
    return {name: digest for digest, _, name in (line.partition("  ") for line in printed.split("\n") if line)}
