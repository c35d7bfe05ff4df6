"""Which generated secrets a stack uses, by its settings."""

from settings.stack import StackConfig


def used_secrets(config: StackConfig) -> set[str]:
    """Return the keys of the generated secrets that the services of a stack use. The stack file may have others."""
    route, monitored, backed_up = config.route, config.monitoring.on, config.backup.enabled
    wanted = {
        "postgresPassword": True,
        "postgresBackupPassword": backed_up,
        "postgresMonitoringPassword": monitored,
        "cryptoKekPassphrase": True,
        "webhookEncryptionKey": True,
        "clientPassword": route.by_password,
        "adminPassword": route.by_mlflow,
        "flaskSecretKey": route.by_mlflow,
        "backupPassword": backed_up,
        "grafanaPassword": "grafana" in config.monitoring.parts,
        "traefikCertificateKey": config.traefik.mode == "bundled" and config.traefik.certificate == "selfSigned",
        "internalAuthority": config.tls.internal,
        "objectStoreKey": config.object_store.encryption,
    }
    for kind in config.object_store.kinds:
        minio = kind == "minio"
        wanted |= {
            f"{kind}{'Root' if minio else 'Admin'}Password": True,
            f"{kind}Password": True,
            f"{kind}BackupPassword": backed_up,
            **({"minioMonitoringPassword": monitored} if minio else {}),
        }
    return {key for key, is_wanted in wanted.items() if is_wanted}


def left_out(config: StackConfig) -> dict[str, str]:
    """Return the secrets in use that `make rotate` does not rotate with all others, and why."""
    reasons = {
        "objectStoreKey": "the object store cannot encrypt its artifacts with another key; "
        "docs/operations/encryption.md#another-key",
    }
    if config.traefik.mode == "existing":
        reasons["internalAuthority"] = (
            "your Traefik has to trust it anew; docs/operations/rotate.md#an-authority-that-your-traefik-trusts"
        )
    if not config.backup.deletes:
        reasons["backupPassword"] = (
            "the backup target deletes nothing (mlflow:backup.deletes: false), so it would accept the old key for good"
        )
    used = used_secrets(config)
    return {key: why for key, why in reasons.items() if key in used}


def rotatable(config: StackConfig) -> set[str]:
    """Return the keys of the secrets that `make rotate` rotates, and whose age counts."""
    return used_secrets(config) - set(left_out(config))
