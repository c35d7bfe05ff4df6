"""The changes in a plan, read from the engine's events and formatted as Markdown.

The events are Pulumi's own (`pulumi preview --json`, streamed): https://www.pulumi.com/docs/iac/cli/commands/pulumi_preview/.
Secrets are already masked in them.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from settings import names

CONTAINER = "docker:index/container:Container"
VOLUME = "docker:index/volume:Volume"
SERVICE = "docker:index/service:Service"
NETWORK = "docker:index/network:Network"
KINDS = {
    VOLUME: "volume",
    NETWORK: "network",
    "docker:index/remoteImage:RemoteImage": "image",
    "random:index/randomPassword:RandomPassword": "generated secret",
    SERVICE: "Swarm service",
    "docker:index/secret:Secret": "Swarm secret",
}
OPERATIONS = {"delete": "delete", "replace": "replace", "update": "change", "create": "create", "import": "import"}
"""The engine's steps that are shown, and their names here. The two extra steps of a replacement are left out."""
RETAINED = "forget"
"""The resource leaves the stack, but stays on the host."""
UNKNOWN = "04da6b54-80e4-46f7-96ec-b56ff0331ba9"
"""Pulumi's placeholder for a string that is known only after deployment (sdk/go/common/resource/plugin/rpc.go)."""
MAX_VALUE_CHARACTERS = 80
"""Maximum characters of a value; longer ones are shortened."""
MAX_UNFOLDED_ROWS = 12
"""Maximum rows of a table that is not folded."""
MAX_TABLE_CHARACTERS = 20_000
"""Maximum characters of a table's rows: GitHub allows 65,536 in a comment, which has two plans."""


@dataclass(frozen=True, kw_only=True)
class Change:
    """The change of one resource."""

    verb: str
    """create, import, change, replace, delete or forget."""
    type: str
    """Pulumi's resource type."""
    name: str
    role: str = ""
    """Role of a container: service, job or files."""
    physical: str = ""
    """Name on the host."""
    details: tuple[str, ...] = ()
    """The differences, as Markdown."""

    @property
    def kind(self) -> str:
        """The kind of resource, in words for people."""
        return self.role or KINDS.get(self.type) or self.type.rpartition(":")[2]


def read_change(step: Mapping[str, Any]) -> Change:
    """Return one step of the engine's plan as a change."""
    old, new = step.get("old") or {}, step.get("new") or {}
    before, after = old.get("inputs") or {}, new.get("inputs") or {}
    # A refresh updates the outputs with what it found on the host, not the inputs.
    there = {**before, **(old.get("outputs") or {})}
    labels = {entry.get("label"): entry.get("value") for entry in (after or before).get("labels") or []}
    is_container = step["type"] in (CONTAINER, SERVICE)
    details: list[str] = []
    if step["op"] in ("update", "replace"):
        differences = step.get("detailedDiff") or {}
        found = _nested(differences, there, after) if step["type"] == SERVICE else _details(differences, there, after)
        details = found or ["because a dependency changes"]
    kept = step["op"] == "delete" and old.get("retainOnDelete")
    return Change(
        verb=RETAINED if kept else OPERATIONS[step["op"]],
        type=step["type"],
        name=step["urn"].rpartition("::")[2].removesuffix("-image"),
        role=labels.get(names.ROLE_LABEL, "container") if is_container else "",
        physical=str((before or after).get("name", "")),
        details=tuple(details),
    )


