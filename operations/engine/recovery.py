"""Recovery from a killed `up`: removes its lock and its incomplete resources."""

import json
import socket
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from docker.errors import NotFound

from operations.common.console import BusyError, StopError, progress
from operations.engine.engine import Engine
from runtime.cluster import Cluster
from settings import names

CONTAINER = "docker:index/container:Container"
NETWORK = "docker:index/network:Network"
OF_A_CLUSTER = (
    "docker:index/service:Service",
    "docker:index/secret:Secret",
)


def recover(engine: Engine) -> None:
    """Remove the lock and the incomplete resources of a killed run; raise `StopError` if another run is active."""
    _clear_stale_locks(engine)
    if engine.state.pending or _unknown_containers(engine):
        # The state may be from before the lock was checked, and another run may have completed since.
        engine.forget_state()
    if pending := engine.state.pending:
        progress(f"an earlier run was interrupted during {len(pending)} operations; cleaning up")
        for operation in pending:
            if operation["type"] == "creating":
                _remove_incomplete(engine, operation["resource"])
        engine.call("refresh", "--yes", "--skip-preview", "--clear-pending-creates")
    _require_no_unknown_containers(engine)


def require_own_containers(engine: Engine) -> None:
    """Raise `StopError` if another checkout or backend deployed the stack, before anything is created or asked.

    After a killed run, and during another one, only `recover` can tell.
    """
    if not engine.state.pending and not _locks(engine):
        _require_no_unknown_containers(engine)


def _locks(engine: Engine) -> list[Path]:
    """Return the locks of the stack. Only a file backend shows them."""
    if engine.state_folder is None:
        return []
    folder = engine.state_folder / "locks" / "organization" / names.PROJECT / engine.stack.name
    return list(folder.glob("*.json"))


def _clear_stale_locks(engine: Engine) -> None:
    """Cancel a lock whose process, on this machine, has ended. Only a file backend records the process."""
    for path in _locks(engine):
        try:
            lock = json.loads(path.read_text())
        except FileNotFoundError:
            # Its owner has just ended. Pulumi itself checks for later locks.
            continue
        except (OSError, ValueError):
            lock = {}
        if lock.get("hostname", socket.gethostname()) != socket.gethostname() or _alive(lock.get("pid", 0)):
            raise BusyError(
                f"stack {engine.stack.name} is being changed by another run: process {lock.get('pid')} of "
                f"{lock.get('username')} on {lock.get('hostname')}, since {lock.get('timestamp')}\n"
                "  nothing was changed; wait for it, then type the same again; if that machine is gone: "
                f'eval "$(make -s env STACK={engine.stack.name})" && pulumi cancel --stack {engine.stack.name}'
            )
        progress("an earlier run was killed and left its lock; removing it")
        engine.call("cancel", "--yes")
        return


def _alive(pid: int) -> bool:
    """Return whether `pid` is a running Pulumi process: neither a zombie nor another program with a reused id."""
    stat = Path(f"/proc/{pid}/stat")
    if Path("/proc/self/stat").exists():
        try:
            command, _, rest = stat.read_text().rpartition(")")
        except OSError:
            return False
        return rest.split()[0] != "Z" and "pulumi" in command
    shown = subprocess.run(["ps", "-p", str(pid), "-o", "stat=,comm="], capture_output=True, text=True, check=False)
    return "pulumi" in shown.stdout and not shown.stdout.strip().startswith("Z")


def _remove_incomplete(engine: Engine, resource: Mapping[str, Any]) -> None:
    """Remove what was being created, if it exists and belongs to this stack."""
    name = resource.get("inputs", {}).get("name")
    if not isinstance(name, str):
        return
    api = engine.stack.daemon.api
    try:
        if resource["type"] == CONTAINER:
            found = api.inspect_container(name)["Config"]["Labels"] or {}
            if found.get(names.STACK_LABEL) == engine.stack.name:
                api.remove_container(name, force=True)
        elif resource["type"] == NETWORK:
            for network in api.networks(names=[name]):
                if network["Name"] == name and (network["Labels"] or {}).get(names.STACK_LABEL) == engine.stack.name:
                    api.remove_network(network["Id"])
        elif resource["type"] in OF_A_CLUSTER:
            Cluster(engine.stack.daemon).remove(engine.stack.name, name)
    except NotFound:
        return


def _unknown_containers(engine: Engine) -> list[str]:
    """Return the containers of this stack that are not in its state. Those of tasks belong to a Swarm service."""
    found = engine.stack.daemon.api.containers(all=True, filters=_label_filter(engine))
    known = _names_in_state(engine)
    own = [container for container in found if names.TASK_LABEL not in (container.get("Labels") or {})]
    return sorted(name for container in own for name in [container["Names"][0].lstrip("/")] if name not in known)


def _names_in_state(engine: Engine) -> set[str | None]:
    """Return the Docker names of the containers and networks in the state."""
    return {
        resource.get("outputs", {}).get("name")
        for resource in engine.state.resources
        if resource["type"] in (CONTAINER, NETWORK)
    }


def _label_filter(engine: Engine) -> dict[str, str]:
    return {"label": f"{names.STACK_LABEL}={engine.stack.name}"}


def _require_no_unknown_containers(engine: Engine) -> None:
    """Raise `StopError` if containers of this stack are not in its state: another checkout or backend created them."""
    foreign = _unknown_containers(engine)
    if foreign:
        made = sorted(network["Name"] for network in engine.stack.daemon.api.networks(filters=_label_filter(engine)))
        known = _names_in_state(engine)
        networks = " ".join(name for name in made if name not in known)
        raise StopError(
            f"{len(foreign)} containers of a stack {engine.stack.name} exist, but are not in this Pulumi state: "
            "another user or backend deployed them\n"
            "  to continue with that deployment, type as the user who deployed it: "
            f"make up STACK={engine.stack.name}; or set PULUMI_BACKEND_URL to the backend that was used there\n"
            "  to use its data volumes with this state instead (needs the secrets of that deployment in "
            f"{engine.stack.path.name}), type:\n    docker rm -f {' '.join(foreign)}"
            + (f"\n    docker network rm {networks}" if networks else "")
        )
