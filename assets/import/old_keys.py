"""Prints how many values of the old database its data keys do not decrypt. Runs in the image of MLflow.

usage: FILES=<folder> VALUES=<file> old_keys.py

The folder has the data keys, as the files `<key>.old`. The other file has the values, as source.py writes them. Values
of a data key without a file are left out.
"""

import json
import os
from pathlib import Path

FILES = Path(os.environ["FILES"])


def wrong_in_the_gateway(passphrase: str, values: list[tuple[str, int]]) -> int:
    """Return how many keys of the gateway's secrets a passphrase does not unwrap."""
    # Imported only if there is a secret to decrypt: importing mlflow takes three seconds.
    from mlflow.exceptions import MlflowException  # noqa: PLC0415
    from mlflow.utils.crypto import KEKManager, unwrap_dek  # noqa: PLC0415

    wrong = 0
    # Deriving a key takes a second.
    keys = {version: KEKManager(passphrase, version).get_kek() for version in {version for _, version in values}}
    for wrapped, version in values:
        try:
            unwrap_dek(bytes.fromhex(wrapped), keys[version])
        except (MlflowException, ValueError):
            wrong += 1
    return wrong


def wrong_in_webhooks(key: str, values: list[tuple[str, int]]) -> int:
    """Return how many secrets of webhooks a key does not decrypt."""
    from cryptography.fernet import Fernet, InvalidToken  # noqa: PLC0415

    try:
        fernet = Fernet(key)
    except ValueError:
        return len(values)
    wrong = 0
    for secret, _ in values:
        try:
            fernet.decrypt(bytes.fromhex(secret))
        except InvalidToken:
            wrong += 1
    return wrong


CHECKS = {"cryptoKekPassphrase": wrong_in_the_gateway, "webhookEncryptionKey": wrong_in_webhooks}

if __name__ == "__main__":
    found = json.loads(Path(os.environ["VALUES"]).read_text())
    wrong = {
        key: CHECKS[key](path.read_text(), values)
        for key, values in found.items()
        if (path := FILES / f"{key}.old").exists()
    }
    print(json.dumps(wrong))
