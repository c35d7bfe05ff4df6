"""Checks that this image can serve the database, while the earlier server still runs: the data keys and the schema.

A database that a newer MLflow has migrated cannot be used by an older one, and cannot be migrated back.

MLflow encrypts gateway secrets with `MLFLOW_CRYPTO_KEK_PASSPHRASE` and webhook secrets with
`MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY`. With wrong keys it starts without an error, and fails at the first use.
"""

import os
import sys
from importlib import metadata
from pathlib import Path
from urllib.parse import urlsplit

import psycopg2
from cryptography.fernet import Fernet, InvalidToken
from take_back import take_back

SCHEMAS = {"alembic_version": "known-revisions", "alembic_version_auth": "users-known-revisions"}
"""The table with the revision of each schema, and the file with every revision of it that this MLflow can migrate. The
image build writes the files. The second schema is that of MLflow's own users."""
KEEP = "nothing was changed; set the old mlflow:{key} again: docs/operations/restore.md#set-a-data-key-from-a-backup"


def main() -> int:
    """Check schema and keys. Return 0 if all can be used, else 1, and print one line for each that cannot."""
    address = urlsplit(os.environ["MLFLOW_BACKEND_STORE_URI"].replace("+psycopg2", ""))
    connection = psycopg2.connect(address.geturl())
    # No import holds the lock, so it was killed: its tables are not those to check.
    take_back(connection)
    schemas = [schema_problem(connection, table, Path(sys.prefix) / file) for table, file in SCHEMAS.items()]
    keys = [gateway_problem(connection), webhook_problem(connection)]
    problems = [problem for problem in (*schemas, *keys) if problem]
    for problem in problems:
        sys.stderr.write(f"{problem}\n")
    return 1 if problems else 0


def any_row(connection, table, columns):
    """Return a row of `table` as a tuple, or None if there is no row or, in an empty database, no table."""
    with connection, connection.cursor() as cursor:
        cursor.execute("SELECT to_regclass(%s)", (table,))
        if cursor.fetchone()[0] is None:
            return None
        cursor.execute(
            f"SELECT {columns} FROM {table} WHERE {columns.split(',')[0]} IS NOT NULL LIMIT 1"  # noqa: S608 - constants
        )
        return cursor.fetchone()


def schema_problem(connection, table, known):
    """Return what is wrong with the revision of a schema of the database, or None."""
    row = any_row(connection, table, "version_num")
    if row is None or row[0] in known.read_text().split():
        return None
    return (
        f"the database has the schema revision {row[0]} ({table}), which MLflow {metadata.version('mlflow')} does not "
        "know: a newer MLflow has migrated it; nothing was changed, and an earlier server still runs. Use that newer "
        "MLflow again, or restore a backup from before: docs/operations/upgrade.md#back-to-an-older-mlflow"
    )


def gateway_problem(connection):
    """Return what is wrong with the data key of the gateway's secrets, or None."""
    row = any_row(connection, "secrets", "wrapped_dek, kek_version")
    if row is None:
        return None
    # Imported only if there is a secret to decrypt: importing mlflow takes three seconds.
    from mlflow.exceptions import MlflowException  # noqa: PLC0415
    from mlflow.utils.crypto import KEKManager, unwrap_dek  # noqa: PLC0415

    wrapped, version = bytes(row[0]), row[1]
    try:
        unwrap_dek(wrapped, KEKManager(kek_version=version).get_kek())
    except (MlflowException, ValueError):
        return "mlflow:cryptoKekPassphrase does not decrypt the gateway secrets in the database: " + KEEP.format(
            key="cryptoKekPassphrase"
        )
    return None


def webhook_problem(connection):
    """Return what is wrong with the data key of the webhooks' secrets, or None."""
    row = any_row(connection, "webhooks", "secret")
    if row is None:
        return None
    try:
        Fernet(os.environ["MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY"]).decrypt(row[0].encode())
    except (InvalidToken, ValueError):
        return "mlflow:webhookEncryptionKey does not decrypt the webhook secrets in the database: " + KEEP.format(
            key="webhookEncryptionKey"
        )
    return None


if __name__ == "__main__":
    sys.exit(main())
