"""Backs up, restores and tests the restore of one stack. Runs in the backup container, by schedule or `docker exec`.

usage: main.py schedule|alive|backup|safety|drill|list|journal|plan ID|restore ID|key ID NAME

Environment: STACK, TARGET (as in the settings), BUCKET, SERVER (its URL), SCHEDULE and DRILL_SCHEDULE (cron, in UTC),
KEEP_DAILY, KEEP_WEEKLY, KEEP_MONTHLY, PGPASS (a password file), TMPDIR (on disk), DELETES (1; 0 if the target does not
allow deletion), AUTHORITY, CERTIFICATE and KEY (files; only with TLS between the services), and the variables of libpq,
rclone and restic.
"""

import contextlib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import database
import objects
import psycopg2
import repository
from layout import KEYS, journal
from restore_test import drill
from restoring import plan, restore
from scheduler import alive, schedule
from shell import Failure, amount, make
from take import backup


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
    """Print the last backup and restore test as JSON; also the numbers of runs and of artifacts, if all are lost."""
    known = journal.read()
    last = known.get("backup", {})
    # If the database does not answer, or a migration locks a table, other checks report that.
    os.environ["PGOPTIONS"] = "-c statement_timeout=5s"
    with contextlib.suppress(Failure, psycopg2.Error):
        if (runs := last.get("runs")) and not database.used():
            known["lost_runs"] = runs
    if (artifacts := last.get("artifacts")) and objects.is_empty():
        known["lost_artifacts"] = artifacts
    print(json.dumps(known))


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
    # For a restore whose backup has other data keys than the stack. The output is a secret.
    "key": lambda snapshot, name: print(repository.text(snapshot, KEYS / name)),
    "restore": restore,
}


def main(arguments: list[str]) -> int:
    """Run a verb. Return the exit code: 0 success, 1 failure."""
    # Other users must not read the files of a run, even of an unfinished one.
    os.umask(0o077)
    try:
        if arguments[0] not in ("schedule", "alive"):
            Path(os.environ["TMPDIR"]).mkdir(exist_ok=True)
            database.use_pgpass()
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
