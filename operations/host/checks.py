"""Every check of the Docker host before an update."""

from pathlib import Path

from operations.common.console import StopError
from operations.common.stack import Stack
from operations.host import addresses
from operations.host.capacity import capacity_problems
from operations.host.containers import paused_problems
from operations.host.ports import address_problems, port_problems
from preconditions import host as preconditions
from runtime.daemon import Daemon
from settings.backup import UID
from settings.stack import StackConfig


def require_host(stack: Stack) -> None:
    """Raise `StopError` with every problem of the host that prevents a deployment of this stack."""
    if problems := host_problems(stack):
        raise StopError("nothing was changed\n" + "\n".join(f"  {problem}" for problem in problems))


def host_problems(stack: Stack) -> list[str]:
    """Return every problem of the host that prevents a deployment of this stack, each with what to type."""
    settings, daemon = stack.settings, stack.daemon
    return [
        *preconditions.host_problems(
            daemon,
            stack=stack.name,
            postgres_major=settings.postgres_major,
            object_store=settings.object_store,
            traefik=settings.traefik,
            swarm=settings.on_swarm,
        ),
        *paused_problems(daemon, stack.name),
        *addresses.problems(daemon, settings, stack.name),
        *_missing_backup_folder(daemon, settings),
        *capacity_problems(daemon, settings),
        *address_problems(daemon, settings),
        *port_problems(daemon, settings, stack.name),
    ]


def _missing_backup_folder(daemon: Daemon, settings: StackConfig) -> list[str]:
    """Return the problem if the folder of the backups does not exist: Docker would fail in mid-deployment."""
    folder = Path(settings.backup.target)
    if not settings.backup.enabled or settings.backup.where != "folder" or not daemon.host.startswith("unix://"):
        return []
    try:
        folder.stat()
    except (FileNotFoundError, NotADirectoryError):
        words = f"install -d -o {UID} -g {UID} -m 0700 {folder}"
        return [f"mlflow:backup.target: the folder {folder} does not exist on this host\n    type: {words}"]
    except OSError:
        # This user may not read it, but Docker may.
        pass
    return []
