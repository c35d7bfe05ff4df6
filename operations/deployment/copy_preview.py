"""The plan of a copy: the program and a stack's settings, without its secrets, its state or its backend.

It is for changes from people who must not have the secrets. It shows whether the settings are valid, the program runs
and the policies in `policy/` are met. Every resource in it is new, because there is no state to compare with.
"""

import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from operations.common.checkout import ROOT
from operations.common.console import StopError, output
from operations.common.stack import ENCRYPTION_KEYS, Stack
from operations.engine.cli import require_cli
from settings.names import IN_COPY
from settings.secrets import GENERATED_KEYS
from settings.stack import NAMESPACE

FOLDERS = ("assets", "components", "mlflow", "offline", "operations", "policy", "preconditions", "runtime", "settings")
FILES = ("Pulumi.yaml", "__main__.py")
"""All files that a plan reads. Other files of a checkout may be gigabytes of images, or contain secrets."""
PLACEHOLDER_SECRET = "a-secret-of-the-copy"  # noqa: S105 - a placeholder


def preview(stack: Stack) -> None:
    """Print the plan of a copy of `stack`; raise `StopError` if it fails or violates a policy."""
    cli = require_cli()
    with tempfile.TemporaryDirectory(prefix="mlflow-copy-") as folder:
        checkout = Path(folder) / "checkout"
        for part in FOLDERS:
            shutil.copytree(ROOT / part, checkout / part, ignore=shutil.ignore_patterns("__pycache__"))
        for name in FILES:
            shutil.copy(ROOT / name, checkout)
        (checkout / ".venv").symlink_to(ROOT / ".venv")
        with (checkout / stack.path.name).open("w") as file:
            YAML().dump(without_secrets(stack.document), file)
        output(f"Plan of a copy of `{stack.name}`, without its secrets and its state:\n")
        command = [sys.executable, "-m", "operations", "preview"]
        if subprocess.run(command, cwd=checkout, env=_environment(Path(folder), cli), check=False).returncode:
            raise StopError(f"the plan of a copy of {stack.name} failed; nothing was changed")


def without_secrets(document: dict[str, Any]) -> dict[str, Any]:
    """Return a stack file without the secrets that can be generated, and with a placeholder for every other secret."""
    generated = {f"{NAMESPACE}:{key}" for key in GENERATED_KEYS}
    config = {key: value for key, value in (document.get("config") or {}).items() if key not in generated}
    kept = {key: value for key, value in document.items() if key not in ENCRYPTION_KEYS}
    return {**kept, "config": _without_secrets(config)}


def _without_secrets(value: Any) -> Any:  # noqa: ANN401 - YAML
    if isinstance(value, dict):
        return (
            PLACEHOLDER_SECRET
            if set(value) == {"secure"}
            else {key: _without_secrets(item) for key, item in value.items()}
        )
    return [_without_secrets(item) for item in value] if isinstance(value, list) else value


def _environment(folder: Path, cli: Path) -> dict[str, str]:
    """Return this process's environment with a temporary backend and passphrase instead of the real ones."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("PULUMI_") or key == "PULUMI_HOME"}
    state = folder / "state"
    state.mkdir()
    return kept | {
        "COPY": IN_COPY,
        "PATH": os.pathsep.join([str(cli.parent), kept.get("PATH", "")]),
        "PULUMI_BACKEND_URL": state.as_uri(),
        "PULUMI_CONFIG_PASSPHRASE": secrets.token_urlsafe(32),
        "XDG_CONFIG_HOME": str(folder),
        "XDG_STATE_HOME": str(folder),
    }
