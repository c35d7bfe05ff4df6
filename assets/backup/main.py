"""Backs up, restores and tests the restore of one stack. Runs in the backup container, by schedule or `docker exec`.

usage: main.py schedule|alive|backup|safety|drill|list|journal|plan ID|restore ID

Environment: STACK, TARGET (as in the settings), BUCKET, SERVER (its URL), SCHEDULE and DRILL_SCHEDULE (cron, in UTC),
KEEP_DAILY, KEEP_WEEKLY, KEEP_MONTHLY, PGPASS (a password file), TMPDIR (on disk), DELETES (1; 0 if the target does not
allow deletion), and the variables of libpq, rclone and restic.
"""

import atexit
import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import database
import journal as journals
import objects
import psycopg2
import repository
from croniter import croniter
from manifest import Entry, Manifest, counted, damaged, files, indexed, read_index, sha256, told, write_index
from shell import Failure, amount, first, killed, make, say

STAGING = Path(os.environ.get("STAGING", "/staging"))
CURRENT = STAGING / "current"
"""Content of a backup: the mirror of the artifacts, the dump, the manifest."""
DRILL = STAGING / "drill"
ARTIFACTS, ASIDE, DUMP, MANIFEST, INDEX = "artifacts", "aside", "mlflow.dump", "manifest.json", "index.jsonl"
KEYS = Path(os.environ.get("KEYS", "/run/secrets/data-keys"))
SAMPLE = 50
"""Number of artifacts that a restore test fetches and compares."""
PLAUSIBLE_PART = 0.5
"""Minimum share of the artifacts that must remain from one backup to the next. Less is probably a data loss."""
DRILL_PARTS = 20
"""Number of parts of the repository's data. A restore test reads one part, another each week: all in 20 weeks."""
RESERVE_BYTES = 1 << 30
"""Space that stays free on a disk."""
RESTORE_WAIT_SECONDS = 60
"""How long a restore waits for the exclusive lock. Then it fails, and the server starts again."""
journal = journals.Journal(STAGING / "journal.json")


def backup(*, forget: bool = True) -> None:
    """Take a backup. It succeeds only if it is in the repository and `restic check` finds no damage.

    Raises `Failure`. With `forget=False`, a safety backup before a restore, no older backup is deleted.
    """
    with journal.recorded("backup") as result, database.locked("backup") as session:
        _require_repository()
        repository.release()
        _empty_temporary()
        (CURRENT / ARTIFACTS).mkdir(parents=True, exist_ok=True)
        mirror = objects.Mirror(CURRENT / ARTIFACTS, CURRENT / ASIDE)
        survey = mirror.surveyed()
        if forget:
            _require_plausible(len(survey.there))
        _require_space(survey.missing_bytes)
        # The database first: an artifact exists before a run refers to it, so every artifact of this dump is copied.
        say("reading the database")
        dump = CURRENT / DUMP
        found = database.dump(dump)
        dump_sha256 = sha256(dump)
        say("mirroring the artifacts")
        missing = mirror.fill(survey)
        aside = {name: path for name in sorted(survey.there) if (path := mirror.hashed(name)).is_file()}
        entries = indexed(CURRENT / ARTIFACTS, read_index(CURRENT / INDEX), aside)
        write_index(CURRENT / INDEX, entries)
        manifest = Manifest(
            stack=os.environ["STACK"],
            mlflow=_mlflow_version(),
            objects=len(entries),
            object_bytes=sum(entry.size for entry in entries),
            dump_bytes=dump.stat().st_size,
            dump_sha256=dump_sha256,
            index_sha256=sha256(CURRENT / INDEX),
            data_keys={path.name: sha256(path) for path in files(KEYS)},
            format=2 if aside else 1,
            **found,
        )
        (CURRENT / MANIFEST).write_text(manifest.written())
        say(f"storing {manifest.summary}")
        database.still_locked(session)
        if sha256(dump) != dump_sha256:
            raise Failure(f"{dump}: the dump changed while the artifacts were mirrored; type: {make('backup')}")
        tags = [repository.TAG]
        tags += [] if forget else [repository.SAFETY]
        tags += [repository.INCOMPLETE] if missing else []
        summary = repository.snapshot(CURRENT, KEYS, tags=tags)
        # Before older backups are deleted.
        say("checking the repository")
        repository.check()
        if missing:
            raise Failure(
                f"backup {summary['snapshot_id'][:8]} is incomplete: {len(missing)} of {len(survey.there)} artifacts "
                f"cannot be read as the store lists them:{first(missing)}\n  it has everything else, and can be "
                f"restored by its id\n  see docs/operations/backup.md#artifacts-that-cannot-be-read"
            )
        database.still_locked(session)
        if forget and os.environ["DELETES"] == "1":
            say("deleting backups according to the retention policy")
            repository.forget()
        if forget:
            # Not before a restore: the mirror and its list are needed to find which artifacts the bucket has lost.
            mirror.prune(survey.gone)
        result |= {
            "snapshot": summary["snapshot_id"],
            "target": os.environ["TARGET"],
            "runs": manifest.rows.get("runs", 0),
            "source_bytes": manifest.object_bytes + manifest.dump_bytes,
            "added_bytes": summary["data_added_packed"],
            "repository_bytes": repository.stored_bytes(),
            "on_one_disk": _on_one_disk(),
            "snapshots": len(repository.snapshots()),
        }
        say(f"backup {summary['snapshot_id'][:8]} is complete: {amount(result['added_bytes'])} new")


