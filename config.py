"""The settings of a stack: composed from every component's own, checked as a whole, and refused in words."""

import difflib
import ipaddress
import itertools
import json
import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, Self, get_args

import pulumi
from pydantic import Field, ValidationError
from pydantic.alias_generators import to_camel
from pydantic_core import ErrorDetails

from components import packaged, variables
from components.backup import TARGET_SECRET, BackupSettings
from components.credentials import ACCEPTED, ACCEPTED_WORDS
from components.images import DEFAULTS, Image, ImagesSettings
from components.mlflow import BASE_MB, JOBS_MB, MAX_OVERFLOW, POOL_SIZE, WORKER_MB, ServerSettings
from components.monitoring import (
    BUNDLED_MONITORING_ONLY,
    MAIL_SECRET,
    SWITCH_SECRET,
    WEBHOOK_SECRET,
    MonitoringSettings,
)
from components.networks import ExtraNetwork, NetworksSettings
from components.object_store import ObjectStoreSettings
from components.postgres import PostgresSettings
from components.route import (
    BUNDLED_ONLY,
    CERTIFICATE_SECRET,
    DNS_SECRET,
    EXISTING_ONLY,
    KEY_SECRET,
    SINGLE_SIGN_ON,
    Authentication,
    Route,
    TraefikSettings,
)
from components.settings import NO_DIGEST, Hostname, Settings

NAMESPACE = "mlflow"
GENERATED = (
    "postgresPassword",
    "minioRootPassword",
    "minioPassword",
    "seaweedfsAdminPassword",
    "seaweedfsPassword",
    "cryptoKekPassphrase",
    "webhookEncryptionKey",
    "postgresBackupPassword",
    "minioBackupPassword",
    "seaweedfsBackupPassword",
    "backupPassword",
    "clientPassword",
    "adminPassword",
    "flaskSecretKey",
    "postgresMonitoringPassword",
    "minioMonitoringPassword",
    "grafanaPassword",
    "traefikCertificateKey",
)
"""Keys that are not settings: each overrides a generated credential."""
SECRETS = (
    *GENERATED,
    TARGET_SECRET,
    CERTIFICATE_SECRET,
    KEY_SECRET,
    DNS_SECRET,
    WEBHOOK_SECRET,
    SWITCH_SECRET,
    MAIL_SECRET,
)
"""And those that nobody can generate."""
SPARE_CONNECTIONS = 25
"""For the migration, a person with psql, a backup, an exporter, and Postgres' own reserve of three."""
SEAWEEDFS_MB = 1024
"""Measured: three slow downloads and an upload of 600 MB each take 705 MB; with 512 it was killed."""
OLDEST_POSTGRES = 18
"""The official image moved its data with this version, and the built-in collation is older by one."""
UNATTENDED = "dev"
"""The stack on somebody's laptop, that nobody is asked about."""
NOT_ASKING = re.compile(
    r"(^|[-_])(no|non|without|skip|bypass|disabled?|off|anonymous)[-_]?(auth|login|sso|oidc|$)|unauth"
    r"|(auth|login|sso|oidc)[-_]?(off|bypass|disabled|none)",
    re.IGNORECASE,
)
"""A middleware that authenticates nobody, by its name. policy/rules.py has the same."""
SUSPICIOUS = re.compile("passw|secret|token|key|credential", re.IGNORECASE)


