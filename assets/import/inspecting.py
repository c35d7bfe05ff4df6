"""What `make import` asks before anything changes: the old database, and what the stack has of its own."""

import shutil
from typing import Any

import database
from prefixes import LOCATIONS
from shell import Failure
from source import COPY, IDS, WORK, Source, has_users_file, users_in_file
from tables import USERS, leaves_users_out

ADMINISTRATOR = "admin"
"""MLflow's user whose password the stack generates. settings/server.py has the same."""
CORE = ("alembic_version", "experiments", "runs", "metrics", "params", "tags")
"""Tables that every database of MLflow has."""


def inspected() -> dict[str, Any]:
    """Return the old database in numbers, and how much the stack has that the old database lacks."""
    with Source() as old:
        known = known_tables()
        if unreadable := old.unreadable(known):
            raise Failure(
                f"the role of the old database may not read {', '.join(unreadable[:5])}"
                + (f" and {len(unreadable) - 5} more" if len(unreadable) > 5 else "")  # noqa: PLR2004
                + "\n  as the owner, type there: GRANT SELECT ON ALL TABLES IN SCHEMA public TO <role>; "
                "GRANT SELECT ON ALL SEQUENCES IN SCHEMA public TO <role>"
            )
        tables = old.tables()
        if missing := [table for table in CORE if table not in tables]:
            raise Failure(
                f"the old database is not one of MLflow's: it has no table {', '.join(missing)}"
                + (f" (but {', '.join(tables[:5])}, ...)" if tables else "; it is empty")
            )
        left_out = USERS if leaves_users_out() else set()
        ours = [table for table in tables if table in known - left_out]
        return {
            "server": old.version(),
            "major": int(old.version().split()[1].split(".")[0]) if old.postgres else None,
            "revision": old.first_revision(),
            "rows": old.counts(ours) | ({"users": len(users_in_file())} if has_users_file() else {}),
            "users": "users" in ours,
            "has_users": has_users(),
            "foreign": [table for table in tables if table not in known],
            "prefixes": {prefix: dict(rows) for prefix, rows in old.prefixes().rows.items()},
            "encrypted": old.encrypted(),
            "webhooks": old.has_columns("webhooks", "secret"),
            "bytes": old.value("SELECT pg_database_size(current_database())") if old.postgres else COPY.stat().st_size,
            "used": database.used(),
            "own": own(old),
            "columns": {table: old.column_names(table) for table, _, _ in LOCATIONS if table in tables},
            "free_bytes": shutil.disk_usage(WORK).free,
        }


def has_users() -> bool:
    """Return whether the stack has tables of MLflow's own users."""
    session = database.connect()
    try:
        cursor = session.cursor()
        cursor.execute("SELECT to_regclass('public.users')")
        return cursor.fetchone()[0] is not None
    finally:
        session.close()


def known_tables() -> set[str]:
    """Return the tables of MLflow: those of the stack, whose MLflow is not older, and those of MLflow's users."""
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


def own(old: Source) -> dict[str, int]:
    """Return how many rows of the stack are not in the old database, by table, without zeros.

    The default experiment of a new stack is not counted, and no users if the stack keeps its own.
    """
    theirs = old.ids()
    session = database.connect()
    try:
        cursor = session.cursor()
        cursor.execute("SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind = 'r'")
        existing = {table for (table,) in cursor.fetchall()}
        found = {}
        for table, query in IDS.items():
            if table not in existing or (table == "users" and table not in theirs):
                continue
            cursor.execute(query)
            ours = {value for (value,) in cursor.fetchall() if value is not None}
            # The administrator, whose name is always the same, is set again after the import.
            ours -= {ADMINISTRATOR} if table == "users" else set()
            if extra := len(ours - theirs.get(table, set())):
                found[table] = extra
    finally:
        session.close()
    return found


def own_now() -> dict[str, int]:
    """Return the same, asked again while no server runs: people may have used the stack during the copy."""
    with Source() as old:
        return own(old)
