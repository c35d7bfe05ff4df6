"""What `make import` asks before anything changes: the old database, and what the stack has of its own."""

import shutil
from typing import Any

import database
from prefixes import LOCATIONS
from shell import Failure
from source import IDS, WORK, Source

CORE = ("alembic_version", "experiments", "runs", "metrics", "params", "tags")
"""Tables that every database of MLflow has."""


def inspected() -> dict[str, Any]:
    """Return the old database in numbers, and how much the stack has that the old database lacks."""
    with Source() as old:
        tables = old.tables()
        if missing := [table for table in CORE if table not in tables]:
            raise Failure(
                f"the old database is not one of MLflow's: it has no table {', '.join(missing)}"
                + (f" (but {', '.join(tables[:5])}, ...)" if tables else "; it is empty")
            )
        known = known_tables()
        ours = [table for table in tables if table in known]
        return {
            "server": old.version(),
            "major": int(old.version().split()[1].split(".")[0]) if old.postgres else None,
            "revision": old.first_revision(),
            "users_revision": old.revision("alembic_version_auth"),
            "rows": old.counts(ours),
            "foreign": [table for table in tables if table not in known],
            "prefixes": {prefix: dict(rows) for prefix, rows in old.prefixes().rows.items()},
            "encrypted": old.encrypted(),
            "bytes": old.value("SELECT pg_database_size(current_database())") if old.postgres else 0,
            "used": database.used(),
            "own": own(old),
            "columns": {table: old.column_names(table) for table, _, _ in LOCATIONS if table in tables},
            "free_bytes": shutil.disk_usage(WORK).free,
        }


def known_tables() -> set[str]:
    """Return the tables of MLflow: those of the stack, whose MLflow is not older, and those that it no longer has."""
    session = database.connect()
    try:
        cursor = session.cursor()
        cursor.execute("SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind = 'r'")
        found = {table for (table,) in cursor.fetchall()}
    finally:
        session.close()
    if not found:
        raise Failure("the stack's own database has no tables")
    return found | USERS


USERS = {
    "alembic_version_auth",
    "users",
    "experiment_permissions",
    "registered_model_permissions",
    "scorer_permissions",
    "gateway_endpoint_permissions",
    "gateway_model_definition_permissions",
    "gateway_secret_permissions",
    "workspace_permissions",
    "roles",
    "role_permissions",
    "user_role_assignments",
}
"""Tables of MLflow's own users. A stack without them does not have these."""


def own(old: Source) -> dict[str, int]:
    """Return how many rows of the stack are not in the old database, by table, without zeros.

    The default experiment of a new stack is not counted.
    """
    theirs = old.ids()
    session = database.connect()
    try:
        cursor = session.cursor()
        found = {}
        for table, query in IDS.items():
            cursor.execute(query)
            ours = {value for (value,) in cursor.fetchall() if value is not None}
            if extra := len(ours - theirs.get(table, set())):
                found[table] = extra
    finally:
        session.close()
    return found
