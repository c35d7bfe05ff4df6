"""The object store: what an operator may set, and what its clients are handed, whichever one it is."""

from dataclasses import dataclass

import pulumi
import pulumi_docker as docker

from components.scrape import Target
from runtime.credentials import Credential
from settings.names import ObjectStoreKind

REGION = "us-east-1"
"""What a client signs for. Both stores call themselves that."""
ADMIN = "mlflow-admin"
USER = "mlflow"
BACKUP_USER = "mlflow-backup"
MONITORING_USER = "mlflow-monitoring"
"""The identities: one that may do everything, one that may use the bucket, one that may read it, one that may read
figures."""
CLIENT_ENVIRONMENT = {
    "AWS_DEFAULT_REGION": REGION,
    # Checksum trailers, on by default in newer clients, are not every object store's.
    "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
    "AWS_RESPONSE_CHECKSUM_VALIDATION": "when_required",
}
"""What boto3 is told, wherever it runs."""


@dataclass(frozen=True, kw_only=True)
class ObjectStore:
    """An object store that is deployed: its address, its bucket, and who may use it."""

    kind: ObjectStoreKind
    endpoint: str
    """URL of the S3 API, on the internal network."""
    health: str
    """URL that answers 200 while objects can be stored and read, to whoever asks."""
    bucket: str
    password: Credential
    """Secret key of `USER`."""
    admin_password: Credential
    """Secret key of `ADMIN`."""
    backup_password: Credential | None
    """Secret key of `BACKUP_USER`, where there is a backup."""
    ready: pulumi.Output[docker.Container]
    """Once the bucket and its identities are there, and the artifacts that it is to start with."""
    credentials: list[Credential]
    """What guards it."""
    targets: list[Target]
    """Where Prometheus asks it how it is."""

    @property
    def credentials_file(self) -> pulumi.Output[str]:
        """The AWS credentials file of the identity that may use the bucket, and nothing else. Secret."""
        return pulumi.Output.concat(*self.credentials_of(USER, self.password, "default"))

    @property
    def backup_credentials_file(self) -> pulumi.Output[str]:
        """The same of the identity that may read the bucket; raises `ValueError` where there is no backup. Secret."""
        if self.backup_password is None:
            raise ValueError("Platform.backed_up was false, so nobody may read the bucket for a backup")
        return pulumi.Output.concat(*self.credentials_of(BACKUP_USER, self.backup_password, "default"))

    @staticmethod
    def credentials_of(identity: str, secret_key: Credential, profile: str) -> list[str | pulumi.Output[str]]:
        """Return one profile of an AWS credentials file, in pieces to be concatenated. Secret."""
        return [f"[{profile}]\naws_access_key_id = {identity}\naws_secret_access_key = ", secret_key.value, "\n"]
