"""The database: dumps the old one, loads it in one transaction, compares every row, and rewrites the locations.

The locations are rewritten in the same transaction, after the comparison. The stack's previous tables stay in the
schema `BEFORE` until the new ones are migrated and compared, so that a failure can be taken back.
"""

import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import copying
import database
from inspecting import known_tables
from shell import Failure, run, say
from source import FILES, USERS_COPY, WORK, Source, has_users_file, old_variables
from tables import USERS, columns, leaves_users_out, quoted, sum_query, sums, with_sequences

BEFORE = "before_import"
"""Schema of the stack's previous tables while an import runs."""
MOVED = "still in use: "
"""Start of the comment on that schema, before the names of the tables that were not replaced: those of the users. The
server reads it as well (mlflow/take_back.py)."""
DUMP = WORK / "source.sql"
ROWS = WORK / "rows.json"
"""Number of rows and sum over all rows of each table, of the moment of the dump."""


def dump() -> None:
    """Write the tables of MLflow in the old Postgres to `DUMP`, and their sums of the same moment to `ROWS`.

    Raises `Failure` if a value is encrypted with a data key that is not known: after the import nothing could read it.
    """
    access = json.loads((FILES / "source.json").read_text())
    known = known_tables() - (USERS if leaves_users_out() else set())
    with Source() as old:
        snapshot = old.value("SELECT pg_export_snapshot()")
        ours = {table: of for table, of in old.columns().items() if table in known}
        values = _require_keys(old)
        foreign = with_sequences(old.cursor(), [name for name in old.stream(RELATIONS) if name not in known])
        # The password is in a file of this container and in the environment of pg_dump, and in no argument.
        environment = {f"PG{LIBPQ.get(key, key.upper())}": str(value) for key, value in access.items()}
        # Both at the same time: the sums take half as long as the dump.
        with old_variables(environment), ThreadPoolExecutor(1) as thread:
            dumped = thread.submit(
                run,
                *("pg_dump", "--format=plain", "--no-owner", "--no-privileges", "--no-comments", "--schema=public"),
                *(f"--exclude-table=public.{quoted(name)}" for name in foreign),
                *(f"--snapshot={snapshot}", f"--file={DUMP}"),
            )
            rows = sums(old.cursor(), ours)
            dumped.result()
        ROWS.write_text(json.dumps({"rows": rows, "columns": ours, "encrypted": values}))
    run("sed", "-E", "-i", CORRECTIONS, str(DUMP))
    _add_users()


RELATIONS = (
    "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p', 'v', 'm')"
)
"""Tables and views of the old database."""


def _require_keys(old: Source) -> dict[str, int]:
    """Return how many values each data key has encrypted; raise `Failure` if a key is not known."""
    found = old.encrypted()
    given = json.loads((FILES / "keys.json").read_text())
    if missing := {key: rows for key, rows in found.items() if key not in given}:
        raise Failure(
            f"the old server has got secrets meanwhile whose data key is not given: {', '.join(sorted(missing))}; type "
            "the same command again, which says what to do"
        )
    return found


def assemble() -> None:
    """Write the rows of the copy of an SQLite database to `DUMP`, between the parts of the stack's own schema.

    The copy has the schema of the stack's MLflow, so the stack's own tables have the right columns.
    """
    rows: dict[str, tuple[int, int]] = json.loads((WORK / "sqlite.json").read_text())
    theirs = () if "users" in rows else tuple(f"--exclude-table=public.{quoted(name)}" for name in _users_and_theirs())
    with DUMP.open("w") as file:
        for part in ("pre-data", "", "post-data"):
            if not part:
                file.write((WORK / "source.rows").read_text())
                continue
            file.write(
                run(
                    *("pg_dump", "--schema-only", "--no-owner", "--no-privileges", "--no-comments", "--schema=public"),
                    *(*theirs, f"--section={part}"),
                )
            )
    run("sed", "-E", "-i", CORRECTIONS, str(DUMP))
    with Source() as old:
        values = _require_keys(old)
    ROWS.write_text(json.dumps({"rows": rows, "columns": {}, "encrypted": values}))
    _add_users()


