"""Brings the database to the schema of this MLflow, and is done at once where it has that already.

Most new images have the old schema. To import MLflow, only to find that out, takes seconds in which no server runs.
"""

import os
import sys
from pathlib import Path

import psycopg2

NEWEST = Path(sys.prefix) / "schema-revision"
"""Of this MLflow: Alembic's name for it, written down when the image was built."""


def revision(uri):
    """Return the revision of the database's schema, or None: an empty one has none."""
    with psycopg2.connect(uri.replace("postgresql+psycopg2:", "postgresql:")) as session, session.cursor() as cursor:
        cursor.execute("SELECT to_regclass('alembic_version')")
        if cursor.fetchone()[0] is None:
            return None
        cursor.execute("SELECT version_num FROM alembic_version")
        return (cursor.fetchone() or [None])[0]


def main():
    """Become `mlflow db upgrade`, unless there is nothing to do."""
    uri = os.environ["MLFLOW_BACKEND_STORE_URI"]
    newest = NEWEST.read_text().strip()
    if revision(uri) == newest:
        print(f"migrate: the database has revision {newest} already, the newest of this MLflow")
        return
    # The command takes its address from argv only; the password is not in it.
    os.execvp("mlflow", ["mlflow", "db", "upgrade", uri])  # noqa: S606, S607 - on the image's own PATH


if __name__ == "__main__":
    main()
