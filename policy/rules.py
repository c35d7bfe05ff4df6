"""The rules of the policy. Each checks one resource, from its Docker arguments and this project's labels alone.

A rule yields one message for each violation, which names the argument or the setting. It yields nothing if it holds.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

CONTAINER = "docker:index/container:Container"
IMAGE = "docker:index/remoteImage:RemoteImage"
VOLUME = "docker:index/volume:Volume"
SERVICE = "docker:index/service:Service"
"""A Swarm service, whose tasks are containers on the nodes of a cluster."""
NO_NEW_PRIVILEGES = ["setpriv", "--no-new-privs"]
"""The beginning of a task's command: a Swarm service has no such option."""
UNPROTECTED_STACK = "dev"
"""The stack for local development: its images may be built locally, and its data is not protected."""
LOCAL = "localhost/"
"""Registry part of the names of locally built images. Their tags are hashes of their sources."""
DATA = re.compile(r"-(postgres-\d+|minio|seaweedfs)-data$")
EDGE = ("traefik",)
"""Services whose host ports may be reachable from other machines."""
EVERYWHERE = "0.0.0.0"  # noqa: S104 - the provider's default
MINIMUM_GRACE_SECONDS = 10
BACKUP_FOLDER = re.compile(r"-backup-folder-[0-9a-f]{8}$")
OF_THE_SYSTEM = re.compile(r"/($|(bin|boot|dev|etc|lib|lib64|proc|root|run|sbin|sys|usr|var/run|var/lib/docker)(/|$))")
ASKING = re.compile("auth|sso|login|oidc", re.IGNORECASE)
AUTHENTICATES_NOBODY = re.compile(
    r"(^|[-_])(no|non|without|skip|bypass|disabled?|off|anonymous)[-_]?(auth|login|sso|oidc|$)|unauth"
    r"|(auth|login|sso|oidc)[-_]?(off|bypass|disabled|none)",
    re.IGNORECASE,
)
"""Keep equal to the expression of the same name in settings/checks.py."""
SECRET_NAME = re.compile(r"(PASSW|SECRET|TOKEN|CREDENTIAL|PRIVATE|_KEY$).*(?<!_FILE)$", re.IGNORECASE)
"""Names of variables that hold secrets. A variable that ends in `_FILE` holds the path of a secret file instead."""
NO_SECRET = re.compile(r"/.*|\d*|true|false", re.IGNORECASE)
"""Values that are not secrets: a path, a number or a boolean."""
PASSWORD_IN_URL = re.compile(r"://[^/\s:@]+:[^@\s]+@")


@dataclass(frozen=True, kw_only=True)
class Resource:
    """The resource that a rule checks."""

    type: str
    name: str
    stack: str
    props: Mapping[str, Any]
    """The inputs, with the names of the provider's schema."""
    protected: bool = False

    @property
    def labels(self) -> dict[str, str]:
        """Return the labels of a container."""
        return {entry["label"]: entry["value"] for entry in self.props.get("labels") or []}

    @property
    def role(self) -> str:
        """Return the role of a container: `service`, `job` or `files`; empty without the label `mlflow.role`."""
        return self.labels.get("mlflow.role", "")

    @property
    def environment(self) -> dict[str, str]:
        """Return the environment variables of a container, or of the tasks of a Swarm service."""
        if self.type == SERVICE:
            return {key: str(value) for key, value in (self.task_container.get("env") or {}).items()}
        return dict(str(entry).partition("=")[::2] for entry in self.props.get("envs") or [])

    @property
    def task_container(self) -> Mapping[str, Any]:
        """Return the container of the tasks of a Swarm service."""
        found: Mapping[str, Any] = (self.props.get("taskSpec") or {}).get("containerSpec") or {}
        return found


@dataclass(frozen=True)
class Rule:
    """One rule: its name, its description, the resource type it checks, and the function that yields violations."""

    name: str
    description: str
    type: str
    broken: Callable[[Resource], Iterator[str]]


