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
"""Build context of the MLflow image."""
BACKUP_CONTEXT = "assets/backup/image"
"""Build context of the backup image, which is built on the Postgres image."""


class Image(Settings):
    """A container image: its name, and the digest that identifies it."""

    ref: ImageName = Field(description="Registry, repository and tag. Can name a mirror.")
    digest: Digest = Field(
        default=NO_DIGEST,
        description="The manifest digest; `make pin` looks it up. With `none`, the tag decides, and an image with this"
        " name that is already on the host is used: a local build, or an image that was loaded from a file.",
    )

    @property
    def name(self) -> str:
        """The name for Docker: the reference, with the digest if there is one."""
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
    """Return `typed`, completed with the default. The default's digest is used only for the same tag."""
    ref = typed.get("ref", default.get("ref"))
    same_tag = str(ref).rpartition(":")[2] == default.get("ref", "").rpartition(":")[2]
    return {**(default if same_tag else {}), **typed}


class ImagesSettings(Settings):
    """The settings under `mlflow:images`.

    For a mirror of a default image, `ref` is enough: the digest stays. For another tag, there is no digest until one is
    set.
    """

    source: Literal["registry", "packages"] = Field(
        default="registry",
        description="The source of the images whose `ref` is not set. With `packages`, `make up` builds packages "
        "images, from Debian's and Python's packages; there is none for MinIO and Grafana. See "
        "docs/operations/without-a-registry.md.",
    )
    debian_sources: tuple[AptSource, ...] = Field(
        default=(),
        description="The Debian 13 mirrors for packages images, as lines of apt's sources.list. Default: the "
        "mirror that this host uses. Only with `source: packages`.",
    )
    postgres: Image = Field(default=Image(**DEFAULTS["postgres"]), description="The database.")
    minio: Image = Field(default=Image(**DEFAULTS["minio"]), description="The object store `minio`.")
    minio_client: Image = Field(
        default=Image(**DEFAULTS["minioClient"]),
        description="The job that creates MinIO's bucket and identities.",
    )
    seaweedfs: Image = Field(default=Image(**DEFAULTS["seaweedfs"]), description="The object store `seaweedfs`.")
    traefik: Image = Field(default=Image(**DEFAULTS["traefik"]), description="Used with `traefik.mode: bundled`.")
    python: Image = Field(default=Image(**DEFAULTS["python"]), description="Base image of the MLflow image.")
    prometheus: Image = Field(
        default=Image(**DEFAULTS["prometheus"]), description="Used with `monitoring.mode: bundled`."
    )
    alertmanager: Image = Field(
        default=Image(**DEFAULTS["alertmanager"]), description="Used with `monitoring.mode: bundled`."
    )
    postgres_exporter: Image = Field(
        default=Image(**DEFAULTS["postgresExporter"]),
        description="Used with `monitoring.mode: exporters` and `bundled`.",
    )
    blackbox_exporter: Image = Field(
        default=Image(**DEFAULTS["blackboxExporter"]),
        description="Used with `monitoring.mode: exporters` and `bundled`.",
    )
    grafana: Image = Field(default=Image(**DEFAULTS["grafana"]), description="Used with `monitoring.grafanaPort`.")
    mlflow: Image | None = Field(
        default=None,
        description="An MLflow image that was built before from the same `mlflow/`, by CI or on another machine. "
        "Without it, the image is built here.",
    )
    backup: Image | None = Field(
        default=None,
        description="A backup image that was built before. Without it, the image is built here, on `postgres`.",
    )
    archive: str | None = Field(
        default=None,
        description="A folder with image files from `docker save`. If an image is missing on the host, `make up` loads "
        "them; see docs/operations/without-a-registry.md.",
    )

    @model_validator(mode="before")
    @classmethod
    def _keep_what_is_not_named(cls, values: Any) -> Any:  # noqa: ANN401 - pydantic passes the unvalidated value
        if not isinstance(values, dict):
            return values
        defaults: dict[str, dict[str, str]] = DEFAULTS
        if values.get("source") == "packages":
            built = {key: {"ref": packages.ref(name)} for key, name in packages.RECIPE_BY_IMAGE.items()}
            defaults = DEFAULTS | built
            values = built | values
        return {
            key: _completed(defaults.get(key, {}), value) if isinstance(value, dict) else value
            for key, value in values.items()
        }

    def deployed(self, parts: Collection[str]) -> dict[str, Image]:
        """Return the images that run without a build, for the services in `parts` (see `StackConfig.parts`)."""
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
        """Return the images that the program builds, for the services in `parts`."""
        images = {}
        if self.mlflow is None:
            arguments = {"BASE_IMAGE": self.python.name, "BUILD_IMAGE": self.builder.name}
            images["mlflow"] = Built("server", CONTEXT, arguments)
        if "backup" in parts and self.backup is None:
            images["backup"] = Built("backup", BACKUP_CONTEXT, {"BASE_IMAGE": self.postgres.name})
        return images

    @property
    def server(self) -> str:
        """The name of the server's image, configured or built."""
        return (self.mlflow or self.built(())["mlflow"]).name

    def pulled(self, parts: Collection[str]) -> list[Image]:
        """Return the images that must be on the host before the deployment starts."""
        built_on = [] if self.mlflow else [self.python, self.builder]
        return list(dict.fromkeys([*self.deployed(parts).values(), *built_on]))

    @property
    def builder(self) -> Image:
        """The image on which MLflow is installed before it is copied into the image built on `python`."""
        own = self.python.ref == packages.ref("python")
        return Image(ref=packages.ref(packages.BUILDER)) if own else self.python


@dataclass(frozen=True)
class Built:
    """An image that the program builds."""

    service: str
    """The service that uses the image."""
    context: str
    """The build context: a folder."""
    arguments: dict[str, str]
    """Build arguments. `BASE_IMAGE` names the base image."""

    @property
    def name(self) -> str:
        """The name of the image.

        The tag is the hash of the content. The registry cannot exist, so a missing image is built again and never
        pulled from a public registry where someone else could own the name.
        """
        return f"{names.LOCAL_REGISTRY}/{names.PROJECT}-{self.service}:{self.content[:12]}"

    @property
    def content(self) -> str:
        """The SHA-256 of the build context and the base image."""
        return context_digest(Path(__file__).parent.parent / self.context, self.arguments["BASE_IMAGE"])


def context_digest(folder: Path, base: str) -> str:
    """Return the SHA-256 of what a build reads: file names, executable bits, contents, and the base image's name."""
    digest = hashlib.sha256(base.encode())
    for path in build_context_files(folder):
        executable = bool(path.stat().st_mode & 0o100)
        digest.update(f"\0{path.relative_to(folder).as_posix()}\0{executable}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def build_context_files(folder: Path) -> list[Path]:
    """Return the files of a build context: those that its `.dockerignore` includes after it has excluded everything.

    Other files in the folder (an editor's backup, `.DS_Store`) do not change the image. Raises `ValueError` if
    `.dockerignore` has another form: this function supports only a part of Docker's syntax.
    """
    first, *rest = (folder / ".dockerignore").read_text().split()
    if first != "*" or not all(pattern.startswith("!") for pattern in rest):
        raise ValueError(f"{folder}/.dockerignore: must begin with *, followed by !patterns, one on each line")
    found = {path for pattern in rest for path in folder.glob(pattern.removeprefix("!"))}
    return sorted(path for path in found if path.is_file())
