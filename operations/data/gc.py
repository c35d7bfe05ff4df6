"""Giving back the space of what users have deleted: MLflow keeps it, runs and artifacts, until somebody collects it."""

import os
import re
from collections import Counter

from operations.common.console import StopError, require_name, say, through
from operations.common.stack import Stack
from operations.observe import secrets
from operations.observe.status import require_containers
from settings import names
from settings.server import ADMIN, PORT

NOTHING = "nothing was deleted"
"""How `mlflow/collect.py` begins to say so."""
AGE = "30d"
"""How long something has to have been deleted: whoever deleted the wrong run has that long to find out."""


def gc(stack: Stack) -> None:
    """Delete for ever what was deleted `OLDER_THAN=` ago (30d by default; 12h, 1d12h), artifacts included.

    No backup, drill, restore or migration is at work meanwhile.
    """
    require_containers(stack)
    age = os.environ.get("OLDER_THAN") or AGE
    if not re.fullmatch(r"(\d+d)?(\d+h)?(\d+m)?(\d+s)?", age):
        raise StopError(f"OLDER_THAN={age}: write a time as 30d, 12h or 1d12h")
    require_name(
        stack.name,
        f"This deletes for ever what was deleted in {stack.name} more than {age} ago.",
        verb=f"gc OLDER_THAN={age}",
    )
    # The server deletes the artifacts, and asks whoever comes who he is.
    environment = {"MLFLOW_TRACKING_URI": f"http://127.0.0.1:{PORT}"}
    if stack.settings.route.by_mlflow:
        environment |= {
            "MLFLOW_TRACKING_USERNAME": ADMIN,
            "MLFLOW_TRACKING_PASSWORD": secrets.credential(stack, "adminPassword") or "",
        }
    printed: list[str] = []

    def told(words: str) -> None:
        printed.append(words)
        through(words)

    server = names.physical(stack.name, "server")
    if stack.daemon.show(server, ["docker-entrypoint.sh", "gc", age], told, environment=environment):
        what = "nothing" if NOTHING in "".join(printed) else "not all that was to go"
        raise StopError(f"{what} was deleted for ever in {stack.name}; the reason is above")
    found = collected("".join(printed))
    say(
        f"deleted for ever in {stack.name}: {found}"
        if found
        else f"nothing in {stack.name} was deleted more than {age} ago"
    )


def collected(printed: str) -> str:
    """Return what `mlflow gc` says it deleted, counted: "2 runs, 1 experiment"; empty where it was nothing."""
    kinds = Counter(re.findall(r"(?m)^(\w[\w ]*) with ID \S+ has been permanently deleted", printed))
    return ", ".join(f"{number} {kind.lower()}" + ("s" if number > 1 else "") for kind, number in kinds.items())