def _users_and_theirs() -> list[str]:
    """Return the tables of MLflow's users in the stack, and their sequences."""
    session = database.connect()
    try:
        return with_sequences(session.cursor(), USERS)
    finally:
        session.close()


def _add_users() -> None:
    """Add the users in a file of their own to `DUMP`, between the parts of the stack's schema of these tables."""
    folder = USERS_COPY.parent
    if not has_users_file():
        return
    tables = [f"--table=public.{quoted(table)}" for table in sorted(USERS)]
    options = ("--schema-only", "--no-owner", "--no-privileges", "--no-comments", *tables)
    before, after = (run("pg_dump", *options, f"--section={part}") for part in ("pre-data", "post-data"))
    with DUMP.open("a") as file:
        file.write(before + (folder / "source.rows").read_text() + after)
    known = json.loads(ROWS.read_text())
    known["rows"] |= json.loads((folder / "sqlite.json").read_text())
    ROWS.write_text(json.dumps(known))


CORRECTIONS = r"""
1,60{
    /^SET transaction_timeout/d
    /^CREATE SCHEMA public;$/d
}
/^COPY .* FROM stdin;$/,/^\\\.$/b
/^ALTER TABLE ONLY .* SET \(pg_attver=[0-9]+\);$/d
"""
"""For sed: what the stack's Postgres refuses in a dump of another version, outside of the rows.

The schema exists already. Before version 17, there is no `transaction_timeout`. Postgres 17.12 stores an option of each
column (`pg_attver`) that a pg_dump of an earlier minor release prints, and a server of one refuses.
"""
LIBPQ = {"dbname": "DATABASE"}
"""Libpq's environment variables whose names are not those of its parameters."""


def encrypted() -> dict[str, int]:
    """Return how many values in the dump each old data key has encrypted."""
    found: dict[str, int] = json.loads(ROWS.read_text())["encrypted"]
    return found


def load() -> None:
    """Replace the stack's tables by those of `DUMP`, in one transaction; raise `Failure` if that changes nothing."""
    known = json.loads(ROWS.read_text())
    with database.locked("import", wait_s=60):
        script = [MEMORY, f"ALTER SCHEMA public RENAME TO {BEFORE}; CREATE SCHEMA public;"]
        # from_sqlite.py compares the rows of an SQLite database.
        compared = {table: row for table, row in known["rows"].items() if table in known["columns"]}
        checks = [_must_be(table, known["columns"][table], row) for table, row in compared.items()]
        # Without users in the old database, the stack keeps its own, also the administrator.
        keep = [] if "users" in known["rows"] else [_move(table, BEFORE, "public") for table in sorted(USERS)]
        keep += [f"COMMENT ON SCHEMA {BEFORE} IS '{MOVED}{' '.join(sorted(USERS))}';"] if keep else []
        # A dump empties the search path.
        rewriting = "SET search_path = public;\n" + (FILES / "locations.sql").read_text() if compared else ""
        _psql("\n".join(script), DUMP, "\n".join([*checks, rewriting, *keep]))
    if compared:
        say(f"{len(compared)} tables with {sum(count for count, _ in compared.values())} rows are equal")


MEMORY = """SELECT set_config('maintenance_work_mem', greatest(
    pg_size_bytes(current_setting('maintenance_work_mem')),
    least(pg_size_bytes(current_setting('shared_buffers')), pg_size_bytes('1GB'))) / 1024 || 'kB', true);"""
"""For the indexes, in this transaction: as much as the cache has, a quarter of the server's. No MLflow is connected."""


def _move(table: str, old: str, new: str) -> str:
    """Return the statement that moves a table of MLflow's users, if it exists, from one schema to another."""
    return f"ALTER TABLE IF EXISTS {old}.{quoted(table)} SET SCHEMA {new};"


def _must_be(table: str, of: list[tuple[str, str]], row: tuple[int, int]) -> str:
    """Return a statement that fails if a table does not have these rows."""
    # Not SELECT INTO: only as a query of its own, Postgres runs it with several processes.
    return f"""
DO $$
DECLARE found record;
BEGIN
    EXECUTE $query$ {sum_query(table, of)} $query$ INTO found;
    IF found.count <> {row[0]} OR found.total <> '{row[1]}' THEN
        RAISE EXCEPTION 'table {table} differs after the copy: % rows, expected {row[0]}', found.count;
    END IF;
END $$;
"""


