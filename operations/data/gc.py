"""Garbage collection. MLflow keeps deleted runs and their artifacts on disk until they are collected."""

import os
import re
from collections import Counter

from operations.common.console import StopError, progress, relay_output, require_confirmation
from operations.common.stack import Stack
from operations.host.servers import servers
from operations.observe import secrets
from operations.observe.status import require_containers
from settings.server import ADMIN

NOTHING_DELETED_MESSAGE = "nothing was deleted"
"""Start of the message of `mlflow/collect.py` where it deleted nothing."""
AGE = "30d"
"""How long ago something must have been deleted by default. Until then, a deletion by mistake can be undone."""


def gc(stack: Stack) -> None:
    """Permanently delete what users deleted more than `OLDER_THAN=` ago (default 30d; or 12h, 1d12h), with artifacts.

    Holds the exclusive lock, so no backup, restore test, restore or migration runs at the same time.
    """
    require_containers(stack)
    age = os.environ.get("OLDER_THAN") or AGE
    if not re.fullmatch(r"(\d+d)?(\d+h)?(\d+m)?(\d+s)?", age):
        raise StopError(f"OLDER_THAN={age}: write a duration such as 30d, 12h or 1d12h")
    require_confirmation(
        stack.name,
        f"This permanently deletes data that users deleted in {stack.name} more than {age} ago.",
        verb=f"gc OLDER_THAN={age}",
    )
    deployed = servers(stack)
    # The server deletes the artifacts, and may require authentication.
    environment = {"MLFLOW_TRACKING_URI": deployed.address}
    if stack.settings.route.by_mlflow:
        environment |= {
            "MLFLOW_TRACKING_USERNAME": ADMIN,
            "MLFLOW_TRACKING_PASSWORD": secrets.credential(stack, "adminPassword") or "",
        }
    printed: list[str] = []

    def told(words: str) -> None:
        printed.append(words)
        relay_output(words)

    if deployed.show(["docker-entrypoint.sh", "gc", age], told, environment):
        what = "nothing" if NOTHING_DELETED_MESSAGE in "".join(printed) else "not everything"
        raise StopError(f"{what} was permanently deleted in {stack.name}; the reason is above")
    found = count_deleted("".join(printed))
    progress(
        f"permanently deleted in {stack.name}: {found}"
        if found
        else f"nothing to delete: {stack.name} has no data that users deleted more than {age} ago"
    )


def count_deleted(printed: str) -> str:
    """Return the counts of what `mlflow gc` deleted, such as "2 runs, 1 experiment"; empty if nothing."""
    kinds = Counter(re.findall(r"(?m)^(\w[\w ]*) with ID \S+ has been permanently deleted", printed))
    return ", ".join(f"{number} {kind.lower()}" + ("s" if number > 1 else "") for kind, number in kinds.items())
