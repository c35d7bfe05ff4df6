"""The checks across sections of the settings."""

import ipaddress
import itertools
import re
from collections.abc import Collection, Iterator
from typing import get_args

from pydantic.alias_generators import to_camel

from settings import packages, variables
from settings.base import NO_DIGEST, Settings
from settings.images import DEFAULTS
from settings.monitoring import BUNDLED_MONITORING_ONLY
from settings.object_store import ObjectStoreSettings
from settings.secrets import (
    CERTIFICATE_SECRET,
    DNS_SECRET,
    KEY_SECRET,
    TARGET_SECRET,
)
from settings.server_checks import server_contradictions
from settings.stack import StackConfig, major
from settings.tls_checks import tls_contradictions
from settings.traefik import BUNDLED_ONLY, EXISTING_ONLY, SINGLE_SIGN_ON, Authentication

SEAWEEDFS_MB = 1024
"""Minimum memory of SeaweedFS. Measured: three slow downloads and an upload of 600 MB each take 705 MB; with a limit
of 512 MB the kernel killed it."""
OLDEST_POSTGRES = 18
"""Oldest supported major version: with it the official image moved its data directory. (The built-in collation exists
since the version before.)"""
AUTHENTICATES_NOBODY = re.compile(
    r"(^|[-_])(no|non|without|skip|bypass|disabled?|off|anonymous)[-_]?(auth|login|sso|oidc|$)|unauth"
    r"|(auth|login|sso|oidc)[-_]?(off|bypass|disabled|none)",
    re.IGNORECASE,
)
"""Matches the names of middlewares that do not authenticate. policy/rules.py has the same pattern."""


def contradictions(config: StackConfig) -> Iterator[tuple[set[str], str]]:
    """Yield the problems across settings: the sections involved, and the message."""
    server = config.server
    yield from server_contradictions(config)
    for name, reason in variables.refused(server.environment):
        yield {"server"}, f"mlflow:server.environment.{name}: {reason}; docs/mlflow-variables.md"
    yield from _route_contradictions(config)
    yield from _authentication_contradictions(config)
    yield from tls_contradictions(config)
    postgres = config.images.postgres.ref
    tag = postgres.rpartition(":")[2]
    if postgres != packages.ref("postgres") and ((major(postgres) or 0) < OLDEST_POSTGRES or "alpine" in tag):
        yield (
            {"images"},
            "mlflow:images.postgres.ref: must be a Debian variant whose tag begins with a major version of at "
            f"least {OLDEST_POSTGRES}, such as postgres:18.6, got {postgres!r}",
        )
    if server.bind_address == "0.0.0.0" and config.hostname is None:  # noqa: S104
        yield (
            {"server", "hostname"},
            "mlflow:hostname: is required when mlflow:server.bindAddress is 0.0.0.0: the server rejects requests for "
            "any other host name",
        )
    yield from _subnet_contradictions(config)
    yield from _without_a_use(config)
    yield from _object_store_contradictions(config.object_store)
    if config.backup.enabled and config.images.backup is None and ("bookworm" in tag or "bullseye" in tag):
        yield (
            {"images", "backup"},
            "mlflow:images.postgres.ref: must be based on Debian 13, such as postgres:18.6: the backup image is built "
            f"on it, and the restic of earlier Debian releases lacks functions that a backup needs, got {postgres!r}",
        )
    if config.backup.where == "s3" and not config.backup.access_key_id:
        yield (
            {"backup"},
            "mlflow:backup.accessKeyId: is required for the S3 target of mlflow:backup",
        )
    yield from _monitoring_contradictions(config)
    yield from _image_contradictions(config)
    yield from _ports_used_twice(config)


def _subnet_contradictions(config: StackConfig) -> Iterator[tuple[set[str], str]]:
    subnets = config.docker_networks.subnets
    for service in sorted(subnets.keys() - config.networks):
        yield (
            {"networks"},
            f"mlflow:networks.subnets.{service}: is ignored: with these settings the stack has no network {service}; "
            "remove it",
        )
    for (one, subnet), (other, another) in itertools.combinations(sorted(subnets.items()), 2):
        if ipaddress.IPv4Network(subnet).overlaps(ipaddress.IPv4Network(another)):
            yield {"networks"}, f"mlflow:networks.subnets.{one}: {subnet} overlaps with {another} of {other}"


