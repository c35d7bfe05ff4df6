"""What the backup container's journal says, in words."""

import json
from datetime import UTC, datetime
from typing import Any

from croniter import croniter

from operations.common.console import format_bytes
from operations.common.stack import Stack
from operations.data.backup import PROGRAM
from settings import names
from settings.backup import BackupSettings

JOURNAL = "/staging/journal.json"
KINDS = {"backup": "backup", "drill": "restore test"}
"""The command of `make`, and its name."""
NEVER_LOGGED = "the database of this stack is empty"
EMPTY_STACK_MESSAGE = f"""{NEVER_LOGGED}, but the newest backup has {{runs}}
  to restore them, type: make restore STACK={{stack}} FROM=latest
  to keep the empty database, log a run: until then, no backup is taken"""
EMPTY_STORE_MESSAGE = """the object store of this stack is empty, but the newest backup has {artifacts}
  to restore them, type: make restore STACK={stack} FROM=latest, which says what it replaces
  if they were deleted on purpose, empty the list of the last backup: \
docker exec mlflow-{stack}-backup truncate -s 0 /staging/current/index.jsonl && make backup STACK={stack}"""
REFUSED_FOR_NO_ARTIFACT = "the bucket has 0 artifacts"
"""In the message of a backup that was refused for that reason."""


def _counted(number: int, word: str) -> str:
    return f"{number} {word}" if number == 1 else f"{number} {word}s"


def lost_message(runs: int, artifacts: int, stack: str) -> str | None:
    """Return the message for a stack without runs or without artifacts; None if it has lost neither.

    `runs` and `artifacts` are those of the newest backup, if the stack itself has none at all; 0 otherwise.
    """
    if runs:
        # A new host has lost both, and a restore brings both back.
        return EMPTY_STACK_MESSAGE.format(runs=_counted(runs, "run"), stack=stack)
    return EMPTY_STORE_MESSAGE.format(artifacts=_counted(artifacts, "artifact"), stack=stack) if artifacts else None


def read_journal(stack: Stack) -> dict[str, Any]:
    """Return the last backup and the last restore test, keys `backup` and `drill`, and since when each is scheduled.

    `lost_runs` is the number of runs in the newest backup, if the database is empty; `lost_artifacts` is the number of
    artifacts in it, if the object store is empty.
    """
    if not stack.settings.backup.enabled:
        return {}
    journal: dict[str, Any] = {}
    # An older backup program has no such command. Its journal file can be read even if the program fails.
    for command in ([*PROGRAM, "journal"], ["cat", JOURNAL]):
        code, printed = stack.daemon.run(names.docker_name(stack.name, "backup"), command)
        if code == 0 and "{" in printed:
            journal, _ = json.JSONDecoder().raw_decode(printed, printed.index("{"))
            break
    return {
        key: journal[key] for key in ("backup", "drill", "scheduled", "lost_runs", "lost_artifacts") if key in journal
    }


def summary(stack: Stack, journal: dict[str, Any]) -> tuple[str, str | None]:
    """Return the line on the backup for `make status`, and its problems or None."""
    settings = stack.settings.backup
    if not settings.enabled:
        kept = [volume for volume in sorted(stack.daemon.volumes()) if names.is_backup_volume(stack.name, volume)]
        if kept:
            # Their data key stays in the stack file; see docs/adr/0005-who-owns-a-password.md.
            return f"off; earlier backups are kept in {', '.join(kept)}; mlflow:backupPassword decrypts them", None
        return "off; to turn it on, set mlflow:backup: {enabled: true}", None
    return status_line(settings, journal, datetime.now(UTC), stack.name)


def status_line(settings: BackupSettings, journal: dict[str, Any], now: datetime, stack: str) -> tuple[str, str | None]:
    """Return the status line of a journal at the time `now`, and its problems or None."""
    found, drilled = journal.get("backup", {}), journal.get("drill", {})
    line = _last(found, now) + "; restore test: " + _last(drilled, now)
    if found.get("on_one_disk", settings.where == "volume"):
        line += ";\n          on the same disk as the data: if it fails, both are lost (set mlflow:backup.target)"
    problems = [
        f"the last {KINDS[kind]} failed, {_format_age(entry.get('last_end_timestamp_seconds', 0), now)}: "
        f"{entry['error']}\n"
        f"  fix the cause, then type: make {kind} STACK={stack}"
        for kind, entry in (("backup", found), ("drill", drilled))
        if entry.get("last_result") == 0
    ]
    lost = lost_message(journal.get("lost_runs", 0), journal.get("lost_artifacts", 0), stack)
    # A backup that was refused for this reason already reports it.
    refusal = NEVER_LOGGED if journal.get("lost_runs") else REFUSED_FOR_NO_ARTIFACT
    if lost and not any(refusal in problem for problem in problems):
        problems.insert(0, lost)
    due = croniter(settings.schedule, now)
    # The later of the last two that were due may still be running.
    due.get_prev(datetime)
    missed: datetime = due.get_prev(datetime)
    # A stack that was down has only older backups, and a new stack has none yet: both wait for the next time.
    since = max(found.get("last_success_timestamp_seconds") or 0, journal.get("scheduled", {}).get("backup", 0))
    if 0 < since < missed.timestamp() and not problems:
        problems.append(
            "a scheduled backup was missed: the last backup is older than the last two scheduled times\n"
            f"  type: make backup STACK={stack}"
        )
    return line, "\n".join(problems) or None


def _last(entry: dict[str, Any], now: datetime) -> str:
    success = entry.get("last_success_timestamp_seconds")
    if success is None:
        return "none since the deployment"
    size, took = format_bytes(entry["source_bytes"]), entry["duration_seconds"]
    return f"{entry['snapshot'][:8]}, {_format_age(success, now)}, {size} in {took:.0f} s"


def _format_age(moment: float, now: datetime) -> str:
    hours = (now.timestamp() - moment) / 3600
    return f"{hours:.0f} h ago" if hours < 48 else f"{hours / 24:.0f} d ago"  # noqa: PLR2004 - of two days
