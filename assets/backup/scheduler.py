"""The schedule of backups and restore tests, and the health check of the container."""

import contextlib
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import journal as journals
import repository
from croniter import croniter
from layout import CURRENT, MANIFEST, journal
from manifest import Manifest
from shell import Failure, killed, say, trusted_authority

PROGRAM = Path(__file__).with_name("main.py")


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
        code = subprocess.run([sys.executable, PROGRAM, verb], check=False).returncode
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
            "artifacts": manifest.current_objects,
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
    trusted = trusted_authority()
    url = f"{'https' if trusted else 'http'}://127.0.0.1:{journals.PORT}/metrics"
    urllib.request.urlopen(url, timeout=4, context=trusted).close()  # noqa: S310
