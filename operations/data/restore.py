"""`make restore`."""

import os
from typing import Any

from docker.errors import ImageNotFound

from operations.common.console import (
    StopError,
    flag,
    make,
    output,
    progress,
    relay_output,
    require_confirmation,
)
from operations.common.stack import Stack
from operations.data import data_keys, migration
from operations.data.backup import data_key, in_container, require_container, restore_plan
from operations.deployment import deploy
from operations.host import containers
from operations.host.servers import servers
from preconditions import host as preconditions
from settings import names
from settings.secrets import NEXT_KEYS
from settings.server import SCHEMA_FILES

SECRETS = "/run/server-secrets"
CHECK_REVISION_SCRIPT = """
import sys
from pathlib import Path
revision, newest = sys.argv[1], Path(sys.argv[2])
if newest.exists() and newest.read_text().strip() == revision:
    sys.exit()
from alembic.script import ScriptDirectory
from mlflow.store.db.utils import _get_alembic_config
ScriptDirectory.from_config(_get_alembic_config("sqlite://")).get_revision(revision)
"""
"""Runs in the MLflow image. Fails if its MLflow does not know the database revision, because it is older.

Importing MLflow takes two seconds. Most backups have the newest revision, for which the script does not import it.
"""
UNKNOWN_REVISION = "Can't locate revision"
"""Alembic's error message."""


def restore(stack: Stack) -> None:
    """Replace the data of the stack by the backup `FROM=` (latest, or its id). `DRY_RUN=1` changes nothing.

    `SAFETY=0` skips the backup of the current data, for data that can no longer be read.
    """
    dry, safety = flag("DRY_RUN"), flag("SAFETY", default=True)
    require_container(stack)
    containers.require_no_operation(stack.daemon, stack.name)
    wanted = os.environ.get("FROM")
    if not wanted:
        raise StopError(
            f"FROM= is not set\n  type: {make('restore', stack.name)} FROM=latest, or FROM=<id> with an id from: "
            f"{make('backups', stack.name)}"
        )
    plan = restore_plan(stack, wanted)
    _describe(plan)
    _require_restorable(stack, plan)
    used = plan["used"]
    if used:
        _describe_loss(plan)
    again = f"restore FROM={plan['id'][:8]}{'' if safety else ' SAFETY=0'}"
    if dry:
        progress(
            "a restore would "
            + ("take a backup of the current data, " if used and safety else "")
            + "stop the server, restore the artifacts, replace the database (the current one is kept in a separate "
            "schema), migrate it, and start the server; nothing was changed"
        )
        return
    if used:
        question = f"This replaces the current data of {stack.name} with the backup."
        require_confirmation(stack.name, question, verb=again)
        if safety:
            _back_up_current_data(stack)
    _replace_data(stack, plan["id"], again)
    if others := _other_keys(plan):
        _encrypt_with_our_keys(stack, plan["id"], others, again)
    _start(stack)
    progress(f"\n{stack.name} is restored from backup {plan['id'][:8]}")
    output(stack.settings.route.url)


def _describe(plan: dict[str, Any]) -> None:
    """Print which backup will be restored, and what it contains."""
    version = plan["mlflow"] or "of unknown version"
    progress(f"backup {plan['id'][:8]} of {plan['stack']}, taken {plan['taken_at'][:19]} UTC with MLflow {version}:")
    progress(f"  {plan['summary']}")


def _describe_loss(plan: dict[str, Any]) -> None:
    """Print what a restore discards."""
    # The backup container of an earlier version of this project does not report it.
    since = plan.get("since")
    later = since or "none found in the timestamps of the rows; a deletion leaves none"
    progress(
        "  a restore discards all later changes; they could not be counted"
        if since is None
        else f"  a restore discards all later changes: {later}"
    )


def _replace_data(stack: Stack, snapshot: str, again: str) -> None:
    """Stop the server and replace the data; raise `StopError` with the command `again` if that does not complete."""
    deployed = servers(stack)
    progress("stopping the server")
    code = None
    try:
        deployed.stop()
        code = _run_restorer(stack, snapshot)
    finally:
        # If only this client ended, the restore continues, and it would discard anything written meanwhile. The server
        # itself waits for the end of a restore, too, however Docker starts it (mlflow/serve.py).
        if code != 0 and not preconditions.is_running(stack.daemon, stack.name, names.RESTORE):
            # An interrupted stop may still be in progress.
            deployed.restart()
            progress("the server was started again")
    if code:
        raise StopError(
            f"the restore of {stack.name} did not complete; the reason is above, after 'error:'\n"
            "  the database is unchanged; some artifacts may already be restored: their previous\n"
            "  versions are in the bucket, under before_restore_...\n"
            f"  fix the cause, then type: make {again} STACK={stack.name} CONFIRM={stack.name}"
        )


def _encrypt_with_our_keys(stack: Stack, snapshot: str, others: list[str], again: str) -> None:
    """Encrypt the restored secrets of MLflow with the data keys of the stack. The backup has those of its time."""
    progress(f"the backup has other data keys ({', '.join(others)}): encrypting its secrets with ours")
    deployed, old, new = servers(stack), {}, {}
    for name in others:
        key = names.key_of(name)
        old[key] = data_key(stack, snapshot, name)
        new[key] = data_keys.secret_of(deployed, name)
    if data_keys.encrypt_rows(stack, deployed, old, new):
        raise StopError(
            f"the database is restored, but its secrets are not encrypted with the data keys of {stack.path.name}; the "
            f"reason is above, and the server is stopped\n  fix the cause, then type: make {again} STACK={stack.name} "
            f"CONFIRM={stack.name}"
        )