def _psql(before: str, script: Path, after: str) -> None:
    """Run SQL, a script and SQL in one transaction."""
    first, last = WORK / "before.sql", WORK / "after.sql"
    first.write_text(before)
    last.write_text(after)
    run(
        *("psql", "--no-psqlrc", "--quiet", "--set=ON_ERROR_STOP=1", "--single-transaction", "--output=/dev/null"),
        *(f"--file={first}", f"--file={script}", f"--file={last}"),
    )


def wait() -> None:
    """Wait until no backup or other operation holds the exclusive lock, while the server still runs."""
    with database.locked("import"):
        pass


def recover() -> bool:
    """Make the stack's previous tables the current ones again, if `load` has replaced them. Return whether it had.

    A server that starts does the same (mlflow/take_back.py). Waits for a migration that still runs.
    """
    with database.locked("import"):
        session = database.connect()
        try:
            with session, session.cursor() as cursor:
                cursor.execute("SELECT 1 FROM pg_namespace WHERE nspname = %s", (BEFORE,))
                if cursor.fetchone() is None:
                    return False
                cursor.execute("SELECT obj_description(%s::regnamespace, 'pg_namespace')", (BEFORE,))
                for table in (cursor.fetchone()[0] or "").partition(": ")[2].split():
                    cursor.execute(_move(table, "public", BEFORE))
                cursor.execute(f"DROP SCHEMA public CASCADE; ALTER SCHEMA {BEFORE} RENAME TO public")
        finally:
            session.close()
    say("the previous tables of the stack are in use again")
    return True


def finish() -> dict[str, int]:
    """Compare the number of rows after the migration, and drop the previous tables. Return the rows by table.

    The users in a file of their own were compared before: the migration may add the administrator.

    Raises `Failure`.
    """
    rows = _rows()
    with database.locked("import"):
        session = database.connect()
        try:
            with session, session.cursor() as cursor:
                now = _counts(cursor, list(rows))
                wrong = [
                    f"{table}: {now.get(table)} rows, expected {count}"
                    for table, count in rows.items()
                    if now.get(table) != count
                ]
                if wrong:
                    raise Failure("rows are missing after the migration: " + "; ".join(wrong))
                cursor.execute(f"DROP SCHEMA IF EXISTS {BEFORE} CASCADE")
        finally:
            session.close()
    known = json.loads(ROWS.read_text())["rows"]
    return rows | ({"users": known["users"][0]} if has_users_file() else {})


def late() -> dict[str, int]:
    """Return how many more rows each table of the old deployment has than the dump, and artifacts. Negative: fewer."""
    rows = _rows()
    found = {"artifacts": copying.late()}
    with Source() as old:
        if old.postgres:
            now = old.counts(list(rows))
            found |= {table: count - rows[table] for table, count in now.items()}
    return {what: number for what, number in found.items() if number}


def _rows() -> dict[str, int]:
    """Return the number of rows of the dump, of each table that is compared after the migration."""
    known = json.loads(ROWS.read_text())["rows"]
    return {table: count for table, (count, _) in known.items() if table in COMPARED}


def _counts(cursor: object, tables: list[str]) -> Mapping[str, int]:
    found = {}
    existing = columns(cursor)
    for table in tables:
        if table in existing:
            cursor.execute(f"SELECT count(*) FROM public.{quoted(table)}")  # type: ignore[attr-defined]  # noqa: S608
            found[table] = cursor.fetchone()[0]  # type: ignore[attr-defined]
    return found


COMPARED = (
    "experiments",
    "experiment_tags",
    "runs",
    "params",
    "metrics",
    "latest_metrics",
    "tags",
    "datasets",
    "inputs",
    "input_tags",
    "registered_models",
    "registered_model_tags",
    "registered_model_aliases",
    "model_versions",
    "model_version_tags",
    "logged_models",
    "logged_model_metrics",
    "logged_model_params",
    "logged_model_tags",
    "trace_info",
    "trace_request_metadata",
    "spans",
    "assessments",
)
"""Tables whose number of rows no migration changes. (One moves tags of traces to columns.)"""
