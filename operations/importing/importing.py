"""`make import`: copy an old MLflow into the stack, and compare."""

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from operations.common.console import (
    StopError,
    confirmed,
    flag,
    format_bytes,
    make,
    progress,
    require_confirmation,
)
from operations.common.stack import Stack
from operations.data import migration, restore
from operations.data.backup import in_container, require_container
from operations.host import containers
from operations.host.servers import servers
from operations.importing import locations, old_keys
from operations.importing.importer import Importer
from operations.importing.locations import Mapped, Places
from operations.importing.report import Plan, command, counted, describe, report
from operations.importing.source import PAGE, Source, read
from operations.observe.status import require_containers
from preconditions import host as preconditions
from settings import names

RESERVE_BYTES = 1 << 30
"""Space that stays free on the disk."""


def import_(stack: Stack) -> None:
    """Import the old deployment `SOURCE=`. `DRY_RUN=1` only says what would happen. It can be typed again.

    The old deployment is only read. The stack's server runs while the artifacts are copied, and stops while the
    database is replaced. Data of the stack's own are replaced only with `CONFIRM=`, after a backup of them.
    """
    dry = flag("DRY_RUN")
    source = read(stack.name)
    require_containers(stack)
    _require_backup(stack)
    _require_alone(stack)
    importer = Importer(stack, source, {})
    _import(stack, source, importer, dry=dry)


def _import(stack: Stack, source: Source, importer: Importer, *, dry: bool) -> None:
    """Look, ask, copy, compare, replace the database, report; delete the copy of the old database at the end."""
    cleaned = False
    try:
        plan, importer = _planned(stack, source, importer, dry=dry)
        describe(stack, source, plan)
        if dry:
            own = f" CONFIRM={stack.name}" if plan.found["own"] else ""
            progress(f"nothing was changed; to import, type: make {command()} STACK={stack.name}{own}")
            return
        _approve(stack, plan)
        started = time.monotonic()
        importer.run("copy")
        progress("copying the old database")
        # What is there now must arrive: every artifact of a run in the dump. What comes later is left to the next
        # import.
        compared = importer.ask(*_dump(importer, source), "remember", "copy-again", "compare", shown=True)
        rows, away = _switch(stack, source, plan, importer, compared["encrypted"])
        late, cleaned = _late(importer, source)
    finally:
        # The copy of the old database must not stay, whatever happens.
        if not cleaned:
            with suppress(StopError):
                importer.run("clean")
    report(stack, rows, compared, late, (time.monotonic() - started, away))


def _require_backup(stack: Stack) -> None:
    """Raise `StopError` without a backup container: its image has the programs, and it backs up what is replaced."""
    try:
        require_container(stack)
    except StopError as error:
        raise StopError(f"make import works with the programs of the backup, and {error}") from None


def _require_alone(stack: Stack) -> None:
    """Raise `StopError` if there is no server, or if a restore, an export or another import runs."""
    if not servers(stack).deployed:
        raise StopError(f"{stack.name} has no server; type: {make('up', stack.name)}")
    containers.require_no_operation(stack.daemon, stack.name)


def _planned(stack: Stack, source: Source, importer: Importer, *, dry: bool) -> tuple[Plan, Importer]:
    """Look at the old deployment and return what is to be done; raise `StopError` with what cannot be done."""
    if (file := source.file or source.users) and not stack.daemon.host.startswith("unix://"):
        raise StopError(
            f"{file}: is a file, and {stack.name} is on another machine ({stack.daemon.host})\n"
            f"  copy this project and the stack file there, and import there; nothing was changed; {PAGE}"
        )
    _require_users(stack, source)
    if not servers(stack).running and not dry:
        # An import that was killed may have left the tables half changed.
        importer.ask("recover", shown=True)
    if source.users:
        # First: it takes seconds, and the copy of the runs may take minutes.
        importer.sqlite("prepare", users=True)
    if source.file:
        progress(f"copying {source.file}, and migrating the copy")
        importer.sqlite("prepare")
    found = importer.ask("inspect")
    problems = _database_problems(stack, source, found)
    problems += old_keys.problems(importer, source, found["encrypted"])
    places = Places(
        main=source.artifact_root,
        destination=source.destination,
        given=_given(source),
        on_host=_on_host(source),
        exists=lambda folder: not stack.daemon.host.startswith("unix://") or Path(folder).is_dir(),
        asked=frozenset(locations.parsed_map(os.environ.get("MAP") or "")),
    )
    try:
        mapped = locations.mapped(found["prefixes"], places)
    except StopError as error:
        raise StopError("\n".join([*problems, str(error), f"  nothing was changed; {PAGE}"])) from None
    moves = locations.moves(mapped, file_store=source.file if source.is_file_store else "")
    if source.s3 is None and any(not str(move["source"]).startswith("/") for move in moves):
        problems.append("the old database has locations in an S3; set AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and")
        problems.append("  MLFLOW_S3_ENDPOINT_URL (not for AWS)")
    if problems:
        raise StopError("\n".join(problems) + f"\n  nothing was changed; {PAGE}")
    importer = importer.with_plan(moves, _sql(source, found, mapped))
    progress("listing the artifacts")
    sizes = importer.ask("survey", shown=True)
    return Plan(found, mapped, moves, sizes), importer


