"""Migrates the database to the schema of this MLflow. Returns at once if the database has that schema already.

Most new images do not change the schema. To import MLflow only to find that out takes seconds, while no server runs.
"""

import os
import sys
from pathlib import Path

import psycopg2

NEWEST = Path(sys.prefix) / "schema-revision"
"""File with Alembic's revision of this MLflow's schema, written by the image build."""


def revision(uri):
    """Return the revision of the database's schema, or None if the database is empty."""
    with psycopg2.connect(uri.replace("postgresql+psycopg2:", "postgresql:")) as session, session.cursor() as cursor:
        cursor.execute("SELECT to_regclass('alembic_version')")
        if cursor.fetchone()[0] is None:
            return None
        cursor.execute("SELECT version_num FROM alembic_version")
        return (cursor.fetchone() or [None])[0]


def main():
    """Do what `mlflow db upgrade` does, unless there is nothing to do."""
    uri = os.environ["MLFLOW_BACKEND_STORE_URI"]
    newest = NEWEST.read_text().strip()
    if revision(uri) == newest:
        print(f"migrate: the database is already at revision {newest}, the newest of this MLflow version")
        return
    # Late, for the same reason. Not `mlflow` itself: the command line with all its commands takes another second.
    from mlflow.db import commands  # noqa: PLC0415

    # The command accepts the database's address only as an argument; the password is not in it.
    commands(["upgrade", uri], prog_name="mlflow db")


if __name__ == "__main__":
    main()
