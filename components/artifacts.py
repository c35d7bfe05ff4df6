"""The artifacts: the object store that holds them, and the job that copies them to another one."""

import dataclasses
from pathlib import Path

import pulumi

from components.encryption import Encryption
from components.internal_tls import AUTHORITY
from components.minio import Minio
from components.object_store import ADMIN, CLIENT_ENVIRONMENT, ObjectStore
from components.platform import Platform
from components.seaweedfs import Seaweedfs
from runtime.job import Job
from runtime.workload import NOBODY, Files, Limits, Workload
from settings import names
from settings.names import ObjectStoreKind
from settings.object_store import ObjectStoreSettings

STORES: dict[ObjectStoreKind, type[Minio | Seaweedfs]] = {"minio": Minio, "seaweedfs": Seaweedfs}
ASSETS = Path(__file__).parent.parent / "assets" / "copy"
COPY_TIMEOUT_SECONDS = 24 * 3600
"""A terabyte at 20 MB/s takes 14 hours. After an interruption, the next `up` continues the copy."""


class Artifacts(pulumi.ComponentResource):
    """The object store with the artifacts.

    Creates the object store of `kind`. While `copyFrom` is set, it also creates the previous object store, and the job
    `copy-artifacts`, which copies the artifacts to the new one.
    """

    store: ObjectStore
    """The object store for the server. It is ready when it holds all artifacts."""

    def __init__(
        self,
        name: str,
        settings: ObjectStoreSettings,
        *,
        platform: Platform,
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        """Deploy the object stores that `settings` names."""
        super().__init__("mlflow:components:Artifacts", name, None, opts)
        if settings.copy_from:
            # If protected, the old object store could not be removed after the copy, nor the new one if the operator
            # cancels the change. The volumes always stay.
            platform = dataclasses.replace(platform, protect_data=False)
        self._encryption = Encryption.create(settings, platform=platform, parent=self)
        self.store = self._deployed(settings.kind, settings, platform)
        if settings.copy_from:
            source = self._deployed(settings.copy_from, settings, platform)
            self.store = self._copied(source, self.store, platform, SOURCE=settings.copy_from, TARGET=settings.kind)
        self.register_outputs({"endpoint": self.store.endpoint})

    def _deployed(self, kind: ObjectStoreKind, settings: ObjectStoreSettings, platform: Platform) -> ObjectStore:
        """Deploy one object store, and return it."""
        # Stacks of version 0.1.0 have the object stores at the root of the stack.
        moved = pulumi.Alias(parent=pulumi.ROOT_STACK_RESOURCE)
        opts = pulumi.ResourceOptions(parent=self, aliases=[moved])
        store = STORES[kind](kind, settings, platform=platform, encryption=self._encryption, opts=opts).store
        key = self._encryption.key
        return dataclasses.replace(
            store, data_keys=self._encryption.data_keys, credentials=[*store.credentials, *([key] if key else [])]
        )

    def _copied(self, source: ObjectStore, target: ObjectStore, platform: Platform, **kinds: str) -> ObjectStore:
        """Return `target`, ready when it has every artifact of `source`.

        Nothing may write during the copy: `preconditions` verifies that no server runs.
        """
        name = names.COPY
        image = platform.images.mlflow
        profiles = pulumi.Output.concat(
            *(
                line
                for profile, store in (("source", source), ("target", target))
                for line in store.credentials_of(ADMIN, store.admin_password, profile)
            )
        )
        job = Job(
            name,
            Workload(
                image=image,
                limits=Limits(memory_mb=768, cpus=1.0),
                networks=[platform.networks.backend],
                command=["python", "/run/config/copy_artifacts.py"],
                env={
                    "BUCKET": target.bucket,
                    "SOURCE_ENDPOINT": source.endpoint,
                    "TARGET_ENDPOINT": target.endpoint,
                    "AWS_SHARED_CREDENTIALS_FILE": "/run/secrets/aws-credentials",
                    **CLIENT_ENVIRONMENT,
                    **({"AWS_CA_BUNDLE": AUTHORITY} if platform.tls else {}),
                    **kinds,
                },
                files=Files(
                    secrets={"aws-credentials": profiles, **platform.tls.trust},
                    config={"copy_artifacts.py": (ASSETS / "copy_artifacts.py").read_text()},
                ),
                tmpfs={"/tmp": "size=64m,mode=1777"},  # noqa: S108 - inside the container
                user=NOBODY,
            ),
            platform=platform,
            timeout_s=COPY_TIMEOUT_SECONDS,
            after=[source.ready, target.ready],
            opts=pulumi.ResourceOptions(parent=self),
        )
        return dataclasses.replace(target, ready=job.done, credentials=[*target.credentials, *source.credentials])
