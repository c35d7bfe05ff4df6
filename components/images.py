"""Every image that is deployed or built on, in one place."""

from collections.abc import Collection, Sequence

import pulumi
import pulumi_docker as docker

from settings.images import Built, Image, ImagesSettings


class Images(pulumi.ComponentResource):
    """The images, pulled or built, by the ids that they have on the host.

    A container takes the id: the same tag with other bytes replaces it, and a tag that moved cannot hide. An image
    that is on the host under the asked name is not pulled again.
    """

    def __init__(
        self,
        name: str,
        settings: ImagesSettings,
        *,
        parts: Collection[str],
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        """Pull what runs as it is in a stack of these parts, and build the rest."""
        super().__init__("mlflow:components:Images", name, None, opts)
        built = {key: self._build(key, image) for key, image in settings.built(parts).items()}
        # Builds come first, and so before the database: one that fails has stopped nothing yet. (Whoever uses a built
        # image waits for the database.)
        first = list(built.values())
        pulled = {key: self._pull(key, image, after=first) for key, image in settings.deployed(parts).items()}
        self._ids = {key: image.image_id for key, image in {**pulled, **built}.items()}
        self.register_outputs({**self._ids})

    @property
    def postgres(self) -> pulumi.Output[str]:
        """Id of the database's image."""
        return self._ids["postgres"]

    @property
    def minio(self) -> pulumi.Output[str]:
        """Id of MinIO's image."""
        return self._ids["minio"]

    @property
    def minio_client(self) -> pulumi.Output[str]:
        """Id of the image of MinIO's client."""
        return self._ids["minio-client"]

    @property
    def seaweedfs(self) -> pulumi.Output[str]:
        """Id of SeaweedFS' image."""
        return self._ids["seaweedfs"]

    @property
    def traefik(self) -> pulumi.Output[str]:
        """Id of Traefik's image; raises `KeyError` where none is deployed."""
        return self._ids["traefik"]

    @property
    def mlflow(self) -> pulumi.Output[str]:
        """Id of the MLflow image."""
        return self._ids["mlflow"]

    @property
    def backup(self) -> pulumi.Output[str]:
        """Id of the backup's image; raises `KeyError` where there is no backup."""
        return self._ids["backup"]

    def of(self, part: str) -> pulumi.Output[str]:
        """Id of the image of a part that watches; raises `KeyError` where it is not deployed."""
        return self._ids[part]

    def _pull(self, name: str, image: Image, *, after: Sequence[docker.RemoteImage]) -> docker.RemoteImage:
        return docker.RemoteImage(
            f"{name}-image",
            name=image.name,
            # Other stacks and other people use the same image; deleting it is theirs to decide.
            keep_locally=True,
            opts=pulumi.ResourceOptions(parent=self, depends_on=[*after]),
        )

    def _build(self, name: str, built: "Built") -> docker.RemoteImage:
        return docker.RemoteImage(
            f"{name}-image",
            name=built.name,
            build={
                # Relative, and the same builder for everyone: otherwise a laptop and CI plan each other's change.
                "context": built.context,
                "build_args": built.arguments,
                "builder": "default",
                # With it, the id differs at each build on the containerd image store.
                "provenance": "false",
                # Two are built at once.
                "build_log_file": f"build-{name}.log",
            },
            triggers={"content": built.content},
            # A replacement is made first; deleting the old one by its tag would delete what was just built.
            keep_locally=True,
            opts=pulumi.ResourceOptions(parent=self),
        )
