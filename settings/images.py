"""The settings of the images, and what an image is built from."""

import hashlib
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from settings import names, packages
from settings.base import NO_DIGEST, AptSource, Digest, ImageName, Settings

CONTEXT = "mlflow"
"""The folder from which the MLflow image is built."""
BACKUP_CONTEXT = "assets/backup/image"
"""The one of the backup's image, which is built on the database's."""


class Image(Settings):
    """A container image: where it is, and exactly which one it is."""

    ref: ImageName = Field(description="Registry, repository and tag. Point it at a mirror where there is one.")
    digest: Digest = Field(
        default=NO_DIGEST,
        description="The manifest digest, looked up by `make pin`. With `none` the tag decides, and an image of this"
        " name that is already on the host is used as it is: a local build, or one that was loaded from a file.",
    )

    @property
    def name(self) -> str:
        """What Docker is asked for: with the digest, if there is one."""
        return self.ref if self.digest == NO_DIGEST else f"{self.ref}@{self.digest}"


DEFAULTS = {
    "postgres": {"ref": "docker.io/library/postgres:18.6"},
    # MinIO's own images were deleted in September 2026; this is its maintained fork. See docs/adr/0001-minio-fork.md.
    "minio": {
        "ref": "docker.io/pgsty/silo:RELEASE.2026-09-16T00-00-00Z",
        "digest": "sha256:635197cb9f36d01bee221d34d1c7d7960f6a95c48b0b6c01d99cd13bdae51a46",
    },
    "minioClient": {
        "ref": "docker.io/pgsty/mc:RELEASE.2026-09-16T00-00-00Z",
        "digest": "sha256:cfc83108c3abb371f8fb84d99c1fdc88f8c237e022409b0081fb7c0a3be634dd",
    },
    "seaweedfs": {"ref": "docker.io/chrislusf/seaweedfs:4.48"},
    "traefik": {"ref": "docker.io/library/traefik:v3.7.15"},
    "python": {"ref": "docker.io/library/python:3.13-slim-trixie"},
    "prometheus": {"ref": "docker.io/prom/prometheus:v3.15.0"},
    "alertmanager": {"ref": "docker.io/prom/alertmanager:v0.34.1"},
    "postgresExporter": {"ref": "quay.io/prometheuscommunity/postgres-exporter:v0.20.1"},
    "blackboxExporter": {"ref": "docker.io/prom/blackbox-exporter:v0.28.0"},
    "grafana": {"ref": "docker.io/grafana/grafana:13.2.3"},
}


def _completed(default: dict[str, str], typed: dict[str, Any]) -> dict[str, Any]:
    """Fill in what was not typed. The digest of another tag is another image's, so it does not come along."""
    ref = typed.get("ref", default.get("ref"))
    same_tag = str(ref).rpartition(":")[2] == default.get("ref", "").rpartition(":")[2]
    return {**(default if same_tag else {}), **typed}