def _empty_temporary() -> None:
    """Remove the temporary files of runs that were killed."""
    shutil.rmtree(os.environ["TMPDIR"])
    Path(os.environ["TMPDIR"]).mkdir()


def _require_repository() -> None:
    """Create the repository, the first time. Raise `Failure` if it has vanished: its disk may not be mounted."""
    repository.require_reachable()
    target = os.environ["TARGET"]
    known = journal.read().get("repositories", {}).get(target)
    found = repository.identity()
    if found is None and known:
        raise Failure(
            f"the backup repository {known[:8]} at {target} has vanished; check that its disk is mounted "
            "and its bucket is the right one\n  to start a new one, type: "
            f"docker exec mlflow-{os.environ['STACK']}-backup rm {journal.path}"
        )
    journal.write("repositories", {target: found or repository.create()})


def _require_plausible(in_bucket: int) -> None:
    """Raise `Failure` if most artifacts or all runs have vanished since the last backup.

    A backup would otherwise become `latest` and displace good ones: after the loss of a volume, or on a new host before
    its restore, the stack looks healthy.
    """
    stack = os.environ["STACK"]
    before = len(read_index(CURRENT / INDEX))
    if in_bucket < before * PLAUSIBLE_PART:
        raise Failure(
            f"the bucket has {in_bucket} artifacts, and the backup before had {before}; no backup was taken\n"
            f"  to restore them, type: make restore STACK={stack} FROM=latest\n"
            "  if they were deleted on purpose, for example by `make gc`, type: "
            f"docker exec mlflow-{stack}-backup rm {CURRENT / INDEX}"
        )
    if database.used():
        return
    regular = [entry for entry in repository.snapshots() if repository.is_regular(entry)]
    if regular and (runs := Manifest.read(repository.text(regular[-1]["id"], CURRENT / MANIFEST)).rows.get("runs", 0)):
        raise Failure(
            f"nothing was ever logged here, and the newest backup has {counted(runs, 'runs')}\n"
            f"  to restore them, type: make restore STACK={stack} FROM=latest\n"
            "  to start from empty, log something: the next backup then succeeds"
        )


def _require_space(new_bytes: int) -> None:
    """Raise `Failure` if the staging folder, or a target on this host, has too little space for the backup."""
    coming = new_bytes + database.size()
    target = Path(os.environ["RESTIC_REPOSITORY"])
    if target.is_absolute() and not _on_one_disk():
        _require_free(target, coming, "the new data of a backup")
        _require_free(STAGING, coming, "the mirror of the artifacts and the dump")
    else:
        twice = 2 if target.is_absolute() else 1
        _require_free(STAGING, twice * coming, "the mirror of the artifacts, the dump, and the new data of a backup")


def _mirrored() -> int:
    """Return the size in bytes of the artifacts in the staging folder."""
    return sum(path.stat().st_size for path in files(CURRENT / ARTIFACTS))


def _on_one_disk() -> bool:
    """Return whether the repository is on the disk of the staging folder, which normally also holds the data."""
    target = Path(os.environ["RESTIC_REPOSITORY"])
    return target.is_absolute() and target.stat().st_dev == STAGING.stat().st_dev


def _require_free(folder: Path, wanted: int, what_for: str) -> None:
    """Raise `Failure` if less than `wanted` bytes plus a reserve are free on a folder's disk."""
    free = shutil.disk_usage(folder).free
    if free < wanted + RESERVE_BYTES:
        raise Failure(
            f"{folder}: {amount(free)} are free, {amount(wanted + RESERVE_BYTES)} are needed for {what_for}\n"
            "  nothing was changed; free space on that disk of the Docker host: docs/operations/capacity.md#disk-full"
        )


