"""`make init`: the stack file of a stack of your own, created from that of dev."""

import os
import re
import socket
from pathlib import Path

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap

from operations.common.checkout import ROOT
from operations.common.console import StopError, output, progress
from operations.common.stack import ENCRYPTION_KEYS, NAME_PATTERN, NAME_RULE, Stack
from settings.secrets import SECRET_KEYS
from settings.stack import DEV, NAMESPACE

FIRST_PORT, LAST_PORT = 5000, 65535
LOWEST_PORT = 1024
WRITTEN = {"rotation": {"since", "done"}, "tls": {"issued"}}
"""Settings that `make up` and `make rotate` write, by section."""


def init(name: str) -> None:
    """Create `Pulumi.<name>.yaml` with the settings of dev, no secret, and a host port of its own.

    `PORT=` sets the port; without it, the first one from 5000 that no other stack uses. Raises `StopError` with every
    problem at once, before the file exists.
    """
    path = ROOT / f"Pulumi.{name}.yaml"
    port, problems = _port(os.environ.get("PORT") or "")
    if not re.fullmatch(NAME_PATTERN, name):
        problems.insert(0, f"STACK={name}: {NAME_RULE}")
    elif path.exists():
        problems.insert(0, f"STACK={name}: {path.name} exists already")
    if problems:
        lines = "\n".join(f"  {problem}" for problem in problems)
        raise StopError(
            f"no stack file was created\n{lines}\n  for a new stack on a free port, type: make init STACK=<name>"
        )
    _write(Stack(DEV), path, port)
    output(path.name)
    progress(
        f"created {path.name} from Pulumi.{DEV}.yaml, without its secrets; host port of the server: {port}\n"
        f"  to deploy it: make up STACK={name}\n"
        '  to protect data that you cannot lose, set mlflow:protectData: "true" and mlflow:backup: {enabled: true}\n'
        "  for a host name, TLS and a password: docs/operations/own-stack.md#with-the-bundled-traefik"
    )


def _port(given: str) -> tuple[int, list[str]]:
    """Return the host port of a new stack, and what is wrong with the one that was `given`."""
    used = _ports_of_stacks()
    if not given:
        free = (port for port in range(FIRST_PORT, LAST_PORT) if port not in used and _is_free(port))
        return next(free), []
    if not given.isdecimal() or not LOWEST_PORT <= int(given) <= LAST_PORT:
        return 0, [f"PORT={given}: must be a port from {LOWEST_PORT} to {LAST_PORT}, such as 5055"]
    port = int(given)
    if port in used:
        return port, [f"PORT={given}: {used[port]} publishes its server on this port"]
    return port, []


def _ports_of_stacks() -> dict[int, str]:
    """Return the server's host port of every stack file that can be read, and the name of the file."""
    found: dict[int, str] = {}
    for path in sorted(ROOT.glob("Pulumi.*.yaml")):
        try:
            port = Stack(path.name.split(".")[1]).settings.route.published_port
        except StopError:
            # Its own `make` commands report what is wrong with it.
            continue
        if port:
            found[port] = path.name
    return found


def _is_free(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _write(source: Stack, path: Path, port: int) -> None:
    """Write the stack file: comments and settings of `source`, without what is encrypted in it."""
    editor = YAML()
    editor.preserve_quotes = True
    editor.width = 4096
    document = editor.load(source.text) or CommentedMap()
    for key in ENCRYPTION_KEYS:
        document.pop(key, None)
    config = document.setdefault("config", CommentedMap())
    for key, value in list(config.items()):
        if key.removeprefix(f"{NAMESPACE}:") in SECRET_KEYS or (isinstance(value, dict) and set(value) == {"secure"}):
            del config[key]
    # What `make up` has written about the secrets and certificates of `source`.
    for section, written in WRITTEN.items():
        known = config.get(f"{NAMESPACE}:{section}") or {}
        for key in written & known.keys():
            del known[key]
        if not known:
            config.pop(f"{NAMESPACE}:{section}", None)
    server = config.setdefault(f"{NAMESPACE}:server", CommentedMap())
    server["port"] = port
    part = path.with_suffix(".part")
    with part.open("w") as file:
        editor.dump(document, file)
    text = part.read_text()
    header = f"# Created by `make init` from Pulumi.{source.name}.yaml. docs/settings.md lists all settings."
    part.write_text(re.sub(r"(?m)^# For a laptop: .*$", header, text, count=1))
    part.rename(path)
