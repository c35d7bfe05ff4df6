"""The tables of a database of MLflow: a name that is safe in SQL, row counts, and a sum over all rows."""

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

QUOTE = '"'
SETTINGS = (
    "-c timezone=UTC -c datestyle=ISO -c bytea_output=hex -c statement_timeout=0 "
    "-c idle_in_transaction_session_timeout=0"
)
"""Options of a session, so that two Postgres servers print the same value as the same text, and none ends it."""
FLOATS = ("double precision", "real")

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

Rows = dict[str, tuple[int, int]]
"""Number of rows, and a sum over all rows that does not depend on their order, by table."""


def leaves_users_out() -> bool:
    """Return whether the users in the old database are not imported (`USERS=none`)."""
    return bool(os.environ.get("WITHOUT_USERS"))


def quoted(name: str) -> str:
    """Return an identifier for SQL."""
    return QUOTE + name.replace(QUOTE, 2 * QUOTE) + QUOTE


def with_sequences(cursor: Any, tables: Iterable[str]) -> list[str]:  # noqa: ANN401
    """Return tables of Postgres and the sequences of their columns: pg_dump excludes those only by their own names."""
    cursor.execute(
        "SELECT s.relname FROM pg_class s JOIN pg_depend d ON d.objid = s.oid AND d.deptype IN ('a', 'i') "
        "JOIN pg_class t ON t.oid = d.refobjid "
        "WHERE s.relkind = 'S' AND t.relnamespace = 'public'::regnamespace AND t.relname = ANY(%s)",
        (sorted(tables),),
    )
    return sorted({*tables, *(name for (name,) in cursor.fetchall())})


def columns(cursor: Any) -> dict[str, list[tuple[str, str]]]:  # noqa: ANN401 - psycopg2 has no types
    """Return the columns of every table of the schema public: their names and types."""
    cursor.execute(
        "SELECT c.table_name, column_name, data_type FROM information_schema.columns c "
        "JOIN information_schema.tables t USING (table_schema, table_name) "
        "WHERE table_schema = 'public' AND table_type = 'BASE TABLE' ORDER BY c.table_name, ordinal_position"
    )
    found: dict[str, list[tuple[str, str]]] = {}
    for table, column, kind in cursor.fetchall():
        found.setdefault(table, []).append((column, kind))
    return found


def sum_query(table: str, of: Sequence[tuple[str, str]]) -> str:
    """Return the query for the number of rows and the sum over all rows of a table.

    The sum is over 60 bits of the MD5 of each row. A float is compared by its bits: before version 12, Postgres rounds
    it when it prints it.
    """
    parts = [f"float8send({quoted(name)})" if kind in FLOATS else quoted(name) for name, kind in of]
    # In one encoding: that of the old database may be another.
    row = f"md5(convert_to(row({', '.join(parts)})::text, 'UTF8'))"
    # As text: the sum is a numeric, and must be equal, not almost.
    return (
        f"SELECT count(*) AS count, coalesce(sum(('x' || substr({row}, 1, 15))::bit(60)::bigint), 0)::text AS total "  # noqa: S608
        f"FROM public.{quoted(table)}"
    )


def sums(cursor: Any, of: Mapping[str, Sequence[tuple[str, str]]]) -> Rows:  # noqa: ANN401
    """Return the rows of each table in `of`."""
    found: Rows = {}
    for table, known in of.items():
        cursor.execute(sum_query(table, known))
        count, total = cursor.fetchone()
        found[table] = (int(count), int(total))
    return found