def privileged(container: Resource) -> Iterator[str]:
    """Yield the arguments that give a container rights on the host."""
    props = container.props
    if props.get("privileged"):
        yield "privileged: true gives the container full access to the host; set it to false"
    if added := (props.get("capabilities") or {}).get("adds"):
        yield f"capabilities.adds: adds {', '.join(added)}; no service of this project needs a capability; remove it"
    for key in ("networkMode", "pidMode", "ipcMode", "usernsMode"):
        if str(props.get(key)) == "host":
            yield f"{key}: host shares a namespace of the host with the container; remove it"
    if props.get("devices"):
        yield "devices: gives the container a device of the host; remove it"


def hardened(container: Resource) -> Iterator[str]:
    """Yield the arguments in which a container lacks hardening."""
    if container.role == "files":
        # This container is never started.
        return
    props = container.props
    if "ALL" not in ((props.get("capabilities") or {}).get("drops") or []):
        yield "capabilities.drops: must contain ALL"
    if "no-new-privileges:true" not in (props.get("securityOpts") or []):
        yield "securityOpts: must contain no-new-privileges:true"
    if props.get("readOnly"):
        return
    if container.role != "job":
        yield "readOnly: must be true"
    elif not re.fullmatch(r"[1-9]\d*:[1-9]\d*", str(props.get("user"))):
        # A job's files are uploaded into its root file system. A user other than root cannot change them.
        yield "readOnly, user: for a job, set readOnly to true, or user to UID:GID as numbers other than 0"


def no_path_of_the_host(container: Resource) -> Iterator[str]:
    """Yield the host paths that are mounted into a container."""
    for volume in container.props.get("volumes") or []:
        if path := volume.get("hostPath"):
            yield f"volumes: mounts the host path {path}; use a Docker volume" + (
                " (access to Docker's socket is root access to the host)" if "docker" in path else ""
            )
    for mount in container.props.get("mounts") or []:
        if mount.get("type") == "bind":
            yield f"mounts: mounts the host path {mount.get('source')}; use a Docker volume"


def no_folder_of_the_host(volume: Resource) -> Iterator[str]:
    """Yield the host folder that a volume is bound to, unless it is the backup target."""
    options = volume.props.get("driverOpts") or {}
    folder = str(options.get("device") or "")
    if not folder.startswith("/"):
        return
    if not BACKUP_FOLDER.search(str(volume.props.get("name"))) or OF_THE_SYSTEM.match(folder):
        yield (
            f"driverOpts: binds the volume to the host folder {folder}; only the backup target (mlflow:backup.target) "
            "may be a host folder, and never a system folder"
        )


def pinned(image: Resource) -> Iterator[str]:
    """Yield the name of an image from a registry that has no digest."""
    name = str(image.props.get("name"))
    if image.stack != UNPROTECTED_STACK and not name.startswith(LOCAL) and "@sha256:" not in name:
        yield f"name: {name} has no digest, so its content can change; type: make pin STACK={image.stack}"


def by_id(container: Resource) -> Iterator[str]:
    """Yield the image of a container that is a name, and not an image ID."""
    if not str(container.props.get("image")).startswith("sha256:"):
        yield f"image: {container.props.get('image')} is a name; set it to the image_id of a RemoteImage"


def published(container: Resource) -> Iterator[str]:
    """Yield the host ports that other machines can reach, except those of Traefik."""
    if container.labels.get("mlflow.service") in EDGE:
        return
    for port in container.props.get("ports") or []:
        if port.get("ip") != "127.0.0.1":
            # Pulumi passes numbers as floats.
            number, address = int(port.get("external") or 0), port.get("ip") or EVERYWHERE
            yield (
                f"ports: host port {number} is published on {address} by a service other than Traefik; "
                "set ip to 127.0.0.1 (for the server: mlflow:server.bindAddress)"
            )


