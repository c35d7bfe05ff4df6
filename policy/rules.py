"""The rules, over one resource at a time. They know Docker and this project's labels, and nothing of the program.

Each says what is wrong in words that name the setting or the argument; an empty answer means that it holds.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

CONTAINER = "docker:index/container:Container"
IMAGE = "docker:index/remoteImage:RemoteImage"
VOLUME = "docker:index/volume:Volume"
UNPROTECTED_STACK = "dev"
"""The stack on somebody's laptop: what it runs may be built there, and nothing of it is protected."""
LOCAL = "localhost/"
"""Registry of the images that are built here; their names are hashes of what they are made of."""
DATA = re.compile(r"-(postgres-\d+|minio|seaweedfs)-data$")
EDGE = ("traefik",)
"""Services that may be open to others than the host itself."""
EVERYWHERE = "0.0.0.0"  # noqa: S104 - as the provider fills it in
MINIMUM_GRACE_SECONDS = 10
BACKUP_FOLDER = re.compile(r"-backup-folder-[0-9a-f]{8}$")
OF_THE_SYSTEM = re.compile(r"/($|(bin|boot|dev|etc|lib|lib64|proc|root|run|sbin|sys|usr|var/run|var/lib/docker)(/|$))")
ASKING = re.compile("auth|sso|login|oidc", re.IGNORECASE)
AUTHENTICATES_NOBODY = re.compile(
    r"(^|[-_])(no|non|without|skip|bypass|disabled?|off|anonymous)[-_]?(auth|login|sso|oidc|$)|unauth"
    r"|(auth|login|sso|oidc)[-_]?(off|bypass|disabled|none)",
    re.IGNORECASE,
)
"""config.py has the same."""
SECRET_NAME = re.compile(r"(PASSW|SECRET|TOKEN|CREDENTIAL|PRIVATE|_KEY$).*(?<!_FILE)$", re.IGNORECASE)
"""A variable that ends in `_FILE` says where a secret is."""
NO_SECRET = re.compile(r"/.*|\d*|true|false", re.IGNORECASE)
"""A path, a number or a switch: where a secret is, or how it is used."""
PASSWORD_IN_URL = re.compile(r"://[^/\s:@]+:[^@\s]+@")


@dataclass(frozen=True, kw_only=True)
class Resource:
    """What a rule is asked about."""

    type: str
    name: str
    stack: str
    props: Mapping[str, Any]
    """The inputs, as the provider's schema names them."""
    protected: bool = False

    @property
    def labels(self) -> dict[str, str]:
        """The labels of a container."""
        return {entry["label"]: entry["value"] for entry in self.props.get("labels") or []}

    @property
    def role(self) -> str:
        """What a container is for: service, job or files; nothing where it does not say."""
        return self.labels.get("mlflow.role", "")

    @property
    def environment(self) -> dict[str, str]:
        """The environment of a container."""
        return dict(str(entry).partition("=")[::2] for entry in self.props.get("envs") or [])


@dataclass(frozen=True)
class Rule:
    """One rule: its name, what it says, and what of a resource breaks it."""

    name: str
    description: str
    type: str
    broken: Callable[[Resource], Iterator[str]]


def privileged(container: Resource) -> Iterator[str]:
    """Yield the rights that leave the container."""
    props = container.props
    if props.get("privileged"):
        yield "privileged: true gives it the host"
    if added := (props.get("capabilities") or {}).get("adds"):
        yield f"capabilities.adds: {', '.join(added)}; a service of this project needs none"
    for key in ("networkMode", "pidMode", "ipcMode", "usernsMode"):
        if str(props.get(key)) == "host":
            yield f"{key}: host leaves the container"
    if props.get("devices"):
        yield "devices: it is handed a device of the host"


