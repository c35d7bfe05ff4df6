"""The address of a Docker host that is reached over SSH."""

import re
from urllib.parse import urlsplit


def destination(host: str) -> list[str]:
    """Return the arguments of `ssh` for `host`: the port, if there is one, and the name with the user."""
    url = urlsplit(host)
    # As it is written: `url.hostname` is in lower case, and ssh distinguishes the case of the hosts in its config.
    name = re.sub(r":\d*$", "", url.netloc.rpartition("@")[2]).strip("[]")
    return [*(["-p", str(url.port)] if url.port else []), f"{url.username}@{name}" if url.username else name]
