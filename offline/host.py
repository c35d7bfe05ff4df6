"""Creates the program's resources on the Docker host, in the same way as Pulumi's Docker provider.

A container has a label with the hash of its inputs. An existing container with the same hash that runs, or has
completed, is kept. Any other is replaced, after the containers that must not outlive it are removed. The next run keeps
or replaces everything that a killed run left.
"""

import hashlib
import json
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from docker.errors import NotFound

from offline.bodies import (
    CONTAINER_KEYS,
    NESTED_KEYS,
    EngineLessError,
    container_body,
    ipam_config,
    labels_of,
    require_known,
    tar_archive,
)
from runtime.daemon import Daemon
from settings import names

HASH_LABEL = "mlflow.rehearsal"
"""Label of every resource of an engine-less deployment: the SHA-256 of its inputs."""
FOLLOWS_LABEL = "mlflow.rehearsal.follows"
"""Label: the containers that this one must not outlive (Pulumi's `replaceWith`), each with its hash: name=hash."""
BUILD_TIMEOUT_SECONDS = 1800
IMAGE_KEYS = {"name", "keepLocally", "build", "triggers"}
BUILD_KEYS = {"context", "buildArgs", "builder", "provenance", "buildLogFile"}
"""`builder` and `provenance` affect only Pulumi's builder, and are ignored here."""
NETWORK_KEYS = {"name", "internal", "labels", "ipamConfigs"}
VOLUME_KEYS = {"name", "labels", "driverOpts"}


