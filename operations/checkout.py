"""The checkout: where things are, and which stack is meant."""

import os
import re
from pathlib import Path
from typing import Any

import yaml
from ruamel.yaml import YAML

from components.daemon import Daemon, resolve_host
from config import NAMESPACE, InvalidSettingsError, StackConfig
from operations.console import StopError

ROOT = Path(__file__).resolve().parent.parent
APPLICATION = "pulumi-mlflow"
"""Name of this project's folders in the user's home."""


def state_home() -> Path:
    """Where the local Pulumi state lives: outside every checkout, so that `git clean` cannot lose it."""
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / APPLICATION


def config_home() -> Path:
    """Where the generated passphrases live."""
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / APPLICATION


class Stack:
    """One environment: its name, its file, its settings."""

    def __init__(self, name: str) -> None:
        """Read the stack's file; raise `StopError` if there is none."""
        if not re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?", name):
            raise StopError(
                f"STACK={name}: a stack's name is in Docker names: use up to 32 lower-case letters, digits and hyphens"
            )
        self.name = name
        self.path = ROOT / f"Pulumi.{name}.yaml"
        if not self.path.exists():
            known = ", ".join(sorted(path.name.split(".")[1] for path in ROOT.glob("Pulumi.*.yaml")))
            raise StopError(
                f"STACK={name}: there is no {self.path.name} (there are: {known})\n"
                f"  for a new environment: copy one of them to {self.path.name}, without its encryptionsalt and "
                "`secure:` entries"
            )

    @property
    def document(self) -> dict[str, Any]:
        """The stack's file, read anew: `pulumi` writes to it too."""
        try:
            return yaml.safe_load(self.path.read_text()) or {}
        except yaml.YAMLError as error:
            raise StopError(f"{self.path.name} is not YAML, nothing was read: {error}") from None

    @property
    def values(self) -> dict[str, Any]:
        """The values of the stack's file, keys as written: `mlflow:server`."""
        return self.document.get("config") or {}

    @property
    def settings(self) -> StackConfig:
        """The settings; raises `StopError` with everything that is wrong with them."""
        prefix = f"{NAMESPACE}:"
        values = {key.removeprefix(prefix): value for key, value in self.values.items() if key.startswith(prefix)}
        hidden = [key for key, value in values.items() if "secure" in str(value)]
        try:
            return StackConfig.parse(values, hidden=hidden)
        except InvalidSettingsError as error:
            raise StopError(f"{self.path.name}: {error}") from None

    def set(self, section: str, **values: object) -> None:
        """Set keys of one section in the stack's file. Its comments and its order stay."""
        editor = YAML()
        editor.preserve_quotes = True
        editor.width = 4096
        document = editor.load(self.path.read_text())
        document["config"].setdefault(f"{NAMESPACE}:{section}", {}).update(values)
        part = self.path.with_suffix(".part")
        with part.open("w") as file:
            editor.dump(document, file)
        part.rename(self.path)

    @property
    def daemon(self) -> Daemon:
        """The Docker daemon that the stack is deployed to."""
        return Daemon(resolve_host(self.values.get("docker:host")))
