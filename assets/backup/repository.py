"""The backup repository: history, encryption, deduplication, retention and integrity, all by restic."""

import json
import os
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from shell import Failure, amount, killed, make, say, show

DAMAGED, NO_REPOSITORY, LOCKED, WRONG_PASSWORD = 1, 10, 11, 12
"""Exit codes of restic."""
TAG, SAFETY, INCOMPLETE = "mlflow", "safety", "incomplete"
"""Tags of: every snapshot; a safety backup before a restore or an import; an incomplete backup, which lacks artifacts.

`latest` never means a snapshot with one of the last two tags.
"""
DRILL = "drill"
"""Tag of a snapshot with the result of a restore test, and name of the file in it."""
LOCK_WAIT = "35m"
"""Restic considers a lock stale after half an hour."""
CONNECT_SECONDS = 10
ANSWER_SECONDS = 60
"""Timeout for a small file. Restic itself retries for a quarter of an hour, even if access was denied."""


def _run(*arguments: str, timeout_s: int | None = None, stdin: str | None = None) -> "subprocess.CompletedProcess[str]":
    """Run restic; raise `Failure` with its last errors if it does not end within `timeout_s` seconds."""
    try:
        return subprocess.run(
            ["restic", *arguments], input=stdin, capture_output=True, text=True, check=False, timeout=timeout_s
        )
    except subprocess.TimeoutExpired as error:
        words = error.stderr.decode(errors="replace") if isinstance(error.stderr, bytes) else error.stderr or ""
        last = "\n".join(f"    {line}" for line in words.strip().splitlines()[-3:])
        raise Failure(
            f"the backup target {os.environ['RESTIC_REPOSITORY']} did not complete the request within {timeout_s} s; "
            f"check mlflow:backup.target, and that its access key is valid and may write to it\n{last}"
        ) from None


def _restic(*arguments: str, timeout_s: int | None = None, stdin: str | None = None) -> str:
    done = _run(*arguments, timeout_s=timeout_s, stdin=stdin)
    if done.returncode:
        raise Failure(_explained(arguments[0], done.returncode, done.stderr.strip()))
    return done.stdout


def _explained(verb: str, code: int, words: str) -> str:
    where = os.environ["RESTIC_REPOSITORY"]
    last = "\n".join(f"    {_message(line)}" for line in words.splitlines()[-6:])
    if code == NO_REPOSITORY:
        return f"there is no backup at {where} yet\n  type: {make('backup')}"
    if code == WRONG_PASSWORD:
        return (
            f"mlflow:backupPassword does not decrypt the backups at {where}: they belong to another stack, or to an "
            "earlier password\n  set the old value of backupPassword again, or another mlflow:backup.target: "
            f"docs/operations/restore.md#restore-a-backup-that-has-other-data-keys\n{last}"
        )
    if code == LOCKED:
        return (
            f"another restic process has locked {where}; wait for it, then try again\n"
            f"  if it belongs to another stack: each stack needs its own mlflow:backup.target\n{last}"
        )
    return f"restic {verb} {killed(code)} at {where}\n{last}"


def _message(line: str) -> str:
    """Return the message in a line of restic, which is JSON if the command's output is JSON."""
    try:
        said: Any = json.loads(line)
        return str(said["message"]) if "message" in said else f"{said['item']}: {said['error']['message']}"
    except (ValueError, TypeError, KeyError):
        return line


def require_reachable() -> None:
    """Raise `Failure` if an S3 target does not answer: restic would retry for a quarter of an hour."""
    where = os.environ["RESTIC_REPOSITORY"]
    if not where.startswith("s3:"):
        return
    url = urlsplit(where.removeprefix("s3:"))
    port = url.port or (443 if url.scheme == "https" else 80)
    try:
        socket.create_connection((url.hostname or "", port), timeout=CONNECT_SECONDS).close()
    except OSError as error:
        raise Failure(
            f"the backup target {where} cannot be reached: {error}\n"
            "  check mlflow:backup.target, and that this host may connect to it; earlier backups are unchanged"
        ) from None


def require() -> None:
    """Raise `Failure` if there is no repository, or its target denies access or does not answer within a minute."""
    require_reachable()
    if identity() is None:
        raise Failure(_explained("cat config", NO_REPOSITORY, ""))


