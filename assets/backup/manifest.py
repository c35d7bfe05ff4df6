"""The manifest: the expected content of a backup. It is stored beside the data; each restore compares them with it."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Self

from shell import Failure, Progress, amount, make

FORMAT = 2
"""Newest manifest format. Increased when an older reader would misunderstand it: 2 has `Entry.aside`."""
CHUNK_BYTES = 1 << 20
SUMMARY = {
    "experiments": "experiments",
    "runs": "runs",
    "metrics": "metric points",
    "registered_models": "models",
    "model_versions": "model versions",
    "trace_info": "traces",
}
"""Tables in the summary, with the words for their rows."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The description of one backup."""

    stack: str
    taken_at: str
    """Time at which the database was read, in UTC, ISO 8601. Later changes are in the next backup."""
    mlflow: str
    """MLflow's version; empty if the server was not running."""
    schema_revision: str
    """Alembic's revision of MLflow's tables."""
    postgres: str
    rows: Mapping[str, int]
    """Number of rows, by table."""
    database_bytes: int = 0
    """Size of the database on disk, with its indexes; 0 in older backups, which do not record it."""
    objects: int
    bucket_objects: int | None = None
    """Number of artifacts in the bucket; None in older backups, which do not record it. `objects` also counts those
    that were deleted since the previous backup: they are in this backup for the last time."""
    object_bytes: int
    dump_bytes: int
    dump_sha256: str
    index_sha256: str
    """SHA-256 of the list of artifacts, which has the SHA-256 of each artifact."""
    data_keys: Mapping[str, str]
    """SHA-256 of each of MLflow's data keys, by name. The backup contains the keys, too."""
    format: int = 1

    @classmethod
    def read(cls, text: str) -> Self:
        """Return a manifest; raise `Failure` if it is damaged or a newer version of this program wrote it."""
        try:
            values = json.loads(text)
            if values["format"] > FORMAT:
                raise Failure(
                    f"this backup has format {values['format']}, written by a newer version of this project; "
                    f"this version reads formats up to {FORMAT}\n  check out the newer one, then type: {make('up')}, "
                    "and restore the backup there"
                )
            return cls(**{field.name: values[field.name] for field in fields(cls) if field.name in values})
        except (ValueError, KeyError, TypeError) as error:
            raise Failure(
                f"this backup's manifest cannot be read: {error!r}; choose another backup: {make('backups')}"
            ) from None

    @property
    def current_objects(self) -> int:
        """Number of artifacts in the bucket when the backup was taken."""
        return self.objects if self.bucket_objects is None else self.bucket_objects

    @property
    def restored_bytes(self) -> int:
        """The space in bytes that the dump, its SQL statements and the restored database need at most."""
        # If the backup does not record the database's size: as much for the indexes as for the rows.
        return 2 * self.dump_bytes + (self.database_bytes or 2 * self.dump_bytes)

    def written(self) -> str:
        """Return the manifest as text."""
        return json.dumps(asdict(self), indent=2, sort_keys=True) + "\n"

    @property
    def summary(self) -> str:
        """The content of the backup in words."""
        return f"{told(self.rows)}; {counted(self.objects, 'artifacts')}, {amount(self.object_bytes)}"


def told(rows: Mapping[str, int]) -> str:
    """Return the row counts in words: 7 runs, 2 models."""
    return ", ".join(counted(rows[table], words) for table, words in SUMMARY.items() if table in rows)


def counted(number: int, words: str) -> str:
    """Return a number with `words`, a noun in the plural: 1 run, 2 runs."""
    return f"{number} {words.removesuffix('s') if number == 1 else words}"


@dataclass(frozen=True)
class Entry:
    """One artifact in the list."""

    path: str
    size: int
    mtime_ns: int
    sha256: str
    aside: bool = False
    """Whether its file is named by the hash of its name, because a file system cannot hold the name."""


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def files(folder: Path) -> Iterator[Path]:
    """Yield every file below a folder, sorted by path."""
    yield from sorted(path for path in folder.rglob("*") if path.is_file())


def indexed(folder: Path, known: Mapping[str, Entry], aside: Mapping[str, Path] | None = None) -> list[Entry]:
    """Return an entry for every file in `folder` and `aside`. A file that did not change since `known` is not read."""
    entries = []
    progress = Progress("of new artifacts read to compute their checksums")
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
    """Write the list of artifacts, one line of JSON for each."""
    part = path.with_suffix(".part")
    with part.open("w") as file:
        for entry in entries:
            # An older reader accepts four values only. The manifest's format says if there are five.
            values = list(vars(entry).values())[: None if entry.aside else -1]
            file.write(json.dumps(values) + "\n")
    part.rename(path)


def read_index(path: Path) -> dict[str, Entry]:
    """Return the list of artifacts by path; empty if the file does not exist or is truncated."""
    try:
        with path.open() as file:
            entries = [Entry(*json.loads(line)) for line in file]
    except (OSError, ValueError, TypeError):
        return {}
    return {entry.path: entry for entry in entries}


def damaged(file: Callable[[Entry], Path], entries: list[Entry]) -> list[str]:
    """Return the paths of the entries whose `file` is missing or differs from its checksum. Reads every file."""
    wrong = []
    progress = Progress("compared with the checksums")
    for entry in entries:
        path = file(entry)
        if not path.is_file() or sha256(path) != entry.sha256:
            wrong.append(entry.path)
        progress.add(entry.size)
    return wrong
