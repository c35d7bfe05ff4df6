"""`make restore`."""

import os
import time
from typing import Any

from operations.common.console import StopError, answer, flag, make, require_name, say, through
from operations.common.stack import Stack
from operations.data.backup import found, in_container, require_container
from operations.deployment import deploy
from runtime import preconditions
from settings import names

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


def restore(stack: Stack) -> None:
    """Put the backup `FROM=` (latest, or its id) in the place of what is there. With `DRY_RUN=1`, only say so.

    `SAFETY=0` spares the backup of what is there, where that cannot be read any more.
    """
    dry, safety = flag("DRY_RUN"), flag("SAFETY", default=True)
    require_container(stack)
    if preconditions.restore_is_running(stack.daemon, stack.name):
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
        if code != 0 and not preconditions.restore_is_running(stack.daemon, stack.name):
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


def _secure(stack: Stack) -> None:
    """Take a backup of what is there before it is replaced; raise `StopError` saying how to go on without."""
    say("first, a backup of what is there now")
    try:
        in_container(stack, "safety")
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
            "docs/operations/restore.md#data-keys-from-a-backup"
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
