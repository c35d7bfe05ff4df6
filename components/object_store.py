"""The object store, as its clients use it: the same interface for both kinds."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import pulumi
import pulumi_docker as docker

from components.scrape import Target
from runtime.credentials import Credential
from settings.names import ObjectStoreKind

REGION = "us-east-1"
"""The region for which clients sign requests. Both object stores use it."""
ADMIN = "mlflow-admin"
USER = "mlflow"
BACKUP_USER = "mlflow-backup"
MONITORING_USER = "mlflow-monitoring"
"""The identities: `ADMIN` may do everything, `USER` may use the bucket, `BACKUP_USER` may read it, and
`MONITORING_USER` may read metrics."""
CLIENT_ENVIRONMENT = {
    "AWS_DEFAULT_REGION": REGION,
    # Newer clients send checksum trailers by default, which not every object store supports.
    "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
    "AWS_RESPONSE_CHECKSUM_VALIDATION": "when_required",
}
"""The environment of every boto3 client."""


@dataclass(frozen=True, kw_only=True)
class ObjectStore:
    """A deployed object store: its address, its bucket and its credentials."""

    kind: ObjectStoreKind
    endpoint: str
    """URL of the S3 API, on the internal network."""
    health: str
    """URL that answers 200 while objects can be written and read. It needs no authentication."""
    bucket: str
    password: Credential
    """Secret key of `USER`."""
    admin_password: Credential
    """Secret key of `ADMIN`."""
    backup_password: Credential | None
    """Secret key of `BACKUP_USER`, if the stack has a backup."""
    ready: pulumi.Output[docker.Container]
    """Resolves when the bucket, its identities and the artifacts to start with exist."""
    credentials: list[Credential]
    """All secret keys of its identities."""
    targets: list[Target]
    """Its scrape targets."""
    data_keys: Mapping[str, pulumi.Output[str]] = field(default_factory=dict)
    """The key with which it encrypts the artifacts, as a file: name to content. Secret; empty without encryption."""

    @property
    def credentials_file(self) -> pulumi.Output[str]:
        """The AWS credentials file of `USER`, which may use the bucket and nothing else. Secret."""
        return pulumi.Output.concat(*self.credentials_of(USER, self.password, "default"))

    @property
    def backup_credentials_file(self) -> pulumi.Output[str]:
        """The same for `BACKUP_USER`, which may read the bucket. Secret. Raises `ValueError` if there is no backup."""
        if self.backup_password is None:
            raise ValueError("Platform.backed_up is false, so there is no identity for the backup")
        return pulumi.Output.concat(*self.credentials_of(BACKUP_USER, self.backup_password, "default"))

    @staticmethod
    def credentials_of(identity: str, secret_key: Credential, profile: str) -> list[str | pulumi.Output[str]]:
        """Return one profile of an AWS credentials file, in pieces for `Output.concat`. Secret."""
        return [f"[{profile}]\naws_access_key_id = {identity}\naws_secret_access_key = ", secret_key.value, "\n"]
