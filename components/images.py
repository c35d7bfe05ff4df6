"""All container images: those that are deployed, and those that others are built on."""

from collections.abc import Collection, Sequence

import pulumi
import pulumi_docker as docker

from settings.images import Built, Image, ImagesSettings


class Images(pulumi.ComponentResource):
    """All images of the stack, pulled or built, with their ids on the host.

    Creates one `RemoteImage` for each image of the services in `parts`.

    Containers use the id, not the tag: if the tag later names another image, the container is replaced. An image that
    is already on the host under its name is not pulled again.
    """

    built: Sequence[docker.RemoteImage]
    """The images that are built. Whatever Pulumi deletes before it replaces it must wait for them: Pulumi first deletes
    what depends on it, so a build that fails would leave the stack without that service."""

    def __init__(
        self,
        name: str,
        settings: ImagesSettings,
        *,
        parts: Collection[str],
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        """Build and pull the images for the services in `parts`."""
        super().__init__("mlflow:components:Images", name, None, opts)
        built = {key: self._build(key, image) for key, image in settings.built(parts).items()}
        # Builds run first, before any container changes, so a failed build has stopped nothing. (All services that use
        # a built image wait for the database.)
        self.built = list(built.values())
        pulled = {key: self._pull(key, image, after=self.built) for key, image in settings.deployed(parts).items()}
        self._ids = {key: image.image_id for key, image in {**pulled, **built}.items()}
        self._names = {key: image.name for key, image in {**pulled, **built}.items()}
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
        """Id of Traefik's image. Raises `KeyError` if the stack has no Traefik."""
        return self._ids["traefik"]

    @property
    def mlflow(self) -> pulumi.Output[str]:
        """Id of the MLflow image."""
        return self._ids["mlflow"]

    @property
    def mlflow_name(self) -> pulumi.Output[str]:
        """Name of the MLflow image, by which every node of a cluster knows it."""
        return self._names["mlflow"]

    @property
    def backup(self) -> pulumi.Output[str]:
        """Id of the backup image. Raises `KeyError` if the stack has no backup."""
        return self._ids["backup"]

    def of(self, part: str) -> pulumi.Output[str]:
        """Return the id of the image of a monitoring service. Raises `KeyError` if it is not deployed."""
        return self._ids[part]

    def _pull(self, name: str, image: Image, *, after: Sequence[docker.RemoteImage]) -> docker.RemoteImage:
        return docker.RemoteImage(
            f"{name}-image",
            name=image.name,
            # Other stacks and users of the host may use the same image, so it is never deleted.
            keep_locally=True,
            opts=pulumi.ResourceOptions(parent=self, depends_on=[*after]),
        )

    def _build(self, name: str, built: "Built") -> docker.RemoteImage:
        return docker.RemoteImage(
            f"{name}-image",
            name=built.name,
            build={
                # A relative path and a fixed builder: otherwise plans on a laptop and in CI would differ.
                "context": built.context,
                "build_args": built.arguments,
                "builder": "default",
                # With provenance, each build has another id on the containerd image store.
                "provenance": "false",
                # Two builds run at the same time.
                "build_log_file": f"build-{name}.log",
            },
            triggers={"content": built.content},
            # The replacement is built first; deleting the old image by its tag would delete the new one.
            keep_locally=True,
            opts=pulumi.ResourceOptions(parent=self),
        )
