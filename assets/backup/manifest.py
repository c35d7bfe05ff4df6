"""What a backup claims to hold: written beside the data, and compared with them whenever they are restored."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Self

from shell import Failure, Progress, amount, make

FORMAT = 2
"""Newest of the manifest. Raised when an older reader would misunderstand it: 2 has artifacts aside."""
CHUNK_BYTES = 1 << 20
SUMMARY = {
    "experiments": "experiments",
    "runs": "runs",
    "metrics": "metric points",
    "registered_models": "models",
    "model_versions": "model versions",
    "trace_info": "traces",
}
"""Tables that a person wants to hear of."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """One backup, described."""

    stack: str
    taken_at: str
    """When the database was read, in UTC, ISO 8601. What was written later is in the next backup."""
    mlflow: str
    """MLflow's version; empty where the server was not running."""
    schema_revision: str
    """Alembic's, of MLflow's tables."""
    postgres: str
    rows: Mapping[str, int]
    """Of every table."""
    database_bytes: int = 0
    """On disk, with its indexes; 0 where a backup did not tell yet."""
    objects: int
    object_bytes: int
    dump_bytes: int
    dump_sha256: str
    index_sha256: str
    """Of the list of artifacts, each with its own."""
    data_keys: Mapping[str, str]
    """Name of each of MLflow's data keys to its SHA-256. The keys are in the backup, too."""
    format: int = 1

    @classmethod
    def read(cls, text: str) -> Self:
        """Return a manifest; raise `Failure` where a newer version of this program wrote it."""
        try:
            values = json.loads(text)
            if values["format"] > FORMAT:
                raise Failure(
                    f"this backup is of format {values['format']}, written by a newer version of this project; "
                    f"this one reads up to {FORMAT}\n  check out the version that wrote it, then type: {make('up')}, "
                    "and restore"
                )
            return cls(**{field.name: values[field.name] for field in fields(cls) if field.name in values})
        except (ValueError, KeyError, TypeError) as error:
            raise Failure(
                f"this backup's manifest cannot be read: {error!r}; choose another: {make('backups')}"
            ) from None

    @property
    def restored_bytes(self) -> int:
        """What the dump, its statements and the database that comes of them take at most."""
        # Where a backup did not tell: as much for the indexes as for the rows.
        return 2 * self.dump_bytes + (self.database_bytes or 2 * self.dump_bytes)

    def written(self) -> str:
        """Return the manifest as text."""
        return json.dumps(asdict(self), indent=2, sort_keys=True) + "\n"

    @property
    def summary(self) -> str:
        """What is in it, for a person."""
        return f"{told(self.rows)}; {counted(self.objects, 'artifacts')}, {amount(self.object_bytes)}"


def told(rows: Mapping[str, int]) -> str:
    """Return how many of each there are, for a person."""
    return ", ".join(counted(rows[table], words) for table, words in SUMMARY.items() if table in rows)


def counted(number: int, words: str) -> str:
    """Spell a number of something whose name in the plural is `words`: 1 run, 2 runs."""
    return f"{number} {words.removesuffix('s') if number == 1 else words}"


@dataclass(frozen=True)
class Entry:
    """One artifact."""

    path: str
    size: int
    mtime_ns: int
    sha256: str
    aside: bool = False
    """Whether its file is under the hash of its name, which a file system cannot hold."""


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def files(folder: Path) -> Iterator[Path]:
    """Yield every file below a folder, in order."""
    yield from sorted(path for path in folder.rglob("*") if path.is_file())


def indexed(folder: Path, known: Mapping[str, Entry], aside: Mapping[str, Path] | None = None) -> list[Entry]:
    """Return every file of `folder`, and those `aside`, by name. One that is as it was `known` is not read again."""
    entries = []
    progress = Progress("of new artifacts read for their checksums")
    named = [(path.relative_to(folder).as_posix(), path, False) for path in files(folder)]
    for name, path, is_aside in [*named, *((name, path, True) for name, path in (aside or {}).items())]:
        stat = path.stat()
        entry = known.get(name)
        if entry is None or (entry.size, entry.mtime_ns, entry.aside) != (stat.st_size, stat.st_mtime_ns, is_aside):
            entry = Entry(name, stat.st_size, stat.st_mtime_ns, sha256(path), is_aside)
            progress.add(stat.st_size)
        entries.append(entry)
    return entries


def write_index(path: Path, entries: list[Entry]) -> None:
    """Write the list of artifacts, a line of JSON for each."""
    part = path.with_suffix(".part")
    with part.open("w") as file:
        for entry in entries:
            # An older reader knows no more than four, and is told by the format where there are five.
            values = list(vars(entry).values())[: None if entry.aside else -1]
            file.write(json.dumps(values) + "\n")
    part.rename(path)


def read_index(path: Path) -> dict[str, Entry]:
    """Return the list of artifacts by their paths; nothing where there is none, or it was cut off."""
    try:
        with path.open() as file:
            entries = [Entry(*json.loads(line)) for line in file]
    except (OSError, ValueError, TypeError):
        return {}
    return {entry.path: entry for entry in entries}


def damaged(file: Callable[[Entry], Path], entries: list[Entry]) -> list[str]:
    """Return the names of those entries whose `file` is not as it should be, by reading all of it."""
    wrong = []
    progress = Progress("compared with the checksums")
    for entry in entries:
        path = file(entry)
        if not path.is_file() or sha256(path) != entry.sha256:
            wrong.append(entry.path)
        progress.add(entry.size)
    return wrong
