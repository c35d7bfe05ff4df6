"""The settings of the object store."""

from pydantic import Field

from settings.base import Bucket, Cpus, Port, Settings
from settings.names import ObjectStoreKind


class ObjectStoreSettings(Settings):
    """What an operator may set under `mlflow:objectStore`."""

    kind: ObjectStoreKind = Field(
        default="minio",
        description="Which one; docs/adr/0008-seaweedfs.md says when to choose which. A deployed stack changes it "
        "together with `copyFrom`.",
    )
    copy_from: ObjectStoreKind | None = Field(
        default=None,
        description="The store that this stack used before: it runs beside the new one, and its artifacts are copied "
        "before the server starts. Remove it once they are; see docs/operations/object-store.md.",
    )
    memory_mb: int = Field(default=1024, ge=512, le=1_048_576, description="Memory limit.")
    cpus: Cpus = Field(default=1.0, description="Processors that it may use.")
    bucket: Bucket = Field(
        default="mlflow",
        description="Where the artifacts are. Choose it before the first run: experiments remember their place.",
    )
    console_port: Port | None = Field(
        default=None, description="Publish MinIO's console on this port of the host's loopback address."
    )

    @property
    def kinds(self) -> list[ObjectStoreKind]:
        """The stores that are deployed: the one in use, then the one that is copied from."""
        return [self.kind, *([self.copy_from] if self.copy_from else [])]
