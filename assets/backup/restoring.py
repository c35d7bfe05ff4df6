"""Restoring a backup, and what `make restore` reports before it."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import database
import objects
import repository
from layout import ARTIFACTS, ASIDE, CURRENT, DUMP, INDEX, KEYS, MANIFEST, STAGING, journal
from manifest import Manifest, damaged, files, read_index, sha256, told
from shell import Failure, first, make, say
from space import mirrored_bytes, require_free

RESTORE_WAIT_SECONDS = 60
"""How long a restore waits for the exclusive lock. Then it fails, and the server starts again."""


def fetched(snapshot: str, folder: Path) -> Manifest:
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
    # Here, and not when the server is stopped.
    objects.require_answer()
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
        "lost_artifacts": manifest.current_objects if manifest.current_objects and objects.is_empty() else 0,
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
        coming = max(0, claimed.object_bytes - mirrored_bytes()) + max(0, claimed.object_bytes - source)
        require_free(
            STAGING, coming + claimed.restored_bytes, "the artifacts, here and in the object store, and the database"
        )
        say(f"fetching backup {chosen['short_id']} into the staging folder")
        # The mirror gets its old content. It is only a copy of the bucket: the next backup updates it.
        repository.restore(chosen["id"], CURRENT, CURRENT)
        manifest = fetched(chosen["id"], CURRENT)
        say("comparing the fetched artifacts with the checksums of the backup")
        mirror = objects.Mirror(CURRENT / ARTIFACTS, CURRENT / ASIDE)
        entries = list(read_index(CURRENT / INDEX).values())
        if wrong := damaged(mirror.file, entries):
            raise Failure(f"{len(wrong)} artifacts are damaged; choose another backup: {make('backups')}{first(wrong)}")
        if len(entries) != manifest.objects:
            raise Failure(
                f"the list has {len(entries)} artifacts, but the manifest has {manifest.objects}\n"
                f"  choose another backup: {make('backups')}"
            )
        stamp = datetime.now(UTC).strftime("%Y%m%d_%H%M%S")
        database.still_locked(session)
        say("copying the artifacts into the object store")
        mirror.upload(entries, kept=f"before_restore_{stamp}")
        database.still_locked(session)
        say("restoring the database")
        kept = f"before_restore_{stamp}" if database.has_tables() else None
        database.load(CURRENT / DUMP, manifest.rows, keep=kept, keys=manifest.data_keys)
        # A failure of the last backup was about the data that this restore has replaced.
        journal.excuse("backup")
        say(f"restored {manifest.summary}")
        if kept:
            say(f"the previous database is kept in the schema {kept}")