def _mlflow_version() -> str:
    """Return the server's MLflow version; empty if it does not run: a backup does not need it."""
    try:
        with urllib.request.urlopen(f"{os.environ['SERVER']}/version", timeout=10) as answer:  # noqa: S310
            return str(answer.read().decode().strip())
    except (urllib.error.URLError, OSError):
        return ""


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
            manifest = _fetched(chosen["id"], DRILL)
            say(f"restore test of backup {chosen['short_id']} of {manifest.taken_at[:16]}: {manifest.summary}")
            known = list(read_index(DRILL / INDEX).values())
            _compare_names(chosen["id"], manifest, known)
            # Restic reads one name per line.
            entries = [entry for entry in known if "\n" not in entry.path and not entry.aside]
            # Another sample for each backup, but the same one for the same backup: a failure can be reproduced.
            sample = random.Random(chosen["id"]).sample(entries, min(SAMPLE, len(entries)))  # noqa: S311
            coming = sum(entry.size for entry in sample) + manifest.restored_bytes
            _require_free(STAGING, coming, "the restore test's database and its sample of the artifacts")
            if sample:
                repository.restore(
                    chosen["id"], CURRENT / ARTIFACTS, DRILL / ARTIFACTS, only=[entry.path for entry in sample]
                )
            if any(entry.aside for entry in known):
                repository.restore(chosen["id"], CURRENT / ASIDE, DRILL / ASIDE)
                sample += [entry for entry in known if entry.aside]
            if wrong := damaged(objects.Mirror(DRILL / ARTIFACTS, DRILL / ASIDE).file, sample):
                raise Failure(f"{len(wrong)} of {len(sample)} artifacts differ from their checksums:{first(wrong)}")
            for name, digest in manifest.data_keys.items():
                if hashlib.sha256(repository.text(chosen["id"], KEYS / name).encode()).hexdigest() != digest:
                    raise Failure(f"the data key {name} differs from its checksum; choose another: {make('backups')}")
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
        raise Failure(f"{len(set(wrong))} artifacts of backup {snapshot[:8]} differ from its list:{first(wrong)}")
    if len(entries) != manifest.objects:
        raise Failure(
            f"the list of backup {snapshot[:8]} has {len(entries)} artifacts, but its manifest has {manifest.objects}"
        )


def _fetched(snapshot: str, folder: Path) -> Manifest:
    """Restore the manifest, the list of artifacts and the dump into `folder`; raise `Failure` if one is damaged."""
    manifest = Manifest.read(repository.text(snapshot, CURRENT / MANIFEST))
    repository.restore(snapshot, CURRENT, folder, only=[MANIFEST, INDEX, DUMP])
    for name, wanted in ((DUMP, manifest.dump_sha256), (INDEX, manifest.index_sha256)):
        if sha256(folder / name) != wanted:
            raise Failure(f"{name} of backup {snapshot[:8]} is damaged; choose another backup: {make('backups')}")
    return manifest


def plan(wanted: str) -> None:
    """Print what a restore needs to know, as JSON: the backup, its manifest, and the state of the current data."""
    repository.require()
    chosen = repository.find(wanted)
    manifest = Manifest.read(repository.text(chosen["id"], CURRENT / MANIFEST))
    keys = {path.name: sha256(path) for path in files(KEYS)}
    found: dict[str, Any] = {
        "id": chosen["id"],
        "stack": manifest.stack,
        "taken_at": manifest.taken_at,
        "mlflow": manifest.mlflow,
        "schema_revision": manifest.schema_revision,
        "summary": manifest.summary,
        "other_keys": sorted(name for name, digest in manifest.data_keys.items() if keys.get(name) != digest),
        "encrypted_rows": sum(manifest.rows.get(table, 0) for table in ("secrets", "webhooks")),
        "runs": manifest.rows.get("runs", 0),
        "used": database.used(),
    }
    since = database.since(manifest.taken_at) if found["used"] else {}
    found["since"] = None if since is None else told(since)
    print(json.dumps(found))


