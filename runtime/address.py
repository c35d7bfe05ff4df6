"""The address of the Docker daemon, and the client certificates for it."""

import json
import os
from pathlib import Path

import docker
from docker.errors import DockerException

DEFAULT_HOST = "unix:///var/run/docker.sock"


def resolve_host(configured: str | None = None) -> str:
    """Return the address of the Docker daemon.

    The order is that of the Docker command line, after the stack's setting: `docker:host`, `DOCKER_HOST`,
    `DOCKER_CONTEXT`, the context that `docker context use` selected, the local socket.
    """
    return configured or os.environ.get("DOCKER_HOST") or _context_host() or DEFAULT_HOST


def _context_host() -> str | None:
    folder = Path(os.environ.get("DOCKER_CONFIG", Path.home() / ".docker"))
    try:
        chosen = os.environ.get("DOCKER_CONTEXT") or json.loads((folder / "config.json").read_text()).get(
            "currentContext"
        )
    except (OSError, ValueError):
        return None
    if chosen in (None, "", "default"):
        return None
    for path in folder.glob("contexts/meta/*/meta.json"):
        meta = json.loads(path.read_text())
        if meta.get("Name") == chosen:
            host = meta["Endpoints"]["docker"].get("Host")
            return str(host) if host else None
    # A fallback to the local daemon could deploy production on a laptop.
    raise DockerException(f"the Docker context {chosen!r} does not exist; `docker context ls` lists the existing ones")


def client_certificates() -> docker.TLSConfig | bool:
    """Return the TLS configuration, from the same environment variables as the Docker command line."""
    if not os.environ.get("DOCKER_TLS_VERIFY"):
        return False
    folder = Path(os.environ.get("DOCKER_CERT_PATH", Path.home() / ".docker"))
    pair = (str(folder / "cert.pem"), str(folder / "key.pem"))
    return docker.TLSConfig(client_cert=pair, ca_cert=str(folder / "ca.pem"), verify=True)
