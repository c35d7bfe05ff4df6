"""The artifacts: copies them from the old place to the stack's object store with rclone, and compares every checksum.

Rclone's remote `old` is the old object store; a folder of the Docker host is below `FOLDERS`. The stack's own remote is
`store`, as in a backup.
"""

import hashlib
import json
import os
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from objects import COMMON, PREFIX, PROGRESS
from shell import Failure, amount, first, run, say, show
from source import FILES, WORK

FOLDERS = Path("/source")
"""Where the folders of the Docker host are."""
SAMPLE = WORK / "sample"
SAMPLE_SECONDS = 4
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
        """The filter rules as rclone's options."""
        return [f"--filter={rule}" for rule in self.filters]


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
        return not Path(place).is_dir()
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
        if there:
            try:
                found[-1] |= _sampled(move, there)
            except Failure as error:
                problems.append(f"{move.source}: its files can be listed, but not read\n{error}")
    if problems:
        raise Failure("\n  ".join(problems))
    return found


def _sampled(move: Move, there: Mapping[str, File]) -> dict[str, float]:
    """Read files for some seconds; return how many, how many bytes, and how long it took."""
    names = sorted(there, key=lambda name: hashlib.md5(name.encode(), usedforsecurity=False).hexdigest())[:200]
    WORK.mkdir(parents=True, exist_ok=True)
    chosen = WORK / "sample.names"
    chosen.write_text("\n".join(names) + "\n")
    started = time.monotonic()
    command = [
        *("rclone", "copy", "--no-traverse", "--retries=1", f"--max-duration={SAMPLE_SECONDS}s", "--cutoff-mode=soft"),
        *(*COMMON, *TRANSFERS, *old_options(), f"--files-from-raw={chosen}", move.old, str(SAMPLE)),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    taken = time.monotonic() - started
    read = [path for path in SAMPLE.rglob("*") if path.is_file()] if SAMPLE.is_dir() else []
    sizes = [path.stat().st_size for path in read]
    run("rm", "-rf", str(SAMPLE), str(chosen))
    # 10 is the end of the duration.
    if done.returncode not in (0, 10) and not sizes:
        raise Failure(f"    {first(done.stderr.strip().splitlines()[-3:])}")
    return {"sample_files": len(sizes), "sample_bytes": sum(sizes), "sample_seconds": taken}


def copy() -> None:
    """Copy every file that the stack does not have with the same checksum. Raises `Failure`."""
    for move in moves():
        say(f"copying the artifacts of {move.source}")
        show(
            *("rclone", "copy", "--checksum", *COMMON, *TRANSFERS, *PROGRESS, *old_options()),
            *(*move.rules, move.old, move.new),
        )


def compare() -> dict[str, int]:
    """Compare every file by its checksum. Return how many there are, their bytes, and how many came too late.

    A file that did not exist when the copy began, or was changed since, is too late: the next import copies it. Raises
    `Failure` if any other file differs.
    """
    known: set[str] = set(json.loads((WORK / "artifacts.json").read_text()))
    total = size = late = 0
    for move in moves():
        there, here = listed(move.old, move.rules), listed(move.new)
        wrong = [name for name, file in there.items() if not _equal(file, here.get(name))]
        unsure = [name for name in wrong if name in here and here[name].size == there[name].size]
        if unsure:
            say(f"reading {len(unsure)} artifacts again: a store has no MD5 of them")
            theirs, ours = _digests(move.old, unsure), _digests(move.new, unsure)
            wrong = [name for name in wrong if name not in ours or ours[name] != theirs.get(name)]
        missed = [name for name in wrong if _id(move, name, there[name]) not in known]
        if lost := [name for name in wrong if name not in set(missed)]:
            raise Failure(f"{len(lost)} artifacts of {move.source} are not in the object store:{first(lost)}")
        late += len(missed)
        total += len(there) - len(missed)
        size += sum(file.size for name, file in there.items() if name not in set(missed))
    say(f"{total} artifacts, {amount(size)}: every checksum is equal")
    return {"artifacts": total, "artifact_bytes": size, "late_artifacts": late}


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
        *(f"--files-from-raw={chosen}", place),
    )
    return {name: digest for digest, _, name in (line.partition("  ") for line in printed.splitlines())}