def hardened(container: Resource) -> Iterator[str]:
    """Yield what a container has that no service of this project needs."""
    if container.role == "files":
        # Never started.
        return
    props = container.props
    if "ALL" not in ((props.get("capabilities") or {}).get("drops") or []):
        yield "capabilities.drops: must have ALL"
    if "no-new-privileges:true" not in (props.get("securityOpts") or []):
        yield "securityOpts: must have no-new-privileges:true"
    if props.get("readOnly"):
        return
    if container.role != "job":
        yield "readOnly: must be true"
    elif not re.fullmatch(r"[1-9]\d*:[1-9]\d*", str(props.get("user"))):
        # Its files are in its root. The numbers of somebody else can change none there.
        yield "readOnly, user: of a job, one must be true, or the other two numbers that are not 0"


def no_path_of_the_host(container: Resource) -> Iterator[str]:
    """Yield the paths of the host that a container sees."""
    for volume in container.props.get("volumes") or []:
        if path := volume.get("hostPath"):
            yield f"volumes: {path} of the host" + (
                ", Docker's socket: whoever has it is root" if "docker" in path else ""
            )
    for mount in container.props.get("mounts") or []:
        if mount.get("type") == "bind":
            yield f"mounts: {mount.get('source')} of the host"


def no_folder_of_the_host(volume: Resource) -> Iterator[str]:
    """Yield the folder of the host that a volume is, unless it is the one that backups go to."""
    options = volume.props.get("driverOpts") or {}
    folder = str(options.get("device") or "")
    if not folder.startswith("/"):
        return
    if not BACKUP_FOLDER.search(str(volume.props.get("name"))) or OF_THE_SYSTEM.match(folder):
        yield f"driverOpts: {folder} of the host"


def pinned(image: Resource) -> Iterator[str]:
    """Yield the name of an image that may be another one tomorrow."""
    name = str(image.props.get("name"))
    if image.stack != UNPROTECTED_STACK and not name.startswith(LOCAL) and "@sha256:" not in name:
        yield f"name: {name} has no digest, and may be another image tomorrow; type: make pin STACK={image.stack}"


def by_id(container: Resource) -> Iterator[str]:
    """Yield the name of an image that a container takes without its id."""
    if not str(container.props.get("image")).startswith("sha256:"):
        yield f"image: {container.props.get('image')} is a name; take the id of a RemoteImage"


def published(container: Resource) -> Iterator[str]:
    """Yield the ports that others than the host reach, past the edge."""
    if container.labels.get("mlflow.service") in EDGE:
        return
    for port in container.props.get("ports") or []:
        if port.get("ip") != "127.0.0.1":
            # Numbers arrive as floats.
            number, address = int(port.get("external") or 0), port.get("ip") or EVERYWHERE
            yield f"ports: {number} is published on {address}, past the edge"


def authenticated(container: Resource) -> Iterator[str]:
    """Yield the routers that let anybody in."""
    if container.environment.get("MLFLOW_AUTH_CONFIG_PATH") or container.labels.get("traefik.enable") != "true":
        # MLflow asks by itself; or no Traefik routes to it.
        return
    labels = {key.lower(): value for key, value in container.labels.items()}
    asking = {
        match[1]
        for key in labels
        if (match := re.match(r"traefik\.http\.middlewares\.([^.]+)\.(basicauth|forwardauth|digestauth)\.", key))
    }
    for key, rule in labels.items():
        if not (match := re.fullmatch(r"traefik\.http\.routers\.([^.]+)\.rule", key)):
            continue
        used = labels.get(f"traefik.http.routers.{match[1]}.middlewares", "").split(",")
        # One of another container's is somebody else's: by its name, which is all that is known of it here.
        named = container.labels.get("mlflow.single-sign-on")
        if not any(name in asking or name == named or _asks(name) for name in used):
            yield f"labels: the router {match[1]} ({rule}) asks nobody who he is"


