"""The keys of secrets in a stack file: which are generated, which you bring, and what a value may be."""

import re

LENGTH = 32
"""Number of characters of A-Z, a-z and 0-9: 190 bits, and no character that a URL, a shell or an ini file escapes."""
SECRET_PATTERN = r"[A-Za-z0-9_=-]+"  # noqa: S105 - a pattern
"""Accepted values of a secret. They contain no separator of a password file, an ini file or JSON."""
FERNET_KEY_LENGTH = 44
"""Number of characters of a Fernet key, such as one from an older deployment."""
LENGTHS = range(12, 65)
"""Accepted numbers of characters of a secret."""
OTHER_LENGTHS = {
    # Traefik computes a fast hash of it.
    "clientPassword": range(LENGTH, 65),
    "objectStoreKey": (LENGTH,),
    "webhookEncryptionKey": (LENGTH, FERNET_KEY_LENGTH),
}
"""The same, of the secrets that accept fewer, by key."""
TARGET_SECRET = "backupTargetSecretKey"  # noqa: S105 - a name
"""Key of the secret key of an S3 target, in the stack file. It cannot be generated."""
WEBHOOK_SECRET, SWITCH_SECRET, MAIL_SECRET = "alertWebhookUrl", "deadMansSwitchUrl", "smtpPassword"
"""Keys of secrets that cannot be generated. The URLs are secret because they need no other authentication."""
CERTIFICATE_SECRET, KEY_SECRET, DNS_SECRET = "tlsCertificate", "tlsKey", "acmeDnsToken"
"""Keys of secrets that cannot be generated: the operator's certificate and its key, and the DNS provider's token."""
GENERATED_KEYS = (
    "postgresPassword",
    "minioRootPassword",
    "minioPassword",
    "seaweedfsAdminPassword",
    "seaweedfsPassword",
    "cryptoKekPassphrase",
    "webhookEncryptionKey",
    "postgresBackupPassword",
    "minioBackupPassword",
    "seaweedfsBackupPassword",
    "backupPassword",
    "clientPassword",
    "adminPassword",
    "flaskSecretKey",
    "postgresMonitoringPassword",
    "minioMonitoringPassword",
    "grafanaPassword",
    "traefikCertificateKey",
    "internalAuthority",
    "objectStoreKey",
)
"""Keys of the secrets that the program generates. A value under such a key overrides the generated one."""
NEXT_KEYS = {"cryptoKekPassphrase": "nextCryptoKekPassphrase", "webhookEncryptionKey": "nextWebhookEncryptionKey"}
"""Keys of the new values of MLflow's data keys, by the keys of the values in use. A new value is under such a key while
`make rotate` encrypts the data with it, so that no interruption can lose it."""
COMPLETES = "MLFLOW_COMPLETES_ROTATION"
"""Environment variable: the caller is `make rotate`, which completes an interrupted rotation."""
SECRET_KEYS = (
    *GENERATED_KEYS,
    *NEXT_KEYS.values(),
    TARGET_SECRET,
    CERTIFICATE_SECRET,
    KEY_SECRET,
    DNS_SECRET,
    WEBHOOK_SECRET,
    SWITCH_SECRET,
    MAIL_SECRET,
)
"""Keys of all secrets: the generated ones, and those that only the operator can provide."""


def value_problem(key: str, value: str) -> str | None:
    """Return what is wrong with the value of a generated secret, without the value; None if nothing is."""
    lengths = OTHER_LENGTHS.get(key, LENGTHS)
    if len(value) in lengths and re.fullmatch(SECRET_PATTERN, value):
        return None
    numbers = f"{min(lengths)} to {max(lengths)}" if isinstance(lengths, range) else " or ".join(map(str, lengths))
    return f"mlflow:{key}: must be {numbers} letters, digits, hyphens, underscores or equals signs"


def interrupted_message(keys: list[str], stack: str) -> str:
    """Return the message for an update during an interrupted rotation, by the keys of the new values."""
    return (
        f"mlflow:{', mlflow:'.join(keys)}: a rotation of the data keys was interrupted, and the data may be "
        f"encrypted with the new ones already; nothing was changed\n  to complete it, type: make rotate STACK={stack}"
    )
