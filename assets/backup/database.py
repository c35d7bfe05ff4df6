"""The database: the exclusive lock, a consistent dump, and its restore."""

import atexit
import os
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import psycopg2
from shell import Failure, make, run, say

LOCK = 0x6D6C_666C_6F77
"""The exclusive lock: `mlflow` in ASCII. mlflow/locked.py has the same number."""
LOCK_WAIT_SECONDS = 3600
LOCK_POLL_SECONDS = 5
AFTER_RESTORE_SECONDS = 60
"""Poll interval during a restore: long, so that its migration gets the lock next. The server is down until then."""
DATABASE = "mlflow"
QUOTE = '"'
UNUSED_ROWS = {"alembic_version": 1, "alembic_version_auth": 1, "experiments": 1, "users": 1, "workspaces": 1}
"""Rows in each table after a migration of an empty database, with the administrator. Counted on MLflow 3.18."""

LATEST = "SELECT max(timestamp) FROM public.latest_metrics WHERE latest_metrics.run_uuid = runs.run_uuid"
CHANGED = {
    "experiments": "last_update_time",
    "runs": f"greatest(start_time, end_time, ({LATEST}))",
    "registered_models": "last_updated_time",
    "model_versions": "last_updated_time",
    "trace_info": "timestamp_ms",
}
"""SQL for the time of a row's creation or last change, by table, in ms of Unix time, as far as MLflow stores it."""


MARK = "data key sha256:"
"""Start of the comment on a table with encrypted values. assets/rotation/data_keys.py has the same."""
ENCRYPTED = {"crypto-kek-passphrase": "secrets", "webhook-encryption-key": "webhooks"}
"""The table that a data key encrypts, by the name of its file."""


def connect(**options: Any) -> Any:  # noqa: ANN401 - psycopg2 has no types
    """Return a connection to the database in libpq's environment variables; raise `Failure` if that fails."""
    try:
        return psycopg2.connect(application_name=os.environ.get("PGAPPNAME", "backup"), **options)
    except psycopg2.Error as error:
        raise Failure(f"cannot connect to the database: {str(error).strip()}\n  type: {make('status')}") from None


@contextmanager
def locked(what: str, wait_s: int = LOCK_WAIT_SECONDS) -> Iterator[Any]:
    """Hold the exclusive lock and yield its database session.

    Raises `Failure` if `wait_s` seconds pass while another operation holds it.
    """
    os.environ["PGAPPNAME"] = what
    session = connect()
    session.autocommit = True
    cursor = session.cursor()
    deadline = time.monotonic() + wait_s
    told = False
    while True:
        cursor.execute("SELECT pg_try_advisory_lock(%s)", (LOCK,))
        if cursor.fetchone()[0]:
            break
        cursor.execute(
            "SELECT coalesce(string_agg(application_name, ', '), 'a process') FROM pg_locks JOIN pg_stat_activity "
            "USING (pid) WHERE locktype = 'advisory' AND granted AND classid = %s AND objid = %s",
            (LOCK >> 32, LOCK & 0xFFFF_FFFF),
        )
        holder = cursor.fetchone()[0]
        if time.monotonic() > deadline:
            raise Failure(f"{what} cannot run while {holder} is still running; try again when it has ended")
        if not told:
            say(f"waiting for {holder}, which is running")
            told = True
        time.sleep(AFTER_RESTORE_SECONDS if "restore" in holder else LOCK_POLL_SECONDS)
    try:
        yield session
    finally:
        session.close()


def still_locked(session: Any) -> None:  # noqa: ANN401 - psycopg2 has no types
    """Raise `Failure` if the session has ended, and the lock with it, because the database was restarted."""
    try:
        session.cursor().execute("SELECT 1")
    except psycopg2.Error:
        raise Failure("the database was restarted meanwhile, so the exclusive lock was lost; try again") from None


