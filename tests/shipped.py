"""Reads the stack files as committed, because `make up` writes secrets and settings into those of the checkout."""

import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]


def stack_file(stack: str) -> str:
    """Return the committed `Pulumi.<stack>.yaml`."""
    name = f"Pulumi.{stack}.yaml"
    return subprocess.run(["git", "show", f"HEAD:{name}"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