def identity() -> str | None:
    """Return the id of the repository, or None if there is none."""
    # Without a lock, as every command that only reads: the lock of a killed run would block it.
    done = _run("cat", "config", "--no-lock", timeout_s=ANSWER_SECONDS)
    if done.returncode == NO_REPOSITORY:
        return None
    if done.returncode:
        raise Failure(_explained("cat config", done.returncode, done.stderr.strip()))
    return str(json.loads(done.stdout)["id"])


def create() -> str:
    """Create a repository and return its id."""
    say(f"creating a new backup repository at {os.environ['RESTIC_REPOSITORY']}")
    _restic("init", timeout_s=ANSWER_SECONDS)
    return identity() or ""


def release() -> None:
    """Remove restic's locks of killed runs. Call it only with the exclusive lock held: no other run is active then.

    If the target does not allow deletion, another host may run the retention: then remove only stale locks.
    """
    _restic("unlock", *(["--remove-all"] if os.environ["DELETES"] == "1" else []))


def snapshot(folder: Path, *others: Path, tags: Sequence[str]) -> dict[str, Any]:
    """Store `folder` and `others`; return restic's summary: snapshot_id, data_added_packed in bytes, and more."""
    command = [
        *(
            "restic",
            "backup",
            "--json",
            f"--host={os.environ['STACK']}",
            "--group-by=host",
            f"--retry-lock={LOCK_WAIT}",
        ),
        *(f"--tag={tag}" for tag in tags),
        # A new volume has other inode numbers, and a file that is mirrored again has another change time.
        *("--ignore-ctime", "--ignore-inode", str(folder), *map(str, others)),
    ]
    summary: dict[str, Any] = {}
    words = ""
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as running:
        assert running.stdout  # noqa: S101 - it is a pipe
        for line in running.stdout:
            message = json.loads(line) if line.startswith("{") else {}
            if message.get("message_type") == "summary":
                summary = message
            elif message.get("message_type") != "status":
                words = (words + line)[-4000:]
            elif message.get("total_bytes"):
                done, total = message.get("bytes_done", 0), message["total_bytes"]
                say(f"stored {amount(done)} of {amount(total)}")
    if running.returncode or not summary:
        raise Failure(_explained("backup", running.returncode, words.strip()))
    return summary


def forget() -> None:
    """Apply the retention policy and free unused space. Every snapshot of the last two days stays."""
    keep = [f"--keep-{period}={os.environ[f'KEEP_{period.upper()}']}" for period in ("daily", "weekly", "monthly")]
    # Grouped by tags, too: a safety backup must not count as the last backup of a day.
    _restic("forget", "--quiet", f"--tag={TAG}", "--group-by=host,tags", "--keep-within=2d", *keep, "--prune")


def check(*options: str) -> None:
    """Raise `Failure` if the repository is damaged. Checks its structure; with `--read-data-subset`, also data."""
    done = _run("check", "--quiet", f"--retry-lock={LOCK_WAIT}", *options)
    if done.returncode == DAMAGED:
        last = "\n".join(f"    {line}" for line in done.stderr.strip().splitlines()[-6:])
        raise Failure(
            "restic cannot read the repository, or finds changed data: the repository is damaged, or its disk or "
            f"network fails\n{last}\n  see docs/operations/backup.md#a-damaged-repository"
        )
    if done.returncode:
        raise Failure(_explained("check", done.returncode, done.stderr.strip()))


def snapshots() -> list[dict[str, Any]]:
    """Return every snapshot, the oldest first."""
    found: list[dict[str, Any]] = json.loads(_restic("snapshots", "--json", "--no-lock", f"--tag={TAG}"))
    return sorted(found, key=lambda entry: entry["time"])


def is_regular(entry: dict[str, Any]) -> bool:
    """Return whether `latest` may mean this snapshot."""
    return not {SAFETY, INCOMPLETE} & set(entry["tags"])


def described(entry: dict[str, Any]) -> str:
    """Return in words whether a snapshot is a safety backup or incomplete; empty if neither."""
    words = {SAFETY: "before a restore or an import", INCOMPLETE: "incomplete"}
    return ", ".join(text for tag, text in words.items() if tag in entry["tags"])


