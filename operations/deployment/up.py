"""`make up`: a deployment, with extra steps before and after it if backup is on.

Before a deployment with another MLflow image, which may migrate the database, it takes a backup. After it has created a
database or an object store, it warns if the newest backup has runs or artifacts that the stack lacks, and after the
start of backups if the backup target fails.
"""

from docker.errors import NotFound

from operations.common.console import StopError, flag, progress
from operations.common.stack import Stack
from operations.data import backup, backup_key, backup_status
from operations.deployment import deploy
from operations.host import docker_daemon
from operations.host.servers import servers
from operations.observe.secrets import credential
from runtime.daemon import UNREACHABLE_ERRORS
from settings import names


def up(stack: Stack, *, approved: bool = False) -> None:
    """Take a backup if MLflow's image changes, since a migration cannot be undone; then deploy. `SAFETY=0` skips it.

    With `approved`, the deployment asks nothing: the caller has asked.
    """
    safety = flag("SAFETY", default=True)
    if not stack.settings.backup.enabled:
        deploy.up(stack, approved=approved)
        return
    docker_daemon.require_docker(stack)
    if not approved and (configured := stack.values.get("mlflow:backupPassword")) and _is_deployed(stack, "backup"):
        backup_key.require_key_of_backups(stack, credential(stack, "backupPassword") or str(configured))
    if safety and _mlflow_image_changes(stack):
        _back_up(stack)
    database = names.postgres_volume(stack.name, stack.settings.postgres_major)
    store = names.object_store_volume(stack.name, stack.settings.object_store.kind)
    new_data = not {database, store} <= set(stack.daemon.volumes())
    new_backup = not _is_deployed(stack, "backup")
    deploy.up(stack, approved=approved)
    if new_data or new_backup:
        _warn_about_backup(stack)


def _is_deployed(stack: Stack, service: str) -> bool:
    """Return whether a service has a container, running or not."""
    return stack.daemon.inspect(names.docker_name(stack.name, service)) is not None


def _mlflow_image_changes(stack: Stack) -> bool:
    """Return whether a deployed server would be replaced by one with another image."""
    try:
        wanted = stack.daemon.api.inspect_image(stack.settings.images.server)["Id"]  # type: ignore[no-untyped-call]
    except NotFound:
        wanted = None
    return any(deployed != wanted for deployed in servers(stack).images)


def _back_up(stack: Stack) -> None:
    """Take a backup; raise `StopError` if it fails. Only warn if no backup container is running."""
    found = stack.daemon.inspect(names.docker_name(stack.name, "backup"))
    if found is None or not found["State"]["Running"]:
        progress(
            "warning: a new MLflow image may migrate the database, and no backup is taken first, because no backup "
            "container runs; see docs/operations/backup.md"
        )
        return
    progress("a new MLflow image may migrate the database, which cannot be undone: taking a backup first")
    try:
        backup.backup(stack)
    except StopError as error:
        raise StopError(
            f"{error}\n  nothing was changed; to deploy without a backup, type: make up STACK={stack.name} SAFETY=0"
        ) from None


def _warn_about_backup(stack: Stack) -> None:
    """Warn if the newest backup has runs or artifacts, and the stack none: on a new host, or after a volume was lost.

    Also warn if the backup repository cannot be used: it does not answer, refuses access, or has another data key.
    """
    try:
        plan = backup.restore_plan(stack, "latest")
    except StopError as error:
        if backup.NO_BACKUP_MESSAGE not in str(error):
            progress(f"\nwarning: {error}")
        return
    except UNREACHABLE_ERRORS:
        return
    runs = 0 if plan["used"] else plan["runs"]
    lost = backup_status.lost_message(runs, plan["lost_artifacts"], stack.name)
    if lost and plan["stack"] == stack.name:
        progress(f"\nwarning: {lost}")
