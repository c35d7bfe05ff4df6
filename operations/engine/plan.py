"""A plan: what an update would change, read from the engine's events, as Markdown."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from operations.engine.change import NETWORK, OPERATIONS, RETAINED, Change, folded, plain, read_change, table
from settings import names

LIMIT = 30_000
"""The same of a whole plan, whatever is in it."""


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
        plan.changes = [read_change(step) for step in found.values()]
        order = [*OPERATIONS.values(), RETAINED]
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
        rule, words = violation["policyName"], plain(violation["message"]).splitlines()
        name = violation.get("resourceUrn", "").rpartition("::")[2]
        self.refused += [f"`{rule}`, {name}: {line}" for line in words[1:] or words]

    def _hear(self, diagnostic: Mapping[str, Any]) -> None:
        words = plain(diagnostic["message"])
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
            lines += folded(table(self.changes), len(self.changes))
        lines += [f"- warning: {words}" for words in self.warnings]
        return lines

    def _sum(self) -> str:
        if not self.complete and not self.changes:
            return "**It could not be made**, and the engine did not say why."
        if not self.changes:
            return f"No changes. {self.kept} resources stay as they are."
        verbs = [*OPERATIONS.values(), RETAINED]
        counts = {verb: sum(change.verb == verb for change in self.changes) for verb in verbs}
        told = ", ".join(f"{count} to {verb}" for verb, count in counts.items() if count)
        return f"**{told}**; {self.kept} stay as they are."

    def _effects(self) -> list[str]:
        """Return what it means for whoever uses the deployment."""
        gone = [change for change in self.changes if change.verb in ("delete", "replace", RETAINED)]
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
