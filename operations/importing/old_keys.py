"""The data keys of the old server: whether they decrypt its values, and the encryption with those of the stack."""

import hashlib
import os
from collections.abc import Mapping

from operations.common.console import StopError
from operations.common.stack import Stack
from operations.data import data_keys
from operations.host.servers import servers
from operations.importing.importer import Importer
from operations.importing.source import DEFAULT_KEK, Source
from settings import names

TABLES = {"cryptoKekPassphrase": "secrets", "webhookEncryptionKey": "webhooks"}
"""The table with the values that a data key encrypts."""
MARK = "data key sha256:"
"""Start of the comment on such a table. assets/rotation/data_keys.py has the same."""
WHAT = {"cryptoKekPassphrase": "the AI gateway", "webhookEncryptionKey": "webhooks"}
WITHOUT = {
    "cryptoKekPassphrase": "if it is lost, delete these secrets in the old server: nothing can read them",
    "webhookEncryptionKey": "if it is lost, nothing can read them; type in the old database: "
    "UPDATE webhooks SET secret = NULL",
}
"""What to do without a data key. MLflow only marks webhooks as deleted, and cannot read one without its key."""
FORGET_DELETED = "UPDATE webhooks SET secret = NULL WHERE deleted_timestamp IS NOT NULL;\n"
"""SQL for the loaded copy: a deleted webhook may have another data key."""
VARIABLES = {
    "cryptoKekPassphrase": "MLFLOW_CRYPTO_KEK_PASSPHRASE",
    "webhookEncryptionKey": "MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY",
}


def problems(importer: Importer, source: Source, encrypted: Mapping[str, int]) -> list[str]:
    """Return what is wrong with the data keys of `SOURCE=`: one is missing, or does not decrypt a value.

    `encrypted` is how many values each data key has encrypted in the old database.
    """
    # The gateway's passphrase has a public default, so only the other key can be missing.
    found = [
        f"the old database has {count} secrets of {WHAT[key]}; set {VARIABLES[key]} of the old server\n  {WITHOUT[key]}"
        for key, count in encrypted.items()
        if key not in source.keys
    ]
    wrong = importer.undecrypted() if source.keys.keys() & encrypted.keys() else {}
    for key, count in wrong.items():
        if not count:
            continue
        given = f"MLflow's default for {VARIABLES[key]}" if source.keys[key] == DEFAULT_KEK else VARIABLES[key]
        found.append(
            f"{given} does not decrypt {count} of {encrypted[key]} secrets of {WHAT[key]} in the old database; set the "
            f"one in the environment of the old server\n  {WITHOUT[key]}"
        )
    return found


def notes(source: Source, encrypted: Mapping[str, object]) -> list[str]:
    """Return SQL that notes on the loaded tables with which data key their values are encrypted.

    Until they are encrypted with the data keys of the stack, a backup sees by the notes that it has other ones.
    """
    return [
        f"COMMENT ON TABLE {TABLES[key]} IS '{MARK}{hashlib.sha256(source.keys[key].encode()).hexdigest()}';\n"
        for key in encrypted
        if source.postgres
    ]


def encrypt(stack: Stack, source: Source) -> None:
    """Encrypt the old secrets of MLflow with the data keys of the stack; raise `StopError` if that fails."""
    deployed = servers(stack)
    new = {key: data_keys.secret_of(deployed, names.generator_of(key)) for key in source.keys}
    code = data_keys.encrypt_rows(stack, deployed, source.keys, new)
    if code == os.EX_TEMPFAIL:
        raise StopError("another operation holds the exclusive lock; type the same command again")
    if code:
        raise StopError("the old data keys do not decrypt the secrets in the old database; the reason is above")
