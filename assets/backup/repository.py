"""The repository: history, encryption, deduplication, retention and integrity, all of it by restic."""

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
"""Of every snapshot; of one that was taken before a restore; of one that lacks artifacts that could not be read.

`latest` is neither of the last two.
"""
DRILL = "drill"
"""Tag of a snapshot of the result of a restore test, and name of the file in it."""
LOCK_WAIT = "35m"
"""Restic itself takes a lock for left behind after half an hour."""
CONNECT_SECONDS = 10
ANSWER_SECONDS = 60
"""For a small file. Restic itself tries again for a quarter of an hour, also what was refused."""


def _run(*arguments: str, timeout_s: int | None = None, stdin: str | None = None) -> "subprocess.CompletedProcess[str]":
    """Run restic; raise `Failure` where it does not end within `timeout_s`, with what it last complained of."""
    try:
        return subprocess.run(
            ["restic", *arguments], input=stdin, capture_output=True, text=True, check=False, timeout=timeout_s
        )
    except subprocess.TimeoutExpired as error:
        words = error.stderr.decode(errors="replace") if isinstance(error.stderr, bytes) else error.stderr or ""
        last = "\n".join(f"    {line}" for line in words.strip().splitlines()[-3:])
        raise Failure(
            f"the target {os.environ['RESTIC_REPOSITORY']} does not do what it is asked to; is its key right, "
            f"and may it write there?\n{last}"
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
            f"the backups at {where} do not open with mlflow:backupPassword: another stack's, or made before it was "
            f"changed\n  put the old value of backupPassword back, as docs/operations/rotate.md says\n{last}"
        )
    if code == LOCKED:
        return f"{where} is locked by another restic; one repository is for one stack\n{last}"
    return f"restic {verb} {killed(code)} at {where}\n{last}"


def _message(line: str) -> str:
    """Return what restic says in a line, which is JSON where its results are."""
    try:
        said: Any = json.loads(line)
        return str(said["message"]) if "message" in said else f"{said['item']}: {said['error']['message']}"
    except (ValueError, TypeError, KeyError):
        return line


def require_reachable() -> None:
    """Raise `Failure` where an S3 target does not answer: restic would try again for a quarter of an hour."""
    where = os.environ["RESTIC_REPOSITORY"]
    if not where.startswith("s3:"):
        return
    url = urlsplit(where.removeprefix("s3:"))
    port = url.port or (443 if url.scheme == "https" else 80)
    try:
        socket.create_connection((url.hostname or "", port), timeout=CONNECT_SECONDS).close()
    except OSError as error:
        raise Failure(
            f"the target {where} cannot be reached: {error}\n"
            "  is mlflow:backup.target right, and may this host go there? The backups before are as they were"
        ) from None


def require() -> None:
    """Raise `Failure` where there is no repository, or its target does not answer, or refuses, within a minute."""
    require_reachable()
    if identity() is None:
        raise Failure(_explained("cat config", NO_REPOSITORY, ""))


def identity() -> str | None:
    """Return the id of the repository, or None where there is none."""
    # Without a lock, as wherever something is only looked at: one that a killed run left would stand in the way.
    done = _run("cat", "config", "--no-lock", timeout_s=ANSWER_SECONDS)
    if done.returncode == NO_REPOSITORY:
        return None
    if done.returncode:
        raise Failure(_explained("cat config", done.returncode, done.stderr.strip()))
    return str(json.loads(done.stdout)["id"])


def create() -> str:
    """Make a repository, and return its id."""
    say(f"making a new repository at {os.environ['RESTIC_REPOSITORY']}")
    _restic("init", timeout_s=ANSWER_SECONDS)
    return identity() or ""


def release() -> None:
    """Remove the locks of runs that were killed. Only for whoever holds the database's lock: no other run is at work.

    Where somebody else does the retention, they may be: only what restic itself takes for left behind is removed.
    """
    _restic("unlock", *(["--remove-all"] if os.environ["DELETES"] == "1" else []))


def snapshot(folder: Path, *others: Path, tags: Sequence[str]) -> dict[str, Any]:
    """Store `folder` and `others`, and return restic's summary: snapshot_id, data_added_packed in bytes, and more."""
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
        # A new volume numbers its files anew, and what is mirrored again gets a new time of change.
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
    """Keep what the retention says, and every one of the last two days; free what nothing needs any more."""
    keep = [f"--keep-{period}={os.environ[f'KEEP_{period.upper()}']}" for period in ("daily", "weekly", "monthly")]
    # By tags, too: one that was taken before a restore is nobody's last of a day.
    _restic("forget", "--quiet", f"--tag={TAG}", "--group-by=host,tags", "--keep-within=2d", *keep, "--prune")


