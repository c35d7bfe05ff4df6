"""A stack: its name, its stack file, its settings."""

import codecs
import copy
import difflib
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ruamel.yaml import YAML
from ruamel.yaml.constructor import DuplicateKeyError
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from operations.common.checkout import ROOT, state_home
from operations.common.console import StopError, progress
from settings import names
from settings.errors import InvalidSettingsError
from settings.names import nothing_encrypts
from settings.parsing import parse_settings, settings_warnings
from settings.stack import NAMESPACE, StackConfig

if TYPE_CHECKING:
    from runtime.daemon import Daemon

ENCRYPTION_KEYS = ("secretsprovider", "encryptionsalt", "encryptedkey")
"""Keys of a stack file that belong to its passphrase or secrets provider. Another stack has its own."""
TOP_KEYS = ("config", "secretsprovider", "encryptionsalt", "encryptedkey", "environment")
NAMESPACES = (NAMESPACE, "docker", "random", "pulumi")
"""The namespaces that this program and its providers read."""
BYTE_ORDER_MARKS = {codecs.BOM_UTF16_LE: "UTF-16", codecs.BOM_UTF16_BE: "UTF-16"}
"""The byte order marks of other encodings."""


def _unknown_keys(document: Any) -> list[str]:  # noqa: ANN401 - YAML
    """Return every key of a stack file that Pulumi would ignore, or read as another project's."""
    if not isinstance(document, dict) or not isinstance(document.get("config", {}), dict | None):
        return ["it must have the key config:, and all settings below it"]
    problems = [
        f"{key}: unknown top-level key{_nearest(str(key), TOP_KEYS)}; settings go below config:"
        for key in document
        if key not in TOP_KEYS
    ]
    for key in document.get("config") or {}:
        namespace, colon, name = str(key).partition(":")
        if not colon:
            problems.append(f"{key}: write it as {NAMESPACE}:{key}")
        elif namespace not in NAMESPACES:
            problems.append(f"{key}: unknown namespace{_nearest(namespace, NAMESPACES)}")
        elif namespace == NAMESPACE and "." in name:
            section, _, setting = name.partition(".")
            problems.append(f"{key}: write it as a section: {NAMESPACE}:{section}: and, below that, {setting}:")
    return problems


def _nearest(word: str, known: tuple[str, ...]) -> str:
    close = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {close[0]}?" if close else f" (known: {', '.join(known)})"


def _has_secret(value: Any) -> bool:  # noqa: ANN401 - YAML
    """Return whether a value is encrypted or contains an encrypted value."""
    if isinstance(value, dict):
        return set(value) == {"secure"} or any(map(_has_secret, value.values()))
    return isinstance(value, list) and any(map(_has_secret, value))


@cache
def _parsed(text: str) -> Any:  # noqa: ANN401 - YAML
    """Return the content of a stack file. Cached, because a command reads the same file up to thirty times."""
    # Not PyYAML: of two equal keys it silently takes the last.
    return YAML(typ="safe").load(text) or {}


def yaml_problem(file: str, error: YAMLError) -> str:
    """Return what is wrong with a file that cannot be read as YAML, with the line.

    Without the library's own words, which have values of the file in them: one may be secret.
    """
    if not isinstance(error, MarkedYAMLError) or error.problem_mark is None:
        return f"{file}: cannot be read as YAML"
    line = f"{file}:{error.problem_mark.line + 1}"
    if isinstance(error, DuplicateKeyError):
        key = re.match(r'found duplicate key "(.*?)" with', error.problem or "")
        return f"{line}: the key {key.group(1) if key else ''} is there twice; remove one of the two"
    return f"{line}: cannot be read as YAML: {error.problem}"


NAME_PATTERN = r"[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?"
NAME_RULE = "a stack's name is part of Docker names: use up to 32 lowercase letters, digits and hyphens"


