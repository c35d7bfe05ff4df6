"""How a service gets its secrets and its configuration: as files in volumes."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pulumi
import pulumi_docker as docker

from runtime.labels import short_digest, standard_labels
from runtime.workload import Files
from settings import names


class FileVolumes:
    """Writes the files of one service into volumes: one for its secrets, one for its configuration.

    Docker cannot upload into a container with a read-only root file system. So the files are uploaded into the volumes
    through a container that never starts, and needs no program in its image. Only the service mounts the volumes.
    """

    volumes: dict[str, pulumi.Output[str]]
    """Mount path in the service, to volume name."""
    container: docker.Container
    """Replaced when a file changes. The service that reads the files must be replaced with it."""

    def __init__(
        self,
        service: str,
        files: Files,
        *,
        image: pulumi.Input[str],
        after: Sequence[pulumi.Input[pulumi.Resource]],
        parent: pulumi.Resource | None,
    ) -> None:
        """Write the files when everything in `after` exists. If they changed, the service is deleted first."""
        stack = pulumi.get_stack()
        after = [*files.after, *after]
        self.volumes = {
            path: self._volume(f"{service}-{Path(path).name}", contents, parent, after)
            for path, contents in files.folders.items()
        }
        name = f"{service}-files"
        self.container = docker.Container(
            name,
            name=names.docker_name(stack, name),
            image=image,
            # It never starts, so it needs no hardening: only the daemon writes through it.
            start=False,
            must_run=False,
            network_mode="none",
            volumes=[{"volume_name": volume, "container_path": path} for path, volume in self.volumes.items()],
            uploads=files.uploads,
            labels=[*standard_labels(stack, name, "files"), *files.labels],
            opts=pulumi.ResourceOptions(parent=parent, depends_on=after, delete_before_replace=True),
        )

    def _volume(
        self,
        name: str,
        contents: Mapping[str, pulumi.Input[str]],
        parent: pulumi.Resource | None,
        after: Sequence[pulumi.Input[pulumi.Resource]],
    ) -> pulumi.Output[str]:
        # A file that is no longer needed would stay in the volume, and so would a secret in it. So a change of the file
        # names replaces the volume. The name stays the same, so the old volume and its containers are deleted first.
        return docker.Volume(
            name,
            name=names.docker_name(pulumi.get_stack(), name),
            labels=[
                {"label": names.STACK_LABEL, "value": pulumi.get_stack()},
                {"label": names.FILES_LABEL, "value": short_digest("\0".join(sorted(contents)))},
            ],
            opts=pulumi.ResourceOptions(parent=parent, depends_on=[*after], delete_before_replace=True),
        ).name