def authenticated(container: Resource) -> Iterator[str]:
    """Yield the routers without an authentication middleware."""
    if container.environment.get("MLFLOW_AUTH_CONFIG_PATH") or container.labels.get("traefik.enable") != "true":
        # MLflow authenticates requests itself, or Traefik does not route to this container.
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
        # A plan knows only the name of a middleware that another container defines.
        named = container.labels.get("mlflow.single-sign-on")
        if not any(name in asking or name == named or _asks(name) for name in used):
            yield (
                f"labels: the router {match[1]} ({rule}) has no authentication middleware; "
                "set mlflow:authentication to another value than anonymous"
            )


def _asks(middleware: str) -> bool:
    """Return whether the name of another container's middleware indicates authentication."""
    return "@" in middleware and bool(ASKING.search(middleware)) and not AUTHENTICATES_NOBODY.search(middleware)


def closed(container: Resource) -> Iterator[str]:
    """Yield the host ports of Traefik that are open on every address without authentication."""
    if container.role != "service" or container.labels.get("mlflow.service") not in EDGE:
        return
    authentication = container.labels.get("mlflow.authentication", "anonymous")
    for port in container.props.get("ports") or []:
        # A specific address is a deliberate choice of one network.
        if authentication == "anonymous" and (port.get("ip") or EVERYWHERE) == EVERYWHERE:
            number, address = int(port.get("external") or 0), port.get("ip") or EVERYWHERE
            yield (
                f"ports: host port {number} on {address} has no authentication (mlflow:authentication: anonymous); "
                "set mlflow:authentication, or mlflow:traefik.bindAddress to the address of one network"
            )


def watched(container: Resource) -> Iterator[str]:
    """Yield the missing health check and the too short stop grace period of a service."""
    if container.role != "service":
        return
    if not (container.props.get("healthcheck") or {}).get("tests"):
        yield "healthcheck: must be set; without it, Docker does not notice that the service does not answer"
    if (container.props.get("destroyGraceSeconds") or 0) < MINIMUM_GRACE_SECONDS:
        yield f"destroyGraceSeconds: must be at least {MINIMUM_GRACE_SECONDS}: a service needs time to write its data"


def limited(container: Resource) -> Iterator[str]:
    """Yield the resources that a container can use without a limit."""
    if container.role == "files":
        return
    props = container.props
    if not props.get("memory") or props.get("memorySwap") != props.get("memory"):
        yield "memory, memorySwap: must both be set, to the same value"
    if not props.get("cpus"):
        yield "cpus: must be set"
    if not {"max-size", "max-file"} <= set(props.get("logOpts") or {}):
        yield "logOpts: must set max-size and max-file; without them, the log fills the disk"


def kept(volume: Resource) -> Iterator[str]:
    """Yield the missing protection of a data volume outside dev."""
    if not DATA.search(str(volume.props.get("name"))):
        return
    if not volume.protected and volume.stack != UNPROTECTED_STACK:
        yield "protect: must be true for a data volume outside dev; set mlflow:protectData to true"


def no_secret_in_the_environment(container: Resource) -> Iterator[str]:
    """Yield the names, never the values, of environment variables whose values look like secrets."""
    for key, value in container.environment.items():
        if (SECRET_NAME.search(key) and not NO_SECRET.fullmatch(value)) or PASSWORD_IN_URL.search(value):
            yield f"envs: {key} has a value that looks like a secret; pass it in a secret file"


