"""The stack files as they are shipped: `make up` writes secrets, and maybe settings, into those of a checkout."""

import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]


def stack_file(stack: str) -> str:
    """Return the committed `Pulumi.<stack>.yaml`."""
    name = f"Pulumi.{stack}.yaml"
    return subprocess.run(["git", "show", f"HEAD:{name}"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
