"""The backend and the passphrase: which are used, and what to do when they fail."""

import json
import os
import re
from pathlib import Path

import yaml

from operations.common.checkout import ROOT, config_home, state_home
from operations.common.console import progress
from operations.common.stack import Stack
from settings import names

BACKEND_ERROR = re.compile(
    r"state directory|unable to open bucket|PULUMI_ACCESS_TOKEN must be set|\.pulumi/|blob|could not connect|dial tcp"
    r"|no such host|connection refused|unauthori[sz]ed|Invalid access token|permission denied|read-only file system",
    re.IGNORECASE,
)
"""Pulumi's errors if it cannot access its state."""


def chosen_backend() -> str | None:
    """Return the backend that the user has chosen, or None if the local default is used."""
    if url := os.environ.get("PULUMI_BACKEND_URL"):
        return url
    if os.environ.get("PULUMI_ACCESS_TOKEN"):
        return "the backend of PULUMI_ACCESS_TOKEN"
    project = yaml.safe_load((ROOT / "Pulumi.yaml").read_text())
    if url := (project.get("backend") or {}).get("url"):
        return str(url)
    home = Path(os.environ.get("PULUMI_HOME") or Path.home() / ".pulumi")
    try:
        return json.loads((home / "credentials.json").read_text()).get("current") or None
    except (OSError, ValueError):
        return None


def backend_advice() -> str:
    """Return what set the backend, and how to set another."""
    if os.environ.get("PULUMI_BACKEND_URL"):
        return "PULUMI_BACKEND_URL sets it\n  correct it, or type: unset PULUMI_BACKEND_URL"
    if os.environ.get("PULUMI_ACCESS_TOKEN"):
        return "PULUMI_ACCESS_TOKEN is set\n  correct it, or type: unset PULUMI_ACCESS_TOKEN"
    if chosen_backend() is None:
        return f"it is this project's default\n  check the folder: ls -ld {state_home()}"
    if (yaml.safe_load((ROOT / "Pulumi.yaml").read_text()).get("backend") or {}).get("url"):
        return "backend.url in Pulumi.yaml sets it\n  correct it there"
    return (
        "an earlier `pulumi login` set it\n  to set another, type: pulumi login <its address>; "
        f"to keep the state in {state_home()}, type: pulumi logout"
    )


def passphrase_path(stack: Stack) -> Path:
    """Return the path of a stack's generated passphrase. Each stack has its own."""
    return config_home() / f"{stack.name}.passphrase"


def rotation_copy(stack: Stack) -> Path:
    """Return the path of the stack file's copy that exists while `make rotate` runs, or was interrupted."""
    return passphrase_path(stack).with_name(f"{stack.name}.before-rotation.yaml")


def rotation_lock(stack: Stack) -> Path:
    """Return the path of the lock that `make rotate` holds while it runs."""
    return passphrase_path(stack).with_name(f"{stack.name}.rotation.lock")


def remove_truncated_attributes(folder: Path | None, stack: str) -> None:
    """Remove the attributes file that a file backend writes beside a stack's state, if a killed `up` left it truncated.

    Pulumi would fail to read the intact state ("failed to load checkpoint: EOF"). It does not need this file.
    """
    note = (folder or Path()) / "stacks" / names.PROJECT / f"{stack}.json.attrs"
    if folder is None or not note.exists():
        return
    try:
        json.loads(note.read_text())
    except ValueError:
        progress("an earlier run was killed while it wrote its state; the state is intact, its .attrs file is removed")
        note.unlink(missing_ok=True)