def check(*options: str) -> None:
    """Raise `Failure` where the repository is damaged. Its structure; with `--read-data-subset`, the data too."""
    done = _run("check", "--quiet", f"--retry-lock={LOCK_WAIT}", *options)
    if done.returncode == DAMAGED:
        last = "\n".join(f"    {line}" for line in done.stderr.strip().splitlines()[-6:])
        raise Failure(
            "restic could not read all of it, or found what it did not write: the repository is damaged, or its disk "
            f"or network is\n{last}\n  see docs/operations/backup.md#a-damaged-repository"
        )
    if done.returncode:
        raise Failure(_explained("check", done.returncode, done.stderr.strip()))


def snapshots() -> list[dict[str, Any]]:
    """Return every snapshot, the oldest first."""
    found: list[dict[str, Any]] = json.loads(_restic("snapshots", "--json", "--no-lock", f"--tag={TAG}"))
    return sorted(found, key=lambda entry: entry["time"])


def is_regular(entry: dict[str, Any]) -> bool:
    """Whether a snapshot is one that `latest` may mean."""
    return not {SAFETY, INCOMPLETE} & set(entry["tags"])


def described(entry: dict[str, Any]) -> str:
    """Say of a snapshot what sets it apart, if anything does."""
    words = {SAFETY: "before a restore", INCOMPLETE: "incomplete"}
    return ", ".join(text for tag, text in words.items() if tag in entry["tags"])


def listing(snapshot_id: str, folder: Path) -> dict[str, int]:
    """Return the files of a snapshot below `folder`, by their names below it, and their sizes in bytes."""
    command = ["restic", "ls", "--json", "--no-lock", "--recursive", snapshot_id, str(folder)]
    below, found = f"{folder}/", {}
    # As it comes: of a million files it is a quarter of a gigabyte.
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
    """Return one snapshot by its id or `latest`; raise `Failure` where there is none."""
    found = snapshots()
    if not found:
        raise Failure(_explained("snapshots", NO_REPOSITORY, ""))
    regular = [entry for entry in found if is_regular(entry)]
    matching = (
        regular[-1:]
        if wanted == "latest"
        # Two letters are no choice.
        else [entry for entry in found if entry["id"].startswith(wanted) and len(wanted) >= len(entry["short_id"])]
    )
    if len(matching) != 1:
        known = ", ".join(
            entry["short_id"] + (f" ({kind})" if (kind := described(entry)) else "") for entry in found[-10:]
        )
        raise Failure(
            f"FROM={wanted}: there {'is no' if not matching else 'are several'} such backup; there are {known}"
        )
    return matching[0]


def remember_drill(result: dict[str, Any]) -> None:
    """Store the result of a restore test beside the backups: the staging folder goes with `make down`."""
    _restic(
        *("backup", "--quiet", "--stdin", f"--stdin-filename={DRILL}.json", f"--tag={DRILL}"),
        f"--host={os.environ['STACK']}",
        stdin=json.dumps(result),
        # A target that does not answer may be why it failed.
        timeout_s=ANSWER_SECONDS,
    )
    if os.environ["DELETES"] == "1":
        forget = ("forget", "--quiet", f"--tag={DRILL}", "--group-by=host,tags", "--keep-last=2")
        _restic(*forget, timeout_s=ANSWER_SECONDS)


def last_drill() -> dict[str, Any] | None:
    """Return the result of the last restore test that was stored, or None."""
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
    """Make `target` what `folder` was, or only some paths of it. What is there and the same is not written again."""
    command = ["restore", f"{snapshot_id}:{folder}", f"--target={target}"]
    if only is None:
        command.append("--delete")
    else:
        chosen = target.parent / f"{target.name}.chosen"
        chosen.write_text("".join(f"{_escaped(path)}\n" for path in only))
        command.append(f"--include-file={chosen}")
    show("restic", *command)


def _escaped(path: str) -> str:
    """Spell a path as a line of restic's include file that matches nothing else.

    Lines are stripped, variables expanded, and the rest is a pattern.
    """
    special = {"$": "$$", " ": "[ ]"} | {letter: f"\\{letter}" for letter in "*?[]\\"}
    return "/" + "".join(special.get(letter, letter) for letter in path)


def stored_bytes() -> int:
    """Return the size of the repository."""
    folder = Path(os.environ["RESTIC_REPOSITORY"])
    if folder.is_absolute():
        return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return int(json.loads(_restic("stats", "--json", "--no-lock", "--mode=raw-data"))["total_size"])
