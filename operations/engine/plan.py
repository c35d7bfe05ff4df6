"""A plan: what an update would change, read from the engine's events, as Markdown."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from operations.engine.change import (
    NETWORK,
    OPERATIONS,
    RETAINED,
    SERVICE,
    Change,
    folded,
    plain,
    read_change,
    table,
)
from settings import names

MAX_PLAN_CHARACTERS = 30_000
"""Maximum characters of a whole plan."""
ROLLING = "Replicas restart one after another (exceptions: docs/operations/replicas.md#what-a-change-does)"
TASKS = "Its tasks are replaced one after another (exceptions: docs/operations/swarm.md#what-a-change-does)"
MOVES = (
    "**Moves between containers and a Swarm cluster**: the stack is down from the stop of Postgres until the new "
    "servers are ready, about a minute (docs/operations/swarm.md#from-one-to-the-other)"
)


@dataclass(kw_only=True)
class Plan:
    """A plan. `complete` is false if it failed."""

    stack: str
    changes: list[Change] = field(default_factory=list)
    kept: int = 0
    """Number of unchanged resources."""
    refused: list[str] = field(default_factory=list)
    """Policy violations."""
    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    ruled: bool = False
    """Whether the plan was checked against the policies."""
    complete: bool = False

    @classmethod
    def read(cls, stack: str, events: Iterable[str]) -> Self:
        """Parse the engine's output, one event per line. Any other line is an error."""
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
        # Components have no changes beyond those of their resources.
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
            # These engine messages only say that the plan failed, without the reason.
            if words != "preview failed" and "program exited with non-zero exit code" not in words:
                self.errors.append(words)
        elif diagnostic["severity"] == "warning":
            self.warnings.append(words)

    @property
    def empty(self) -> bool:
        """Whether the plan is complete and has no changes."""
        return self.complete and not self.changes

    def markdown(self, what: str = "Plan") -> str:
        """Return the plan as Markdown, for a terminal or a pull request."""
        return "\n".join([f"### {what} of `{self.stack}`", "", *self._body()])[:MAX_PLAN_CHARACTERS]

    def _body(self) -> list[str]:
        lines = []
        if self.refused:
            lines += ["**Refused by the policies in `policy/`:**", "", *(f"- {words}" for words in self.refused), ""]
        if self.errors:
            lines += ["**The plan failed:**", "", "```text", *self.errors, "```", ""]
        if self.errors and not self.refused:
            return lines
        rules = " All policies in `policy/` pass." if self.ruled and not self.refused else ""
        lines += [self._sum() + rules, ""]
        lines += [f"> {words}\n" for words in self._effects()]
        if self.changes:
            lines += folded(table(self.changes), len(self.changes))
        lines += [f"- warning: {words}" for words in self.warnings]
        return lines

    def _sum(self) -> str:
        if not self.complete and not self.changes:
            return "**The plan failed**, and the engine gave no reason."
        if not self.changes:
            return f"No changes. {self.kept} resources unchanged."
        verbs = [*OPERATIONS.values(), RETAINED]
        counts = {verb: sum(change.verb == verb for change in self.changes) for verb in verbs}
        told = ", ".join(f"{count} to {verb}" for verb, count in counts.items() if count)
        return f"**{told}**; {self.kept} unchanged."

    def _effects(self) -> list[str]:
        """Return the effects of the plan on the users of the deployment."""
        gone = [change for change in self.changes if change.verb in ("delete", "replace", RETAINED)]
        data = [change.physical for change in gone if names.is_data_volume(self.stack, change.physical)]
        restarted = [change.name for change in gone if change.role == "service" and change.verb == "replace"]
        stopped = [change.name for change in gone if change.role == "service" and change.verb == "delete"]
        again = [
            change.name for change in self.changes if change.role == "job" and change.verb in ("replace", "create")
        ]
        replicas = [name for name in restarted if names.is_replica(name)]
        apart = [change.name for change in gone if change.type == NETWORK and change.verb == "replace"]
        rolled = [change.name for change in self.changes if change.type == SERVICE and change.verb == "change"]
        servers = [change for change in self.changes if change.role == "service" and names.is_replica(change.name)]
        moves = len({change.type for change in servers}) > 1
        stopped = [name for name in stopped if not (moves and names.is_replica(name))]
        effects = {
            MOVES: sorted({change.name for change in servers}) if moves else [],
            TASKS: rolled,
            "**Data volumes leave the stack** (they are kept on the host)": data,
            "**Restarts**": restarted,
            ROLLING: replicas if len(replicas) > 1 else [],
            "**Stops permanently**": stopped,
            "Networks recreated, with a short interruption of their containers": apart,
            "Jobs run once": again,
        }
        return [f"{words}: {', '.join(f'`{name}`' for name in found)}" for words, found in effects.items() if found]
