"""Taking a backup."""

import contextlib
import os
import shutil
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import database
import objects
import repository
from layout import ARTIFACTS, ASIDE, CURRENT, DUMP, INDEX, KEYS, MANIFEST, journal
from manifest import Manifest, counted, files, indexed, read_index, sha256, write_index
from shell import Failure, amount, first, make, say, trusted_authority
from space import on_one_disk, require_space

PLAUSIBLE_PART = 0.5
"""Minimum share of the artifacts that must remain from one backup to the next. Less is probably a data loss."""


def backup(*, forget: bool = True) -> None:
    """Take a backup. It succeeds only if it is in the repository and `restic check` finds no damage.

    Raises `Failure`. With `forget=False`, a safety backup before a restore or an import, no older backup is deleted.
    """
    with journal.recorded("backup") as result, contextlib.ExitStack() as held:
        # Before the lock, which would keep others waiting.
        objects.require_answer()
        session = held.enter_context(database.locked("backup"))
        _require_repository()
        repository.release()
        _empty_temporary()
        (CURRENT / ARTIFACTS).mkdir(parents=True, exist_ok=True)
        mirror = objects.Mirror(CURRENT / ARTIFACTS, CURRENT / ASIDE)
        survey = mirror.surveyed()
        if forget:
            _require_plausible(len(survey.there))
        elif not (CURRENT / INDEX).exists():
            # Or the next backup would compare with a list of what is left.
            held.callback((CURRENT / INDEX).unlink, missing_ok=True)
        require_space(survey.missing_bytes)
        # The database first: an artifact exists before a run refers to it, so every artifact of this dump is copied.
        dump = CURRENT / DUMP
        found = _dumped(dump)
        dump_sha256 = sha256(dump)
        say("mirroring the artifacts")
        missing = mirror.fill(survey)
        manifest = _manifest(mirror, survey, found, dump_sha256)
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
                f"are missing or have another size than the store lists:{first(missing)}\n  the backup has all other "
                f"data; to restore it, type: {make('restore')} FROM={summary['snapshot_id'][:8]}\n"
                "  see docs/operations/backup.md#artifacts-that-cannot-be-read"
            )
        database.still_locked(session)
        if forget and os.environ["DELETES"] == "1":
            say("deleting backups according to the retention policy")
            repository.forget()
        result.update(_figures(manifest, summary))
        if forget:
            # Not before a restore or an import: the mirror, its list and the last number of artifacts are needed to
            # find which artifacts the bucket has lost.
            _forget_deleted(mirror, survey.gone)
            result["artifacts"] = manifest.current_objects
        say(f"backup {summary['snapshot_id'][:8]} is complete: {amount(result['added_bytes'])} new")


def _forget_deleted(mirror: objects.Mirror, gone: Sequence[Path]) -> None:
    """Delete the files of deleted artifacts from the mirror, and from the list with which the next backup compares."""
    mirror.prune(gone)
    if deleted := set(gone):
        known = read_index(CURRENT / INDEX).values()
        write_index(CURRENT / INDEX, [entry for entry in known if mirror.file(entry) not in deleted])


def _figures(manifest: Manifest, summary: dict[str, Any]) -> dict[str, Any]:
    """Return what the journal keeps of a backup. `summary` is restic's."""
    return {
        "snapshot": summary["snapshot_id"],
        "target": os.environ["TARGET"],
        "runs": manifest.rows.get("runs", 0),
        "source_bytes": manifest.object_bytes + manifest.dump_bytes,
        "added_bytes": summary["data_added_packed"],
        "repository_bytes": repository.stored_bytes(),
        "on_one_disk": on_one_disk(),
        "snapshots": len(repository.snapshots()),
    }


def _dumped(path: Path) -> dict[str, Any]:
    """Dump the database, and return what it reports about the dump."""
    _require_data_keys()
    say("reading the database")
    return database.dump(path)