class Stack:
    """A stack: its name, its stack file, its settings."""

    def __init__(self, name: str) -> None:
        """Find the stack file; raise `StopError` if there is none or the name is invalid."""
        if not re.fullmatch(NAME_PATTERN, name):
            raise StopError(f"STACK={name}: {NAME_RULE}")
        self.name = name
        self.path = ROOT / f"Pulumi.{name}.yaml"
        if not self.path.exists():
            known = sorted(path.name.split(".")[1] for path in ROOT.glob("Pulumi.*.yaml"))
            near = "".join(f"; did you mean {close}?" for close in difflib.get_close_matches(name, known, n=1))
            raise StopError(
                f"STACK={name}: there is no {self.path.name} (stacks: {', '.join(known)}){near}\n"
                f"  for a new stack, type: make init STACK={name}"
            )

    @property
    def text(self) -> str:
        """The stack file as text; raises `StopError` if it is not UTF-8."""
        content = self.path.read_bytes()
        encoding = next((name for mark, name in BYTE_ORDER_MARKS.items() if content.startswith(mark)), None)
        try:
            if encoding is None:
                return content.decode()
        except UnicodeDecodeError:
            pass
        name, found = self.path.name, encoding or "ISO-8859-1"
        raise StopError(
            f"{name} is not UTF-8{f', but {encoding}' if encoding else ''}; nothing was changed\n"
            f"  type: iconv -f {found} -t UTF-8 {name} > {name}.new && mv {name}.new {name}"
        )

    @property
    def document(self) -> dict[str, Any]:
        """The parsed stack file, read again each time because `pulumi` writes to it, too."""
        try:
            found = copy.deepcopy(_parsed(self.text))
        except YAMLError as error:
            raise StopError(yaml_problem(self.path.name, error)) from None
        if problems := _unknown_keys(found):
            lines = "\n".join(f"  {problem}" for problem in problems)
            raise StopError(f"{self.path.name}: unknown or misplaced keys, which Pulumi would ignore\n{lines}")
        document: dict[str, Any] = found
        return document

    @property
    def values(self) -> dict[str, Any]:
        """The values below `config:` in the stack file, with their full keys, such as `mlflow:server`."""
        return self.document.get("config") or {}

    @property
    def settings(self) -> StackConfig:
        """The settings; raises `StopError` with every error in them."""
        return self.settings_with()

    def settings_with(self, **changed: Mapping[str, object]) -> StackConfig:
        """Return the settings with these keys changed, by section; raise `StopError` as `settings` does."""
        values, hidden = self._given()
        for section, keys in changed.items():
            values[section] = {**(values.get(section) or {}), **keys}
        try:
            return parse_settings(
                values, hidden=hidden, stack=self.name, allow_plain_text=self.is_engineless or nothing_encrypts()
            )
        except InvalidSettingsError as error:
            raise StopError(f"{self.path.name}: {error}") from None

    def _given(self) -> tuple[dict[str, Any], list[str]]:
        """Return the values below `mlflow:`, and the keys of those that contain an encrypted secret."""
        prefix = f"{NAMESPACE}:"
        values = {key.removeprefix(prefix): value for key, value in self.values.items() if key.startswith(prefix)}
        return values, [key for key, value in values.items() if _has_secret(value)]

    @property
    def engineless_secrets(self) -> Path:
        """Path of the generated secrets of an engine-less deployment. Version 0.1.0 named the folder."""
        return state_home() / "rehearsal" / f"{self.name}.json"

    @property
    def is_engineless(self) -> bool:
        """Whether it was last deployed without the engine. Only the engine encrypts secrets."""
        return self.engineless_secrets.exists()

    @property
    def warnings(self) -> list[str]:
        """Warnings about valid but risky settings; raises `StopError` as `settings` does."""
        values, hidden = self._given()
        return settings_warnings(self.settings, values, hidden=hidden, stack=self.name)

    @property
    def network_names(self) -> set[str]:
        """The Docker names of the networks of these settings; raises `StopError` as `settings` does."""
        settings = self.settings
        return {names.docker_name(self.name, settings.wanted_networks.name(service)) for service in settings.networks}

    def set(self, section: str, **values: object) -> None:
        """Set keys of one section in the stack file. Comments and order are kept."""
        editor = YAML()
        editor.preserve_quotes = True
        editor.width = 4096
        document = editor.load(self.text) or {}
        # A key without a value is present, with the value None.
        if document.get("config") is None:
            document["config"] = {}
        key = f"{NAMESPACE}:{section}"
        if document["config"].get(key) is None:
            document["config"][key] = {}
        document["config"][key].update(values)
        part = self.path.with_suffix(".part")
        with part.open("w") as file:
            # Without the engine, the file may have secrets in plain text, and be readable by its owner only.
            part.chmod(self.path.stat().st_mode)
            editor.dump(document, file)
        part.rename(self.path)

    def report_other_checkout(self) -> None:
        """Print a note if the last deployment was from another checkout: both share the state and the containers."""
        try:
            last = Path(self._last_checkout.read_text())
        except OSError:
            return
        if last != ROOT:
            progress(f"note: {self.name} was last deployed from {last}; this is {ROOT}")

    def remember_checkout(self) -> None:
        """Record that this stack was deployed from this checkout."""
        self._last_checkout.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._last_checkout.write_text(str(ROOT))

    def forget_checkout(self) -> None:
        """Delete the record, when the stack is deleted."""
        self._last_checkout.unlink(missing_ok=True)

    @property
    def _last_checkout(self) -> Path:
        return state_home() / "checkouts" / self.name

    @property
    def daemon(self) -> "Daemon":
        """The Docker daemon that the stack is deployed to."""
        # Imported late: Docker's client takes half of the time of a short verb.
        from runtime.address import resolve_host  # noqa: PLC0415
        from runtime.daemon import Daemon  # noqa: PLC0415

        return Daemon(resolve_host(self.values.get("docker:host")))