def restore(wanted: str) -> None:
    """Replace the stack's data by a backup. Nothing else may write meanwhile: the caller stops the server.

    Restores the artifacts first, then the database in one transaction: if it stops in between, every existing run still
    has its artifacts. Can be repeated at any time. Raises `Failure`.
    """
    # A short wait, because the server is down meanwhile.
    with database.locked("restore", wait_s=RESTORE_WAIT_SECONDS) as session:
        repository.release()
        chosen = repository.find(wanted)
        claimed = Manifest.read(repository.text(chosen["id"], CURRENT / MANIFEST))
        (CURRENT / ARTIFACTS).mkdir(parents=True, exist_ok=True)
        _, source = objects.size()
        coming = max(0, claimed.object_bytes - _mirrored()) + max(0, claimed.object_bytes - source)
        _require_free(
            STAGING, coming + claimed.restored_bytes, "the artifacts, here and in the object store, and the database"
        )
        say(f"fetching backup {chosen['short_id']} into the staging folder")
        # The mirror gets its old content. It is only a copy of the bucket: the next backup updates it.
        repository.restore(chosen["id"], CURRENT, CURRENT)
        manifest = _fetched(chosen["id"], CURRENT)
        say("comparing the fetched artifacts with the checksums of the backup")
        mirror = objects.Mirror(CURRENT / ARTIFACTS, CURRENT / ASIDE)
        entries = list(read_index(CURRENT / INDEX).values())
        if wrong := damaged(mirror.file, entries):
            raise Failure(f"{len(wrong)} artifacts differ from the list:{first(wrong)}\n  see: {make('backups')}")
        if len(entries) != manifest.objects:
            raise Failure(
                f"the list has {len(entries)} artifacts, but the manifest {manifest.objects}; see: {make('backups')}"
            )
        stamp = datetime.now(UTC).strftime("%Y%m%d_%H%M%S")
        database.still_locked(session)
        say("copying the artifacts into the object store")
        mirror.upload(entries, kept=f"before_restore_{stamp}")
        database.still_locked(session)
        say("restoring the database")
        kept = f"before_restore_{stamp}" if database.has_tables() else None
        database.load(CURRENT / DUMP, manifest.rows, keep=kept)
        # A failure of the last backup was about the data that this restore has replaced.
        journal.excuse("backup")
        say(f"restored {manifest.summary}")
        if kept:
            say(f"the previous database is kept in the schema {kept}")


def show_list() -> None:
    """Print one line for each backup."""
    repository.require()
    for entry in repository.snapshots():
        size = entry.get("summary", {}).get("total_bytes_processed", 0)
        apart = repository.described(entry)
        print(
            f"{entry['short_id']}  {entry['time'][:19].replace('T', ' ')}  {amount(size):>9}" + (apart and f"  {apart}")
        )


def show_journal() -> None:
    """Print the last backup and restore test as JSON; if the stack has lost its runs, also their number."""
    known = journal.read()
    # If the database does not answer, or a migration locks a table, other checks report that.
    os.environ["PGOPTIONS"] = "-c statement_timeout=5s"
    with contextlib.suppress(Failure, psycopg2.Error):
        if (runs := known.get("backup", {}).get("runs")) and not database.used():
            known["lost_runs"] = runs
    print(json.dumps(known))


def schedule() -> None:
    """Run backups and restore tests when they are due, until the container stops. Report failures and go on."""
    expressions = {"backup": os.environ["SCHEDULE"], "drill": os.environ["DRILL_SCHEDULE"]}
    _begin_anew_at_another_target()
    journals.serve(journal, expressions)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    recall()
    # A run that was killed records no end, and must not start again and again.
    attempted: dict[str, float] = {}
    while True:
        known, now = journal.read(), datetime.now(UTC)
        due = {
            verb: next_due(expression, now, _counted_from(verb, known, attempted))
            for verb, expression in expressions.items()
        }
        verb = min(due, key=lambda name: due[name])
        say(f"the next {verb} is at {due[verb]:%Y-%m-%d %H:%M} UTC")
        while (left := due[verb].timestamp() - time.time()) > 0:
            # In steps, because the clock of a laptop that slept has moved on.
            time.sleep(min(left, 60))
        attempted[verb] = time.time()
        if verb == "drill" and "snapshot" not in journal.read().get("backup", {}):
            say("there is no backup yet, so there is no restore test")
            continue
        code = subprocess.run([sys.executable, __file__, verb], check=False).returncode
        attempted[verb] = time.time()
        if code:
            say(f"the {verb} failed; see the error above")
        if code < 0:
            journal.failed(verb, f"it {killed(code)}")