def listing(snapshot_id: str, folder: Path) -> dict[str, int]:
    """Return the sizes in bytes of a snapshot's files below `folder`, by name relative to it."""
    command = ["restic", "ls", "--json", "--no-lock", "--recursive", snapshot_id, str(folder)]
    below, found = f"{folder}/", {}
    # Line by line: the output for a million files is a quarter of a gigabyte.
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        assert running.stdout  # noqa: S101 - it is a pipe
        assert running.stderr  # noqa: S101 - it is a pipe
        for line in running.stdout:
            entry = json.loads(line)
            if entry.get("type") == "file" and entry["path"].startswith(below):
                found[entry["path"].removeprefix(below)] = entry.get("size", 0)
        words = running.stderr.read()
    if running.returncode:
        raise Failure(_explained("ls", running.returncode, words.strip()))
    return found


def find(wanted: str) -> dict[str, Any]:
    """Return one snapshot by its id or `latest`; raise `Failure` if there is none, or more than one."""
    found = snapshots()
    if not found:
        raise Failure(_explained("snapshots", NO_REPOSITORY, ""))
    regular = [entry for entry in found if is_regular(entry)]
    matching = (
        regular[-1:]
        if wanted == "latest"
        # Not by fewer characters than the short id.
        else [entry for entry in found if entry["id"].startswith(wanted) and len(wanted) >= len(entry["short_id"])]
    )
    if len(matching) != 1:
        known = ", ".join(
            entry["short_id"] + (f" ({kind})" if (kind := described(entry)) else "") for entry in found[-10:]
        )
        raise Failure(
            f"FROM={wanted}: {'no' if not matching else 'more than one'} backup matches; newest backups: {known}"
        )
    return matching[0]


def remember_drill(result: dict[str, Any]) -> None:
    """Store the result of a restore test beside the backups: `make down` deletes the staging folder."""
    _restic(
        *("backup", "--quiet", "--stdin", f"--stdin-filename={DRILL}.json", f"--tag={DRILL}"),
        f"--host={os.environ['STACK']}",
        stdin=json.dumps(result),
        # The test may have failed because the target does not answer.
        timeout_s=ANSWER_SECONDS,
    )
    if os.environ["DELETES"] == "1":
        forget = ("forget", "--quiet", f"--tag={DRILL}", "--group-by=host,tags", "--keep-last=2")
        _restic(*forget, timeout_s=ANSWER_SECONDS)


def last_drill() -> dict[str, Any] | None:
    """Return the last stored result of a restore test, or None."""
    found = json.loads(_restic("snapshots", "--json", "--no-lock", f"--tag={DRILL}", "--latest=1") or "[]")
    if not found:
        return None
    newest = max(found, key=lambda entry: entry["time"])
    result: dict[str, Any] = json.loads(_restic("dump", "--no-lock", newest["id"], f"/{DRILL}.json"))
    return result


def text(snapshot_id: str, path: Path) -> str:
    """Return the content of one file of a snapshot."""
    return _restic("dump", "--no-lock", snapshot_id, str(path))


def restore(snapshot_id: str, folder: Path, target: Path, *, only: list[str] | None = None) -> None:
    """Restore `folder` of a snapshot, or `only` some paths of it, to `target`. Unchanged files are not written."""
    command = ["restore", f"{snapshot_id}:{folder}", f"--target={target}"]
    if only is None:
        command.append("--delete")
    else:
        chosen = target.parent / f"{target.name}.chosen"
        chosen.write_text("".join(f"{_escaped(path)}\n" for path in only))
        command.append(f"--include-file={chosen}")
    show("restic", *command)


def _escaped(path: str) -> str:
    """Return a line for restic's include file that matches only this path.

    Restic strips the lines, expands variables, and treats the rest as a pattern.
    """
    special = {"$": "$$", " ": "[ ]"} | {letter: f"\\{letter}" for letter in "*?[]\\"}
    return "/" + "".join(special.get(letter, letter) for letter in path)


def stored_bytes() -> int:
    """Return the size of the repository in bytes."""
    folder = Path(os.environ["RESTIC_REPOSITORY"])
    if folder.is_absolute():
        return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return int(json.loads(_restic("stats", "--json", "--no-lock", "--mode=raw-data"))["total_size"])
