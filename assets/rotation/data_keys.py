"""Encrypts the gateway's and the webhooks' secrets with new data keys. Runs in the MLflow image, while no server runs.

It can be interrupted and run again: all rows change in one transaction, and a row that the new key already decrypts
stays. Environment: MLFLOW_BACKEND_STORE_URI and libpq's variables; FILES, the folder with the files `<key>.old` and
`<key>.new`, where <key> is cryptoKekPassphrase or webhookEncryptionKey.
"""

import hashlib
import os
import sys
from pathlib import Path
from typing import Any

import psycopg2
from cryptography.fernet import Fernet, InvalidToken
from mlflow.exceptions import MlflowException
from mlflow.utils.crypto import KEKManager, rotate_secret_encryption, unwrap_dek

FILES = Path(os.environ["FILES"])
UNCHANGED = 3
"""Exit code if no row has a new data key. operations/data/data_keys.py has the same."""
MARK = "data key sha256:"
"""Start of the comment on a table with encrypted values. assets/backup/database.py has the same."""


class Undecryptable(Exception):  # noqa: N818 - the operator reads its message only
    """A row that neither the old nor the new data key decrypts."""

    def __init__(self, words: str, *, all_old: bool) -> None:
        """Store whether every other row has the old data key: then no earlier run has changed one."""
        super().__init__(words)
        self.all_old = all_old


def rewrapped(wrapped: bytes, version: int, old: str, new: str) -> bytes | None:
    """Return a wrapped key of the gateway for the new passphrase; None if it is for the new one already."""
    # The version selects the salt. It stays, because the server needs no other one.
    target = KEKManager(passphrase=new, kek_version=version)
    try:
        unwrap_dek(wrapped, target.get_kek())
    except (MlflowException, ValueError):
        rotated = rotate_secret_encryption(b"", wrapped, KEKManager(passphrase=old, kek_version=version), target)
        return bytes(rotated.wrapped_dek)
    return None


def encrypted(secret: str, old: str, new: str) -> str | None:
    """Return a webhook's secret, encrypted with the new key; None if it is already."""
    target = Fernet(new)
    try:
        target.decrypt(secret.encode())
    except InvalidToken:
        return target.encrypt(Fernet(old).decrypt(secret.encode())).decode()
    return None


CHANGES = {
    "cryptoKekPassphrase": ("secrets", "secret_id", "wrapped_dek", "kek_version"),
    "webhookEncryptionKey": ("webhooks", "webhook_id", "secret", "NULL"),
}
"""The table, its primary key, the encrypted column, and the version of the key, by data key."""


def change(cursor: Any, key: str) -> tuple[int, int]:  # noqa: ANN401 - psycopg2 has no types
    """Encrypt the rows of one data key. Return how many there are, and how many had the old key."""
    old, new = ((FILES / f"{key}.{which}").read_text() for which in ("old", "new"))
    table, identity, column, version = CHANGES[key]
    cursor.execute("SELECT to_regclass(%s)", (table,))
    if cursor.fetchone()[0] is None:
        return 0, 0
    cursor.execute(
        f"SELECT {identity}, {column}, {version} FROM {table} WHERE {column} IS NOT NULL FOR UPDATE"  # noqa: S608
    )
    rows, changed, unknown = cursor.fetchall(), 0, []
    for name, content, kek_version in rows:
        try:
            found = (
                rewrapped(bytes(content), kek_version, old, new)
                if key == "cryptoKekPassphrase"
                else encrypted(content, old, new)
            )
        except (MlflowException, InvalidToken, ValueError):
            unknown.append(str(name))
            continue
        if found is not None:
            changed += 1
            cursor.execute(f"UPDATE {table} SET {column} = %s WHERE {identity} = %s", (found, name))  # noqa: S608
    if unknown:
        words = f"{table} {', '.join(unknown)}: neither the old nor the new mlflow:{key} decrypts it"
        raise Undecryptable(words, all_old=changed + len(unknown) == len(rows))
    return len(rows), changed


def mark(cursor: Any, key: str) -> None:  # noqa: ANN401
    """Note in the database which data key its rows have. A backup with another one would not decrypt them."""
    table, value = CHANGES[key][0], (FILES / f"{key}.new").read_text()
    cursor.execute("SELECT to_regclass(%s)", (table,))
    if cursor.fetchone()[0] is not None:
        cursor.execute(f"COMMENT ON TABLE {table} IS %s", (MARK + hashlib.sha256(value.encode()).hexdigest(),))


def main() -> int:
    """Encrypt everything; return 0, or 1 if nothing was changed because a row cannot be decrypted."""
    keys = [key for key in CHANGES if (FILES / f"{key}.new").exists()]
    # MLflow takes an empty passphrase for its public default.
    if empty := [key for key in keys if not all((FILES / f"{key}.{which}").read_text() for which in ("old", "new"))]:
        print(f"mlflow:{', mlflow:'.join(empty)}: a value is empty; nothing was changed", file=sys.stderr)
        return UNCHANGED
    connection = psycopg2.connect(os.environ["MLFLOW_BACKEND_STORE_URI"].replace("+psycopg2", ""))
    try:
        with connection, connection.cursor() as cursor:
            done = {key: change(cursor, key) for key in keys}
            for key in keys:
                mark(cursor, key)
        with connection, connection.cursor() as cursor:
            # Compared: the new key now decrypts every row.
            left = {key: change(cursor, key)[1] for key in keys}
    except Undecryptable as error:
        print(f"{error}; nothing was changed", file=sys.stderr)
        return UNCHANGED if error.all_old else 1
    for key, (rows, changed) in done.items():
        print(f"mlflow:{key}: {rows} values in the database, {changed} encrypted with the new key", flush=True)
    return 1 if any(left.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
