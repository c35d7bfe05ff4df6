"""`make import`: copy an old MLflow into the stack, and compare."""

import os
import time
from collections.abc import Callable, Mapping
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
from operations.data import data_keys, migration, restore
from operations.data.backup import in_container, require_container
from operations.host.servers import servers
from operations.importing import locations
from operations.importing.importer import Importer
from operations.importing.locations import Places
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
    plan, importer = _planned(stack, source)
    describe(stack, source, plan)
    if dry:
        progress("nothing was changed")
        return
    _approve(stack, plan)
    started = time.monotonic()
    importer.run("copy")
    _dump(importer, source)
    # What is there now must arrive: every artifact of a run in the dump. What comes later is left to the next import.
    importer.run("remember")
    importer.run("copy")
    compared = importer.ask("compare", shown=True)
    found, away = _switch(stack, source, plan, importer)
    late = dict(found["late"]) | ({"artifacts": compared["late_artifacts"]} if compared["late_artifacts"] else {})
    if source.file and not source.is_file_store and _written_meanwhile(importer):
        late["the SQLite file"] = 1
    importer.run("clean")
    report(stack, found, compared, late, (time.monotonic() - started, away))


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
    for name in (names.RESTORE, names.EXPORT, names.IMPORT):
        if preconditions.is_running(stack.daemon, stack.name, name):
            log = f"docker logs -f {names.docker_name(stack.name, name)}"
            raise StopError(f"another {name} of {stack.name} is running; to see its progress: {log}")


def _planned(stack: Stack, source: Source) -> tuple[Plan, Importer]:
    """Look at the old deployment and return what is to be done; raise `StopError` with what cannot be done."""
    importer = Importer(stack, source, {})
    if not servers(stack).running:
        # An import that was killed may have left tables that are not migrated.
        migration.migrate(stack)
    if source.file:
        progress(f"copying {source.file}, and migrating the copy")
        importer.sqlite("prepare")
    found = importer.ask("inspect")
    problems = _database_problems(stack, source, found)
    places = Places(
        main=source.artifact_root,
        destination=source.destination,
        given=_given(source),
        on_host=_on_host(source),
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
    importer = importer.with_plan(moves, locations.rewriting(mapped, found["columns"]))
    progress("listing the artifacts")
    sizes = importer.ask("survey", shown=True)
    return Plan(found, mapped, moves, sizes), importer


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
    for key, rows in found["encrypted"].items():
        if key not in source.keys:
            variable = {
                "cryptoKekPassphrase": "MLFLOW_CRYPTO_KEK_PASSPHRASE",
                "webhookEncryptionKey": "MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY",
            }[key]
            problems.append(
                f"the old database has {rows} values that are encrypted with the old server's {variable}; set it"
            )
    return problems


def _approve(stack: Stack, plan: Plan) -> None:
    """Check the space, ask, and back up what will be replaced; raise `StopError` without approval."""
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
        progress("taking a backup of the data of the stack first")
        in_container(stack, "safety")
    elif plan.found["used"] and not confirmed(
        f"{stack.name} has an earlier import. This replaces it with the current state of the old deployment."
    ):
        raise StopError("nothing was changed")


def _dump(importer: Importer, source: Source) -> None:
    progress("copying the old database")
    if source.postgres:
        importer.run("dump")
    else:
        importer.sqlite("prepare")
        importer.sqlite("dump")
        importer.run("assemble")


def _switch(stack: Stack, source: Source, plan: Plan, importer: Importer) -> tuple[dict[str, Any], float]:
    """Replace the database while no server runs; return the report, and how long no server ran.

    If that fails, the stack is as it was before.
    """
    deployed = servers(stack)
    importer.run("forget")
    progress("stopping the server")
    began = time.monotonic()
    complete = False
    try:
        deployed.stop(for_good=True)
        importer.run("load")
        if source.file:
            importer.sqlite("compare")
        _encrypt(stack, source, plan)
        migration.migrate(stack)
        # Before the server starts: as long as the previous tables exist, no server has used the new ones.
        report: dict[str, Any] = importer.ask("finish")
        complete = True
        progress("starting the server")
        deployed.resume()
        deployed.start()
    finally:
        if not complete and not preconditions.is_running(stack.daemon, stack.name, names.IMPORT):
            # Also if `load` was interrupted: it may have committed at that moment.
            importer.run("recover")
            deployed.resume()
            progress(f"{stack.name} has its previous data, and its server was started again")
    return report, time.monotonic() - began


def _encrypt(stack: Stack, source: Source, plan: Plan) -> None:
    """Encrypt the old secrets of MLflow with the data keys of the stack."""
    if not plan.found["encrypted"]:
        return
    deployed = servers(stack)
    old = {key: source.keys[key] for key in plan.found["encrypted"]}
    new = {key: data_keys.secret_of(deployed, names.generator_of(key)) for key in old}
    if data_keys.encrypt_rows(stack, deployed, old, new):
        raise StopError("the old data keys do not decrypt the secrets in the old database; the reason is above")


def _written_meanwhile(importer: Importer) -> bool:
    try:
        importer.sqlite("late")
    except StopError:
        return True
    return False
