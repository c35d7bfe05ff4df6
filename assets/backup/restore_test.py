"""The restore test of the newest backup (`make drill`)."""

import contextlib
import hashlib
import random
import shutil
import time
from collections.abc import Iterator
from typing import Any

import database
import objects
import repository
from layout import ARTIFACTS, ASIDE, CURRENT, DRILL, DUMP, INDEX, KEYS, STAGING, journal
from manifest import Entry, Manifest, damaged, read_index
from restoring import fetched
from shell import Failure, first, make, say
from space import require_free

SAMPLE = 50
"""Number of artifacts that a restore test fetches and compares."""
DRILL_PARTS = 20
"""Number of parts of the repository's data. A restore test reads one part, another each week: all in 20 weeks."""


def drill() -> None:
    """Run a restore test: restore the newest backup into a throw-away database, with a sample of the artifacts.

    Raises `Failure` if anything differs from what was backed up.
    """
    begun = time.time()
    with journal.recorded("drill") as result, database.locked("drill"), _failure_remembered(begun):
        repository.require()
        repository.release()
        chosen = repository.find("latest")
        shutil.rmtree(DRILL, ignore_errors=True)
        DRILL.mkdir(mode=0o700)
        try:
            manifest = fetched(chosen["id"], DRILL)
            say(f"restore test of backup {chosen['short_id']} of {manifest.taken_at[:16]}: {manifest.summary}")
            known = list(read_index(DRILL / INDEX).values())
            _compare_names(chosen["id"], manifest, known)
            # Restic reads one name per line.
            entries = [entry for entry in known if "\n" not in entry.path and not entry.aside]
            # Another sample for each backup, but the same one for the same backup: a failure can be reproduced.
            sample = random.Random(chosen["id"]).sample(entries, min(SAMPLE, len(entries)))  # noqa: S311
            coming = sum(entry.size for entry in sample) + manifest.restored_bytes
            require_free(STAGING, coming, "the restore test's database and its sample of the artifacts")
            if sample:
                repository.restore(
                    chosen["id"], CURRENT / ARTIFACTS, DRILL / ARTIFACTS, only=[entry.path for entry in sample]
                )
            if any(entry.aside for entry in known):
                repository.restore(chosen["id"], CURRENT / ASIDE, DRILL / ASIDE)
                sample += [entry for entry in known if entry.aside]
            if wrong := damaged(objects.Mirror(DRILL / ARTIFACTS, DRILL / ASIDE).file, sample):
                raise Failure(
                    f"{len(wrong)} of {len(sample)} artifacts differ from their checksums:{first(wrong)}\n"
                    "  see docs/operations/backup.md#a-damaged-repository"
                )
            for name, digest in manifest.data_keys.items():
                if hashlib.sha256(repository.text(chosen["id"], KEYS / name).encode()).hexdigest() != digest:
                    raise Failure(
                        f"the data key {name} is damaged; for a restore, choose another backup: {make('backups')}"
                    )
            say(f"{len(sample)} artifacts and the data keys match their checksums; restoring the database")
            (DRILL / "postgres").mkdir()
            with database.throw_away(DRILL / "postgres"):
                database.load(DRILL / DUMP, manifest.rows)
            say("the database is restored, and every table has all its rows; reading a part of the repository")
            week = int(time.time() // (7 * 86400))
            repository.check(f"--read-data-subset={week % DRILL_PARTS + 1}/{DRILL_PARTS}")
        finally:
            shutil.rmtree(DRILL, ignore_errors=True)
        result |= {"snapshot": chosen["id"], "source_bytes": manifest.dump_bytes + sum(entry.size for entry in sample)}
        say(f"the restore test of backup {chosen['short_id']} succeeded")
        _remember_drill(begun, result)


@contextlib.contextmanager
def _failure_remembered(begun: float) -> Iterator[None]:
    """Store the failure of a restore test beside the backups: last week's success must not count any more."""
    try:
        yield
    except Failure as error:
        _remember_drill(begun, {"error": str(error)})
        raise


def _remember_drill(begun: float, result: dict[str, Any]) -> None:
    """Store the result of a restore test beside the backups: `make down` deletes the journal. Needs the lock."""
    now = time.time()
    passed = {"last_success_timestamp_seconds": now, "last_result": 1, "duration_seconds": now - begun, "error": ""}
    known = journal.read().get("drill", {})
    told = {"last_result": 0, **result} if "error" in result else {**passed, **result}
    try:
        repository.remember_drill({**known, "last_end_timestamp_seconds": now, **told})
    except Failure as error:
        # After a `make down` the result is not known.
        say(f"the result of the restore test cannot be stored beside the backups: {error}")


def _compare_names(snapshot: str, manifest: Manifest, entries: list[Entry]) -> None:
    """Raise `Failure` if a snapshot's artifacts differ from its list in name or size."""
    mirror = objects.Mirror(CURRENT / ARTIFACTS, CURRENT / ASIDE)
    wanted = {str(mirror.file(entry).relative_to(CURRENT)): entry.size for entry in entries}
    stored = {
        name: size
        for name, size in repository.listing(snapshot, CURRENT).items()
        if name.startswith((f"{ARTIFACTS}/", f"{ASIDE}/"))
    }
    if wrong := sorted(name for name, _ in wanted.items() ^ stored.items()):
        raise Failure(
            f"{len(set(wrong))} artifacts of backup {snapshot[:8]} differ from its list:{first(wrong)}\n"
            "  see docs/operations/backup.md#a-damaged-repository"
        )
    if len(entries) != manifest.objects:
        raise Failure(
            f"the list of backup {snapshot[:8]} has {len(entries)} artifacts, but its manifest has {manifest.objects}\n"
            "  see docs/operations/backup.md#a-damaged-repository"
        )
