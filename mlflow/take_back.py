"""Makes the stack's previous tables the current ones again, if an import was killed after it had replaced them.

`make import` keeps them in the schema `before_import` until the new tables are migrated and compared
(assets/import/loading.py). So while that schema exists and no import runs, the import has not been completed.
"""

BEFORE = "before_import"
LOCK = 0x6D6C_666C_6F78
"""Of the transaction: replicas start at the same time. Another number than that of the exclusive lock."""


def take_back(session):
    """Take the previous tables into use, and return whether there were any. In one transaction.

    The comment on the schema names, after a colon, the tables that the import has left in use: those of the users.
    """
    with session, session.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_xact_lock(%s)", (LOCK,))
        cursor.execute("SELECT obj_description(oid, 'pg_namespace') FROM pg_namespace WHERE nspname = %s", (BEFORE,))
        found = cursor.fetchone()
        if found is None:
            return False
        for table in (found[0] or "").partition(": ")[2].split():
            cursor.execute(f'ALTER TABLE IF EXISTS public."{table}" SET SCHEMA {BEFORE}')
        cursor.execute(f"DROP SCHEMA public CASCADE; ALTER SCHEMA {BEFORE} RENAME TO public")
    return True
