"""The image of the server on every node of a cluster: a node without it is named before an update changes anything."""

import secrets
import time
from typing import Any

from docker.errors import APIError
from docker.types import ServiceMode

from offline.bodies import EngineLessError
from offline.host import Host
from operations.common.checkout import ROOT
from operations.common.console import StopError, make, progress
from operations.common.stack import Stack
from runtime.cluster import Cluster
from settings import names

PROBE_SECONDS = 300
"""How long the nodes may take to pull the image from a registry."""
CREATED_SECONDS = 3
"""How long Swarm may take to create the tasks of the check. Measured: less than one second."""
POLL_SECONDS = 0.5
CHECK = "image-check"
"""Beginning of the name of its Swarm service."""
ENDED = ("complete", "failed", "rejected", "shutdown")


def require_image_on_nodes(stack: Stack) -> None:
    """Build the image if the manager lacks it; raise `StopError` with every node that has no such image.

    A Swarm service starts a program of the image once on each node on which the server may run, and is removed.
    """
    settings = stack.settings
    if not settings.on_swarm:
        return
    daemon, cluster = stack.daemon, Cluster(stack.daemon)
    active = [node for node in cluster.nodes() if node.ready and node.active]
    alone = all(node.manager for node in active) and len(active) == 1
    built = settings.images.built(settings.parts).get("mlflow")
    if not alone and built and not daemon.has_image(built.name):
        progress(f"building {built.name}")
        try:
            Host(daemon, stack.name, ROOT).build(built.name, built.context, built.arguments, "build-mlflow.log")
        except EngineLessError as error:
            raise StopError(f"{error}; nothing was deployed\n  the whole log: build-mlflow.log") from None
    image = settings.images.mlflow.name if settings.images.mlflow else built.name if built else ""
    if not daemon.has_image(image):
        # It is built by the update, on the only node.
        return
    remove_checks(stack)
    progress(f"checking the image of the server on {len(active)} nodes")
    tasks = _tried(stack, image)
    if not tasks:
        raise StopError(
            "nothing was changed\n"
            f"  mlflow:swarm.constraints: no node satisfies {', '.join(settings.swarm.constraints)}\n"
            "    to see the nodes, type: docker node ls; for the labels of one: docker node inspect <node>; to add a "
            "label: docker node update --label-add mlflow=true <node>"
        )
    missing = {task["node"]: task["error"] for task in tasks if task["state"] != "complete"}
    if missing:
        lines = "\n".join(
            f"  {node}: {error}\n    type: docker save {image} | ssh {node} docker load"
            for node, error in missing.items()
        )
        raise StopError(
            f"nothing was changed: {len(missing)} of {len(tasks)} nodes cannot start the image of the server\n{lines}\n"
            f"  then type: {make('up', stack.name)}; or let the nodes pull it from a registry: "
            "docs/operations/swarm.md#the-image-on-every-node"
        )


def remove_checks(stack: Stack) -> None:
    """Remove the services of checks that were killed."""
    Cluster(stack.daemon).remove_all(f"{names.docker_name(stack.name, CHECK)}-")


def _tried(stack: Stack, image: str) -> list[dict[str, Any]]:
    """Start the image once on each eligible node; return the node, state and error of each task when all have ended."""
    api = stack.daemon.api
    name = f"{names.docker_name(stack.name, CHECK)}-{secrets.token_hex(3)}"
    template = {
        "ContainerSpec": {"Image": image, "Command": ["true"], "ReadOnly": True, "CapabilityDrop": ["ALL"]},
        "RestartPolicy": {"Condition": "none"},
        "Placement": {"Constraints": list(stack.settings.swarm.constraints)},
    }
    try:
        service = api.create_service(  # type: ignore[no-untyped-call]
            template, name=name, mode=ServiceMode("global"), labels={names.STACK_LABEL: stack.name}
        )["ID"]
    except APIError as error:
        raise StopError(f"the cluster does not start a service: {error.explanation}; nothing was changed") from None
    try:
        hosts = {node["ID"]: node["Description"]["Hostname"] for node in api.nodes()}
        begun = time.monotonic()
        while True:
            found = api.tasks(filters={"service": name})  # type: ignore[no-untyped-call]
            # Swarm tries again on a node that has refused a task, as long as the service exists.
            first = {task["NodeID"]: task for task in reversed(_by_age(found)) if task.get("NodeID")}
            waited = time.monotonic() - begun
            decided = all(task["Status"]["State"] in ENDED for task in first.values())
            if (waited > CREATED_SECONDS and decided) or waited > PROBE_SECONDS:
                break
            time.sleep(POLL_SECONDS)
        return [
            {
                "node": hosts.get(node, node),
                "state": task["Status"]["State"],
                "error": task["Status"].get("Err") or task["Status"].get("Message", ""),
            }
            for node, task in first.items()
        ]
    finally:
        api.remove_service(service)  # type: ignore[no-untyped-call]


def _by_age(tasks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(tasks, key=lambda task: str(task["CreatedAt"]))
