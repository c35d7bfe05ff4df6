"""The data keys of the old server: whether they decrypt its values, and the encryption with those of the stack."""

import hashlib
import os
from collections.abc import Mapping, Sequence

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
WHAT = {"cryptoKekPassphrase": "secrets of the AI gateway", "webhookEncryptionKey": "secrets of webhooks"}
VARIABLES = {
    "cryptoKekPassphrase": "MLFLOW_CRYPTO_KEK_PASSPHRASE",
    "webhookEncryptionKey": "MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY",
}


def problems(importer: Importer, source: Source, values: Mapping[str, Sequence[object]]) -> list[str]:
    """Return what is wrong with the data keys of `SOURCE=`: one is missing, or does not decrypt a value.

    `values` are the encrypted values in the old database, by data key.
    """
    # The gateway's passphrase has a public default, so only the other key can be missing.
    found = [
        f"the old database has {len(values[key])} {WHAT[key]}; set {VARIABLES[key]} of the old server, or remove these "
        "webhooks there"
        for key in values
        if key not in source.keys
    ]
    given = {key: of for key, of in values.items() if key in source.keys}
    wrong = importer.undecrypted(given) if given else {}
    for key, count in wrong.items():
        if not count:
            continue
        key_is = f"{VARIABLES[key]} does not decrypt {count} of {len(values[key])} {WHAT[key]} in the old database"
        if source.keys[key] == DEFAULT_KEK:
            key_is = (
                f"MLflow's default passphrase does not decrypt {count} of {len(values[key])} {WHAT[key]} in the old "
                f"database; set {VARIABLES[key]}"
            )
        found.append(f"{key_is}; the right one is in the environment of the old server")
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
