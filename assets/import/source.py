"""The old database: Postgres, or the copy of an SQLite file. It is only read."""

import json
import os
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import psycopg2
from prefixes import LOCATIONS, Prefixes
from shell import Failure
from tables import SETTINGS, USERS, columns, leaves_users_out, quoted, with_sequences

FILES = Path(os.environ.get("FILES", "/run/import"))
"""Folder with this program, the access to the old database, and what is to be rewritten."""
WORK = Path(os.environ.get("WORK", "/staging/import"))
"""Folder with the copy of an SQLite file, and with the dump."""
COPY = WORK / "source.db"
"""The copy of the SQLite file, with the schema of the new MLflow."""
USERS_COPY = WORK / "users" / "source.db"
"""The copy of the SQLite file with MLflow's own users, if they are in a file of their own."""
BATCH = 10_000
ENCRYPTED = {
    "secrets": ("cryptoKekPassphrase", "wrapped_dek", "kek_version", "TRUE"),
    # MLflow only marks a webhook as deleted. Its secret is not imported.
    "webhooks": ("webhookEncryptionKey", "secret", "1", "deleted_timestamp IS NULL"),
}
"""The data key of the values in a table, their column, and the expressions for the version of the key and for the rows
that count, by table."""
VALUES = WORK / "values.json"
"""The encrypted values. Not in the output of a container, which Docker may keep."""


@contextmanager
def old_variables(values: Mapping[str, str]) -> Iterator[None]:
    """Let libpq use the address and the authorities of the old database, not those of the stack, during the block."""
    stacks = {key: os.environ.pop(key) for key in [*os.environ] if key.startswith("PG") and key != "PGPASS"}
    os.environ.update(values)
    try:
        yield
    finally:
        for key in values:
            os.environ.pop(key, None)
        os.environ.update(stacks)


