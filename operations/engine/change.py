"""What `make up` would change, read from the engine's events and told as Markdown.

The events are Pulumi's own (`pulumi preview --json`, streamed): https://www.pulumi.com/docs/iac/cli/commands/pulumi_preview/.
Secrets are masked in them already, and stay so here.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from settings import names

CONTAINER = "docker:index/container:Container"
VOLUME = "docker:index/volume:Volume"
NETWORK = "docker:index/network:Network"
KINDS = {
    VOLUME: "volume",
    NETWORK: "network",
    "docker:index/remoteImage:RemoteImage": "image",
    "random:index/randomPassword:RandomPassword": "generated secret",
}
OPERATIONS = {"delete": "delete", "replace": "replace", "update": "change", "create": "create", "import": "import"}
"""Of the engine's steps the ones that are told, and how; a replacement has two more, and nothing is no change."""
RETAINED = "let go"
"""Of what is deleted from the stack, and stays on the host."""
UNKNOWN = "04da6b54-80e4-46f7-96ec-b56ff0331ba9"
"""What Pulumi has for a text that is known after the deployment only (sdk/go/common/resource/plugin/rpc.go)."""
LONGEST = 80
"""Characters of a value that is shown as a whole."""
MOST = 12
"""Rows that stand open in a comment."""
ROOM = 20_000
"""Characters of a table's rows: GitHub takes 65,536 in a comment, which has two plans in it."""


@dataclass(frozen=True, kw_only=True)
class Change:
    """What happens to one resource."""

    verb: str
    """create, change, replace, delete or let go."""
    type: str
    """Pulumi's."""
    name: str
    role: str = ""
    """Of a container: service, job or files."""
    physical: str = ""
    """What it is called on the host."""
    details: tuple[str, ...] = ()
    """What is different, as Markdown."""

    @property
    def kind(self) -> str:
        """What a person calls it."""
        return self.role or KINDS.get(self.type) or self.type.rpartition(":")[2]


def read_change(step: Mapping[str, Any]) -> Change:
    """Return one step of the engine's plan as a change."""
    old, new = step.get("old") or {}, step.get("new") or {}
    before, after = old.get("inputs") or {}, new.get("inputs") or {}
    # What a refresh has found is in what there is, not in what was asked for.
    there = {**before, **(old.get("outputs") or {})}
    labels = {entry.get("label"): entry.get("value") for entry in (after or before).get("labels") or []}
    is_container = step["type"] == CONTAINER
    details: list[str] = []
    if step["op"] in ("update", "replace"):
        details = _details(step.get("detailedDiff") or {}, there, after) or ["goes with what it depends on"]
    kept = step["op"] == "delete" and old.get("retainOnDelete")
    return Change(
        verb=RETAINED if kept else OPERATIONS[step["op"]],
        type=step["type"],
        name=step["urn"].rpartition("::")[2].removesuffix("-image"),
        role=labels.get(names.ROLE_LABEL, "container") if is_container else "",
        physical=str((before or after).get("name", "")),
        details=tuple(details),
    )


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
    """Return which files come, go or change. Where Pulumi hides the whole list as a secret, nobody can say."""
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
    """Return an entry of a list: of a label its line, of a network its name, without what the provider filled in."""
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
        return "a new one"
    text = str(value).removeprefix("sha256:")
    return text[:12] if re.fullmatch("[0-9a-f]{64}", text) else text


def _code(text: str) -> str:
    """Return `text` as code in a cell of a table."""
    short = text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"
    return "`" + short.replace("`", "'").replace("|", "\\|").replace("\n", " ") + "`"


def plain(text: str) -> str:
    """Return what the engine says, without its colours."""
    return re.sub(r"<\{%.*?%\}>", "", text).strip()


def table(changes: list[Change]) -> list[str]:
    """Return changes as a Markdown table, shortened where it would not fit into a comment."""
    rows = [
        f"| {change.verb} | {change.kind} | `{change.name}` | {'<br>'.join(change.details)} |" for change in changes
    ]
    shown = rows
    while sum(map(len, shown)) > ROOM:
        shown = shown[: len(shown) * 3 // 4]
    if len(shown) < len(rows):
        shown = [*shown, f"| | | and {len(rows) - len(shown)} more | |"]
    return ["| | what | which | how it differs |", "| --- | --- | --- | --- |", *shown, ""]


def folded(table: list[str], rows: int) -> list[str]:
    """Fold a table that would fill the page."""
    return table if rows <= MOST else [f"<details><summary>All {rows}</summary>", "", *table, "</details>", ""]