class StackConfig(Settings):
    """Everything that can be set in `Pulumi.<stack>.yaml`, under `mlflow:`. Nothing has to be."""

    hostname: Hostname | None = Field(
        default=None,
        description="The public name of the server. MLflow's allowed hosts and CORS origins follow from it.",
    )
    authentication: Authentication | None = Field(
        default=None,
        description="Who asks a person or a program who it is. `password`: Traefik, for one generated password. "
        "`singleSignOn`: your Authelia or the like, for everybody; a client sends the user and password of that. "
        "`singleSignOnAndPassword`: the same for browsers, and the generated password for clients. `mlflow`: MLflow "
        "itself, with users and permissions of its own. `anonymous`: nobody. Without Traefik: `anonymous`, unless "
        "told otherwise; with it, there is no default.",
    )
    protect_data: bool = Field(
        default=True,
        description="Refuse to delete the data volumes from the stack. (They survive even without it: "
        "only `make destroy` deletes data.)",
    )
    server: ServerSettings = Field(default=ServerSettings(), description="The MLflow tracking server.")
    postgres: PostgresSettings = Field(default=PostgresSettings(), description="The database.")
    object_store: ObjectStoreSettings = Field(default=ObjectStoreSettings(), description="Where artifacts are.")
    traefik: TraefikSettings = Field(default=TraefikSettings(), description="The way in from outside.")
    backup: BackupSettings = Field(default=BackupSettings(), description="The copy of everything.")
    monitoring: MonitoringSettings = Field(default=MonitoringSettings(), description="What watches it, and tells.")
    docker_networks: NetworksSettings = Field(
        default=NetworksSettings(), alias="networks", description="The stack's own Docker networks."
    )
    images: ImagesSettings = Field(default=ImagesSettings(), description="What is run, and what MLflow is built on.")

    @classmethod
    def load(cls) -> Self:
        """Return the settings of the stack that is being deployed; raise `RunError` with everything that is wrong."""
        values = {**pulumi.runtime.config.get_config_env(), **pulumi.runtime.config.CONFIG.get()}
        prefix = f"{NAMESPACE}:"
        # Config itself tells of one key at a time.
        hidden = [key.removeprefix(prefix) for key in pulumi.runtime.config._SECRET_KEYS.get()]  # noqa: SLF001
        given = {
            # Of a secret, that it is there is enough.
            name: "" if name in SECRETS else _decoded(value)
            for key, value in values.items()
            if key.startswith(prefix)
            for name in [key.removeprefix(prefix)]
        }
        stack = pulumi.get_stack()
        try:
            config = cls.parse(given, hidden=hidden, stack=stack)
        except InvalidSettingsError as error:
            raise pulumi.RunError(str(error)) from None
        for words in config.warnings(given, hidden=hidden, stack=stack):
            pulumi.log.warn(words)
        return config

    @classmethod
    def parse(
        cls,
        values: Mapping[str, object],
        *,
        hidden: list[str] | None = None,
        stack: str = "dev",
        may_be_clear: bool | None = None,
    ) -> Self:
        """Check `values`, the YAML of `stack` below `mlflow:`, and return them as settings.

        Raises `InvalidSettingsError` with every problem at once. A value under a key in `hidden`, or whose name
        sounds like a secret, is never repeated. A secret in clear is a problem outside dev, unless it `may_be_clear`:
        by default where nobody can encrypt it, in a copy of a stack's file and without the engine.
        """
        if may_be_clear is None:
            may_be_clear = os.environ.get("REHEARSAL") == "1" or os.environ.get("COPY") == "made"
        given = {key: value for key, value in values.items() if key not in SECRETS}
        problems: list[str] = []
        broken: set[str] = set()
        try:
            config = cls.model_validate(given)
        except ValidationError as error:
            details = error.errors(include_url=False)
            problems = [_in_words(detail, hidden or []) for detail in details]
            # What can be read is still checked against the rest, so that one round is enough. Of what cannot, nothing
            # more is said: the default is in its place.
            broken = {f"mlflow:{'.'.join(str(part) for part in detail['loc'][:2])}" for detail in details}
            config = cls.model_validate(_without(given, [detail["loc"] for detail in details]))
        problems += [
            words
            for sections, words in _contradictions(config)
            if not any(_names(path, words) for path in broken) and not {f"mlflow:{name}" for name in sections} & broken
        ]
        if stack != UNATTENDED and not may_be_clear:
            problems += [_encrypt(key, stack) for key in _in_clear(values, hidden or [])]
        problems += [
            f"mlflow:{key}: must be {ACCEPTED_WORDS}"
            for key in GENERATED
            if isinstance(value := values.get(key), str) and value and not re.fullmatch(ACCEPTED, value)
        ]
        problems += [
            f'{words}; type: eval "$(make -s env STACK={stack})" && pulumi config set --stack {stack} --secret {key}'
            for section, key, words in _missing_secrets(config, values)
            if not any(path.startswith((f"mlflow:{section}.", f"mlflow:{section}")) for path in broken)
        ]
        if problems:
            raise InvalidSettingsError(problems)
        return config

    def warnings(self, values: Mapping[str, object], *, hidden: Collection[str] = (), stack: str = "dev") -> list[str]:
        """Return what is allowed and what a person should know of: the ways in, and secrets in clear."""
        found = [
            f"{url} lets in everybody who reaches it, past mlflow:authentication {self.authentication}; to close it, "
            "remove mlflow:server.port"
            for url, authentication in self.route.ways_in
            if authentication == "anonymous" != self.route.authentication
        ]
        found += [
            f"{url} takes passwords without TLS, for everybody on the way to read; put a Traefik in front of it "
            "(mlflow:traefik.mode), or publish it on 127.0.0.1"
            for url, authentication in self.route.ways_in
            if authentication == "mlflow" and url.startswith("http:") and "//127.0.0.1" not in url
        ]
        if self.traefik.mode == "bundled" and self.route.authentication == "anonymous":
            found.append(
                f"{self.route.url} lets everybody who reaches {self.traefik.bind_address} read, change and delete "
                "everything (mlflow:authentication: anonymous)"
            )
        return found + [_encrypt(key, stack) for key in _in_clear(values, hidden)]

    @property
    def postgres_major(self) -> int:
        """The major version of the database, from its image's tag."""
        major = _major(self.images.postgres.ref)
        assert major is not None, "parse() refuses a tag without one"  # noqa: S101
        return major

    @property
    def route(self) -> Route:
        """The way in, as the server's component wants it."""
        return Route(
            traefik=self.traefik,
            hostname=self.hostname,
            authentication=self.authentication or "anonymous",
            server_port=self.server.port,
            server_address=self.server.bind_address,
        )

    @property
    def parts(self) -> tuple[str, ...]:
        """What the stack consists of, beside what every stack has: object stores, a backup, a proxy."""
        return (
            *self.object_store.kinds,
            *(["backup"] if self.backup.enabled else []),
            *(["traefik"] if self.traefik.mode == "bundled" else []),
            *self.monitoring.parts,
        )

    @property
    def pulled_images(self) -> list[Image]:
        """Every image that must be on the host before anything is deployed."""
        return self.images.pulled(self.parts)

    @property
    def networks(self) -> set[str]:
        """The networks that the stack has of its own."""
        return {"backend", *(["edge"] if self.traefik.mode != "existing" else []), *self.extra_networks}

    @property
    def extra_networks(self) -> set[ExtraNetwork]:
        """The networks beside the two that are always there."""
        wanted: dict[ExtraNetwork, bool] = {
            "access": bool(self.postgres.port or self.object_store.console_port or self.monitoring.published),
            "egress": self.backup.leaves or self.monitoring.leaves,
            "monitoring": self.monitoring.on,
        }
        return {network for network, is_wanted in wanted.items() if is_wanted}


