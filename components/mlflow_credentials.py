"""The data keys and credentials of the MLflow server."""

import base64
from dataclasses import dataclass
from typing import Self

import pulumi

from runtime.credentials import Credential, InUse
from runtime.docker_host import DockerHost
from settings import names
from settings.ingress import Route
from settings.secrets import FERNET_KEY_LENGTH

KEK_FILE, WEBHOOK_FILE = "crypto-kek-passphrase", "webhook-encryption-key"
"""Secret files with the data keys."""


@dataclass(frozen=True, kw_only=True)
class ServerCredentials:
    """The data keys and credentials of the server. Those that the authentication does not need are None."""

    kek_passphrase: Credential
    webhook_key: Credential
    client_password: Credential | None
    admin_password: Credential | None
    """The migration sets it; the server does not get it."""
    flask_key: Credential | None

    @classmethod
    def create(cls, route: Route, *, platform: DockerHost, parent: pulumi.Resource) -> Self:
        """Create what the authentication of `route` needs."""
        files = f"{names.SERVER}-files"
        kek = InUse(platform=platform, container=files, file=KEK_FILE)
        webhook = InUse(platform=platform, container=files, file=WEBHOOK_FILE, as_file=fernet_key)
        by_mlflow = route.by_mlflow
        return cls(
            kek_passphrase=Credential(
                "crypto-kek-passphrase", "cryptoKekPassphrase", kind="data key", in_use=kek, parent=parent
            ),
            webhook_key=Credential(
                "webhook-encryption-key", "webhookEncryptionKey", kind="data key", in_use=webhook, parent=parent
            ),
            client_password=Credential("client-password", "clientPassword", parent=parent)
            if route.by_password
            else None,
            admin_password=Credential("admin-password", "adminPassword", parent=parent) if by_mlflow else None,
            flask_key=Credential("flask-secret-key", "flaskSecretKey", parent=parent) if by_mlflow else None,
        )

    @property
    def all(self) -> list[Credential]:
        """Every credential that there is, the data keys first."""
        optional = [self.client_password, self.admin_password, self.flask_key]
        return [self.kek_passphrase, self.webhook_key, *(credential for credential in optional if credential)]

    @property
    def data_keys(self) -> dict[str, pulumi.Output[str]]:
        """The data keys as files: name to content. Secret."""
        return {
            KEK_FILE: self.kek_passphrase.value,
            WEBHOOK_FILE: self.webhook_key.value.apply(fernet_key),
        }


def secret_file(name: str, credential: Credential | None) -> dict[str, pulumi.Output[str]]:
    """Return one credential as a secret file, or nothing."""
    return {name: credential.value} if credential else {}


def fernet_key(value: str) -> str:
    """Return the Fernet key of a secret: 32 characters are encoded as URL-safe base64, 44 characters are one already.

    It has no other length (settings/secrets.py).
    """
    if len(value) == FERNET_KEY_LENGTH:
        return value
    return base64.urlsafe_b64encode(value.encode()).decode()
