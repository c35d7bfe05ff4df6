"""The checkout: where it is, and where this project keeps its files in the user's home."""

import os
from pathlib import Path

from operations.common.console import StopError

ROOT = Path(__file__).resolve().parents[2]
WITH_LINES = ("*.sh", "*Dockerfile", "*.pth", "*.sql", "*.conf", "*.txt")
"""What is copied into an image or a container as it is, and read by lines there."""
APPLICATION = "pulumi-mlflow"
"""Name of this project's folders in the user's home."""


def state_home() -> Path:
    """Where the local Pulumi state lives: outside every checkout, so that `git clean` cannot lose it."""
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / APPLICATION


def config_home() -> Path:
    """Where the generated passphrases live."""
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / APPLICATION


def require_line_ends(root: Path = ROOT) -> None:
    """Raise `StopError` naming every file whose line ends would break a script in an image or a container."""
    wrong = sorted(
        str(path.relative_to(root))
        for folder in ("assets", "mlflow")
        for pattern in WITH_LINES
        for path in (root / folder).rglob(pattern)
        if b"\r\n" in path.read_bytes()
    )
    if wrong:
        raise StopError(
            "these files have the line ends of Windows (CRLF), which no script in a container reads; nothing was "
            f"changed\n  type: sed -i 's/\\r$//' {' '.join(wrong)}"
        )