class ImagesSettings(Settings):
    """What an operator may set under `mlflow:images`.

    A mirror of the default needs its `ref` only and keeps the digest; another tag has no digest until one is given.
    """

    source: Literal["registry", "packages"] = Field(
        default="registry",
        description="Where images come from whose `ref` is not set. With `packages`, `make up` builds them from "
        "Debian's and Python's packages; there is none of MinIO. See docs/operations/without-a-registry.md.",
    )
    debian_sources: tuple[AptSource, ...] = Field(
        default=(),
        description="For `source: packages`: where Debian 13 is, as lines of apt's sources.list. Without them, the "
        "mirror that this host uses.",
    )
    postgres: Image = Field(default=Image(**DEFAULTS["postgres"]), description="The database.")
    minio: Image = Field(default=Image(**DEFAULTS["minio"]), description="The object store `minio`.")
    minio_client: Image = Field(
        default=Image(**DEFAULTS["minioClient"]),
        description="The job that makes MinIO's bucket and identities.",
    )
    seaweedfs: Image = Field(default=Image(**DEFAULTS["seaweedfs"]), description="The object store `seaweedfs`.")
    traefik: Image = Field(default=Image(**DEFAULTS["traefik"]), description="The proxy, with `traefik.mode: bundled`.")
    python: Image = Field(default=Image(**DEFAULTS["python"]), description="What the MLflow image is built on.")
    prometheus: Image = Field(default=Image(**DEFAULTS["prometheus"]), description="With `monitoring.mode: bundled`.")
    alertmanager: Image = Field(default=Image(**DEFAULTS["alertmanager"]), description="The same.")
    postgres_exporter: Image = Field(
        default=Image(**DEFAULTS["postgresExporter"]), description="With `monitoring.mode` other than off."
    )
    blackbox_exporter: Image = Field(default=Image(**DEFAULTS["blackboxExporter"]), description="The same.")
    grafana: Image = Field(default=Image(**DEFAULTS["grafana"]), description="With `monitoring.grafanaPort`.")
    mlflow: Image | None = Field(
        default=None,
        description="An MLflow image that was built before, from the same `mlflow/`: by CI, or on another machine. "
        "Without it, it is built here.",
    )
    backup: Image | None = Field(
        default=None,
        description="An image for the backup that was built before. Without it, it is built here, on `postgres`.",
    )
    archive: str | None = Field(
        default=None,
        description="A folder with images that were written by `docker save`. Where one is missing, `make up` loads "
        "them; see docs/operations/without-a-registry.md.",
    )

    @model_validator(mode="before")
    @classmethod
    def _keep_what_is_not_named(cls, values: Any) -> Any:  # noqa: ANN401 - pydantic hands over whatever was typed
        if not isinstance(values, dict):
            return values
        defaults: dict[str, dict[str, str]] = DEFAULTS
        if values.get("source") == "packages":
            built = {key: {"ref": packages.ref(name)} for key, name in packages.STANDING_FOR.items()}
            defaults = DEFAULTS | built
            values = built | values
        return {
            key: _completed(defaults.get(key, {}), value) if isinstance(value, dict) else value
            for key, value in values.items()
        }

    def deployed(self, parts: Collection[str]) -> dict[str, Image]:
        """Return every image that runs as it is, in a stack of these parts (see `StackConfig.parts`)."""
        by_part: dict[str, dict[str, Image | None]] = {
            "minio": {"minio": self.minio, "minio-client": self.minio_client},
            "seaweedfs": {"seaweedfs": self.seaweedfs},
            "traefik": {"traefik": self.traefik},
            "backup": {"backup": self.backup},
            "postgres-exporter": {"postgres-exporter": self.postgres_exporter},
            "blackbox-exporter": {"blackbox-exporter": self.blackbox_exporter},
            "prometheus": {"prometheus": self.prometheus},
            "alertmanager": {"alertmanager": self.alertmanager},
            "grafana": {"grafana": self.grafana},
        }
        wanted = {"postgres": self.postgres, "mlflow": self.mlflow}
        for part in parts:
            wanted |= by_part[part]
        return {key: image for key, image in wanted.items() if image}

    def built(self, parts: Collection[str]) -> dict[str, "Built"]:
        """Return every image that is built by the program, for a stack of these parts."""
        images = {}
        if self.mlflow is None:
            arguments = {"BASE_IMAGE": self.python.name, "BUILD_IMAGE": self.builder.name}
            images["mlflow"] = Built("server", CONTEXT, arguments)
        if "backup" in parts and self.backup is None:
            images["backup"] = Built("backup", BACKUP_CONTEXT, {"BASE_IMAGE": self.postgres.name})
        return images

    def pulled(self, parts: Collection[str]) -> list[Image]:
        """Return every image that must be on the host before anything is deployed."""
        built_on = [] if self.mlflow else [self.python, self.builder]
        return list(dict.fromkeys([*self.deployed(parts).values(), *built_on]))

    @property
    def builder(self) -> Image:
        """What MLflow is installed on, before it is copied onto `python`."""
        own = self.python.ref == packages.ref("python")
        return Image(ref=packages.ref(packages.BUILDER)) if own else self.python


@dataclass(frozen=True)
class Built:
    """An image that is built by the program."""

    service: str
    """What it is for."""
    context: str
    """The folder that it is built from."""
    arguments: dict[str, str]
    """Of the build. The first one names what it is built on."""

    @property
    def name(self) -> str:
        """What the image is called.

        The tag is the content's hash, under a registry that cannot exist: an image that is missing is built again,
        never pulled from a stranger who owns its name.
        """
        return f"{names.LOCAL_REGISTRY}/{names.PROJECT}-{self.service}:{self.content[:12]}"

    @property
    def content(self) -> str:
        """The SHA-256 of all that it is made of."""
        return context_digest(Path(__file__).parent.parent / self.context, self.arguments["BASE_IMAGE"])


def context_digest(folder: Path, base: str) -> str:
    """Return the SHA-256 of what a build reads: names, executable bits and contents, and the image it is built on."""
    digest = hashlib.sha256(base.encode())
    for path in read_by_a_build(folder):
        executable = bool(path.stat().st_mode & 0o100)
        digest.update(f"\0{path.relative_to(folder).as_posix()}\0{executable}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def read_by_a_build(folder: Path) -> list[Path]:
    """Return the files of a build context, by its `.dockerignore`: everything is left out, and some let in again.

    Whatever else lies in the folder (an editor's backup, `.DS_Store`) changes no image. Raises `ValueError` where the
    file is of another kind: Docker's patterns can do more than this reads.
    """
    first, *rest = (folder / ".dockerignore").read_text().split()
    if first != "*" or not all(pattern.startswith("!") for pattern in rest):
        raise ValueError(f"{folder}/.dockerignore must begin with *, and go on with !patterns, one a line")
    found = {path for pattern in rest for path in folder.glob(pattern.removeprefix("!"))}
    return sorted(path for path in found if path.is_file())
