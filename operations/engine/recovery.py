"""What an `up` that was killed leaves behind, and how the next one gets past it."""

import json
import socket
import subprocess
from pathlib import Path
from typing import Any

from docker.errors import NotFound

from operations.common.console import StopError, say
from operations.engine.engine import Engine
from settings import names

CONTAINER = "docker:index/container:Container"
NETWORK = "docker:index/network:Network"


def recover(engine: Engine) -> None:
    """Clear the lock of a dead process and what it had half made; raise `StopError` if somebody is still at work."""
    _clear_stale_locks(engine)
    state = engine.state()
    pending = state.get("pending_operations") or []
    if pending:
        say(f"an earlier run was cut off during {len(pending)} operations; cleaning up after it")
        for operation in pending:
            if operation["type"] == "creating":
                _remove_half_made(engine, operation["resource"])
        engine.call("refresh", "--yes", "--skip-preview", "--clear-pending-creates")
    _refuse_strangers(engine, state)


def _clear_stale_locks(engine: Engine) -> None:
    """Cancel a lock whose owner, on this machine, is gone. Only a file backend tells who that is."""
    if engine.state_folder is None:
        return
    folder = engine.state_folder / "locks" / "organization" / names.PROJECT / engine.stack.name
    for path in folder.glob("*.json"):
        try:
            lock = json.loads(path.read_text())
        except FileNotFoundError:
            # Its owner has just ended. Pulumi sees for itself whoever comes next.
            continue
        except (OSError, ValueError):
            lock = {}
        if lock.get("hostname", socket.gethostname()) != socket.gethostname() or _alive(lock.get("pid", 0)):
            raise StopError(
                f"stack {engine.stack.name} is being changed by somebody else: process {lock.get('pid')} of "
                f"{lock.get('username')} on {lock.get('hostname')}, since {lock.get('timestamp')}\n"
                "  wait for it, then try again; nothing was changed"
            )
        say("an earlier run was killed and left its lock; removing it")
        engine.call("cancel", "--yes")
        return


def _alive(pid: int) -> bool:
    """Whether `pid` is a Pulumi that still runs: not a zombie, and not somebody who got its number since."""
    stat = Path(f"/proc/{pid}/stat")
    if Path("/proc/self/stat").exists():
        try:
            command, _, rest = stat.read_text().rpartition(")")
        except OSError:
            return False
        return rest.split()[0] != "Z" and "pulumi" in command
    shown = subprocess.run(["ps", "-p", str(pid), "-o", "stat=,comm="], capture_output=True, text=True, check=False)
    return "pulumi" in shown.stdout and not shown.stdout.strip().startswith("Z")


def _remove_half_made(engine: Engine, resource: dict[str, Any]) -> None:
    """Remove the container or network that was being created, if it is there and ours."""
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
    except NotFound:
        return


def _refuse_strangers(engine: Engine, state: dict[str, Any]) -> None:
    """Refuse containers of this stack that this state does not know: another checkout or backend made them."""
    known = {
        resource.get("outputs", {}).get("name")
        for resource in state.get("resources") or []
        if resource["type"] in (CONTAINER, NETWORK)
    }
    ours = {"label": f"{names.STACK_LABEL}={engine.stack.name}"}
    found = engine.stack.daemon.api.containers(all=True, filters=ours)
    strangers = sorted(name for container in found for name in [container["Names"][0].lstrip("/")] if name not in known)
    if strangers:
        made = sorted(network["Name"] for network in engine.stack.daemon.api.networks(filters=ours))
        networks = " ".join(name for name in made if name not in known)
        raise StopError(
            f"{len(strangers)} containers of a stack {engine.stack.name} are here that this state does not know: "
            "they were deployed from another state\n"
            f"  to go on with that deployment, use its backend: make env STACK={engine.stack.name} in its checkout\n"
            "  to take over its data volumes with this one (it needs that one's secrets in "
            f"{engine.stack.path.name}):\n    docker rm -f {' '.join(strangers)}"
            + (f"\n    docker network rm {networks}" if networks else "")
        )