def _without_a_use(config: StackConfig) -> Iterator[tuple[set[str], str]]:
    """Yield the settings that have no effect. They are refused, so that nobody relies on them."""
    server, backup, monitoring = config.server, config.backup, config.monitoring
    # Condition, the sections involved (the setting's own first), that section's values, its keys, and the reason.
    rules: list[tuple[bool, tuple[str, ...], Settings, Collection[str], str]] = [
        (
            not config.on_swarm,
            ("swarm", "runtime"),
            config.swarm,
            ("encrypted", "constraints", "metrics"),
            "mlflow:runtime is container; set it to swarm, or remove this setting",
        ),
        (
            config.on_swarm and not config.monitoring.on,
            ("swarm", "monitoring"),
            config.swarm,
            ("metrics",),
            "mlflow:monitoring.mode is off; set it to bundled or exporters",
        ),
        (
            config.route.published_port is None,
            ("server", "traefik"),
            server,
            ("bind_address",),
            "the server has no host port; set mlflow:server.port, or remove it",
        ),
        (
            not config.route.by_mlflow,
            ("server", "authentication"),
            server,
            ("default_permission",),
            "mlflow:authentication is not mlflow; remove this setting",
        ),
        (
            not backup.deletes,
            ("backup",),
            backup,
            ("keep_daily", "keep_weekly", "keep_monthly"),
            "mlflow:backup.deletes is false, so no backup is deleted; remove this setting",
        ),
        (
            monitoring.mode != "bundled",
            ("monitoring",),
            monitoring,
            BUNDLED_MONITORING_ONLY,
            f"mlflow:monitoring.mode is {monitoring.mode}; set it to bundled",
        ),
    ]
    for idle, sections, section, names, why in rules:
        for name in names if idle else ():
            if name in section.model_fields_set and getattr(section, name):
                yield set(sections), f"mlflow:{sections[0]}.{to_camel(name)}: is ignored while {why}"


def _route_contradictions(config: StackConfig) -> Iterator[tuple[set[str], str]]:
    traefik = config.traefik
    if traefik.mode != "off" and config.hostname is None:
        yield (
            {"traefik", "hostname"},
            f"mlflow:hostname: is required when mlflow:traefik.mode is {traefik.mode}; add to the "
            "stack file: mlflow:hostname: mlflow.example.com",
        )
    if traefik.cert_resolver and not traefik.tls:
        yield (
            {"traefik"},
            f"mlflow:traefik.certResolver: {traefik.cert_resolver!r} is ignored while mlflow:traefik.tls is false; "
            "set tls to true, or remove certResolver",
        )
    if config.route.by_single_sign_on and not traefik.tls:
        yield (
            {"traefik", "authentication"},
            "mlflow:traefik.tls: must be true for mlflow:authentication "
            f"{config.authentication}: a login page and its cookies need TLS",
        )
    if traefik.certificate == "acme" and not traefik.acme_email:
        yield (
            {"traefik"},
            "mlflow:traefik.acmeEmail: is required for mlflow:traefik.certificate acme: the certificate authority "
            "sends its messages there",
        )
    others = {"existing": BUNDLED_ONLY, "bundled": EXISTING_ONLY, "off": ()}[traefik.mode]
    for name in others:
        if name in traefik.model_fields_set:
            yield (
                {"traefik"},
                f"mlflow:traefik.{to_camel(name)}: is ignored while mlflow:traefik.mode is {traefik.mode}; remove it",
            )


def _authentication_contradictions(config: StackConfig) -> Iterator[tuple[set[str], str]]:
    """Yield the problems that would leave an endpoint without authentication, or reject everybody."""
    traefik, server, chosen = config.traefik, config.server, config.authentication
    key = "mlflow:authentication"
    if traefik.mode == "off":
        if chosen not in (None, "anonymous", "mlflow"):
            yield (
                {"authentication", "traefik"},
                f"{key}: {chosen} needs Traefik, and mlflow:traefik.mode is off; use mlflow or anonymous",
            )
        return
    if chosen is None:
        yield (
            {"authentication", "traefik"},
            f"{key}: is required when mlflow:traefik.mode is {traefik.mode}: one of "
            f"{', '.join(get_args(Authentication))}; docs/security.md#authentication",
        )
    elif chosen in SINGLE_SIGN_ON and traefik.mode == "existing" and traefik.single_sign_on not in traefik.middlewares:
        yield (
            {"authentication", "traefik"},
            f"mlflow:traefik.singleSignOn: must be the entry of mlflow:traefik.middlewares that authenticates, such as "
            f"authelia@docker, because {key} is {chosen}; got {traefik.single_sign_on!r}",
        )
    elif (
        chosen in SINGLE_SIGN_ON
        and traefik.mode == "existing"
        and AUTHENTICATES_NOBODY.search(str(traefik.single_sign_on))
    ):
        yield (
            {"authentication", "traefik"},
            f"mlflow:traefik.singleSignOn: the name {traefik.single_sign_on} says that it does not authenticate; set "
            "the middleware that does, such as authelia@docker",
        )
    elif chosen in SINGLE_SIGN_ON and traefik.mode == "bundled" and not traefik.forward_auth:
        yield (
            {"authentication", "traefik"},
            f"mlflow:traefik.forwardAuth: is required for {key} {chosen}: the URL of your identity provider, such as "
            "http://authelia:9091/api/authz/forward-auth",
        )
    elif chosen not in SINGLE_SIGN_ON and (unused := traefik.single_sign_on or traefik.forward_auth):
        name = "singleSignOn" if traefik.single_sign_on else "forwardAuth"
        yield (
            {"authentication", "traefik"},
            f"mlflow:traefik.{name}: {unused!r} is ignored while {key} is {chosen}; remove it, or set {key} "
            "to singleSignOn",
        )
    if traefik.mode == "bundled" and chosen == "anonymous" and "bind_address" not in traefik.model_fields_set:
        yield (
            {"authentication", "traefik"},
            f"{key}: anonymous would allow everybody who reaches this host to read, change and delete everything; "
            "choose password, or set mlflow:traefik.bindAddress to 127.0.0.1 or to an address in a private network",
        )
    past_traefik = server.port and server.bind_address != "127.0.0.1"
    if past_traefik and chosen not in ("anonymous", "mlflow"):
        yield (
            {"authentication", "traefik", "server"},
            f"mlflow:server.port: would publish the server on {server.bind_address} without authentication; "
            "remove it, or mlflow:server.bindAddress",
        )


