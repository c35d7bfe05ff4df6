"""What `make rotate` can rotate: for each secret what it is, and what restarts."""

from dataclasses import dataclass

from settings.secrets import GENERATED_KEYS, NEXT_KEYS, SECRET_KEYS

CERTIFICATES = "certificates"
"""What `SECRET=` calls the certificates of the services. They are no secret in the stack file, but derived from one."""
ALL = "all"


@dataclass(frozen=True)
class Rotated:
    """One secret, and what its rotation interrupts."""

    what: str
    restarts: str
    """The services that restart, as in docs/operations/rotate.md."""
    away: bool
    """Whether the server is away meanwhile."""
    clients: str = ""
    """What clients outside the stack have to do."""


TABLE = {
    "postgresPassword": Rotated("the password of the Postgres role mlflow", "Postgres, the server", away=True),
    "postgresBackupPassword": Rotated(
        "the password of the Postgres role mlflow_backup", "Postgres, the server, the backup", away=True
    ),
    "postgresMonitoringPassword": Rotated(
        "the password of the Postgres role mlflow_monitoring", "Postgres, the server, the Postgres exporter", away=True
    ),
    "minioRootPassword": Rotated("the password of MinIO's administrator", "MinIO", away=True),
    "minioPassword": Rotated("the secret key of MinIO's identity mlflow", "the server", away=True),
    "minioBackupPassword": Rotated("the secret key of MinIO's identity mlflow-backup", "the backup", away=False),
    "minioMonitoringPassword": Rotated(
        "the secret key of MinIO's identity mlflow-monitoring", "Prometheus", away=False
    ),
    "seaweedfsAdminPassword": Rotated("the secret key of SeaweedFS' administrator", "SeaweedFS", away=True),
    "seaweedfsPassword": Rotated("the secret key of SeaweedFS' identity mlflow", "SeaweedFS, the server", away=True),
    "seaweedfsBackupPassword": Rotated(
        "the secret key of SeaweedFS' identity mlflow-backup", "SeaweedFS, the backup", away=True
    ),
    "clientPassword": Rotated(
        "the password of the clients at Traefik",
        "the bundled Traefik; with an existing Traefik, the server",
        away=True,
        clients="clients need the new password, and a job that runs is refused (HTTP 401)",
    ),
    "adminPassword": Rotated(
        "the password of MLflow's administrator",
        "the migration",
        away=False,
        clients="clients of the administrator need the new password, and their jobs are refused (HTTP 401)",
    ),
    "flaskSecretKey": Rotated("the key that signs the forms of MLflow's users", "the server", away=True),
    "grafanaPassword": Rotated("the password of Grafana's administrator", "Grafana", away=False),
    "traefikCertificateKey": Rotated(
        "the key of the self-signed certificate",
        "the bundled Traefik",
        away=True,
        clients="clients that trust the certificate of Traefik need the new one",
    ),
    "internalAuthority": Rotated("the authority of the services' certificates", "every service", away=True),
    CERTIFICATES: Rotated("the certificates of the services", "every service", away=True),
    "cryptoKekPassphrase": Rotated("the data key of the gateway's secrets", "the server, the backup", away=True),
    "webhookEncryptionKey": Rotated("the data key of the webhooks' secrets", "the server, the backup", away=True),
    "backupPassword": Rotated("the data key of the backups", "the backup", away=False),
}
PROVIDED = tuple(key for key in SECRET_KEYS if key not in (*GENERATED_KEYS, *NEXT_KEYS.values()))
"""Secrets that only the operator can replace."""