def _require_data_keys() -> None:
    """Raise `Failure` if the rows are encrypted with other data keys than those that the backup would contain.

    So it is while a rotation, or the restore of a backup with other data keys, is interrupted.
    """
    ours = {path.name: sha256(path) for path in files(KEYS)}
    if others := sorted(name for name, digest in database.data_keys().items() if ours.get(name, digest) != digest):
        raise Failure(
            f"the database is encrypted with another key than this container has ({', '.join(others)}), so the backup "
            f"could not be used: a rotation or a restore was interrupted\n  type it again: {make('rotate')}, or "
            f"{make('restore')} FROM=..."
        )


def _manifest(mirror: objects.Mirror, survey: objects.Survey, found: dict[str, Any], dump_sha256: str) -> Manifest:
    """Write the list of the mirrored artifacts, and return the manifest of the backup.

    `found` is what the database reported about its dump.
    """
    aside = {name: path for name in sorted(survey.there) if (path := mirror.hashed(name)).is_file()}
    entries = indexed(CURRENT / ARTIFACTS, read_index(CURRENT / INDEX), aside)
    write_index(CURRENT / INDEX, entries)
    return Manifest(
        stack=os.environ["STACK"],
        mlflow=_mlflow_version(),
        objects=len(entries),
        bucket_objects=len(survey.there),
        object_bytes=sum(entry.size for entry in entries),
        dump_bytes=(CURRENT / DUMP).stat().st_size,
        dump_sha256=dump_sha256,
        index_sha256=sha256(CURRENT / INDEX),
        data_keys={path.name: sha256(path) for path in files(KEYS)},
        format=2 if aside else 1,
        **found,
    )


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
            f"the backup repository {known[:8]} at {target} is missing; check that its disk is mounted "
            "and that mlflow:backup.target is correct\n  to create a new one with the next backup, type: "
            f"docker exec mlflow-{os.environ['STACK']}-backup rm {journal.path}"
        )
    journal.write("repositories", {target: found or repository.create()})


def _require_plausible(in_bucket: int) -> None:
    """Raise `Failure` if most artifacts or all runs have vanished since the last backup.

    A backup would otherwise become `latest` and displace good ones: after the loss of a volume, or on a new host before
    its restore, the stack looks healthy.
    """
    stack, index = os.environ["STACK"], CURRENT / INDEX
    used = database.used()
    # `make down` deletes the list of the last backup; the newest backup in the repository has another.
    newest = None if used and index.exists() else _newest()
    if not used and newest and (runs := newest.rows.get("runs", 0)):
        raise Failure(
            f"the database of this stack is empty, but the newest backup has {counted(runs, 'runs')}\n"
            f"  to restore them, type: make restore STACK={stack} FROM=latest\n"
            f"  to keep the empty database, log a run, then type: make backup STACK={stack}"
        )
    before = len(read_index(index)) if index.exists() else newest.current_objects if newest else 0
    if in_bucket < before * PLAUSIBLE_PART:
        raise Failure(
            f"the bucket has {in_bucket} artifacts, but the last backup had {before}; no backup was taken\n"
            f"  to restore them, type: make restore STACK={stack} FROM=latest, which says what it replaces\n"
            "  if they were deleted on purpose, for example by `make gc`, empty the list of the last backup: "
            f"docker exec mlflow-{stack}-backup truncate -s 0 {index} && make backup STACK={stack}"
        )


def _newest() -> Manifest | None:
    """Return the manifest of the backup that `latest` means, or None if there is none."""
    regular = [entry for entry in repository.snapshots() if repository.is_regular(entry)]
    return Manifest.read(repository.text(regular[-1]["id"], CURRENT / MANIFEST)) if regular else None


def _mlflow_version() -> str:
    """Return the server's MLflow version; empty if it does not run: a backup does not need it."""
    try:
        url, trusted = f"{os.environ['SERVER']}/version", trusted_authority()
        with urllib.request.urlopen(url, timeout=10, context=trusted) as answer:  # noqa: S310
            return str(answer.read().decode().strip())
    except (urllib.error.URLError, OSError):
        return ""