def missing_secrets(config: StackConfig, given: Collection[str]) -> Iterator[tuple[str, str, str]]:
    """Yield the required secrets that are missing and cannot be generated: section, key, message."""
    certificate = config.traefik.certificate if config.traefik.mode == "bundled" else ""
    by_section: dict[tuple[str, str], Collection[str]] = {
        ("traefik", f"mlflow:traefik.certificate {certificate}"): {
            "own": (CERTIFICATE_SECRET, KEY_SECRET),
            "acme": (DNS_SECRET,),
        }.get(certificate, ()),
        ("monitoring", "mlflow:monitoring"): config.monitoring.secrets,
        ("backup", "the S3 target of mlflow:backup"): (TARGET_SECRET,) if config.backup.needs_egress else (),
    }
    for (section, what_for), wanted in by_section.items():
        for key in wanted:
            if key not in given:
                yield section, key, f"mlflow:{key}: is required for {what_for}"


def _object_store_contradictions(store: ObjectStoreSettings) -> Iterator[tuple[set[str], str]]:
    if store.copy_from == store.kind:
        yield (
            {"objectStore"},
            f"mlflow:objectStore.copyFrom: must differ from mlflow:objectStore.kind, got {store.kind!r}",
        )
    if "seaweedfs" in store.kinds and store.memory_mb < SEAWEEDFS_MB:
        yield (
            {"objectStore"},
            f"mlflow:objectStore.memoryMb: must be at least {SEAWEEDFS_MB} for seaweedfs, got {store.memory_mb}",
        )
    if store.console_port and "minio" not in store.kinds:
        yield {"objectStore"}, f"mlflow:objectStore.consolePort: {store.kind} has no console; remove it"


def _monitoring_contradictions(config: StackConfig) -> Iterator[tuple[set[str], str]]:
    monitoring = config.monitoring
    if (
        monitoring.mode == "bundled"
        and monitoring.grafana_port
        and config.images.source == "packages"
        and "grafana" not in config.images.model_fields_set
    ):
        yield (
            {"monitoring", "images"},
            "mlflow:monitoring.grafanaPort: Grafana cannot be built from packages; set mlflow:images.grafana.ref, or "
            "remove grafanaPort and import assets/monitoring/dashboards/ into another Grafana",
        )


def _image_contradictions(config: StackConfig) -> Iterator[tuple[set[str], str]]:
    images = config.images
    if images.source == "packages":
        if "minio" in config.object_store.kinds and images.minio.ref == DEFAULTS["minio"]["ref"]:
            yield (
                {"images", "objectStore"},
                "mlflow:images.source: MinIO cannot be built from packages; set mlflow:objectStore.kind to seaweedfs",
            )
    elif images.debian_sources:
        yield {"images"}, "mlflow:images.debianSources: is ignored while mlflow:images.source is registry; remove it"
    pinned = [image.ref for image in config.pulled_images if image.digest != NO_DIGEST]
    if config.images.archive and pinned:
        yield (
            {"images", "objectStore"},
            "mlflow:images.archive: an image loaded from a file has no digest; set digest: none for "
            f"{', '.join(pinned)}",
        )


def _ports_used_twice(config: StackConfig) -> Iterator[tuple[set[str], str]]:
    bundled = config.traefik.mode == "bundled"
    users: dict[int, str] = {}
    for key, port in (
        ("server.port", config.route.published_port),
        ("postgres.port", config.postgres.port),
        ("objectStore.consolePort", config.object_store.console_port),
        ("monitoring.prometheusPort", config.monitoring.prometheus_port),
        ("monitoring.alertmanagerPort", config.monitoring.alertmanager_port),
        ("monitoring.grafanaPort", config.monitoring.grafana_port),
        ("traefik.httpPort", config.traefik.http_port if bundled else None),
        ("traefik.httpsPort", config.traefik.https_port if bundled else None),
    ):
        if port and port in users:
            yield (
                {"server", "postgres", "objectStore", "traefik", "monitoring"},
                f"mlflow:{key}: port {port} is already used by mlflow:{users[port]}",
            )
        elif port:
            users[port] = key
