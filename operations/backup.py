"""Backup, drill and restore: what `make` asks of the backup container, and what happens around it."""

import json
import os
import time
from datetime import UTC, datetime
from typing import Any

from croniter import croniter

from components import names, preconditions
from components.backup import BackupSettings
from operations import deploy
from operations.checkout import Stack
from operations.console import StopError, amount, answer, flag, make, require_name, say, through

PROGRAM = ("python3", "/run/config/main.py")
JOURNAL = "/staging/journal.json"
NONE_YET = "there is no backup at"
"""How the backup's program begins to say so."""
SECRETS = "/run/server-secrets"
READY_SECONDS = 300
KNOWS_REVISION = """
import sys
from alembic.script import ScriptDirectory
from mlflow.store.db.utils import _get_alembic_config
ScriptDirectory.from_config(_get_alembic_config("sqlite://")).get_revision(sys.argv[1])
"""
"""Run in the MLflow image: fails where its MLflow is older than a database of that revision."""
UNKNOWN_REVISION = "Can't locate revision"
"""Alembic's words."""

NEVER_LOGGED = "nothing was ever logged here"
LOST = f"""{NEVER_LOGGED}, and the newest backup has {{runs}}
  to have them back, type: make restore STACK={{stack}} FROM=latest
  to begin anew, log something: until then no backup is taken of this"""


def _runs(number: int) -> str:
    return f"{number} run" if number == 1 else f"{number} runs"


def lost(runs: int, stack: str) -> str:
    """Say that a stack is empty, and that its newest backup is not."""
    return LOST.format(runs=_runs(runs), stack=stack)


def backup(stack: Stack) -> None:
    """Take a backup now."""
    _in_container(stack, "backup")


def backups(stack: Stack) -> None:
    """Print every backup."""
    _require_container(stack)
    answer(_told(stack, "list"))


def drill(stack: Stack) -> None:
    """Restore the newest backup into a throw-away database now."""
    _in_container(stack, "drill")


def _require_container(stack: Stack) -> None:
    """Raise `StopError` where there is no backup, or it does not run."""
    if not stack.settings.backup.enabled:
        raise StopError(
            f"{stack.name} has no backup\n  in {stack.path.name}: `mlflow:backup: {{enabled: true}}`; then: "
            f"make up STACK={stack.name}"
        )
    found = stack.daemon.inspect(names.physical(stack.name, "backup"))
    if found is None or not found["State"]["Running"]:
        raise StopError(f"the backup of {stack.name} does not run\n  type: make up STACK={stack.name}")


def _in_container(stack: Stack, verb: str) -> None:
    """Run a verb of the backup's program; raise `StopError` where it fails."""
    _require_container(stack)
    if stack.daemon.show(names.physical(stack.name, "backup"), [*PROGRAM, verb], through):
        what = "backup" if verb == "safety" else verb
        raise StopError(f"the {what} of {stack.name} did not succeed; the reason is above, after 'error:'")


def _told(stack: Stack, *arguments: str) -> str:
    """Return what a verb of the backup's program prints; raise `StopError` with that where it fails."""
    printed: list[str] = []
    if stack.daemon.show(names.physical(stack.name, "backup"), [*PROGRAM, *arguments], printed.append):
        raise StopError("".join(printed).strip().removeprefix("error: "))
    return "".join(printed).strip()