def _require_users(stack: Stack, source: Source) -> None:
    """Raise `StopError` if a file with users is to be imported, and the deployed stack has no users of MLflow's."""
    if source.users and "MLFLOW_AUTH_CONFIG_PATH" not in servers(stack).environment:
        raise StopError(
            f"{source.users}: has users of MLflow's own authentication, which {stack.name} does not use\n"
            f"  set mlflow:authentication: mlflow, then type: {make('up', stack.name)}\n"
            f"  or leave the users out, with USERS=none instead; {PAGE}"
        )


def _sql(source: Source, found: Mapping[str, Any], mapped: Sequence[Mapped]) -> str:
    """Return what is changed in the loaded tables: the locations, and notes on the data keys of their values."""
    notes = old_keys.notes(source, found["encrypted"])
    deleted = old_keys.FORGET_DELETED if found["webhooks"] else ""
    return "".join([locations.rewriting(mapped, found["columns"]), deleted, *notes])


def _on_host(source: Source) -> Callable[[str], str]:
    """Return what finds a folder of the old server on the Docker host.

    Relative paths begin where the old server ran: in the folder of its compose file, or beside its SQLite file.
    """
    if source.compose.folder or not source.file:
        return source.compose.on_host
    base = Path(source.file).parent

    def on_host(path: str) -> str:
        return str(base / path)

    return on_host


def _given(source: Source) -> dict[str, str]:
    """Return the places of prefixes that are known without asking."""
    given = locations.parsed_map(os.environ.get("MAP") or "")
    if source.is_file_store:
        # Its experiments remember where the folder was when they were created.
        for prefix in (source.file, f"file://{source.file}", "./mlruns", "mlruns"):
            given.setdefault(prefix, source.file)
    return given


def _database_problems(stack: Stack, source: Source, found: Mapping[str, Any]) -> list[str]:
    """Return everything that keeps the old database from being imported."""
    problems = []
    if source.users and found["users"]:
        problems.append(f"{source.users}: the old database has users as well; import without USERS= to take those")
    if source.postgres:
        if found["major"] > stack.settings.postgres_major:
            problems.append(
                f"the old database is {found['server']}, newer than Postgres {stack.settings.postgres_major} of "
                f"{stack.name}; set mlflow:images.postgres to that version"
            )
        if not found["revision"] or not restore.supports_revision(stack, found["revision"]):
            problems.append(
                f"the old database has the schema {found['revision']}, which MLflow {servers(stack).version or ''} of "
                f"{stack.name} does not know: a newer MLflow has migrated it; set mlflow:images.mlflow to that version"
            )
    return problems


def _approve(stack: Stack, plan: Plan) -> None:
    """Check the space, and ask; raise `StopError` without approval."""
    free = plan.found["free_bytes"]
    wanted = plan.bytes + 3 * plan.found["bytes"] + RESERVE_BYTES
    if free < wanted:
        raise StopError(
            f"{format_bytes(free)} are free on the Docker host, {format_bytes(wanted)} are needed\n"
            "  nothing was changed; to free space: docs/operations/capacity.md#disk-full"
        )
    if plan.found["own"]:
        require_confirmation(
            stack.name,
            f"This replaces {counted(plan.found['own'])} of {stack.name}, after a backup of them.",
            verb=command(),
        )
    elif plan.found["used"] and os.environ.get("CONFIRM") != stack.name:
        question = (
            f"{stack.name} is in use, by an earlier import at least. This replaces its database with the current state "
            "of the old deployment, after a backup."
        )
        if not confirmed(question):
            raise StopError("nothing was changed")


