"""The artifacts: which object store has them, and how they get from one to another."""

import dataclasses
from pathlib import Path

import pulumi

from components import names
from components.minio import Minio
from components.object_store import Kind, ObjectStore, ObjectStoreSettings, client_config
from components.platform import Platform
from components.runtime import Files, Job, Limits, Workload
from components.seaweedfs import Seaweedfs

STORES: dict[Kind, type[Minio | Seaweedfs]] = {"minio": Minio, "seaweedfs": Seaweedfs}
ASSETS = Path(__file__).parent.parent / "assets" / "copy"


class Artifacts(pulumi.ComponentResource):
    """The object store in use and, while `copyFrom` is set, the one before it and the copying between them."""

    store: ObjectStore
    """What the server is handed. Ready when the artifacts are there."""

    def __init__(
        self,
        name: str,
        settings: ObjectStoreSettings,
        *,
        platform: Platform,
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        """Deploy what `settings` names."""
        super().__init__("mlflow:components:Artifacts", name, None, opts)
        self.store = STORES[settings.kind](settings.kind, settings, platform=platform).store
        if settings.copy_from:
            # Protected, it could not be taken out of the stack afterwards. Its volume stays either way.
            unprotected = dataclasses.replace(platform, protect_data=False)
            source = STORES[settings.copy_from](settings.copy_from, settings, platform=unprotected).store
            self.store = self._copied(source, self.store, platform, SOURCE=settings.copy_from, TARGET=settings.kind)
        self.register_outputs({"endpoint": self.store.endpoint})

    def _copied(self, source: ObjectStore, target: ObjectStore, platform: Platform, **kinds: str) -> ObjectStore:
        """Return `target`, ready when it has every artifact of `source`.

        Nobody may write meanwhile: `preconditions` makes sure that no server does.
        """
        name = names.COPY
        image = platform.images.minio_client
        clients = client_config(
            **{
                alias: (store.endpoint, store.admin_password.value)
                for alias, store in (("from", source), ("to", target))
            }
        )
        job = Job(
            name,
            Workload(
                image=image,
                limits=Limits(memory_mb=512, cpus=1.0),
                networks=[platform.networks.backend],
                entrypoint=["sh", "/run/config/copy.sh"],
                env={"BUCKET": target.bucket, "MC_CONFIG_DIR": "/tmp/mc", **kinds},  # noqa: S108 - inside the container
                files=[
                    Files(f"{name}-secrets", "/run/secrets", {"mc-config.json": clients}, image=image, parent=self),
                    Files(
                        f"{name}-config",
                        "/run/config",
                        {"copy.sh": (ASSETS / "copy.sh").read_text()},
                        image=image,
                        parent=self,
                    ),
                ],
                tmpfs={"/tmp": "size=16m,mode=1777"},  # noqa: S108 - inside the container
                user="0:0",
            ),
            platform=platform,
            timeout_s=COPY_TIMEOUT_SECONDS,
            after=[source.ready, target.ready],
            opts=pulumi.ResourceOptions(parent=self),
        )
        return dataclasses.replace(target, ready=job.done, credentials=[*target.credentials, *source.credentials])


COPY_TIMEOUT_SECONDS = 24 * 3600
"""A terabyte at 20 MB/s takes 14 hours; an `up` that was cut off goes on where it was."""
