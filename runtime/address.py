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
    folder = _configuration_folder()
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
            has_certificates = (folder / "contexts" / "tls" / path.parent.name / "docker").is_dir()
            if has_certificates and not os.environ.get("DOCKER_TLS_VERIFY"):
                # Neither the Docker client for Python nor Pulumi's provider reads them.
                raise DockerException(
                    f"the Docker context {chosen!r} has TLS certificates, which only Docker's own command line reads; "
                    "set DOCKER_HOST, DOCKER_TLS_VERIFY=1 and DOCKER_CERT_PATH"
                )
            host = meta["Endpoints"]["docker"].get("Host")
            return str(host) if host else None
    # A fallback to the local daemon could deploy production on a laptop.
    raise DockerException(f"the Docker context {chosen!r} does not exist; `docker context ls` lists the existing ones")


def _configuration_folder() -> Path:
    """Return the folder of Docker's configuration. The Docker command line takes an empty variable for none."""
    given = os.environ.get("DOCKER_CONFIG")
    return Path(given) if given else Path.home() / ".docker"


def client_certificates() -> docker.TLSConfig | bool:
    """Return the TLS configuration, from the same environment variables as the Docker command line."""
    if not os.environ.get("DOCKER_TLS_VERIFY"):
        return False
    given = os.environ.get("DOCKER_CERT_PATH")
    folder = Path(given) if given else _configuration_folder()
    pair = (str(folder / "cert.pem"), str(folder / "key.pem"))
    return docker.TLSConfig(client_cert=pair, ca_cert=str(folder / "ca.pem"), verify=True)
