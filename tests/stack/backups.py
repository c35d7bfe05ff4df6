"""Helpers of the backup tests: a deployment with a backup, and functions to fill, read and wipe it."""

import json
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.stack.deployment import ROOT, Deployment, free_port
from tests.stack.inventory import tell

INVENTORY = ROOT / "tests" / "stack" / "inventory.py"


def inventory(deployment: Deployment, *arguments: object) -> str:
    """Run `inventory.py` against a deployment, and return what it prints."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", INVENTORY, *map(str, arguments)],
        env={
            **os.environ,
            "MLFLOW_TRACKING_URI": deployment.url,
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{done.stderr[-4000:]}\n{deployment.logs()}"
    return done.stdout


def told(deployment: Deployment) -> dict[str, Any]:
    """Return everything that a deployment holds, as `inventory.py tell`, but without starting Python and MLflow."""
    with warnings.catch_warnings():
        # They are MLflow's, and would fail the test.
        warnings.simplefilter("ignore")
        return tell(deployment.url)


@contextmanager
def backed_up(folder: Path, store: str) -> Iterator[Deployment]:
    """Deploy the settings of dev with a backup, fill the stack, and back it up once."""
    deployment = Deployment(folder, "dev")
    deployment.set("server.port", free_port())
    deployment.set("server.workers", 1)
    deployment.use(store)
    deployment.set("backup.enabled", value=True)
    try:
        deployment.make("up")
        inventory(deployment, "fill", 10, 2000, 20, 20)
        deployment.make("backup")
        yield deployment
    finally:
        deployment.remove()


def newest(deployment: Deployment) -> str:
    return deployment.make("backups").stdout.split("\n")[-2].split()[0]


def journal(deployment: Deployment) -> dict[str, Any]:
    code, said = deployment.run("backup", "cat", "/staging/journal.json")
    assert code == 0, said
    found: dict[str, Any] = json.loads(said)
    return found


def wiped(deployment: Deployment) -> None:
    """Delete everything but the backups, and deploy the stack anew: `make up` must point to the newest backup."""
    deployment.make("destroy", CONFIRM=deployment.stack)
    assert deployment.containers() == []
    said = deployment.make("up").stderr
    assert "warning: the database of this stack is empty, but the newest backup has 10 runs" in said
    assert f"type: make restore STACK={deployment.stack} FROM=latest" in said
    assert told(deployment)["runs"] == {}
