"""What `make import` says: the plan before, and the report at the end."""

import os
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from operations.common.console import format_bytes, output, progress
from operations.common.stack import Stack
from operations.importing.locations import EXPERIMENTS, Mapped
from operations.importing.source import Source

SHOWN = ("experiments", "runs", "metrics", "params", "registered_models", "model_versions", "trace_info", "users")
"""Tables whose number of rows is shown. All are compared."""


@dataclass(frozen=True)
class Plan:
    """What an import will do."""

    found: Mapping[str, Any]
    """The old database, from assets/import/inspecting.py."""
    mapped: Sequence[Mapped]
    moves: Sequence[Mapping[str, Any]]
    sizes: Sequence[Mapping[str, Any]]
    """Files and bytes of each move."""

    @property
    def bytes(self) -> int:
        """The size of the artifacts that the stack does not have yet."""
        return sum(size["missing_bytes"] for size in self.sizes)

    @property
    def seconds(self) -> float:
        """How long the copy of the artifacts will take, from a sample."""
        return sum(_seconds(size) for size in self.sizes)


def describe(stack: Stack, source: Source, plan: Plan) -> None:
    """Print the plan."""
    found = plan.found
    rows = ", ".join(f"{found['rows'][table]} {table}" for table in SHOWN if found["rows"].get(table))
    progress(f"\nold database: {found['server']}, schema {found['revision']}")
    progress(f"  {rows or 'no rows'}")
    if found["foreign"]:
        progress(f"  not MLflow's, not imported: {', '.join(found['foreign'])}")
    progress("locations:")
    for entry in plan.mapped:
        columns = ", ".join(f"{number} {column}" for column, number in sorted(entry.rows.items()))
        progress(f"  {entry.prefix} -> {entry.new}  ({columns})")
        if entry.kept and EXPERIMENTS in entry.rows:
            progress("    kept: clients of new runs in these experiments use this place, and not the server")
    progress("artifacts:")
    for move, size in zip(plan.moves, plan.sizes, strict=True):
        progress(
            f"  {move['source']}: {size['files']} file(s), {format_bytes(size['bytes'])}; "
            f"to copy: {size['missing']}, {format_bytes(size['missing_bytes'])}"
        )
    progress(
        f"estimated time to copy the artifacts: {plan.seconds:.0f} s; after that, {stack.name} has no server for about "
        "a minute, or longer with a large database"
    )
    if route := source.compose.route:
        progress(f"settings that correspond to the labels of Traefik, for {stack.path.name}:")
        text = yaml.safe_dump({f"mlflow:{key}": value for key, value in route.items()}, sort_keys=False)
        progress("\n".join(f"    {line}" for line in text.strip().splitlines()))
    for line in [*_users(source, found), *_differences(source)]:
        progress(line)
    if plan.found["own"]:
        progress(f"{stack.name} has data that the old deployment lacks: {counted(plan.found['own'])}")


def _users(source: Source, found: Mapping[str, Any]) -> list[str]:
    """Return what is said about users of MLflow's own authentication: that none are imported, if there may be some."""
    beside = Path(source.file).with_name("basic_auth.db") if source.file else None
    if source.users or source.without_users or found["users"]:
        return []
    if beside and beside.is_file():
        return [f"the users in {beside} are not imported; to import them, add: USERS={shlex.quote(str(beside))}"]
    if found["has_users"]:
        return ["no users are imported, and the stack keeps its own; to import users, name their file: USERS=<path>"]
    return []


def _differences(source: Source) -> list[str]:
    """Return what will be different for the users of the old deployment."""
    found = []
    if source.port and not source.compose.route:
        found.append(
            f"to keep the old server's address, set mlflow:server: {{port: {source.port}}} when that one has stopped"
        )
    if source.s3 and not source.destination:
        found.append(
            "clients need no S3 credentials: the new server sends and receives artifacts. Remove "
            "MLFLOW_S3_ENDPOINT_URL and AWS_* from their environment"
        )
    return found


def _seconds(size: Mapping[str, Any]) -> float:
    """Return how long a copy takes if each file costs as much as a small one, and each byte as in a large one."""
    seconds = 0.0
    if size.get("sample_files"):
        seconds += size["missing"] * size["sample_seconds"] / size["sample_files"]
    if size.get("sample_bytes"):
        seconds += size["missing_bytes"] * size["sample_byte_seconds"] / size["sample_bytes"]
    return seconds


def report(
    stack: Stack,
    rows: Mapping[str, int],
    compared: Mapping[str, Any],
    late: Mapping[str, int],
    seconds: tuple[float, float],
) -> None:
    """Print what was imported, and what changed in the old deployment after the copy."""
    taken, away = seconds
    output(f"imported into {stack.name}, and equal:")
    for table, count in rows.items():
        if count:
            output(f"  {count:>10} {table}")
    output(f"  {compared['artifacts']:>10} artifacts, {format_bytes(compared['artifact_bytes'])}")
    output(f"in {taken:.0f} s; the server was stopped for {away:.0f} s")
    if written := {what: number for what, number in late.items() if number > 0}:
        output(f"the old deployment has more by now, which is not imported: {counted(written)}")
    if deleted := {what: -number for what, number in late.items() if number < 0}:
        output(f"the old deployment has fewer by now, and {stack.name} has them still: {counted(deleted)}")
    if late:
        output(f"  for the current state, type again: make {command()} STACK={stack.name}")
    output(f"the old deployment was only read\n{stack.settings.route.url}")


def counted(rows: Mapping[str, int]) -> str:
    """Return numbers of rows in words: 3 experiments, 12 runs."""
    return ", ".join(f"{number} {re.sub('_', ' ', table)}" for table, number in rows.items())


def command() -> str:
    """Return the command of this import, without the stack."""
    given = (
        f"{name}={shlex.quote(os.environ[name])}"
        for name in ("SOURCE", "ARTIFACTS", "MAP", "USERS")
        if os.environ.get(name)
    )
    return " ".join(["import", *given])
