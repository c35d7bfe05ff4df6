"""What the backup container's journal says, in words."""

import json
from datetime import UTC, datetime
from typing import Any

from croniter import croniter

from operations.common.console import amount
from operations.common.stack import Stack
from operations.data.backup import PROGRAM
from settings import names
from settings.backup import BackupSettings

JOURNAL = "/staging/journal.json"
NEVER_LOGGED = "nothing was ever logged here"
LOST = f"""{NEVER_LOGGED}, and the newest backup has {{runs}}
  to have them back, type: make restore STACK={{stack}} FROM=latest
  to begin anew, log something: until then no backup is taken of this"""


def _runs(number: int) -> str:
    return f"{number} run" if number == 1 else f"{number} runs"


def lost(runs: int, stack: str) -> str:
    """Say that a stack is empty, and that its newest backup is not."""
    return LOST.format(runs=_runs(runs), stack=stack)


def known(stack: Stack) -> dict[str, Any]:
    """Return what is known of the last backup and the last drill, by these names, and since when each is scheduled.

    Of a stack that lost what its newest backup has, `lost_runs` is their number.
    """
    if not stack.settings.backup.enabled:
        return {}
    journal: dict[str, Any] = {}
    # An older program has no such verb, and whatever is the matter with it, its journal can be read.
    for command in ([*PROGRAM, "journal"], ["cat", JOURNAL]):
        code, printed = stack.daemon.run(names.physical(stack.name, "backup"), command)
        if code == 0 and "{" in printed:
            journal, _ = json.JSONDecoder().raw_decode(printed, printed.index("{"))
            break
    return {key: journal[key] for key in ("backup", "drill", "scheduled", "lost_runs") if key in journal}


def described(stack: Stack, known: dict[str, Any]) -> tuple[str, str | None]:
    """Return a line on the backup for `make status`, and what is wrong with it, if anything is."""
    settings = stack.settings.backup
    if not settings.enabled:
        kept = [volume for volume in sorted(stack.daemon.volumes()) if names.is_backup_volume(stack.name, volume)]
        if kept:
            # The key of it stays in the stack's file; see docs/adr/0005-who-owns-a-password.md.
            return f"off; earlier ones are kept in {', '.join(kept)}, which mlflow:backupPassword opens", None
        return "off; to have one, mlflow:backup: {enabled: true}", None
    return words(settings, known, datetime.now(UTC), stack.name)


def words(settings: BackupSettings, known: dict[str, Any], now: datetime, stack: str) -> tuple[str, str | None]:
    """Say what a journal means at some time: a line, and what is wrong, if anything is."""
    found, drilled = known.get("backup", {}), known.get("drill", {})
    line = _last(found, now) + "; drill: " + _last(drilled, now)
    if found.get("on_one_disk", settings.where == "volume"):
        line += ";\n          on the disk of the data: it does not survive that (mlflow:backup.target)"
    problems = [
        f"the last {kind} failed, {_ago(entry.get('last_end_timestamp_seconds', 0), now)}: {entry['error']}\n"
        f"  once that is mended, type: make {kind} STACK={stack}"
        for kind, entry in (("backup", found), ("drill", drilled))
        if entry.get("last_result") == 0
    ]
    # A backup that was refused for that says so itself.
    if known.get("lost_runs") and not any(NEVER_LOGGED in problem for problem in problems):
        problems.insert(0, lost(known["lost_runs"], stack))
    due = croniter(settings.schedule, now)
    # Of the last two that were due, one may be at work.
    due.get_prev(datetime)
    missed: datetime = due.get_prev(datetime)
    # A stack that was down knows of older ones, and takes the next at its time; a new one waits for its first.
    since = max(found.get("last_success_timestamp_seconds") or 0, known.get("scheduled", {}).get("backup", 0))
    if 0 < since < missed.timestamp() and not problems:
        problems.append(f"the last backup is older than two of its times\n  type: make backup STACK={stack}")
    return line, "\n".join(problems) or None


def _last(entry: dict[str, Any], now: datetime) -> str:
    success = entry.get("last_success_timestamp_seconds")
    if success is None:
        return "none known since this was deployed"
    size, took = amount(entry["source_bytes"]), entry["duration_seconds"]
    return f"{entry['snapshot'][:8]}, {_ago(success, now)}, {size} in {took:.0f} s"


def _ago(moment: float, now: datetime) -> str:
    hours = (now.timestamp() - moment) / 3600
    return f"{hours:.0f} h ago" if hours < 48 else f"{hours / 24:.0f} d ago"  # noqa: PLR2004 - of two days
