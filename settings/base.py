"""The base class of all sections of settings, and the types that their fields share."""

import ipaddress
import re
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

NO_DIGEST = "none"
MINIMUM_PREFIX, MAXIMUM_PREFIX = 8, 28
"""Prefix lengths of a subnet. The smallest subnet has room for 13 containers."""


class Settings(BaseModel):
    """A section of the stack file. It is immutable, uses camelCase in YAML, and refuses unknown keys."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", alias_generator=to_camel, populate_by_name=False, validate_default=True
    )


def in_words(pattern: str, words: str) -> AfterValidator:
    """Return a validator that refuses a value that does not match `pattern`, with `words` as the message."""

    def check(value: str) -> str:
        if re.fullmatch(pattern, value) is None:
            raise ValueError(words)
        return value

    return AfterValidator(check)


Port = Annotated[int, Field(ge=1024, le=65535)]
PublicPort = Annotated[int, Field(ge=1, le=65535)]
"""A host port for clients from outside, so a privileged port such as 443 is permitted."""


def _not_a_multiple_of_ten(value: float) -> float:
    if value % 10 == 0:
        raise ValueError(
            f"must not be a multiple of ten: the Docker provider misreads it in every plan; use {value - 0.1}"
        )
    return value


Cpus = Annotated[float, Field(ge=0.1, le=64), AfterValidator(_not_a_multiple_of_ten)]
Hostname = Annotated[
    str,
    in_words(
        r"(?=.{1,253}$)[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*",
        "must be a lowercase host name such as mlflow.example.com, without scheme, port or path",
    ),
]
Address = Annotated[
    str,
    in_words(
        r"(25[0-5]|2[0-4]\d|1?\d?\d)(\.(25[0-5]|2[0-4]\d|1?\d?\d)){3}",
        "must be an IPv4 address of this host such as 127.0.0.1",
    ),
]
NetworkName = Annotated[
    str,
    in_words(r"[A-Za-z0-9][A-Za-z0-9_.-]*", "must be the name of a Docker network such as shared-network"),
]
Bucket = Annotated[
    str,
    in_words(
        r"[a-z0-9][a-z0-9-]{1,61}[a-z0-9]",
        "must be a bucket name: 3 to 63 lowercase letters, digits and hyphens",
    ),
]
TraefikName = Annotated[
    str,
    in_words(r"[A-Za-z0-9_-]+", "must be a name from your Traefik's configuration, such as websecure"),
]
Middleware = Annotated[
    str,
    in_words(
        r"[A-Za-z0-9_-]+@[a-z]+",
        "must be <name>@<provider> as Traefik's dashboard shows it, such as authelia@docker",
    ),
]
TraefikReference = Annotated[
    str,
    in_words(
        r"[A-Za-z0-9_-]+@[a-z]+",
        "must be <name>@<provider> from your Traefik's configuration, such as mlflow@file",
    ),
]
Email = Annotated[str, in_words(r"[^@\s]+@[^@\s]+\.[^@\s]+", "must be an e-mail address such as you@example.com")]
HttpUrl = Annotated[
    str, in_words(r"https?://[^\s/]+(/\S*)?", "must be a URL such as http://authelia:9091/api/authz/forward-auth")
]
HostAndPort = Annotated[
    str, in_words(r"[A-Za-z0-9.-]+:\d{1,5}", "must be a host and a port such as smtp.example.com:587")
]
BackupTarget = Annotated[
    str,
    in_words(
        r"volume|(?!/(bin|boot|dev|etc|lib|lib64|proc|root|run|sbin|sys|usr|var/run|var/lib/docker)(/|$))/[^\s:]*[^\s:/]"
        r"|s3:https?://[^\s/]+/\S+",
        "must be volume, a folder on the Docker host such as /srv/backup (not a system folder), or "
        "s3:https://s3.example.com/bucket/path",
    ),
]


def _subnet(value: str) -> str:
    try:
        network = ipaddress.IPv4Network(value)
    except ValueError:
        network = None
    if network is None or not network.is_private or not MINIMUM_PREFIX <= network.prefixlen <= MAXIMUM_PREFIX:
        raise ValueError(
            f"must be a private IPv4 network of /{MINIMUM_PREFIX} to /{MAXIMUM_PREFIX} such as 10.213.0.0/26"
        )
    return value


Subnet = Annotated[str, AfterValidator(_subnet)]


def _cron(value: str) -> str:
    # Imported here, so that a preview loads croniter only if a schedule is set.
    from croniter import croniter  # noqa: PLC0415

    if len(value.split()) != 5 or not croniter.is_valid(value):  # noqa: PLR2004
        raise ValueError("must be minute, hour, day of the month, month and day of the week, such as 17 3 * * *")
    return value


Cron = Annotated[str, AfterValidator(_cron)]
AptSource = Annotated[
    str,
    in_words(
        r"deb (\[[^\]]+\] )?\S+ \S+( \S+)+",
        "must be a line of apt's sources.list such as deb https://mirror.example.com/debian trixie main",
    ),
]
ImageName = Annotated[
    str,
    in_words(
        r"[^\s@]+:(?!latest$)[A-Za-z0-9_][A-Za-z0-9_.-]*",
        "must be <image>:<tag> with a tag other than latest; set the digest under the key digest",
    ),
]
Digest = Annotated[
    str,
    in_words(rf"sha256:[0-9a-f]{{64}}|{NO_DIGEST}", f"must be sha256:<64 hex digits>, or {NO_DIGEST}"),
]
