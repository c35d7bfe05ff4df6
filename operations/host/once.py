"""Containers that run a script of this project once, beside the stack, and are then removed."""

import io
import tarfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from operations.common.console import relay_output
from operations.common.stack import Stack
from settings import names

UID = 65534
"""User of the containers: nobody."""
MEMORY_MB = 768


def run_once(
    stack: Stack,
    service: str,
    *,
    image: str,
    command: Sequence[str],
    environment: Mapping[str, str],
    files: Mapping[str, str],
    networks: Sequence[str],
    tell: Callable[[str], None] = relay_output,
    host: Mapping[str, Any] | None = None,
    user: int = UID,
) -> int:
    """Run `command` with `files` (path to content, readable by `user` only); return its exit code.

    The container belongs to no deployment: its name is that of `service`. `host` is added to its `HostConfig`.
    """
    body = {
        "Image": image,
        # So that `make destroy` finds it if this command is killed.
        "Labels": {names.STACK_LABEL: stack.name},
        "User": f"{user}:{user}",
        "Entrypoint": [],
        "Cmd": [*command],
        "Env": [f"{key}={value}" for key, value in environment.items()],
        "HostConfig": {
            "CapDrop": ["ALL"],
            "SecurityOpt": ["no-new-privileges:true"],
            "Init": True,
            "Memory": MEMORY_MB * 2**20,
            "MemorySwap": MEMORY_MB * 2**20,
            **(host or {}),
        },
    }
    name = names.docker_name(stack.name, service)
    return stack.daemon.once(name, body, tell, networks=networks, archive=packed(files, user))


def networks_of(stack: Stack, service: str) -> list[str]:
    """Return the names of the networks of a service's container; empty if there is no container."""
    found = stack.daemon.inspect(names.docker_name(stack.name, service))
    return sorted(found["NetworkSettings"]["Networks"]) if found else []


def backend(stack: Stack) -> list[str]:
    """Return the name of the network of the data services."""
    return [name for name in networks_of(stack, "postgres") if "-backend" in name]


def packed(files: Mapping[str, str], user: int) -> bytes:
    """Return the files as an archive for the container's root."""
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as archive:
        for path, content in files.items():
            entry = tarfile.TarInfo(path.lstrip("/"))
            entry.size, entry.mode, entry.uid, entry.gid = len(content.encode()), 0o400, user, user
            archive.addfile(entry, io.BytesIO(content.encode()))
    return raw.getvalue()