def _asks(middleware: str) -> bool:
    """Whether a middleware of another container authenticates, by its name."""
    return "@" in middleware and bool(ASKING.search(middleware)) and not AUTHENTICATES_NOBODY.search(middleware)


def closed(container: Resource) -> Iterator[str]:
    """Yield the ports of the edge by which everybody is let in who reaches the host."""
    if container.role != "service" or container.labels.get("mlflow.service") not in EDGE:
        return
    authentication = container.labels.get("mlflow.authentication", "anonymous")
    for port in container.props.get("ports") or []:
        # An address that somebody has named is a network that he means.
        if authentication == "anonymous" and (port.get("ip") or EVERYWHERE) == EVERYWHERE:
            number, address = int(port.get("external") or 0), port.get("ip") or EVERYWHERE
            yield f"ports: {number} on {address} lets in everybody (mlflow:authentication: anonymous)"


def watched(container: Resource) -> Iterator[str]:
    """Yield what a service lacks that has to be known to answer, and to end."""
    if container.role != "service":
        return
    if not (container.props.get("healthcheck") or {}).get("tests"):
        yield "healthcheck: nobody would know that it does not answer"
    if (container.props.get("destroyGraceSeconds") or 0) < MINIMUM_GRACE_SECONDS:
        yield f"destroyGraceSeconds: below {MINIMUM_GRACE_SECONDS}, it is killed with what it has not written yet"


def limited(container: Resource) -> Iterator[str]:
    """Yield what a container may use without an end."""
    if container.role == "files":
        return
    props = container.props
    if not props.get("memory") or props.get("memorySwap") != props.get("memory"):
        yield "memory, memorySwap: must be set, and equal"
    if not props.get("cpus"):
        yield "cpus: must be set"
    if not {"max-size", "max-file"} <= set(props.get("logOpts") or {}):
        yield "logOpts: without max-size and max-file, its log fills the disk"


def kept(volume: Resource) -> Iterator[str]:
    """Yield what would let data be deleted with their stack."""
    if not DATA.search(str(volume.props.get("name"))):
        return
    if not volume.protected and volume.stack != UNPROTECTED_STACK:
        yield "protect: must be set outside dev (mlflow:protectData)"


def no_secret_in_the_environment(container: Resource) -> Iterator[str]:
    """Yield the variables whose values look like secrets; the values themselves never."""
    for key, value in container.environment.items():
        if (SECRET_NAME.search(key) and not NO_SECRET.fullmatch(value)) or PASSWORD_IN_URL.search(value):
            yield f"envs: {key} has a value that looks like a secret; hand it over as a file"


RULES = (
    Rule("no-privileges", "A container gets no right that the host did not mean to give.", CONTAINER, privileged),
    Rule("hardened", "A container has no capability, and its root cannot be written to.", CONTAINER, hardened),
    Rule(
        "no-host-paths",
        "A container sees no path of the host, Docker's socket above all.",
        CONTAINER,
        no_path_of_the_host,
    ),
    Rule(
        "no-host-folders",
        "A volume is no folder of the host, but for the one that backups go to.",
        VOLUME,
        no_folder_of_the_host,
    ),
    Rule("pinned-images", "An image from a registry has a digest.", IMAGE, pinned),
    Rule("images-by-id", "A container takes its image by id.", CONTAINER, by_id),
    Rule("published-ports", "A port of the host is the edge's, or on loopback.", CONTAINER, published),
    Rule("authenticated-routers", "Every router asks who somebody is.", CONTAINER, authenticated),
    Rule("authenticated-edge", "A proxy that others reach authenticates them.", CONTAINER, closed),
    Rule("watched", "A service has a health check, and time to end.", CONTAINER, watched),
    Rule("limited", "A container has limits, and its log has.", CONTAINER, limited),
    Rule("protected-data", "Nobody deletes the data with the stack.", VOLUME, kept),
    Rule("secrets-in-files", "No secret is in an environment.", CONTAINER, no_secret_in_the_environment),
)