def dump(path: Path) -> dict[str, Any]:
    """Write a dump of MLflow's tables to `path`; return the row counts and versions of the same moment.

    The dump is uncompressed: the repository compresses it, and stores only what changed since the last dump.
    """
    reader = connect()
    reader.set_session(isolation_level="REPEATABLE READ", readonly=True)
    cursor = reader.cursor()
    cursor.execute(
        "SELECT pg_export_snapshot(), current_setting('server_version'), now(), pg_database_size(current_database())"
    )
    snapshot, version, now, database_bytes = cursor.fetchone()
    part = path.with_suffix(".part")
    run(
        *("pg_dump", "--format=custom", "--compress=none", "--no-owner", "--no-privileges", "--schema=public"),
        *(f"--snapshot={snapshot}", f"--file={part}"),
    )
    part.rename(path)
    found = {
        "postgres": version.split()[0],
        "taken_at": now.isoformat(),
        "database_bytes": database_bytes,
        "rows": _rows(cursor),
    }
    cursor.execute("SELECT version_num FROM alembic_version")
    revision = cursor.fetchone()
    reader.close()
    return found | {"schema_revision": revision[0] if revision else ""}


def has_tables() -> bool:
    """Return whether there is any table. A new stack has none before its first migration."""
    session = connect()
    try:
        return bool(_tables(session.cursor()))
    finally:
        session.close()


def used() -> bool:
    """Return whether the database has more rows than MLflow's migration creates, such as the default experiment.

    Reads only the first rows of each table instead of counting: damage further inside does not make it fail.
    """
    session = connect()
    try:
        cursor = session.cursor()
        return any(_has_more(cursor, table, UNUSED_ROWS.get(table, 0)) for table in _tables(cursor))
    finally:
        session.close()


def since(moment: str) -> dict[str, int] | None:
    """Return the number of rows by table that were created or changed after `moment` (ISO 8601), without zeros.

    None if a table is damaged.
    """
    session = connect()
    try:
        cursor = session.cursor()
        found = {}
        for table in CHANGED.keys() & set(_tables(cursor)):
            cursor.execute(
                f"SELECT count(*) FROM public.{table} "  # noqa: S608 - of the names above
                f"WHERE {CHANGED[table]} > extract(epoch FROM %s::timestamptz) * 1000",
                (moment,),
            )
            found[table] = cursor.fetchone()[0]
    except psycopg2.Error:
        return None
    finally:
        session.close()
    return {table: rows for table, rows in found.items() if rows}


def _has_more(cursor: Any, table: str, rows: int) -> bool:  # noqa: ANN401 - psycopg2 has no types
    cursor.execute(f"SELECT 1 FROM public.{_quoted(table)} OFFSET %s LIMIT 1", (rows,))  # noqa: S608 - quoted
    return cursor.fetchone() is not None


def size() -> int:
    """Return the size of the database in bytes."""
    session = connect()
    try:
        cursor = session.cursor()
        cursor.execute("SELECT pg_database_size(current_database())")
        return int(cursor.fetchone()[0])
    finally:
        session.close()


def _rows(cursor: Any) -> dict[str, int]:  # noqa: ANN401 - psycopg2 has no types
    counts = {}
    for table in _tables(cursor):
        cursor.execute(f"SELECT count(*) FROM public.{_quoted(table)}")  # noqa: S608 - quoted
        counts[table] = cursor.fetchone()[0]
    return counts


def _tables(cursor: Any) -> list[str]:  # noqa: ANN401 - psycopg2 has no types
    cursor.execute("SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind = 'r'")
    return sorted(table for (table,) in cursor.fetchall())


def data_keys() -> dict[str, str]:
    """Return the SHA-256 of the data key of the rows, by the name of its file, as far as the database knows it."""
    session = connect()
    try:
        cursor = session.cursor()
        found = {}
        for name, table in ENCRYPTED.items():
            cursor.execute("SELECT obj_description(to_regclass(%s), 'pg_class')", (f"public.{table}",))
            comment = cursor.fetchone()[0] or ""
            if comment.startswith(MARK):
                found[name] = comment.removeprefix(MARK)
        return found
    finally:
        session.close()


