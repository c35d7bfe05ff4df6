"""The settings of the object store."""

from pydantic import Field

from settings.base import Bucket, Cpus, Port, Settings
from settings.names import ObjectStoreKind


class ObjectStoreSettings(Settings):
    """The settings under `mlflow:objectStore`."""

    kind: ObjectStoreKind = Field(
        default="minio",
        description="The object store; docs/adr/0008-seaweedfs.md compares the two. To change it in a "
        "deployed stack, set `copyFrom`, too.",
    )
    copy_from: ObjectStoreKind | None = Field(
        default=None,
        description="The object store that this stack used before. It runs beside the new one, and its artifacts are "
        "copied before the server starts. Remove the setting when the copy is complete; see "
        "docs/operations/object-store.md.",
    )
    memory_mb: int = Field(
        default=1024, ge=512, le=1_048_576, description="Memory limit in MB. SeaweedFS needs 1024 or more."
    )
    cpus: Cpus = Field(default=1.0, description="The number of CPUs that the object store may use.")
    bucket: Bucket = Field(
        default="mlflow",
        description="The bucket for the artifacts. Choose it before the first run: each experiment stores the "
        "location of its artifacts.",
    )
    console_port: Port | None = Field(
        default=None,
        description="Publish MinIO's console on this port of the host's loopback address. SeaweedFS has no console.",
    )

    encryption: bool = Field(
        default=False,
        description="Whether the object store encrypts the artifacts on its disk, with the data key `objectStoreKey`. "
        "`make encrypt` encrypts those that were there before; docs/operations/encryption.md.",
    )

    @property
    def kinds(self) -> list[ObjectStoreKind]:
        """The object stores that are deployed: the one in use, then the one to copy from."""
        return [self.kind, *([self.copy_from] if self.copy_from else [])]
