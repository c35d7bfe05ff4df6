"""Decrypts the secrets in a stack file with only its passphrase: without Pulumi, a provider or a backend.

Pulumi's passphrase secrets provider derives a key from the passphrase and the file's salt by PBKDF2 (SHA-256, a million
rounds), and encrypts each value by AES-256-GCM. Source: `pkg/secrets/passphrase` and `sdk/go/common/resource/config`
in Pulumi 3.259.
"""

import base64
import hashlib
import os
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from settings.stack import NAMESPACE

ROUNDS, KEY_BYTES = 1_000_000, 32
VERSION = "v1"
EXPECTED_PLAIN_TEXT = b"pulumi"
"""The plain text of the salt's own ciphertext, which proves that the passphrase is correct."""


def decrypt_secrets(document: dict[str, Any], passphrase: str) -> dict[str, str] | None:
    """Return the secrets of a stack file by their keys, in plain text: never print them.

    None if the file has no salt, another secrets provider encrypted it, or the passphrase is wrong.
    """
    version, _, rest = str(document.get("encryptionsalt") or "").partition(":")
    salt, _, proof = rest.partition(":")
    if version != VERSION or not proof:
        return None
    cipher = AESGCM(hashlib.pbkdf2_hmac("sha256", passphrase.encode(), base64.b64decode(salt), ROUNDS, KEY_BYTES))
    try:
        if _decrypt(cipher, proof) != EXPECTED_PLAIN_TEXT:
            return None
        return {
            key.removeprefix(f"{NAMESPACE}:"): _decrypt(cipher, value["secure"]).decode()
            for key, value in (document.get("config") or {}).items()
            if isinstance(value, dict) and set(value) == {"secure"}
        }
    except (InvalidTag, ValueError):
        return None


def _decrypt(cipher: AESGCM, sealed: str) -> bytes:
    version, nonce, text = sealed.split(":")
    if version != VERSION:
        raise ValueError(f"unknown version of an encrypted value: {version}")
    return cipher.decrypt(base64.b64decode(nonce), base64.b64decode(text), None)


def passphrase(default: Path) -> str | None:
    """Return a stack's passphrase from the environment, else from the file `default`; None if there is none."""
    if (given := os.environ.get("PULUMI_CONFIG_PASSPHRASE")) is not None:
        return given
    path = Path(os.environ.get("PULUMI_CONFIG_PASSPHRASE_FILE") or default)
    # `make env` of another stack may have put its passphrase into this shell.
    if path.parent == default.parent:
        path = default
    try:
        return path.read_text().strip()
    except OSError:
        return None