def load(
    path: Path, expected: Mapping[str, int], *, keep: str | None = None, keys: Mapping[str, str] = MappingProxyType({})
) -> None:
    """Load a dump into the database in libpq's variables, and compare its row counts, in one transaction.

    The previous tables stay in the schema `keep`; without `keep`, there must be none. `keys` are the SHA-256 of the
    data keys of the dump, by file. Raises `Failure`; the database is then unchanged.
    """
    # Into a file first: psql would commit the part before the end of a broken pipe as if it were complete.
    # Not beside the dump: the next backup would include the file that a killed run leaves.
    script = Path(os.environ["TMPDIR"]) / "mlflow.sql"
    run("pg_restore", "--schema=public", "--no-owner", "--no-privileges", f"--file={script}", str(path))
    # A server would take the tables that a killed import has kept into use again, instead of the restored ones.
    before = "DROP SCHEMA IF EXISTS before_import CASCADE;\n" if keep else ""
    before += f"ALTER SCHEMA public RENAME TO {_quoted(keep)}; CREATE SCHEMA public;\n" if keep else ""
    after = "".join(MUST_HAVE.format(table=_quoted(table), count=count) for table, count in sorted(expected.items()))
    after += "".join(
        f"COMMENT ON TABLE public.{table} IS '{MARK}{keys[name]}';\n"
        for name, table in ENCRYPTED.items()
        if name in keys and table in expected
    )
    (script.parent / "before.sql").write_text(before)
    (script.parent / "after.sql").write_text(after)
    try:
        run(
            *("psql", "--no-psqlrc", "--quiet", "--set=ON_ERROR_STOP=1", "--single-transaction", "--output=/dev/null"),
            *(f"--file={script.parent / 'before.sql'}", f"--file={script}", f"--file={script.parent / 'after.sql'}"),
        )
    finally:
        for left in (script, script.parent / "before.sql", script.parent / "after.sql"):
            left.unlink()


def _quoted(name: str) -> str:
    return QUOTE + name.replace(QUOTE, 2 * QUOTE) + QUOTE


MUST_HAVE = """
DO $$
DECLARE n bigint;
BEGIN
    SELECT count(*) INTO n FROM public.{table};
    IF n <> {count} THEN
        RAISE EXCEPTION 'table {table} has % rows, but the manifest has {count}', n;
    END IF;
END $$;
"""


@contextmanager
def throw_away(folder: Path) -> Iterator[None]:
    """Run an empty Postgres in `folder` during the block. Only this program can reach it.

    Libpq's environment variables point to it during the block. Raises `Failure` if it does not start.
    """
    data = folder / "data"
    run("initdb", f"--pgdata={data}", "--username=drill", "--encoding=UTF8", "--locale=C", "--auth=trust", "--no-sync")
    options = f"-c listen_addresses= -c unix_socket_directories={folder} -c fsync=off"
    # Its output goes to a file: otherwise it would keep the caller's pipe open.
    with (folder / "log").open("w") as log:
        started = subprocess.run(
            ["pg_ctl", f"--pgdata={data}", "--wait", "--timeout=120", f"--options={options}", "start"],
            stdout=log,
            stderr=log,
            check=False,
        )
    if started.returncode:
        raise Failure(f"the throw-away database did not start:\n{(folder / 'log').read_text()[-2000:]}")
    outside = {key: os.environ.pop(key) for key in ("PGHOST", "PGUSER", "PGDATABASE") if key in os.environ}
    os.environ.update(PGHOST=str(folder), PGUSER="drill", PGDATABASE="postgres")
    try:
        run("createdb", DATABASE)
        os.environ["PGDATABASE"] = DATABASE
        yield
    finally:
        os.environ.update(outside)
        subprocess.run(["pg_ctl", f"--pgdata={data}", "--mode=immediate", "stop"], capture_output=True, check=False)


def use_pgpass() -> None:
    """Copy the password file for libpq, which ignores one that other users can read."""
    # In HOME, which is in memory; TMPDIR is on disk, for the large temporary files of restic and others.
    path = Path.home() / f"pgpass-{os.getpid()}"
    path.touch(mode=0o600)
    path.write_bytes(Path(os.environ["PGPASS"]).read_bytes())
    os.environ["PGPASSFILE"] = str(path)
    atexit.register(path.unlink)