class Source:
    """A read-only session with the old database, in which every query sees the same moment."""

    def __init__(self) -> None:
        """Connect. Raises `Failure`."""
        access: dict[str, Any] = json.loads((FILES / "source.json").read_text())
        self.postgres = bool(access)
        if not self.postgres:
            self._session: Any = sqlite3.connect(f"file:{COPY}?mode=ro", uri=True)
            return
        try:
            with old_variables({}):
                self._session = psycopg2.connect(
                    **access, connect_timeout=10, application_name="import", options=SETTINGS
                )
        except psycopg2.Error as error:
            raise Failure(
                f"cannot use the old database: {' '.join(str(error).split())}\n"
                "  if it is a container, start it; how this host's own services are reached: docs/operations/import.md"
            ) from None
        self._session.set_session(isolation_level="REPEATABLE READ", readonly=True)

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """End the session."""
        self._session.close()

    def cursor(self) -> Any:  # noqa: ANN401 - psycopg2 has no types
        """Return a cursor of the session."""
        return self._session.cursor()

    def value(self, query: str) -> Any:  # noqa: ANN401
        """Return the first column of the first row, or None without any."""
        cursor = self.cursor()
        cursor.execute(query)
        row = cursor.fetchone()
        return row[0] if row else None

    def stream(self, query: str) -> Iterator[Any]:
        """Return the first column of every row, without holding all of them."""
        # A named cursor stays in the server, which an SQLite file does not have.
        cursor = self._session.cursor("import") if self.postgres else self._session.cursor()
        if self.postgres:
            cursor.itersize = BATCH
        cursor.execute(query)
        for row in cursor:
            yield row[0]
        cursor.close()

    def tables(self) -> list[str]:
        """Return the names of all tables."""
        if self.postgres:
            return sorted(self.columns())
        return sorted(self.stream("SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'"))

    def columns(self) -> dict[str, list[tuple[str, str]]]:
        """Return the columns and types of every table of a Postgres."""
        return columns(self.cursor())

    def unreadable(self, known: set[str]) -> list[str]:
        """Return which of these tables and their sequences this role may not read. Postgres hides them in `tables`."""
        if not self.postgres:
            return []
        ours = with_sequences(self.cursor(), known)
        return [
            name
            for name in self.stream(
                "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND CASE relkind "
                "WHEN 'S' THEN NOT has_sequence_privilege(oid, 'SELECT') ELSE relkind IN ('r', 'p') "
                "AND NOT has_table_privilege(oid, 'SELECT') END ORDER BY relname"
            )
            if name in ours
        ]

    def counts(self, tables: list[str]) -> dict[str, int]:
        """Return the number of rows of each table."""
        return {table: int(self.value(f"SELECT count(*) FROM {quoted(table)}")) for table in tables}  # noqa: S608

    def has_columns(self, table: str, *wanted: str) -> bool:
        """Return whether a table exists and has these columns. Those of the locations are younger than MLflow 1.30."""
        return set(self.column_names(table)).issuperset(wanted)

    def column_names(self, table: str) -> list[str]:
        """Return the names of a table's columns; empty without the table."""
        if self.postgres:
            return [name for name, _ in self.columns().get(table, [])]
        return list(self.stream(f"SELECT name FROM pragma_table_info('{table}')"))  # noqa: S608 - a constant

    def revision(self, table: str = "alembic_version") -> str | None:
        """Return the revision of the schema, or None if there is none."""
        return self.value(f"SELECT version_num FROM {table}") if table in self.tables() else None  # noqa: S608

    def first_revision(self) -> str | None:
        """Return the revision of the old schema. The copy of an SQLite file is migrated already."""
        known = WORK / "revision"
        return self.revision() if self.postgres else known.read_text()

    def version(self) -> str:
        """Return the version of the database server, in words."""
        if self.postgres:
            return f"Postgres {self.value('SHOW server_version').split()[0]}"
        return f"SQLite {sqlite3.sqlite_version}"

    def prefixes(self) -> Prefixes:
        """Return the locations, counted by prefix."""
        found = Prefixes()
        cursor = self.cursor()
        cursor.execute("SELECT experiment_id, artifact_location FROM experiments")
        found.add_experiments(cursor.fetchall())
        for table, column, condition in LOCATIONS:
            if table != "experiments" and self.has_columns(table, column):
                where = f" WHERE {condition}" if condition else ""
                found.add(f"{table}.{column}", self.stream(f"SELECT {column} FROM {table}{where}"))  # noqa: S608
        return found

    def encrypted(self) -> dict[str, int]:
        """Return how many values each data key has encrypted, without zeros. Writes the values to `VALUES`."""
        found = self._encrypted_values()
        VALUES.write_text(json.dumps(found))
        return {key: len(values) for key, values in found.items()}

    def _encrypted_values(self) -> dict[str, list[tuple[str, int]]]:
        """Return the values that each data key has encrypted, in hex, and the version of the key, without empty lists.

        For a secret of the gateway this is its wrapped key, not its value.
        """
        found: dict[str, list[tuple[str, int]]] = {}
        for table, (key, value, version, condition) in ENCRYPTED.items():
            if self.has_columns(table, value):
                cursor = self.cursor()
                where = f"{value} IS NOT NULL AND {condition}"
                cursor.execute(f"SELECT {value}, {version} FROM {table} WHERE {where}")  # noqa: S608
                rows = [(_bytes(content).hex(), int(of)) for content, of in cursor.fetchall()]
                found |= {key: rows} if rows else {}
        return found

    def ids(self) -> dict[str, set[str]]:
        """Return what people create, by table: to tell the data of the stack's own from imported ones."""
        tables = set(self.tables()) - (USERS if leaves_users_out() else set())
        found = {table: set(self.stream(query)) for table, query in IDS.items() if table in tables}
        return found | ({"users": users_in_file()} if has_users_file() else {})


def _bytes(value: Any) -> bytes:  # noqa: ANN401 - a text or binary column
    return value.encode() if isinstance(value, str) else bytes(value)


def has_users_file() -> bool:
    """Return whether the users are in a file of their own. The copy of an earlier import may be left."""
    return bool(os.environ.get("WITH_USERS")) and USERS_COPY.exists()


def users_in_file() -> set[str]:
    """Return the names of the users in a file of their own."""
    session = sqlite3.connect(f"file:{USERS_COPY}?mode=ro", uri=True)
    try:
        return {name for (name,) in session.execute(IDS["users"])}
    finally:
        session.close()


IDS = {
    "runs": "SELECT run_uuid FROM runs",
    # By name: every server has the default experiment.
    "experiments": "SELECT name FROM experiments WHERE experiment_id <> 0",
    "registered_models": "SELECT name FROM registered_models",
    "model_versions": "SELECT name || ' ' || CAST(version AS VARCHAR) FROM model_versions",
    "trace_info": "SELECT request_id FROM trace_info",
    "logged_models": "SELECT model_id FROM logged_models",
    "evaluation_datasets": "SELECT dataset_id FROM evaluation_datasets",
    "scorers": "SELECT scorer_id FROM scorers",
    "webhooks": "SELECT webhook_id FROM webhooks",
    "secrets": "SELECT secret_id FROM secrets",
    "endpoints": "SELECT endpoint_id FROM endpoints",
    "users": "SELECT username FROM users",
}
"""Queries for what is the same in the old database and in an import of it. In SQL for Postgres and SQLite."""
