"""What a workload is: an image, limits, files, networks. Data that `Service` and `Job` turn into a container."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pulumi
import pulumi_docker as docker

from runtime.labels import label, short_digest
from settings import names


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The resource limits of a container."""

    memory_mb: int
    cpus: float


@dataclass(frozen=True, kw_only=True)
class HealthCheck:
    """A command in the container that succeeds when the service answers as its clients need it to."""

    command: Sequence[str]
    interval_s: int = 30
    """Seconds between two runs by Docker. Each takes 20 to 60 ms of CPU time (measured). `up` and `make status` run the
    command themselves, and do not wait for Docker."""
    timeout_s: int = 5
    retries: int = 3
    start_period_s: int = 60
    ready_within_s: int = 120
    """How long `up` waits for the first success. Longer for a service that may recover from a crash first."""


@dataclass(frozen=True, kw_only=True)
class Balance:
    """Of a service with replicas: how to find out that a proxy sends requests to a replica."""

    command: Sequence[str]
    """A command in the replica that succeeds once the proxy has found the replica ready."""
    peers: Sequence[str]
    """The names of the other replicas' containers. If the proxy has found none of them ready, there is no proxy yet."""
    listed_in: tuple[str, str] | None
    """A proxy's container, and the file in it that lists the replicas by name; None if the proxy discovers them."""
    within_s: int
    """How long the proxy may take."""


@dataclass(frozen=True, kw_only=True)
class Publish:
    """A host port."""

    port: int
    target: int
    address: str = "127.0.0.1"


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """The metrics endpoint of a service."""

    port: int
    path: str = "/metrics"
    scheme: str = "http"


SECRETS = "/run/secrets"
"""Folder of the secret files in a container."""
CONFIG = "/run/config"
"""Folder of the files that are not secret: configuration, scripts."""
NOBODY = "65534:65534"
"""User and group of containers that need no particular user. They own no file in any image."""


@dataclass(frozen=True, kw_only=True)
class Files:
    """The files that a container reads, as file name to content: secrets in `SECRETS`, configuration in `CONFIG`.

    They belong to root and have mode 0444. A service gets them in two volumes, see `FileVolumes`. A job gets them in
    its own root file system, and runs as a user who cannot change them.
    """

    secrets: Mapping[str, pulumi.Input[str]] = field(default_factory=dict)
    config: Mapping[str, str] = field(default_factory=dict)
    after: Sequence[pulumi.Input[pulumi.Resource]] = ()
    """Of a service: what must be ready before the files change. A change of the files stops the running service."""

    @property
    def folders(self) -> dict[str, Mapping[str, pulumi.Input[str]]]:
        """The folders with files: path to files."""
        given: dict[str, Mapping[str, pulumi.Input[str]]] = {SECRETS: self.secrets, CONFIG: self.config}
        return {path: contents for path, contents in given.items() if contents}

    @property
    def uploads(self) -> list[docker.ContainerUploadArgsDict]:
        """All files, in the form of the provider's `uploads`."""
        return [
            {"file": f"{path}/{file}", "content": content, "permissions": "0444"}
            for path, contents in self.folders.items()
            for file, content in sorted(contents.items())
        ]

    @property
    def labels(self) -> list[docker.ContainerLabelArgsDict]:
        """Labels with a hash of each file that is not secret.

        A plan hides all files if one of them is secret. The labels show which of the others changed.
        """
        return [label(f"{names.CONFIG_LABEL}/{file}", short_digest(text)) for file, text in sorted(self.config.items())]


@dataclass(frozen=True, kw_only=True)
class Workload:
    """The properties of a container that differ between containers."""

    image: pulumi.Input[str]
    limits: Limits
    networks: Sequence[pulumi.Input[str]]
    entrypoint: Sequence[str] | None = None
    command: Sequence[str] | None = None
    env: Mapping[str, pulumi.Input[str]] = field(default_factory=dict)
    """Never contains a secret: secrets are files."""
    files: Files = field(default_factory=Files)
    data: Mapping[str, pulumi.Input[str]] = field(default_factory=dict)
    """Data volumes: path to volume name."""
    tmpfs: Mapping[str, str] = field(default_factory=dict)
    """Path to mount options. The content counts as memory of the container."""
    user: str | None = None
    labels: Mapping[str, pulumi.Input[str]] = field(default_factory=dict)
    shm_mb: int | None = None
    prepares: str | None = None
    """Docker name of a volume in which the container creates something when it starts. It runs again if the volume is
    lost."""
