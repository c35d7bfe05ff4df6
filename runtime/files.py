"""How a service gets its secrets and its configuration: as files in volumes."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import pulumi
import pulumi_docker as docker

from runtime.labels import short_digest, standard_labels
from runtime.workload import Files
from settings import names

if TYPE_CHECKING:
    pass


class FileVolumes:
    """Writes the files of one service into volumes: one for its secrets, one for its configuration.

    Docker cannot upload into a container with a read-only root. So the files are uploaded into the volumes through a
    container that never starts: it needs nothing but an image, and no program in it. Nobody but the service mounts
    the volumes.
    """

    volumes: dict[str, pulumi.Output[str]]
    """Path at which the service finds them, to volume name."""
    container: docker.Container
    """Is replaced when a file changes; whoever read the files must be replaced with it."""

    def __init__(self, service: str, files: Files, *, image: pulumi.Input[str], parent: pulumi.Resource | None) -> None:
        """Write them; the service is deleted first where they are others than before."""
        stack = pulumi.get_stack()
        self.volumes = {
            path: self._volume(f"{service}-{Path(path).name}", contents, parent)
            for path, contents in files.folders.items()
        }
        name = f"{service}-files"
        self.container = docker.Container(
            name,
            name=names.physical(stack, name),
            image=image,
            # Never started, so never given anything else: only the daemon writes through it.
            start=False,
            must_run=False,
            network_mode="none",
            volumes=[{"volume_name": volume, "container_path": path} for path, volume in self.volumes.items()],
            uploads=files.uploads,
            labels=[*standard_labels(stack, name, "files"), *files.labels],
            opts=pulumi.ResourceOptions(parent=parent, depends_on=[*files.after], delete_before_replace=True),
        )

    def _volume(
        self, name: str, contents: Mapping[str, pulumi.Input[str]], parent: pulumi.Resource | None
    ) -> pulumi.Output[str]:
        # A file that is no longer among them would stay in the volume, and open what it opened: other names, another
        # volume. It has the old one's name, so that has to go first, with whoever uses it.
        return docker.Volume(
            name,
            name=names.physical(pulumi.get_stack(), name),
            labels=[
                {"label": names.STACK_LABEL, "value": pulumi.get_stack()},
                {"label": names.FILES_LABEL, "value": short_digest("\0".join(sorted(contents)))},
            ],
            opts=pulumi.ResourceOptions(parent=parent, delete_before_replace=True),
        ).name
