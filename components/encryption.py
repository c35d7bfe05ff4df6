"""The encryption of the artifacts on the object store's disk: its data key, in the forms that the stores read."""

import base64
from dataclasses import dataclass
from typing import Self

import pulumi

from components.platform import Platform
from runtime.credentials import Credential, InUse, is_configured
from settings.object_store import ObjectStoreSettings

KEY_FILE = "object-store-key"
"""Secret file with the data key: of the bucket job, and in a backup."""


@dataclass(frozen=True, kw_only=True)
class Encryption:
    """How an object store encrypts artifacts: with its own server-side encryption (SSE-S3), by one key."""

    key: Credential | None = None
    on: bool = False
    """Whether new artifacts are encrypted. A store that has encrypted any keeps its key."""

    @classmethod
    def create(cls, settings: ObjectStoreSettings, *, platform: Platform, parent: pulumi.Resource) -> Self:
        """Create the data key, if artifacts are or were encrypted."""
        if not settings.encryption and not is_configured("objectStoreKey"):
            return cls()
        # Its job reads what was encrypted with the key. Without this check, that is after the store has started.
        job = f"{settings.kind}-bootstrap"
        in_use = InUse(platform=platform, container=job, file=KEY_FILE, proved_by_job=True)
        key = Credential("object-store-key", "objectStoreKey", kind="data key", in_use=in_use, parent=parent)
        return cls(key=key, on=settings.encryption)

    @property
    def data_keys(self) -> dict[str, pulumi.Output[str]]:
        """The data key as a file: name to content. Secret; empty without a key."""
        return {KEY_FILE: self.key.value} if self.key else {}

    @property
    def for_seaweedfs(self) -> dict[str, pulumi.Output[str]]:
        """The secret files of SeaweedFS."""
        if self.key is None:
            return {}
        return {"security.toml": self.key.value.apply(lambda key: f'[s3.sse]\nkek = "{key.encode().hex()}"\n')}

    @property
    def for_minio(self) -> dict[str, pulumi.Output[str]]:
        """The secret files of MinIO."""
        if self.key is None:
            return {}
        encoded = self.key.value.apply(lambda key: f"mlflow:{base64.b64encode(key.encode()).decode()}")
        return {"kms-secret-key": encoded}