def _encrypt(key: str, stack: str) -> str:
    """Say that a secret is in clear, and what encrypts it."""
    return (
        f"mlflow:{key}: is in the file in clear, for everybody to read who reads the file or its history; type: "
        f'eval "$(make -s env STACK={stack})" && pulumi config set --stack {stack} --secret {key}'
    )


class InvalidSettingsError(ValueError):
    """Settings that cannot be deployed, with a line for each reason."""

    def __init__(self, problems: list[str]) -> None:
        """Keep the lines, each `mlflow:path.to.key: what is wrong`."""
        super().__init__("the settings of this stack are not valid\n" + "\n".join(f"  {line}" for line in problems))
        self.problems = problems


def _decoded(value: object) -> object:
    """Undo Pulumi's encoding: a section arrives as JSON, a plain value as the text that was typed."""
    if isinstance(value, str) and value[:1] in ("{", "["):
        return json.loads(value)
    return value


def _major(ref: str) -> int | None:
    match = re.search(r":(\d+)(?:[.-][^:]*)?$", ref)
    return int(match.group(1)) if match else None


def _contradictions(config: StackConfig) -> Iterator[tuple[set[str], str]]:
    """Yield what is wrong between sections: which sections were read, and the words."""
    server = config.server
    needed = BASE_MB + WORKER_MB * server.workers + (JOBS_MB if server.jobs else 0)
    if server.memory_mb < needed:
        with_jobs = " and jobs" if server.jobs else ""
        yield (
            {"server"},
            f"mlflow:server.memoryMb: must be at least {needed} for {server.workers} workers{with_jobs}, "
            f"got {server.memory_mb}; raise it, or lower mlflow:server.workers",
        )
    by_mlflow = config.route.by_mlflow
    # The users are read through a pool of their own.
    pools = 2 if by_mlflow else 1
    connections = pools * (POOL_SIZE + MAX_OVERFLOW) * server.workers + SPARE_CONNECTIONS
    if config.postgres.max_connections < connections:
        with_users = " with mlflow:authentication mlflow" if by_mlflow else ""
        yield (
            {"server", "postgres", "authentication"},
            f"mlflow:postgres.maxConnections: must be at least {connections} for mlflow:server.workers "
            f"{server.workers}{with_users}, got {config.postgres.max_connections}",
        )
    for name, reason in variables.refused(server.environment):
        yield {"server"}, f"mlflow:server.environment.{name}: {reason}; docs/mlflow-variables.md"
    yield from _route_contradictions(config)
    yield from _authentication_contradictions(config)
    postgres = config.images.postgres.ref
    tag = postgres.rpartition(":")[2]
    if postgres != packaged.ref("postgres") and ((_major(postgres) or 0) < OLDEST_POSTGRES or "alpine" in tag):
        yield (
            {"images"},
            "mlflow:images.postgres.ref: must be the Debian variant with a tag that begins with a major version of at "
            f"least {OLDEST_POSTGRES}, such as postgres:18.6, got {postgres!r}",
        )
    if server.bind_address == "0.0.0.0" and config.hostname is None:  # noqa: S104
        yield (
            {"server", "hostname"},
            "mlflow:hostname: is required when mlflow:server.bindAddress is 0.0.0.0: the server answers to the names "
            "that it knows only",
        )
    yield from _subnet_contradictions(config)
    yield from _without_a_use(config)
    yield from _object_store_contradictions(config.object_store)
    if config.backup.enabled and config.images.backup is None and ("bookworm" in tag or "bullseye" in tag):
        yield (
            {"images", "backup"},
            "mlflow:images.postgres.ref: must be of Debian 13, such as postgres:18.6, where the backup's image is "
            f"built on it: the restic of Debian's earlier releases cannot do what a backup needs, got {postgres!r}",
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
            f"mlflow:networks.subnets.{service}: has no use: with these settings the stack has no network {service}; "
            "remove it",
        )
    for (one, subnet), (other, another) in itertools.combinations(sorted(subnets.items()), 2):
        if ipaddress.IPv4Network(subnet).overlaps(ipaddress.IPv4Network(another)):
            yield {"networks"}, f"mlflow:networks.subnets.{one}: {subnet} overlaps with {another} of {other}"


