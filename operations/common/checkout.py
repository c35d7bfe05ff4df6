"""The checkout: where it is, and where this project keeps its files in the user's home."""

import os
from pathlib import Path

from operations.common.console import StopError

ROOT = Path(__file__).resolve().parents[2]
LINE_BASED_FILES = ("*.sh", "*Dockerfile", "*.pth", "*.sql", "*.conf", "*.txt")
"""Files that are copied unchanged into an image or a container, and read line by line there."""
APPLICATION = "pulumi-mlflow"
"""Name of this project's folders in the user's home directory."""


def state_home() -> Path:
    """Return the folder of the local Pulumi state. It is outside every checkout, so `git clean` cannot delete it."""
    return _home("XDG_STATE_HOME", Path(".local") / "state") / APPLICATION


def config_home() -> Path:
    """Return the folder of the generated passphrases."""
    return _home("XDG_CONFIG_HOME", Path(".config")) / APPLICATION


def _home(variable: str, default: Path) -> Path:
    """Return a folder of the XDG base directories. By their specification, a relative path in `variable` is ignored."""
    given = Path(os.environ.get(variable, ""))
    return given if given.is_absolute() else Path.home() / default


def require_line_ends(root: Path = ROOT) -> None:
    """Raise `StopError` with every file whose line endings would break a script in an image or a container."""
    wrong = sorted(
        str(path.relative_to(root))
        for folder in ("assets", "mlflow")
        for pattern in LINE_BASED_FILES
        for path in (root / folder).rglob(pattern)
        if b"\r\n" in path.read_bytes()
    )
    if wrong:
        raise StopError(
            "these files have Windows line endings (CRLF), which break scripts in a container; nothing was "
            f"changed\n  type: sed -i 's/\\r$//' {' '.join(wrong)}"
        )
