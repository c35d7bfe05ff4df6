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
  to restore them, type: make restore STACK={{stack}} FROM=latest
  to start without them, log something; until then no backup is taken of this empty database"""


def _runs(number: int) -> str:
    return f"{number} run" if number == 1 else f"{number} runs"


def lost(runs: int, stack: str) -> str:
    """Return the message for a stack that is empty while its newest backup is not."""
    return LOST.format(runs=_runs(runs), stack=stack)


def known(stack: Stack) -> dict[str, Any]:
    """Return the last backup and the last restore test, keys `backup` and `drill`, and since when each is scheduled.

    `lost_runs` is the number of runs in the newest backup, if the stack itself is empty.
    """
    if not stack.settings.backup.enabled:
        return {}
    journal: dict[str, Any] = {}
    # An older backup program has no such command. Its journal file can be read even if the program fails.
    for command in ([*PROGRAM, "journal"], ["cat", JOURNAL]):
        code, printed = stack.daemon.run(names.physical(stack.name, "backup"), command)
        if code == 0 and "{" in printed:
            journal, _ = json.JSONDecoder().raw_decode(printed, printed.index("{"))
            break
    return {key: journal[key] for key in ("backup", "drill", "scheduled", "lost_runs") if key in journal}


def described(stack: Stack, known: dict[str, Any]) -> tuple[str, str | None]:
    """Return the line on the backup for `make status`, and its problems or None."""
    settings = stack.settings.backup
    if not settings.enabled:
        kept = [volume for volume in sorted(stack.daemon.volumes()) if names.is_backup_volume(stack.name, volume)]
        if kept:
            # Their data key stays in the stack file; see docs/adr/0005-who-owns-a-password.md.
            return f"off; earlier backups are kept in {', '.join(kept)}; mlflow:backupPassword decrypts them", None
        return "off; to turn it on, set mlflow:backup: {enabled: true}", None
    return words(settings, known, datetime.now(UTC), stack.name)


def words(settings: BackupSettings, known: dict[str, Any], now: datetime, stack: str) -> tuple[str, str | None]:
    """Return the status line of a journal at the time `now`, and its problems or None."""
    found, drilled = known.get("backup", {}), known.get("drill", {})
    line = _last(found, now) + "; restore test: " + _last(drilled, now)
    if found.get("on_one_disk", settings.where == "volume"):
        line += ";\n          on the same disk as the data: if it fails, both are lost (set mlflow:backup.target)"
    problems = [
        f"the last {kind} failed, {_ago(entry.get('last_end_timestamp_seconds', 0), now)}: {entry['error']}\n"
        f"  fix that, then type: make {kind} STACK={stack}"
        for kind, entry in (("backup", found), ("drill", drilled))
        if entry.get("last_result") == 0
    ]
    # A backup that was refused for this reason already reports it.
    if known.get("lost_runs") and not any(NEVER_LOGGED in problem for problem in problems):
        problems.insert(0, lost(known["lost_runs"], stack))
    due = croniter(settings.schedule, now)
    # The later of the last two that were due may still be running.
    due.get_prev(datetime)
    missed: datetime = due.get_prev(datetime)
    # A stack that was down has only older backups, and a new stack has none yet: both wait for the next time.
    since = max(found.get("last_success_timestamp_seconds") or 0, known.get("scheduled", {}).get("backup", 0))
    if 0 < since < missed.timestamp() and not problems:
        problems.append(f"the last backup is older than two scheduled times\n  type: make backup STACK={stack}")
    return line, "\n".join(problems) or None


def _last(entry: dict[str, Any], now: datetime) -> str:
    success = entry.get("last_success_timestamp_seconds")
    if success is None:
        return "none since this was deployed"
    size, took = amount(entry["source_bytes"]), entry["duration_seconds"]
    return f"{entry['snapshot'][:8]}, {_ago(success, now)}, {size} in {took:.0f} s"


def _ago(moment: float, now: datetime) -> str:
    hours = (now.timestamp() - moment) / 3600
    return f"{hours:.0f} h ago" if hours < 48 else f"{hours / 24:.0f} d ago"  # noqa: PLR2004 - of two days
