"""What `make up` would change, read from the engine's events and told as Markdown.

The events are Pulumi's own (`pulumi preview --json`, streamed): https://www.pulumi.com/docs/iac/cli/commands/pulumi_preview/.
Secrets are masked in them already, and stay so here.
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from components import names

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
LET_GO = "let go"
"""Of what is deleted from the stack, and stays on the host."""
UNKNOWN = "04da6b54-80e4-46f7-96ec-b56ff0331ba9"
"""What Pulumi has for a text that is known after the deployment only (sdk/go/common/resource/plugin/rpc.go)."""
LONGEST = 80
"""Characters of a value that is shown as a whole."""
MOST = 12
"""Rows that stand open in a comment."""
ROOM = 20_000
"""Characters of a table's rows: GitHub takes 65,536 in a comment, which has two plans in it."""
LIMIT = 30_000
"""The same of a whole plan, whatever is in it."""


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


@dataclass(kw_only=True)
class Plan:
    """All that a plan says. `complete` is false where it could not be made."""

    stack: str
    changes: list[Change] = field(default_factory=list)
    kept: int = 0
    """Resources that stay as they are."""
    refused: list[str] = field(default_factory=list)
    """What the policy pack says against it."""
    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    ruled: bool = False
    """Whether the policy pack was asked."""
    complete: bool = False

    @classmethod
    def read(cls, stack: str, events: Iterable[str]) -> Self:
        """Read what the engine printed, an event a line; any other line is an error."""
        plan = cls(stack=stack)
        found: dict[str, Mapping[str, Any]] = {}
        for line in events:
            try:
                event = json.loads(line)
            except ValueError:
                plan.errors.append(line.strip())
                continue
            if step := event.get("resourcePreEvent"):
                plan._note(step["metadata"], found)
            elif violation := event.get("policyEvent"):
                plan._refuse(violation)
            elif diagnostic := event.get("diagnosticEvent"):
                plan._hear(diagnostic)
            elif summary := event.get("summaryEvent"):
                plan.complete = summary.get("result") == "succeeded"
                plan.ruled = bool(summary.get("PolicyPacks"))
        plan.changes = [_change(step) for step in found.values()]
        order = [*OPERATIONS.values(), LET_GO]
        plan.changes.sort(key=lambda change: (order.index(change.verb), change.kind, change.name))
        plan.errors = [error for error in plan.errors if error]
        return plan

    def _note(self, step: Mapping[str, Any], found: dict[str, Mapping[str, Any]]) -> None:
        # A component is what it is made of.
        if not step["type"].startswith(("docker:", "random:")):
            return
        if step["op"] == "same":
            self.kept += 1
        elif step["op"] in OPERATIONS:
            found[step["urn"]] = step

    def _refuse(self, violation: Mapping[str, Any]) -> None:
        rule, words = violation["policyName"], _plain(violation["message"]).splitlines()
        name = violation.get("resourceUrn", "").rpartition("::")[2]
        self.refused += [f"`{rule}`, {name}: {line}" for line in words[1:] or words]

    def _hear(self, diagnostic: Mapping[str, Any]) -> None:
        words = _plain(diagnostic["message"])
        if diagnostic["severity"] == "error":
            # What the engine says of its own failure says nothing more than that there was one.
            if words != "preview failed" and "program exited with non-zero exit code" not in words:
                self.errors.append(words)
        elif diagnostic["severity"] == "warning":
            self.warnings.append(words)

    @property
    def empty(self) -> bool:
        """Whether everything is as the program says."""
        return self.complete and not self.changes

    def markdown(self, what: str = "Plan") -> str:
        """Return the plan for a person: in a terminal, in a pull request."""
        return "\n".join([f"### {what} of `{self.stack}`", "", *self._body()])[:LIMIT]

    def _body(self) -> list[str]:
        lines = []
        if self.refused:
            lines += ["**Refused by the rules of `policy/`:**", "", *(f"- {words}" for words in self.refused), ""]
        if self.errors:
            lines += ["**It could not be made:**", "", "```text", *self.errors, "```", ""]
        if self.errors and not self.refused:
            return lines
        rules = " The rules of `policy/` hold." if self.ruled and not self.refused else ""
        lines += [self._sum() + rules, ""]
        lines += [f"> {words}\n" for words in self._effects()]
        if self.changes:
            lines += _folded(_table(self.changes), len(self.changes))
        lines += [f"- warning: {words}" for words in self.warnings]
        return lines

    def _sum(self) -> str:
        if not self.complete and not self.changes:
            return "**It could not be made**, and the engine did not say why."
        if not self.changes:
            return f"No changes. {self.kept} resources stay as they are."
        verbs = [*OPERATIONS.values(), LET_GO]
        counts = {verb: sum(change.verb == verb for change in self.changes) for verb in verbs}
        told = ", ".join(f"{count} to {verb}" for verb, count in counts.items() if count)
        return f"**{told}**; {self.kept} stay as they are."

    def _effects(self) -> list[str]:
        """Return what it means for whoever uses the deployment."""
        gone = [change for change in self.changes if change.verb in ("delete", "replace", LET_GO)]
        data = [change.physical for change in gone if names.is_data_volume(self.stack, change.physical)]
        restarted = [change.name for change in gone if change.role == "service" and change.verb == "replace"]
        stopped = [change.name for change in gone if change.role == "service" and change.verb == "delete"]
        again = [
            change.name for change in self.changes if change.role == "job" and change.verb in ("replace", "create")
        ]
        apart = [change.name for change in gone if change.type == NETWORK and change.verb == "replace"]
        effects = {
            "**Data leave the stack** (the volumes themselves are kept)": data,
            "**Restarts**": restarted,
            "**Stops for good**": stopped,
            "Is cut off for a moment, with all that is on it": apart,
            "Runs once": again,
        }
        return [f"{words}: {', '.join(f'`{name}`' for name in found)}" for words, found in effects.items() if found]


def _change(step: Mapping[str, Any]) -> Change:
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
        verb=LET_GO if kept else OPERATIONS[step["op"]],
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


def _plain(text: str) -> str:
    """Return what the engine says, without its colours."""
    return re.sub(r"<\{%.*?%\}>", "", text).strip()


def _table(changes: list[Change]) -> list[str]:
    rows = [
        f"| {change.verb} | {change.kind} | `{change.name}` | {'<br>'.join(change.details)} |" for change in changes
    ]
    shown = rows
    while sum(map(len, shown)) > ROOM:
        shown = shown[: len(shown) * 3 // 4]
    if len(shown) < len(rows):
        shown = [*shown, f"| | | and {len(rows) - len(shown)} more | |"]
    return ["| | what | which | how it differs |", "| --- | --- | --- | --- |", *shown, ""]


def _folded(table: list[str], rows: int) -> list[str]:
    """Fold a table that would fill the page."""
    return table if rows <= MOST else [f"<details><summary>All {rows}</summary>", "", *table, "</details>", ""]