def _without_a_use(config: StackConfig) -> Iterator[tuple[set[str], str]]:
    """Yield what was typed and does nothing: somebody believes that it does."""
    server, backup, monitoring = config.server, config.backup, config.monitoring
    # Whether, the sections that were read, the first of them the setting's own, that section, its keys, and why.
    rules: list[tuple[bool, tuple[str, ...], Settings, Collection[str], str]] = [
        (
            config.route.published_port is None,
            ("server", "traefik"),
            server,
            ("bind_address",),
            "the server is published on no port; set mlflow:server.port, or remove it",
        ),
        (
            not config.route.by_mlflow,
            ("server", "authentication"),
            server,
            ("default_permission",),
            "mlflow:authentication is not mlflow; remove it",
        ),
        (
            not backup.deletes,
            ("backup",),
            backup,
            ("keep_daily", "keep_weekly", "keep_monthly"),
            "mlflow:backup.deletes is false: nothing is given up; remove it",
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
                yield set(sections), f"mlflow:{sections[0]}.{to_camel(name)}: has no use while {why}"


def _route_contradictions(config: StackConfig) -> Iterator[tuple[set[str], str]]:
    traefik = config.traefik
    if traefik.mode != "off" and config.hostname is None:
        yield (
            {"traefik", "hostname"},
            f"mlflow:hostname: is required when mlflow:traefik.mode is {traefik.mode}; in the "
            "stack's file: mlflow:hostname: mlflow.example.com",
        )
    if traefik.cert_resolver and not traefik.tls:
        yield (
            {"traefik"},
            f"mlflow:traefik.certResolver: {traefik.cert_resolver!r} has no use while mlflow:traefik.tls is false; "
            "set tls to true, or remove certResolver",
        )
    if config.route.by_single_sign_on and not traefik.tls:
        yield (
            {"traefik", "authentication"},
            "mlflow:traefik.tls: false does not go with mlflow:authentication "
            f"{config.authentication}: a login page and its cookies need TLS",
        )
    if traefik.certificate == "acme" and not traefik.acme_email:
        yield (
            {"traefik"},
            "mlflow:traefik.acmeEmail: is required for mlflow:traefik.certificate acme: whom the authority writes to",
        )
    others = {"existing": BUNDLED_ONLY, "bundled": EXISTING_ONLY, "off": ()}[traefik.mode]
    for name in others:
        if name in traefik.model_fields_set:
            yield (
                {"traefik"},
                f"mlflow:traefik.{to_camel(name)}: has no use while mlflow:traefik.mode is {traefik.mode}; remove it",
            )


def _authentication_contradictions(config: StackConfig) -> Iterator[tuple[set[str], str]]:
    """Yield what would leave a way in open that somebody believes closed, or nobody in."""
    traefik, server, chosen = config.traefik, config.server, config.authentication
    key = "mlflow:authentication"
    if traefik.mode == "off":
        if chosen not in (None, "anonymous", "mlflow"):
            yield (
                {"authentication", "traefik"},
                f"{key}: {chosen} is asked for by Traefik, and mlflow:traefik.mode is off; use mlflow or anonymous",
            )
        return
    if chosen is None:
        yield (
            {"authentication", "traefik"},
            f"{key}: is required when mlflow:traefik.mode is {traefik.mode}: one of "
            f"{', '.join(get_args(Authentication))}; docs/security.md#who-is-asked",
        )
    elif chosen in SINGLE_SIGN_ON and traefik.mode == "existing" and traefik.single_sign_on not in traefik.middlewares:
        yield (
            {"authentication", "traefik"},
            f"mlflow:traefik.singleSignOn: must be one of mlflow:traefik.middlewares for {key} {chosen}: the one that "
            f"asks who somebody is, such as authelia@docker; got {traefik.single_sign_on!r}",
        )
    elif chosen in SINGLE_SIGN_ON and traefik.mode == "existing" and NOT_ASKING.search(str(traefik.single_sign_on)):
        yield (
            {"authentication", "traefik"},
            f"mlflow:traefik.singleSignOn: {traefik.single_sign_on} authenticates nobody, by its name; name the one "
            "that does, such as authelia@docker",
        )
    elif chosen in SINGLE_SIGN_ON and traefik.mode == "bundled" and not traefik.forward_auth:
        yield (
            {"authentication", "traefik"},
            f"mlflow:traefik.forwardAuth: is required for {key} {chosen}: whom to ask, such as "
            "http://authelia:9091/api/authz/forward-auth",
        )
    elif chosen not in SINGLE_SIGN_ON and (unused := traefik.single_sign_on or traefik.forward_auth):
        name = "singleSignOn" if traefik.single_sign_on else "forwardAuth"
        yield (
            {"authentication", "traefik"},
            f"mlflow:traefik.{name}: {unused!r} has no use while {key} is {chosen}; remove it, or choose singleSignOn",
        )
    if traefik.mode == "bundled" and chosen == "anonymous" and "bind_address" not in traefik.model_fields_set:
        yield (
            {"authentication", "traefik"},
            f"{key}: anonymous would let everybody who reaches this host read, change and delete everything; choose "
            "password, or say on which address: mlflow:traefik.bindAddress: 127.0.0.1, or one of a network that is "
            "yours alone",
        )
    past_traefik = server.port and server.bind_address != "127.0.0.1"
    if past_traefik and chosen not in ("anonymous", "mlflow"):
        yield (
            {"authentication", "traefik", "server"},
            f"mlflow:server.port: would publish the server on {server.bind_address}, where nobody is asked who he is; "
            "remove it, or mlflow:server.bindAddress",
        )


def _without(values: Mapping[str, object], paths: Iterable[tuple[int | str, ...]]) -> dict[str, object]:
    """Return a copy of `values` without what is at some paths, each two steps deep at the most."""
    kept: dict[str, object] = {key: dict(value) if isinstance(value, dict) else value for key, value in values.items()}
    for first, *rest in paths:
        section = kept.get(str(first))
        if rest and isinstance(section, dict) and str(rest[0]) in section:
            del section[str(rest[0])]
        elif not rest or not isinstance(section, dict):
            kept.pop(str(first), None)
    return kept


def _names(path: str, words: str) -> bool:
    """Whether some words are about the setting at `path`."""
    return re.search(rf"{re.escape(path)}(?![A-Za-z])", words) is not None


def _in_clear(values: Mapping[str, object], hidden: Collection[str]) -> list[str]:
    """Return the keys of secrets whose values anybody reads who reads the file."""
    return [key for key in SECRETS if key in values and key not in hidden and not _is_sealed(values[key])]


def _is_sealed(value: object) -> bool:
    return isinstance(value, dict) and set(value) == {"secure"}


def _missing_secrets(config: StackConfig, given: Collection[str]) -> Iterator[tuple[str, str, str]]:
    """Yield which secrets are wanted that nobody can generate, and are not in the stack's file: section, key, words."""
    certificate = config.traefik.certificate if config.traefik.mode == "bundled" else ""
    by_section: dict[tuple[str, str], Collection[str]] = {
        ("traefik", f"mlflow:traefik.certificate {certificate}"): {
            "own": (CERTIFICATE_SECRET, KEY_SECRET),
            "acme": (DNS_SECRET,),
        }.get(certificate, ()),
        ("monitoring", "mlflow:monitoring"): config.monitoring.secrets,
        ("backup", "the S3 target of mlflow:backup"): (TARGET_SECRET,) if config.backup.leaves else (),
    }
    for (section, what_for), wanted in by_section.items():
        for key in wanted:
            if key not in given:
                yield section, key, f"mlflow:{key}: is required for {what_for}"


def _object_store_contradictions(store: ObjectStoreSettings) -> Iterator[tuple[set[str], str]]:
    if store.copy_from == store.kind:
        yield (
            {"objectStore"},
            f"mlflow:objectStore.copyFrom: must be another store than mlflow:objectStore.kind, got {store.kind!r}",
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
            "mlflow:monitoring.grafanaPort: there is no package of Grafana; set mlflow:images.grafana.ref, or remove "
            "it and import assets/monitoring/dashboards/ into another Grafana",
        )


def _image_contradictions(config: StackConfig) -> Iterator[tuple[set[str], str]]:
    images = config.images
    if images.source == "packages":
        if "minio" in config.object_store.kinds and images.minio.ref == DEFAULTS["minio"]["ref"]:
            yield (
                {"images", "objectStore"},
                "mlflow:images.source: there is no package of MinIO; set mlflow:objectStore.kind to seaweedfs",
            )
    elif images.debian_sources:
        yield {"images"}, "mlflow:images.debianSources: has no use while mlflow:images.source is registry; remove it"
    pinned = [image.ref for image in config.pulled_images if image.digest != NO_DIGEST]
    if config.images.archive and pinned:
        yield (
            {"images", "objectStore"},
            f"mlflow:images.archive: an image that was loaded has no digest; set digest: none for {', '.join(pinned)}",
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


def _in_words(error: ErrorDetails, hidden: list[str]) -> str:
    """Say what is wrong with one value: its path, the rule, the value unless it may be a secret."""
    path = [str(part) for part in error["loc"]]
    context: dict[str, Any] = error.get("ctx", {})
    where = f"{NAMESPACE}:" + ".".join(path)
    kind = error["type"]
    if kind == "extra_forbidden":
        return f"{where}: no such setting{_nearest(path)}"
    if kind == "missing":
        return f"{where}: is required"
    rule = {
        "greater_than_equal": "must be at least {ge}",
        "less_than_equal": "must be at most {le}",
        "literal_error": "must be one of {expected}",
        "value_error": "{error}",
    }.get(kind, _type_rule(kind)).format(**context)
    secret = path[0] in hidden or any(SUSPICIOUS.search(part) for part in path)
    return f"{where}: {rule}" + ("" if secret else f", got {error['input']!r}")


def _type_rule(kind: str) -> str:
    """Return the words for a value of another type."""
    for prefix, words in (
        ("int", "must be a whole number"),
        ("float", "must be a number"),
        ("bool", "must be true or false"),
        ("string", "must be a text"),
        ("tuple", "must be a list"),
        ("model", "must be a section of settings (key: value)"),
        ("dict", "must be a section of settings (key: value)"),
    ):
        if kind.startswith(prefix):
            return words
    return f"is not valid ({kind})"


def _nearest(path: list[str]) -> str:
    """Return a hint for an unknown key: where it would be one, else the nearest known one, else all of them."""
    model: Any = StackConfig
    for part in path[:-1]:
        model = _sections(model)[part]
    known = [str(field.alias) for field in model.model_fields.values()]
    if len(path) == 1:
        known += SECRETS
    elsewhere = [
        f"{NAMESPACE}:{name}.{path[-1]}"
        for name, section in _sections(StackConfig).items()
        if any(field.alias == path[-1] for field in section.model_fields.values())
    ]
    if close := elsewhere or difflib.get_close_matches(path[-1], known, n=1):
        return f"; did you mean {' or '.join(close)}?"
    return f"; known here: {', '.join(sorted(known))}"


def _sections(model: Any) -> dict[str, Any]:  # noqa: ANN401 - a class of pydantic's
    """Return the models that are the values of some of its keys. One that may be left out is a union with None."""
    kinds = {
        str(field.alias): next(
            (kind for kind in get_args(field.annotation) if hasattr(kind, "model_fields")), field.annotation
        )
        for field in model.model_fields.values()
    }
    return {name: kind for name, kind in kinds.items() if hasattr(kind, "model_fields")}