def restore(stack: Stack) -> None:
    """Put the backup `FROM=` (latest, or its id) in the place of what is there. With `DRY_RUN=1`, only say so.

    `SAFETY=0` spares the backup of what is there, where that cannot be read any more.
    """
    dry, safety = flag("DRY_RUN"), flag("SAFETY", default=True)
    _require_container(stack)
    if preconditions.restore_at_work(stack.daemon, stack.name):
        raise StopError(
            f"another restore of {stack.name} is at work; wait for it: "
            f"docker logs -f {names.physical(stack.name, names.RESTORE)}"
        )
    wanted = os.environ.get("FROM")
    if not wanted:
        raise StopError(
            f"which backup?\n  type: {make('restore', stack.name)} FROM=latest, or FROM=<id> of: "
            f"{make('backups', stack.name)}"
        )
    plan = found(stack, wanted)
    version = plan["mlflow"] or "(which did not tell its version)"
    say(f"backup {plan['id'][:8]} of {plan['stack']}, taken {plan['taken_at'][:19]} with MLflow {version}:")
    say(f"  {plan['summary']}")
    _refuse(stack, plan)
    used = plan["used"]
    if used:
        # A backup container of before tells none.
        since = plan.get("since")
        say(
            "  what was made or changed since could not be counted"
            if since is None
            else f"  would be lost, made or changed since: {since or 'nothing, as far as times tell'}"
        )
    again = f"restore FROM={plan['id'][:8]}{'' if safety else ' SAFETY=0'}"
    if dry:
        say(
            "a restore would "
            + ("take a backup of what is there now, " if used and safety else "")
            + "stop the server, bring the artifacts back, put the database in the place of the one that is there "
            "(which is kept beside it), migrate it, and start the server; nothing was changed"
        )
        return
    if used:
        question = f"This puts the backup in the place of what {stack.name} has now."
        require_name(stack.name, question, verb=again)
        if safety:
            _secure(stack)
    server = names.physical(stack.name, "server")
    say("stopping the server")
    code = None
    try:
        stack.daemon.stop(server)
        code = _run_restorer(stack, plan["id"])
    finally:
        # Where only its client ended, a restore goes on, and what anybody wrote meanwhile would be lost. The server
        # itself waits for its end, too, wherever Docker starts it (mlflow/serve.py).
        if code != 0 and not preconditions.restore_at_work(stack.daemon, stack.name):
            # A stop that was interrupted may still be under way.
            stack.daemon.restart(server)
            say("the server was started again")
    if code:
        raise StopError(
            f"the restore of {stack.name} did not complete; the reason is above, after 'error:'\n"
            "  the database is as it was; artifacts that differ may be the backup's already, and what they were is\n"
            "  in the bucket, under before_restore_...\n"
            f"  mend the cause, then type: make {again} STACK={stack.name} CONFIRM={stack.name}"
        )
    _start(stack)
    say(f"\n{stack.name} has been restored from backup {plan['id'][:8]}")
    answer(stack.settings.route.url)


def found(stack: Stack, wanted: str) -> dict[str, Any]:
    """Return what a restore of a backup, `latest` or an id, would find; raise `StopError` where there is none."""
    plan: dict[str, Any] = json.loads(_told(stack, "plan", wanted).splitlines()[-1])
    return plan


def _secure(stack: Stack) -> None:
    """Take a backup of what is there before it is replaced; raise `StopError` saying how to go on without."""
    say("first, a backup of what is there now")
    try:
        _in_container(stack, "safety")
    except StopError as error:
        raise StopError(
            f"{error}\n  nothing was changed; where what is there is too damaged for a backup, the same with SAFETY=0: "
            "the database stays in a schema of its own even so"
        ) from None


def _refuse(stack: Stack, plan: dict[str, Any]) -> None:
    """Raise `StopError` where this stack cannot be what the backup was of."""
    if plan["stack"] != stack.name:
        raise StopError(
            f"this is a backup of {plan['stack']}, not of {stack.name}; nothing was changed\n"
            f"  type: make restore STACK={plan['stack']} FROM=..., or correct mlflow:backup.target"
        )
    if not _knows(stack, plan["schema_revision"]):
        raise StopError(
            f"the database of this backup (revision {plan['schema_revision']}, MLflow {plan['mlflow'] or 'unknown'}) "
            f"is newer than the MLflow of {stack.name}, which cannot read it; nothing was changed\n"
            f"  check out the version of this project that took the backup, type: {make('up', stack.name)}, "
            "and restore there"
        )
    if plan["other_keys"] and plan["encrypted_rows"]:
        raise StopError(
            f"what MLflow encrypted in this backup does not open with the {', '.join(plan['other_keys'])} of "
            f"{stack.path.name}; nothing was changed\n  the old ones are in the backup; to take them over: "
            "docs/operations.md#data-keys-from-a-backup"
        )


