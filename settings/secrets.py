"""The keys of secrets in a stack file: which are generated, which you bring, and what a value may be."""

LENGTH = 32
"""Characters of A-Z, a-z and 0-9: 190 bits, and nothing that a URL, a shell or an ini file would want escaped."""
ACCEPTED = r"[A-Za-z0-9_=-]{12,64}"
"""No separator of a password file, an ini file or JSON."""
ACCEPTED_WORDS = "12 to 64 letters, digits, hyphens, underscores or equals signs"
FERNET_KEY_LENGTH = 44
"""Of a key that somebody brings along from an older deployment."""
TARGET_SECRET = "backupTargetSecretKey"  # noqa: S105 - a name
"""Secret key of an S3 target, in the stack's config. Nobody can generate that one."""
WEBHOOK_SECRET, SWITCH_SECRET, MAIL_SECRET = "alertWebhookUrl", "deadMansSwitchUrl", "smtpPassword"
"""Secrets in the stack's config that nobody can generate. Whoever knows such an address may write to it."""
CERTIFICATE_SECRET, KEY_SECRET, DNS_SECRET = "tlsCertificate", "tlsKey", "acmeDnsToken"
"""Keys of the config that nobody can generate: a certificate of one's own, and the token of a DNS provider."""
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
)
"""Keys that are not settings: each overrides a generated credential."""
SECRET_KEYS = (
    *GENERATED_KEYS,
    TARGET_SECRET,
    CERTIFICATE_SECRET,
    KEY_SECRET,
    DNS_SECRET,
    WEBHOOK_SECRET,
    SWITCH_SECRET,
    MAIL_SECRET,
)
"""And those that nobody can generate."""