def _back_up_current_data(stack: Stack) -> None:
    """Back up the current data before it is replaced; if that fails, raise `StopError` that explains SAFETY=0."""
    progress("taking a backup of the current data first")
    try:
        in_container(stack, "safety")
    except StopError as error:
        raise StopError(
            f"{error}\n  nothing was changed; if the current data is too damaged for a backup, repeat the command with "
            "SAFETY=0: the current database is still kept in a separate schema"
        ) from None


def _require_restorable(stack: Stack, plan: dict[str, Any]) -> None:
    """Raise `StopError` if this backup cannot be restored into this stack."""
    if plan["stack"] != stack.name:
        raise StopError(
            f"this is a backup of {plan['stack']}, not of {stack.name}; nothing was changed\n"
            f"  type: make restore STACK={plan['stack']} FROM=..., or correct mlflow:backup.target"
        )
    if not supports_revision(stack, plan["schema_revision"]):
        raise StopError(
            f"the database of this backup (revision {plan['schema_revision']}, MLflow {plan['mlflow'] or 'unknown'}) "
            f"is newer than the MLflow of {stack.name}, which cannot read it; nothing was changed\n"
            f"  check out the version of this project that took the backup, then type: {make('up', stack.name)}, "
            "and restore the backup there"
        )
    if names.docker_name(stack.name, "server-secrets") not in stack.daemon.volumes():
        raise StopError(
            f"the volume with the passwords of the server of {stack.name} is missing; nothing was changed\n"
            f"  type: {make('up', stack.name)}; then repeat the command"
        )
    if (others := _other_keys(plan)) and not servers(stack).deployed:
        raise StopError(
            f"the backup has other data keys ({', '.join(others)}), and {stack.name} has no server with its own ones; "
            f"nothing was changed\n  type: {make('up', stack.name)}; then repeat the command"
        )


def _other_keys(plan: dict[str, Any]) -> list[str]:
    """Return the data keys of MLflow that were others when the backup was taken.

    Artifacts are in the backup as clients read them: the key of the object store is not needed to restore them.
    """
    return [name for name in plan["other_keys"] if names.key_of(name) in NEXT_KEYS]


def supports_revision(stack: Stack, revision: str) -> bool:
    """Return whether the MLflow of this stack can read or migrate a database of `revision`.

    Raises `StopError` if its image is not on the host.
    """
    # Without a server, which was pruned or removed by hand, the image that the next deployment would run.
    found = servers(stack).images
    image = found[0] if found else stack.settings.images.server
    body = {
        "Image": image,
        "Cmd": ["python", "-W", "ignore", "-c", CHECK_REVISION_SCRIPT, revision, SCHEMA_FILES["alembic_version"]],
        "HostConfig": {
            "NetworkMode": "none",
            "CapDrop": ["ALL"],
            "SecurityOpt": ["no-new-privileges:true"],
            "ReadonlyRootfs": True,
            "Tmpfs": {"/tmp": "size=64m,mode=1777"},  # noqa: S108 - inside the container
        },
    }
    said: list[str] = []
    try:
        code = stack.daemon.once(names.docker_name(stack.name, "revision"), body, said.append)
    except ImageNotFound:
        raise StopError(
            f"the image {image} of the server of {stack.name} is not on the host; nothing was changed\n"
            f"  to build or pull it, type: {make('up', stack.name)}; then repeat the command"
        ) from None
    if code and UNKNOWN_REVISION not in "".join(said):
        raise StopError(
            f"could not check whether MLflow's image knows database revision {revision}; nothing was changed\n"
            + "".join(said[-5:]).rstrip()
            + f"\n  fix the cause, then repeat the command; if no cause is shown, type: make doctor STACK={stack.name}"
        )
    return code == 0


def _run_restorer(stack: Stack, snapshot: str) -> int:
    """Restore in a copy of the backup container that has the server's credentials; return its exit code."""
    container = stack.daemon.api.inspect_container(names.docker_name(stack.name, "backup"))
    environment = dict(entry.partition("=")[::2] for entry in container["Config"]["Env"])
    environment |= {
        "PGUSER": "mlflow",
        "PGPASS": f"{SECRETS}/pgpass",
        "RCLONE_CONFIG_STORE_SHARED_CREDENTIALS_FILE": f"{SECRETS}/aws-credentials",
    }
    secrets = names.docker_name(stack.name, "server-secrets")
    host = container["HostConfig"]
    kept = ("CapDrop", "SecurityOpt", "ReadonlyRootfs", "Tmpfs", "Memory", "MemorySwap", "NanoCpus", "LogConfig")
    body = {
        "Image": container["Image"],
        "User": container["Config"]["User"],
        "Cmd": ["restore", snapshot],
        "Env": [f"{key}={value}" for key, value in environment.items()],
        "HostConfig": {
            **{key: host[key] for key in kept},
            "Init": True,
            "Binds": [*host["Binds"], f"{secrets}:{SECRETS}:ro"],
        },
    }
    networks = list(container["NetworkSettings"]["Networks"])
    return stack.daemon.once(names.docker_name(stack.name, names.RESTORE), body, relay_output, networks=networks)


def _start(stack: Stack) -> None:
    """Migrate the restored database and start the server; raise `StopError` if that fails."""
    deployed = servers(stack)
    if not migration.exists(stack) or not deployed.deployed:
        # It was pruned, or removed by hand. A deployment creates it again, and it runs.
        try:
            deploy.up(stack)
        except StopError as error:
            raise StopError(
                "the backup is restored, but the server stays down until this succeeds: "
                f"make up STACK={stack.name}\n{error}"
            ) from None
        return
    try:
        migration.migrate(stack)
        progress("starting the server")
        deployed.start()
    except StopError as error:
        raise StopError(
            f"{error}\n  the backup is restored; fix the cause, then type: make up STACK={stack.name}"
        ) from None