class Host:
    """The Docker daemon, during one run for one stack. Several threads call its methods at once."""

    def __init__(self, daemon: Daemon, stack: str, folder: Path) -> None:
        """Deploy `stack` to `daemon`; relative paths of the program are relative to `folder`."""
        self.daemon = daemon
        self.stack = stack
        self.folder = folder
        self.used: set[str] = set()
        """Names of all resources that the program registered in this run."""
        self.made: set[str] = set()
        """Names of the containers that were created in this run."""
        self._removing = threading.Lock()

    def must_build(self, inputs: dict[str, Any]) -> bool:
        """Return whether an image has a build and does not exist yet."""
        return bool(inputs.get("build")) and not self.daemon.has_image(inputs["name"])

    def image(self, inputs: dict[str, Any]) -> str:
        """Return the id of an image, after building it if needed; raise `EngineLessError` if it is not on the host."""
        name, build = inputs["name"], inputs.get("build")
        require_known(IMAGE_KEYS, inputs)
        require_known(BUILD_KEYS, build or {}, of=name)
        if build and self.must_build(inputs):
            self.build(name, build["context"], build["buildArgs"], build["buildLogFile"])
        try:
            return str(self.daemon.api.inspect_image(name)["Id"])  # type: ignore[no-untyped-call]
        except NotFound:
            raise EngineLessError(f"the image {name} is not on this host") from None

    def build(self, name: str, context: str, arguments: Mapping[str, str], log_file: str) -> None:
        """Build an image, with its output in a file; raise `EngineLessError` if that fails."""
        events = self.daemon.api.build(
            path=str(self.folder / context),
            tag=name,
            buildargs=dict(arguments),
            rm=True,
            forcerm=True,
            decode=True,
            timeout=BUILD_TIMEOUT_SECONDS,
        )
        with (self.folder / log_file).open("w") as log:
            for event in events:
                log.write(event.get("stream", ""))
                if "error" in event:
                    raise EngineLessError(f"the build of {name} failed: {event['error']}")

    def network(self, inputs: dict[str, Any]) -> str:
        """Return the id of a network; create it if it is missing, and replace it if its inputs differ."""
        require_known(NETWORK_KEYS, inputs)
        name, wanted = inputs["name"], _hash(inputs)
        self.used.add(name)
        for found in self.daemon.api.networks(names=[name]):
            if found["Name"] != name:
                continue
            if self._ours(name, found["Labels"]) == wanted:
                return str(found["Id"])
            for container in self._made():
                if name in container["NetworkSettings"]["Networks"]:
                    self._remove(container["Names"][0].lstrip("/"))
            self.daemon.api.remove_network(found["Id"])
        labels = labels_of(inputs) | {HASH_LABEL: wanted}
        made = self.daemon.api.create_network(
            name,
            driver="bridge",
            internal=inputs.get("internal", False),
            labels=labels,
            check_duplicate=True,
            ipam=ipam_config(inputs.get("ipamConfigs") or []),
        )
        return str(made["Id"])

    def volume(self, inputs: dict[str, Any]) -> str:
        """Return the name of a volume; create it if it is missing. An unchanged volume keeps its content."""
        require_known(VOLUME_KEYS, inputs)
        labels = labels_of(inputs)
        # A data volume has no label, so that nothing prunes it.
        marks = labels | {HASH_LABEL: _hash(inputs)} if labels else None
        if marks and self._made_otherwise(inputs["name"], marks[HASH_LABEL]):
            for container in self._made():
                if inputs["name"] in [mount.get("Name") for mount in container["Mounts"]]:
                    self._remove(container["Names"][0].lstrip("/"))
            self.daemon.api.remove_volume(inputs["name"])
        self.daemon.api.create_volume(
            inputs["name"], driver="local", driver_opts=inputs.get("driverOpts"), labels=marks
        )
        self.used.add(inputs["name"])
        return str(inputs["name"])

    def _made_otherwise(self, volume: str, wanted: str) -> bool:
        """Return whether an engine-less deployment created a volume from other inputs."""
        if volume not in self.daemon.volumes():
            return False
        labels: dict[str, str] = self.daemon.api.inspect_volume(volume)["Labels"] or {}
        return labels.get(HASH_LABEL, wanted) != wanted

    def container(self, inputs: dict[str, Any], follows: Mapping[str, str]) -> tuple[str, str]:
        """Return the id of a container and the hash of its inputs; create or replace the container if needed.

        `follows` are the containers that it must not outlive, each with the hash of its inputs.
        """
        require_known(CONTAINER_KEYS, inputs)
        name = inputs["name"]
        for key, known in NESTED_KEYS.items():
            for entry in inputs.get(key, []):
                require_known(known, entry, of=f"{name}, {key}")
        wanted = _hash([inputs, dict(follows)])
        self.used.add(name)
        found = self.daemon.inspect(name)
        if (
            found is None
            or self._ours(name, found["Config"]["Labels"]) != wanted
            or not _has_expected_state(found, inputs)
        ):
            self._remove(name, successor=wanted)
            self.made.add(name)
            marks = {HASH_LABEL: wanted, FOLLOWS_LABEL: ",".join(f"{key}={follows[key]}" for key in sorted(follows))}
            body = container_body(inputs, marks)
            container_id = self.daemon.api.create_container_from_config(body, name)["Id"]  # type: ignore[no-untyped-call]
            if inputs.get("networksAdvanced"):
                self.daemon.api.disconnect_container_from_network(container_id, "bridge")
            for network in inputs.get("networksAdvanced", []):
                self.daemon.api.connect_container_to_network(container_id, network["name"])
            fresh = True
        else:
            container_id, fresh = found["Id"], False
        if uploads := inputs.get("uploads"):
            # Also into an existing container: a killed run may not have copied them.
            self.daemon.api.put_archive(container_id, "/", tar_archive(uploads))
        if fresh and inputs.get("start", True):
            self.daemon.api.start(container_id)
        return str(container_id), wanted

    def foreign_resources(self) -> list[str]:
        """Return every container, network and volume of this stack that was not deployed without the engine."""
        ours = {"label": f"{names.STACK_LABEL}={self.stack}"}
        api = self.daemon.api
        return sorted(
            [
                found["Names"][0].lstrip("/")
                for found in api.containers(all=True, filters=ours)
                if HASH_LABEL not in found["Labels"]
            ]
            + [
                found["Name"]
                for found in [*api.networks(filters=ours), *(api.volumes(filters=ours)["Volumes"] or [])]
                if HASH_LABEL not in found["Labels"]
            ]
        )

    def prune(self) -> None:
        """Remove the resources of earlier runs that this run did not register, except data volumes."""
        for container in self._made():
            name = container["Names"][0].lstrip("/")
            if name not in self.used:
                self._remove(name)
        ours = {"label": [HASH_LABEL, f"{names.STACK_LABEL}={self.stack}"]}
        for network in self.daemon.api.networks(filters=ours):
            if network["Name"] not in self.used:
                self.daemon.api.remove_network(network["Id"])
        for volume in self.daemon.api.volumes(filters=ours)["Volumes"] or []:
            if volume["Name"] not in self.used:
                self.daemon.api.remove_volume(volume["Name"])

    def _made(self) -> list[dict[str, Any]]:
        """Return every container of this stack that was deployed without the engine."""
        ours = {"label": [HASH_LABEL, f"{names.STACK_LABEL}={self.stack}"]}
        found: list[dict[str, Any]] = self.daemon.api.containers(all=True, filters=ours)
        return found

    def _ours(self, name: str, labels: dict[str, str] | None) -> str:
        """Return the hash of a resource's inputs; raise `EngineLessError` if it was not deployed without the engine."""
        if HASH_LABEL not in (labels or {}):
            raise EngineLessError(
                f"{name} exists already, and was created with the engine or by hand; it was not changed\n"
                "  if with the engine: put pulumi on the PATH to continue with that deployment; if by hand: remove it"
            )
        return (labels or {})[HASH_LABEL]

    def _remove(self, name: str, successor: str | None = None) -> None:
        """Stop and remove a container, after those that must not outlive it.

        Those are kept if `successor`, the hash of its replacement, is the same: it was removed by hand, or failed.
        """
        for follower in self._made():
            followed = dict(entry.split("=") for entry in follower["Labels"].get(FOLLOWS_LABEL, "").split(",") if entry)
            if name in followed and followed[name] != successor:
                self._remove(follower["Names"][0].lstrip("/"))
        with self._removing:
            found = self.daemon.inspect(name)
            if found is None:
                return
            if found["State"]["Running"]:
                self.daemon.api.stop(found["Id"], timeout=found["Config"].get("StopTimeout") or 10)
            self.daemon.api.remove_container(found["Id"], v=True, force=True)


def _hash(made_from: object) -> str:
    return hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()


def _has_expected_state(found: dict[str, Any], inputs: dict[str, Any]) -> bool:
    """Return whether a container with the right hash runs, has completed successfully, or is not to be started."""
    state = found["State"]
    if not inputs.get("start", True) or state["Running"]:
        return True
    return not inputs.get("mustRun", True) and state["Status"] == "exited" and state["ExitCode"] == 0
