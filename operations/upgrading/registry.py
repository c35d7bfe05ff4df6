"""The tags of an image, from its registry.

The Docker daemon pulls images, but does not list tags, so this is an own request: the API of the OCI Distribution
Specification 1.1 (`/v2/<name>/tags/list`), with the logins of `docker login`. It is sent from this machine, with its
proxies and authorities; mirrors and insecure registries of the Docker daemon do not apply to it.
"""

from typing import Any
from urllib.parse import urljoin, urlsplit

import requests
from docker.auth import load_config, resolve_repository_name
from docker.errors import DockerException
from requests.auth import HTTPBasicAuth
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
    try:
        registry, name = resolve_repository_name(repository)
    except DockerException as error:
        raise RegistryError(str(error)) from None
    host = HUB_HOST if registry == HUB else registry
    if registry == HUB and "/" not in name:
        name = f"library/{name}"
    # A registry on this host has no TLS.
    scheme = "http" if host.partition(":")[0] in ("localhost", "127.0.0.1") else "https"
    try:
        with requests.Session() as session:
            return _all_tags(session, f"{scheme}://{host}/v2/{name}/tags/list?n={PAGE_SIZE}", registry)
    except requests.RequestException as error:
        raise RegistryError(f"{host} does not answer: {_reason(error)}") from None
    except DockerException as error:
        raise RegistryError(f"Docker's configuration has no login for {registry}: {error}") from None
    except (KeyError, ValueError, TypeError) as error:
        raise RegistryError(f"{host} answers in a form that is not that of a registry: {error!r}") from None
    except OSError as error:
        # Such as a file of authorities that does not exist.
        raise RegistryError(f"{host} cannot be asked: {error}") from None


def _all_tags(session: requests.Session, url: str, registry: str) -> list[str]:
    """Return the tags of all pages."""
    # Otherwise, a login in ~/.netrc would replace that of Docker.
    session.auth = _anonymous
    found: list[str] = []
    for _ in range(MAX_PAGES):
        answer = _get(session, url, registry)
        found += answer.json().get("tags") or []
        link = answer.links.get("next", {}).get("url")
        if not link:
            return found
        # Of an address, only the path: the login is for this host.
        url = urljoin(url, urlsplit(link)._replace(scheme="", netloc="").geturl())
    raise RegistryError(f"{registry} lists more than {MAX_PAGES} pages of tags")


def _anonymous(request: requests.PreparedRequest) -> requests.PreparedRequest:
    return request


def _get(session: requests.Session, url: str, registry: str) -> requests.Response:
    """Send a request, and once more with what the registry asks for if it refuses it."""
    answer = session.get(url, timeout=TIMEOUT_S)
    if answer.status_code == requests.codes.unauthorized:
        session.auth = _login(session, answer, registry)
        answer = session.get(url, timeout=TIMEOUT_S)
    if answer.status_code in (requests.codes.unauthorized, requests.codes.forbidden):
        raise RegistryError(f"{registry} refuses the login, or has none\n    type: docker login {registry}")
    if answer.status_code == requests.codes.not_found:
        raise RegistryError(f"{registry} does not have this repository")
    answer.raise_for_status()
    return answer


def _login(session: requests.Session, refusal: requests.Response, registry: str) -> Any:  # noqa: ANN401 - as requests
    """Return what a registry asks for in its refusal: a token, or name and password."""
    method, _, rest = refusal.headers.get("WWW-Authenticate", "").partition(" ")
    login: dict[str, Any] = load_config().resolve_authconfig(registry) or {}
    user, password = (login.get(key) or login.get(key.lower()) for key in ("Username", "Password"))
    known: Any = HTTPBasicAuth(str(user), str(password)) if user else _anonymous
    if method.lower() != "bearer":
        return known
    asked: dict[str, str] = parse_dict_header(rest)  # type: ignore[no-untyped-call]
    scope: dict[str, str] = {key: asked[key] for key in ("service", "scope") if key in asked}
    if identity := login.get("IdentityToken"):
        # As Docker does, by OAuth2.
        form: dict[str, str] = {
            **scope,
            "grant_type": "refresh_token",
            "refresh_token": str(identity),
            "client_id": "docker",
        }
        answer = session.post(asked["realm"], data=form, auth=_anonymous, timeout=TIMEOUT_S)
    else:
        answer = session.get(asked["realm"], params=scope, auth=known, timeout=TIMEOUT_S)
    if not answer.ok:
        raise RegistryError(f"{registry} refuses the login\n    type: docker login {registry}")
    given = answer.json()
    token = given.get("token") or given["access_token"]

    def bearer(request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = f"Bearer {token}"
        return request

    return bearer


def _reason(error: requests.RequestException) -> str:
    """Return the cause of an error in short."""
    if isinstance(error, requests.Timeout):
        return f"no answer in {TIMEOUT_S} s"
    if isinstance(error, requests.exceptions.SSLError):
        if "WRONG_VERSION_NUMBER" in str(error):
            return "it speaks HTTP without TLS"
        return "its certificate is not trusted; REQUESTS_CA_BUNDLE=<file> names the authorities to trust"
    if isinstance(error, requests.ConnectionError):
        return "no connection"
    return str(error)
