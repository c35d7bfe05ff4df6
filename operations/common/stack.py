"""A stack: its name, its stack file, its settings."""

import codecs
import difflib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from operations.common.checkout import ROOT, state_home
from operations.common.console import StopError, say
from runtime.daemon import Daemon, resolve_host
from settings.errors import InvalidSettingsError
from settings.parsing import parse_settings, settings_warnings
from settings.stack import NAMESPACE, StackConfig

TOP_KEYS = ("config", "secretsprovider", "encryptionsalt", "encryptedkey", "environment")
NAMESPACES = (NAMESPACE, "docker", "random", "pulumi")
"""What this program and its providers read."""
MARKS = {codecs.BOM_UTF16_LE: "UTF-16", codecs.BOM_UTF16_BE: "UTF-16"}
"""How a file in another encoding begins."""


def _misplaced(document: Any) -> list[str]:  # noqa: ANN401 - YAML
    """Return what Pulumi would ignore in a stack's file, or read as another project's."""
    if not isinstance(document, dict) or not isinstance(document.get("config", {}), dict | None):
        return ["it must begin with config:, and the settings below it"]
    problems = [
        f"{key}: no such key at the top{_nearest(str(key), TOP_KEYS)}; settings are below config:"
        for key in document
        if key not in TOP_KEYS
    ]
    for key in document.get("config") or {}:
        namespace, colon, name = str(key).partition(":")
        if not colon:
            problems.append(f"{key}: write it as {NAMESPACE}:{key}")
        elif namespace not in NAMESPACES:
            problems.append(f"{key}: no such namespace{_nearest(namespace, NAMESPACES)}")
        elif namespace == NAMESPACE and "." in name:
            section, _, setting = name.partition(".")
            problems.append(f"{key}: write it as a section: {NAMESPACE}:{section}: and, below that, {setting}:")
    return problems


def _nearest(word: str, known: tuple[str, ...]) -> str:
    close = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {close[0]}?" if close else f" (there are: {', '.join(known)})"


def _has_secret(value: Any) -> bool:  # noqa: ANN401 - YAML
    """Whether a value, or one in it, is encrypted."""
    if isinstance(value, dict):
        return set(value) == {"secure"} or any(map(_has_secret, value.values()))
    return isinstance(value, list) and any(map(_has_secret, value))


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
    def text(self) -> str:
        """The stack's file as text; raises `StopError` where it is not UTF-8."""
        content = self.path.read_bytes()
        encoding = next((name for mark, name in MARKS.items() if content.startswith(mark)), None)
        try:
            if encoding is None:
                return content.decode()
        except UnicodeDecodeError:
            pass
        name, found = self.path.name, encoding or "ISO-8859-1"
        raise StopError(
            f"{name}: is not UTF-8{f', but {encoding}' if encoding else ''}; nothing was changed\n"
            f"  type: iconv -f {found} -t UTF-8 {name} > {name}.new && mv {name}.new {name}"
        )

    @property
    def document(self) -> dict[str, Any]:
        """The stack's file, read anew: `pulumi` writes to it too."""
        try:
            # Not PyYAML: it takes the last of two equal keys, and says nothing.
            found = YAML(typ="safe").load(self.text) or {}
        except YAMLError as error:
            # What a library would have its caller do is no advice for who wrote the file.
            words = str(error).partition("\n\n")[0].replace("<unicode string>", str(self.path))
            raise StopError(f"{self.path.name} cannot be read as YAML: {words}") from None
        if problems := _misplaced(found):
            lines = "\n".join(f"  {problem}" for problem in problems)
            raise StopError(f"{self.path.name}: what is not read would be ignored\n{lines}")
        document: dict[str, Any] = found
        return document

    @property
    def values(self) -> dict[str, Any]:
        """The values of the stack's file, keys as written: `mlflow:server`."""
        return self.document.get("config") or {}

    @property
    def settings(self) -> StackConfig:
        """The settings; raises `StopError` with everything that is wrong with them."""
        return self.settings_with()

    def settings_with(self, **changed: Mapping[str, object]) -> StackConfig:
        """Return the settings as they would be with these keys set, by section; raises `StopError` as `settings`."""
        values, hidden = self._given()
        for section, keys in changed.items():
            values[section] = {**(values.get(section) or {}), **keys}
        try:
            return parse_settings(
                values, hidden=hidden, stack=self.name, may_be_clear=True if self.is_engineless else None
            )
        except InvalidSettingsError as error:
            raise StopError(f"{self.path.name}: {error}") from None

    def _given(self) -> tuple[dict[str, Any], list[str]]:
        """Return the values below `mlflow:`, and which of them have a secret in them."""
        prefix = f"{NAMESPACE}:"
        values = {key.removeprefix(prefix): value for key, value in self.values.items() if key.startswith(prefix)}
        return values, [key for key, value in values.items() if _has_secret(value)]

    @property
    def is_engineless(self) -> bool:
        """Whether it was last deployed without the engine, which alone encrypts."""
        return (state_home() / "rehearsal" / f"{self.name}.json").exists()

    @property
    def warnings(self) -> list[str]:
        """What is allowed, and what a person should know of; raises `StopError` as `settings`."""
        values, hidden = self._given()
        return settings_warnings(self.settings, values, hidden=hidden, stack=self.name)

    def set(self, section: str, **values: object) -> None:
        """Set keys of one section in the stack's file. Its comments and its order stay."""
        editor = YAML()
        editor.preserve_quotes = True
        editor.width = 4096
        document = editor.load(self.text) or {}
        # A key with nothing behind it is there, and None.
        if document.get("config") is None:
            document["config"] = {}
        key = f"{NAMESPACE}:{section}"
        if document["config"].get(key) is None:
            document["config"][key] = {}
        document["config"][key].update(values)
        part = self.path.with_suffix(".part")
        with part.open("w") as file:
            editor.dump(document, file)
        part.rename(self.path)

    def report_other_checkout(self) -> None:
        """Say so where this stack was last deployed from another checkout: they share the state, and the containers."""
        try:
            last = Path(self._last_checkout.read_text())
        except OSError:
            return
        if last != ROOT:
            say(f"note: {self.name} was last deployed from {last}; this is {ROOT}")

    def remember_checkout(self) -> None:
        """Remember that this stack was deployed from here."""
        self._last_checkout.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._last_checkout.write_text(str(ROOT))

    @property
    def _last_checkout(self) -> Path:
        return state_home() / "checkouts" / self.name

    @property
    def daemon(self) -> Daemon:
        """The Docker daemon that the stack is deployed to."""
        return Daemon(resolve_host(self.values.get("docker:host")))