def _begin_anew_at_another_target() -> None:
    """Forget the last backup and restore test if they belong to another target: this one may have none."""
    target = os.environ["TARGET"]
    if journal.read().get("backup", {}).get("target", target) != target:
        # On a full disk this fails, and the next start tries again.
        with contextlib.suppress(OSError):
            journal.forget()


def recall() -> None:
    """Read the last backup from the repository if the journal is new: `make down` deletes the journal."""
    if "backup" in journal.read():
        return
    try:
        repository.require_reachable()
        identity = repository.identity()
        count = len(repository.snapshots()) if identity else 0
        if not count:
            return
        newest = repository.find("latest")
        manifest = Manifest.read(repository.text(newest["id"], CURRENT / MANIFEST))
        drilled = repository.last_drill()
        summary = newest.get("summary", {})
        began, ended = (_unix(summary.get(moment, newest["time"])) for moment in ("backup_start", "backup_end"))
    except (Failure, ValueError, KeyError) as error:
        # The next backup reports this, too, and the schedule does not depend on it.
        say(f"the existing backups cannot be read: {error!r}")
        return
    journal.write("repositories", {os.environ["TARGET"]: identity})
    # Without the time of its end: otherwise a missed backup would start at once, and on a stack that waits for its
    # restore that backup would become `latest`.
    journal.write(
        "backup",
        {
            "snapshot": newest["id"],
            "target": os.environ["TARGET"],
            "runs": manifest.rows.get("runs", 0),
            "last_success_timestamp_seconds": ended,
            "duration_seconds": ended - began,
            "source_bytes": summary.get("total_bytes_processed", 0),
            "added_bytes": summary.get("data_added_packed", 0),
            "snapshots": count,
        },
    )
    say(f"the last backup is {newest['short_id']} of {newest['time'][:16]}")
    if drilled:
        journal.write("drill", drilled)
        say(f"the last restore test was of backup {drilled['snapshot'][:8]}")


def _unix(moment: str) -> float:
    return datetime.fromisoformat(moment).timestamp()


def _counted_from(verb: str, known: dict[str, Any], attempted: dict[str, float]) -> float | None:
    """Return when the last run ended or, before the first run, when it was enabled, in Unix time; None if unknown.

    A run that was due since then was missed.
    """
    since = known.get(verb, {}).get("last_end_timestamp_seconds") or known.get("scheduled", {}).get(verb)
    return max((moment for moment in (since, attempted.get(verb)) if moment), default=None)


def next_due(expression: str, now: datetime, last_end: float | None) -> datetime:
    """Return when a schedule is due next: `now` if a run was missed since `last_end` (Unix time)."""
    times = croniter(expression, now)
    if last_end is not None and last_end < times.get_prev(float):
        return now
    next_time: datetime = croniter(expression, now).get_next(datetime)
    return next_time


def alive() -> None:
    """Raise `OSError` if the scheduler does not answer."""
    urllib.request.urlopen(f"http://127.0.0.1:{journals.PORT}/metrics", timeout=4).close()


def _use_pgpass() -> None:
    """Copy the password file for libpq, which ignores one that other users can read."""
    # In HOME, which is in memory; TMPDIR is on disk, for the large temporary files of restic and others.
    path = Path.home() / f"pgpass-{os.getpid()}"
    path.touch(mode=0o600)
    path.write_bytes(Path(os.environ["PGPASS"]).read_bytes())
    os.environ["PGPASSFILE"] = str(path)
    atexit.register(path.unlink)


VERBS: dict[str, Callable[..., None]] = {
    "schedule": schedule,
    "alive": alive,
    "backup": backup,
    # Before a restore: the backup to be restored must not be deleted.
    "safety": lambda: backup(forget=False),
    "drill": drill,
    "list": show_list,
    "journal": show_journal,
    "plan": plan,
    "restore": restore,
}


def main(arguments: list[str]) -> int:
    """Run a verb. Return the exit code: 0 success, 1 failure."""
    # Other users must not read the files of a run, even of an unfinished one.
    os.umask(0o077)
    try:
        if arguments[0] not in ("schedule", "alive"):
            Path(os.environ["TMPDIR"]).mkdir(exist_ok=True)
            _use_pgpass()
        VERBS[arguments[0]](*arguments[1:])
    except Failure as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 1
    except (psycopg2.Error, OSError) as error:
        words = f"{type(error).__name__}: {str(error).strip()}"
        print(
            f"error: {words}\n  type: {make('status')}, and check the free disk space; then try again",
            file=sys.stderr,
            flush=True,
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
