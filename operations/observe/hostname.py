"""Whether the server's hostname can be used from this machine."""

import socket
from urllib.parse import urlsplit

from operations.common.stack import Stack
from runtime.ssh import destination


def ssh_forward_hint(stack: Stack) -> str | None:
    """Return how to reach the server from this machine if it listens on the loopback address of an SSH host."""
    host, url = stack.daemon.host, urlsplit(stack.settings.route.url)
    if not host.startswith("ssh://") or url.hostname != "127.0.0.1":
        return None
    forwarded = f"{url.port}:127.0.0.1:{url.port}"
    return (
        f"that is a loopback address of {urlsplit(host).hostname}; to use it on this machine, keep this running: "
        f"ssh -nNT -L {forwarded} {' '.join(destination(host))}"
    )


def unresolved_hostname_message(hostname: str) -> str:
    """Return the message for a hostname that does not resolve."""
    return (
        f"mlflow:hostname: {hostname} does not resolve on this machine, so clients here cannot reach it\n"
        "  add a DNS record that points to the Docker host; or, for a trial on this machine only: "
        f"echo '127.0.0.1 {hostname}' | sudo tee -a /etc/hosts"
    )


def resolution_problem(stack: Stack) -> str | None:
    """Return the problem with the server's hostname if it does not resolve on this machine, or None."""
    settings = stack.settings
    if settings.traefik.mode == "off" or not settings.hostname:
        return None
    try:
        socket.getaddrinfo(settings.hostname, None)
    except (socket.gaierror, UnicodeError):
        return unresolved_hostname_message(settings.hostname)
    return None
