"""The tags of an image, from its registry.

The Docker daemon pulls images, but does not list tags, so this is an own request: the API of the OCI Distribution
Specification 1.1 (`/v2/<name>/tags/list`), with the logins of `docker login`.
"""

from typing import Any
from urllib.parse import urljoin

import requests
from docker.auth import load_config, resolve_repository_name
from docker.errors import DockerException
from requests.utils import parse_dict_header

TIMEOUT_S = 15
"""For each request."""
PAGE_SIZE = 1000
MAX_PAGES = 100
"""Registries may send less than `PAGE_SIZE` tags a page. A list that does not end is an error."""
HUB = "docker.io"
HUB_HOST = "registry-1.docker.io"
"""The host with the API of `docker.io`."""


class RegistryError(Exception):
    """A registry does not answer, or refuses. The message says which, and why."""


def tags(repository: str) -> list[str]:
    """Return all tags of a repository, such as `docker.io/library/postgres`; raise `RegistryError`."""
    registry, name = resolve_repository_name(repository)
    host = HUB_HOST if registry == HUB else registry
    if registry == HUB and "/" not in name:
        name = f"library/{name}"
    # As Docker does: without TLS on this host only.
    scheme = "http" if host.partition(":")[0] in ("localhost", "127.0.0.1") else "https"
    url: str | None = f"{scheme}://{host}/v2/{name}/tags/list?n={PAGE_SIZE}"
    found: list[str] = []
    try:
        with requests.Session() as session:
            for _ in range(MAX_PAGES):
                answer = _get(session, str(url), registry)
                found += answer.json().get("tags") or []
                link = answer.links.get("next", {}).get("url")
                if not link:
                    return found
                url = urljoin(str(url), link)
    except requests.RequestException as error:
        raise RegistryError(f"{host} does not answer: {_reason(error)}") from None
    except DockerException as error:
        raise RegistryError(f"Docker's configuration has no login for {registry}: {error}") from None
    raise RegistryError(f"{host} lists more than {MAX_PAGES} pages of tags of {name}")


def _get(session: requests.Session, url: str, registry: str) -> requests.Response:
    """Send a request, and once more with what the registry asks for if it refuses it."""
    answer = session.get(url, timeout=TIMEOUT_S)
    if answer.status_code == requests.codes.unauthorized:
        _log_in(session, answer, registry)
        answer = session.get(url, timeout=TIMEOUT_S)
    if answer.status_code in (requests.codes.unauthorized, requests.codes.forbidden):
        raise RegistryError(f"{registry} refuses the login, or has none\n    type: docker login {registry}")
    if answer.status_code == requests.codes.not_found:
        raise RegistryError(f"{registry} does not have this repository")
    answer.raise_for_status()
    return answer


def _log_in(session: requests.Session, refusal: requests.Response, registry: str) -> None:
    """Give the session what a registry asks for in its refusal: a token, or name and password."""
    method, _, rest = refusal.headers.get("WWW-Authenticate", "").partition(" ")
    login: dict[str, Any] = load_config().resolve_authconfig(registry) or {}
    user, password = (login.get(key) or login.get(key.lower()) for key in ("Username", "Password"))
    credentials = (str(user), str(password)) if user else None
    session.headers.pop("Authorization", None)
    if method.lower() != "bearer":
        session.auth = credentials
        return
    asked: dict[str, str] = parse_dict_header(rest)  # type: ignore[no-untyped-call]
    scope = {key: asked[key] for key in ("service", "scope") if key in asked}
    answer = session.get(asked["realm"], params=scope, auth=credentials, timeout=TIMEOUT_S)
    if not answer.ok:
        raise RegistryError(f"{registry} refuses the login\n    type: docker login {registry}")
    given = answer.json()
    session.headers["Authorization"] = f"Bearer {given.get('token') or given['access_token']}"


def _reason(error: requests.RequestException) -> str:
    """Return the cause of an error in short."""
    if isinstance(error, requests.Timeout):
        return f"no answer in {TIMEOUT_S} s"
    if isinstance(error, requests.exceptions.SSLError):
        return "its certificate is not trusted (see REQUESTS_CA_BUNDLE)"
    if isinstance(error, requests.ConnectionError):
        return "no connection"
    return str(error)
