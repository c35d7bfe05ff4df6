"""The address of a Docker host that is reached over SSH."""

from urllib.parse import urlsplit


def destination(host: str) -> list[str]:
    """Return the arguments of `ssh` for `host`: the port, if there is one, and the name with the user."""
    url = urlsplit(host)
    name = str(url.hostname)
    return [*(["-p", str(url.port)] if url.port else []), f"{url.username}@{name}" if url.username else name]
