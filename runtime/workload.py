"""What a workload is: an image, limits, files, networks. Data that `Service` and `Job` turn into a container."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pulumi
import pulumi_docker as docker

from runtime.labels import label, short_digest
from settings import names

if TYPE_CHECKING:
    pass


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a container may use at most."""

    memory_mb: int
    cpus: float


@dataclass(frozen=True, kw_only=True)
class HealthCheck:
    """A command that succeeds in the container when the service does what its clients need."""

    command: Sequence[str]
    interval_s: int = 10
    timeout_s: int = 5
    retries: int = 3
    start_period_s: int = 60
    ready_within_s: int = 120
    """How long `up` waits for the first success. Longer where a crash recovery may come first."""


@dataclass(frozen=True, kw_only=True)
class Publish:
    """A port of the host."""

    port: int
    target: int
    address: str = "127.0.0.1"


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """Where a service tells Prometheus how it is."""

    port: int
    path: str = "/metrics"


SECRETS = "/run/secrets"
"""Where a consumer finds its secrets."""
CONFIG = "/run/config"
"""Where it finds what is no secret: configuration, scripts."""
NOBODY = "65534:65534"
"""User and group of what needs none, and owns nothing in any image."""


@dataclass(frozen=True, kw_only=True)
class Files:
    """What a consumer reads: secrets, found in `SECRETS`, and configuration, found in `CONFIG`; file name to content.

    They are root's, mode 0444. A service reads them from volumes, see `FileVolumes`; a job from its own
    root file system, as a user who cannot change them.
    """

    secrets: Mapping[str, pulumi.Input[str]] = field(default_factory=dict)
    config: Mapping[str, str] = field(default_factory=dict)
    after: Sequence[pulumi.Input[pulumi.Resource]] = ()
    """Of a service: what must be proved while the one before it still runs. New files end that."""

    @property
    def folders(self) -> dict[str, Mapping[str, pulumi.Input[str]]]:
        """The two that there are, or one: path to contents."""
        given: dict[str, Mapping[str, pulumi.Input[str]]] = {SECRETS: self.secrets, CONFIG: self.config}
        return {path: contents for path, contents in given.items() if contents}

    @property
    def uploads(self) -> list[docker.ContainerUploadArgsDict]:
        """All of them, as the provider takes them."""
        return [
            {"file": f"{path}/{file}", "content": content, "permissions": "0444"}
            for path, contents in self.folders.items()
            for file, content in sorted(contents.items())
        ]

    @property
    def labels(self) -> list[docker.ContainerLabelArgsDict]:
        """One secret among the files hides all of them in every plan. These tell which of the others changed."""
        return [label(f"{names.CONFIG_LABEL}/{file}", short_digest(text)) for file, text in sorted(self.config.items())]


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What a container needs. Everything else is the same for all."""

    image: pulumi.Input[str]
    limits: Limits
    networks: Sequence[pulumi.Input[str]]
    entrypoint: Sequence[str] | None = None
    command: Sequence[str] | None = None
    env: Mapping[str, pulumi.Input[str]] = field(default_factory=dict)
    """Never a secret: those are files."""
    files: Files = field(default_factory=Files)
    data: Mapping[str, pulumi.Input[str]] = field(default_factory=dict)
    """Path to volume name."""
    tmpfs: Mapping[str, str] = field(default_factory=dict)
    """Path to mount options. Counts as memory of the container."""
    user: str | None = None
    labels: Mapping[str, pulumi.Input[str]] = field(default_factory=dict)
    shm_mb: int | None = None
    prepares: str | None = None
    """Physical name of the volume in which it makes something when it starts, and does so again where that is lost."""