def hardened_tasks(service: Resource) -> Iterator[str]:
    """Yield the arguments in which the tasks of a Swarm service lack hardening."""
    container = service.task_container
    where = "taskSpec.containerSpec"
    if "ALL" not in (container.get("capDrops") or []) or container.get("capAdds"):
        yield f"{where}: capDrops must contain ALL, and capAdds nothing"
    if not container.get("readOnly"):
        yield f"{where}.readOnly: must be true"
    if list(container.get("commands") or [])[:2] != NO_NEW_PRIVILEGES:
        yield f"{where}.commands: must begin with {' '.join(NO_NEW_PRIVILEGES)}"
    for mount in container.get("mounts") or []:
        if mount.get("type") == "bind":
            yield f"{where}.mounts: mounts the path {mount.get('source')} of a node; use a volume or a secret"
    for port in (service.props.get("endpointSpec") or {}).get("ports") or []:
        yield f"endpointSpec.ports: port {int(port.get('targetPort') or 0)} is open on every node; use Traefik"


def limited_tasks(service: Resource) -> Iterator[str]:
    """Yield the resources that a task of a Swarm service can use without a limit."""
    task = service.props.get("taskSpec") or {}
    limits = (task.get("resources") or {}).get("limits") or {}
    if not limits.get("memoryBytes") or not limits.get("nanoCpus"):
        yield "taskSpec.resources.limits: must set memoryBytes and nanoCpus"
    if not {"max-size", "max-file"} <= set((task.get("logDriver") or {}).get("options") or {}):
        yield "taskSpec.logDriver.options: must set max-size and max-file; without them, the log fills the disk"


def watched_tasks(service: Resource) -> Iterator[str]:
    """Yield what an update of a Swarm service lacks, so that a broken one would interrupt the service."""
    container = service.task_container
    if not (container.get("healthcheck") or {}).get("tests"):
        yield "taskSpec.containerSpec.healthcheck: must be set; without it, a task that does not answer gets requests"
    if not container.get("stopGracePeriod"):
        yield "taskSpec.containerSpec.stopGracePeriod: must be set: requests in flight need time to end"
    update = service.props.get("updateConfig") or {}
    if (update.get("failureAction"), update.get("order")) != ("rollback", "start-first"):
        yield "updateConfig: failureAction must be rollback, and order start-first"


RULES = (
    Rule("no-privileges", "A container has no privileges on the host.", CONTAINER, privileged),
    Rule("hardened", "A container has no capabilities, and its root file system is read-only.", CONTAINER, hardened),
    Rule(
        "no-host-paths",
        "A container mounts no path of the host, and never Docker's socket.",
        CONTAINER,
        no_path_of_the_host,
    ),
    Rule(
        "no-host-folders",
        "A volume is not bound to a folder of the host, except the backup target.",
        VOLUME,
        no_folder_of_the_host,
    ),
    Rule("pinned-images", "An image from a registry has a digest.", IMAGE, pinned),
    Rule("images-by-id", "A container names its image by ID.", CONTAINER, by_id),
    Rule("published-ports", "A host port belongs to Traefik, or is on 127.0.0.1.", CONTAINER, published),
    Rule("authenticated-routers", "Every router has authentication.", CONTAINER, authenticated),
    Rule("authenticated-edge", "A Traefik port that is open on every address has authentication.", CONTAINER, closed),
    Rule("watched", "A service has a health check and a stop grace period.", CONTAINER, watched),
    Rule("limited", "A container and its log have limits.", CONTAINER, limited),
    Rule("protected-data", "A data volume is protected outside dev.", VOLUME, kept),
    Rule("secrets-in-files", "No environment variable holds a secret.", CONTAINER, no_secret_in_the_environment),
    Rule("hardened-tasks", "A task of a Swarm service has no rights on its node.", SERVICE, hardened_tasks),
    Rule("limited-tasks", "A task of a Swarm service and its log have limits.", SERVICE, limited_tasks),
    Rule("watched-tasks", "A broken update of a Swarm service is rolled back.", SERVICE, watched_tasks),
    Rule("authenticated-tasks", "Every router to a Swarm service has authentication.", SERVICE, authenticated),
    Rule(
        "task-secrets-in-files",
        "No environment variable of a task holds a secret.",
        SERVICE,
        no_secret_in_the_environment,
    ),
)