def _knows(stack: Stack, revision: str) -> bool:
    """Whether the MLflow of this stack can read a database of `revision`, or migrate it."""
    image = stack.daemon.api.inspect_container(names.physical(stack.name, "server"))["Image"]
    body = {
        "Image": image,
        "Cmd": ["python", "-W", "ignore", "-c", KNOWS_REVISION, revision],
        "HostConfig": {
            "NetworkMode": "none",
            "CapDrop": ["ALL"],
            "SecurityOpt": ["no-new-privileges:true"],
            "ReadonlyRootfs": True,
            "Tmpfs": {"/tmp": "size=64m,mode=1777"},  # noqa: S108 - inside the container
        },
    }
    said: list[str] = []
    code = stack.daemon.once(names.physical(stack.name, "revision"), body, said.append)
    if code and UNKNOWN_REVISION not in "".join(said):
        raise StopError(
            f"whether MLflow's image knows revision {revision} could not be found out; nothing was changed\n"
            + "".join(said[-5:]).rstrip()
            + f"\n  mend the cause, then type the same again; where none is said: make doctor STACK={stack.name}"
        )
    return code == 0


def _run_restorer(stack: Stack, snapshot: str) -> int:
    """Restore in a container like the backup's, with the server's rights; return its exit code."""
    found = stack.daemon.api.inspect_container(names.physical(stack.name, "backup"))
    environment = dict(entry.partition("=")[::2] for entry in found["Config"]["Env"])
    environment |= {
        "PGUSER": "mlflow",
        "PGPASS": f"{SECRETS}/pgpass",
        "RCLONE_CONFIG_STORE_SHARED_CREDENTIALS_FILE": f"{SECRETS}/aws-credentials",
    }
    secrets = names.physical(stack.name, "server-secrets")
    host = found["HostConfig"]
    kept = ("CapDrop", "SecurityOpt", "ReadonlyRootfs", "Tmpfs", "Memory", "MemorySwap", "NanoCpus", "LogConfig")
    body = {
        "Image": found["Image"],
        "User": found["Config"]["User"],
        "Cmd": ["restore", snapshot],
        "Env": [f"{key}={value}" for key, value in environment.items()],
        "HostConfig": {
            **{key: host[key] for key in kept},
            "Init": True,
            "Binds": [*host["Binds"], f"{secrets}:{SECRETS}:ro"],
        },
    }
    networks = list(found["NetworkSettings"]["Networks"])
    return stack.daemon.once(names.physical(stack.name, names.RESTORE), body, through, networks=networks)


def _start(stack: Stack) -> None:
    """Migrate the restored database and start the server; raise `StopError` where that fails."""
    daemon = stack.daemon
    migrate, server = (names.physical(stack.name, service) for service in ("migrate", "server"))
    if daemon.inspect(migrate) is None:
        # Somebody pruned it; the deployment makes it again, and it runs.
        try:
            deploy.up(stack)
        except StopError as error:
            raise StopError(
                "the backup is restored, and the server is down until this succeeds: "
                f"make up STACK={stack.name}\n{error}"
            ) from None
        return
    say("migrating the database, if it is of an older MLflow")
    daemon.start(migrate)
    if code := daemon.api.wait(migrate, timeout=None)["StatusCode"]:
        raise StopError(
            f"{migrate} exited with code {code}:\n{daemon.logs(migrate)}\n"
            f"  the backup is restored; mend the cause, then type: make up STACK={stack.name}"
        )
    say("starting the server")
    daemon.start(server)
    check = daemon.api.inspect_container(server)["Config"]["Healthcheck"]["Test"][1:]
    deadline = time.monotonic() + READY_SECONDS
    while daemon.run(server, check)[0]:
        if time.monotonic() > deadline:
            raise StopError(f"{server} is not ready after {READY_SECONDS} s:\n{daemon.logs(server)}")
        time.sleep(1)


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