def _nested(paths: Mapping[str, Any], old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Return the differences of a Swarm service, whose properties are nested. Lists are named only."""
    found = []
    for path in dict.fromkeys(path.partition("[")[0] for path in paths):
        before, after = _at(old, path), _at(new, path)
        plain_value = not isinstance(before, list | dict) and not isinstance(after, list | dict)
        if plain_value and before == after:
            # A default of the provider.
            continue
        # The last part of the path says what it is: image, replicas, the name of a variable.
        name = f"`{path.rpartition('.')[2]}`"
        found.append(f"{name} {_code(_value(before))} → {_code(_value(after))}" if plain_value else name)
    return list(dict.fromkeys(found))


def _at(values: Any, path: str) -> Any:  # noqa: ANN401 - JSON
    for part in path.split("."):
        values = values.get(part) if isinstance(values, dict) else None
    return values


def _details(paths: Mapping[str, Any], old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    found = []
    for key in dict.fromkeys(re.split(r"[.\[]", path)[0] for path in paths):
        before, after = old.get(key), new.get(key)
        if key == "uploads":
            found.append(" ".join(["`uploads`", *_files(paths, before, after)]))
        elif isinstance(before, list) or isinstance(after, list):
            gone, come = _items(before), _items(after)
            signs = [f"- {_code(item)}" for item in gone if item not in come]
            signs += [f"+ {_code(item)}" for item in come if item not in gone]
            found.append(" ".join([f"`{key}`", *signs]))
        elif isinstance(before, dict) or isinstance(after, dict):
            found.append(f"`{key}`")
        else:
            found.append(f"`{key}` {_code(_value(before))} → {_code(_value(after))}")
    return found


def _files(paths: Mapping[str, Any], before: Any, after: Any) -> list[str]:  # noqa: ANN401 - JSON
    """Return which files are added, removed or changed; empty if Pulumi masks the whole list as a secret."""
    if not (isinstance(before, list) and isinstance(after, list)):
        return []
    old, new = ([entry["file"].rpartition("/")[2] for entry in entries] for entries in (before, after))
    numbers = {int(match[1]) for path in paths if (match := re.match(r"uploads\[(\d+)\]", path))}
    signs = [f"- {_code(name)}" for name in old if name not in new] + [
        f"+ {_code(name)}" for name in new if name not in old
    ]
    return signs or [_code(name) for number, name in enumerate(new) if number in numbers]


def _items(values: Any) -> list[str]:  # noqa: ANN401 - JSON
    if not isinstance(values, list):
        return []
    return [_item(value) for value in values]


def _item(value: Any) -> str:  # noqa: ANN401 - JSON
    """Return an entry of a list as text: a label as key=value, a network as its name, without provider defaults."""
    if not isinstance(value, dict):
        return str(value)
    told = {key: item for key, item in value.items() if key != "__defaults" and item not in ("", 0, [], {}, None)}
    if set(told) == {"label", "value"}:
        return f"{told['label']}={told['value']}"
    return _value(told["name"]) if set(told) == {"name"} else json.dumps(told)


def _value(value: Any) -> str:  # noqa: ANN401 - JSON
    if value is None:
        return "none"
    if value == UNKNOWN:
        return "known after deployment"
    text = str(value).removeprefix("sha256:")
    return text[:12] if re.fullmatch("[0-9a-f]{64}", text) else text


def _code(text: str) -> str:
    """Return `text` as Markdown code for a table cell."""
    short = text if len(text) <= MAX_VALUE_CHARACTERS else text[: MAX_VALUE_CHARACTERS - 1] + "…"
    return "`" + short.replace("`", "'").replace("|", "\\|").replace("\n", " ") + "`"


def plain(text: str) -> str:
    """Return a message of the engine without its color markup."""
    return re.sub(r"<\{%.*?%\}>", "", text).strip()


def table(changes: list[Change]) -> list[str]:
    """Return changes as a Markdown table, shortened where it would not fit into a comment."""
    rows = [
        f"| {change.verb} | {change.kind} | `{change.name}` | {'<br>'.join(change.details)} |" for change in changes
    ]
    shown = rows
    while sum(map(len, shown)) > MAX_TABLE_CHARACTERS:
        shown = shown[: len(shown) * 3 // 4]
    if len(shown) < len(rows):
        shown = [*shown, f"| | | and {len(rows) - len(shown)} more | |"]
    return ["| action | kind | name | differences |", "| --- | --- | --- | --- |", *shown, ""]


def folded(table: list[str], rows: int) -> list[str]:
    """Return the table, folded if it has many rows."""
    return (
        table
        if rows <= MAX_UNFOLDED_ROWS
        else [f"<details><summary>All {rows} changes</summary>", "", *table, "</details>", ""]
    )