def _dump(importer: Importer, source: Source) -> list[str]:
    """Copy an SQLite database; return the commands that write the old database as SQL, after that."""
    if source.file:
        importer.sqlite("prepare")
        importer.sqlite("dump")
    if source.users:
        importer.sqlite("prepare", users=True)
        importer.sqlite("dump", users=True)
    return ["dump" if source.postgres else "assemble"]


def _switch(
    stack: Stack, source: Source, plan: Plan, importer: Importer, encrypted: Mapping[str, int]
) -> tuple[dict[str, int], float]:
    """Replace the database while no server runs; return the report, and how long no server ran.

    `encrypted` is how many values each old data key has encrypted. If it fails, the stack is as it was before.
    """
    deployed = servers(stack)
    progress("waiting for backups and other operations")
    importer.run("wait")
    progress("stopping the server")
    began = time.monotonic()
    complete = finishing = False
    try:
        deployed.stop(for_good=True)
        _back_up(stack, plan, importer)
        importer.run("load")
        if source.file:
            importer.sqlite("compare")
        if source.users:
            importer.sqlite("compare", users=True)
        # Also if the last such value was deleted after the plan: the tables have a note of the old key.
        if encrypted or plan.found["encrypted"]:
            old_keys.encrypt(stack, source)
        migration.migrate(stack)
        # Before the server starts: as long as the previous tables exist, no server has used the new ones.
        finishing = True
        rows: dict[str, int] = importer.ask("finish")
        complete = True
        progress("starting the server")
        deployed.resume()
        deployed.start()
    finally:
        if not complete and not preconditions.is_running(stack.daemon, stack.name, names.IMPORT):
            _take_back(stack, importer, finishing=finishing)
            deployed.resume()
            deployed.start()
            progress("the server was started again")
    return rows, time.monotonic() - began


def _take_back(stack: Stack, importer: Importer, *, finishing: bool) -> None:
    """Take the previous tables into use again after a failure, and say which data the stack has; raise `StopError`.

    `finishing`: the last step may have deleted them already, and then the import is complete.
    """
    try:
        # Also if `load` was interrupted: it may have committed at that moment.
        recovered = importer.ask("recover", shown=True)
    except StopError as error:
        raise StopError(
            f"{error}\n  {stack.name} has no server, and its previous data are kept aside; to take them back, type the "
            f"same import again, or: {make('up', stack.name)}"
        ) from None
    if finishing and not recovered:
        progress(f"{stack.name} has the data of the old deployment; only the report is lost")
    else:
        progress(f"{stack.name} has its previous data")


def _back_up(stack: Stack, plan: Plan, importer: Importer) -> None:
    """Back up what is replaced, while no server runs; raise `StopError` if that is more than was approved."""
    own = importer.ask("own")
    if more := {table: rows - plan.found["own"].get(table, 0) for table, rows in own.items()}:
        more = {table: rows for table, rows in more.items() if rows > 0}
    if more:
        raise StopError(
            f"{stack.name} was used during the copy, and has {counted(more)} that would be lost\n"
            f"  to replace them as well, type: make {command()} STACK={stack.name} CONFIRM={stack.name}"
        )
    if plan.found["used"]:
        progress("taking a backup of what is replaced")
        in_container(stack, "safety")


def _late(importer: Importer, source: Source) -> tuple[dict[str, int], bool]:
    """Return what the old deployment has more or fewer of by now, and whether the copy of the database was deleted.

    Nothing, if the old deployment does not answer any more.
    """
    found: dict[str, int] = {}
    with suppress(StopError):
        if source.file and not source.is_file_store:
            said: list[str] = []
            importer.sqlite("late", said.append)
            found = json.loads("".join(said))
        found |= importer.ask("late", "clean")
        return found, True
    return found, False
