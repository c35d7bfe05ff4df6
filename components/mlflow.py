"""MLflow: the jobs that check the data keys and migrate the database, and the tracking server."""

import json
from collections.abc import Mapping

import pulumi
import pulumi_docker as docker

from components.internal_tls import InternalTls
from components.mlflow_credentials import ServerCredentials, secret_file
from components.object_store import ObjectStore
from components.platform import Platform
from components.postgres import Postgres
from components.route import health_check, labels, probe
from components.scrape import Target
from components.server import UID, Replicas, private_tmpfs
from components.traefik import Upstream
from runtime.compatibility import Compatible, incompatible_stopped
from runtime.credentials import Credential
from runtime.job import JOB_TIMEOUT_SECONDS, Job
from runtime.labels import short_digest
from runtime.service import Service
from runtime.swarm import SwarmService
from runtime.workload import Files, Limits, Workload
from settings import names
from settings.ingress import Route
from settings.server import ADMIN, METRICS_PORT, PORT, SCHEMA_FILES, ServerSettings
from settings.swarm import SwarmSettings

MIGRATION_TIMEOUT_SECONDS = 6 * 3600
"""A migration that rewrites a table of a large database takes hours."""


class Mlflow(pulumi.ComponentResource):
    """The MLflow tracking server, with its migration. Stateless: Postgres and the object store hold the data.

    Creates the data keys and passwords, the job `verify-data-keys`, the job `migrate`, and for each replica a service
    and a volume: `server` and `server-scratch`, `server-2` and `server-2-scratch`, and so on.

    Artifacts pass through the server, so clients need no credentials of the object store. Presigned transfers stay off:
    clients cannot reach the object store.
    """

    url: str
    """The URL for a browser, and a client's `MLFLOW_TRACKING_URI`."""
    scheme: str
    """The scheme of the servers' URLs on the networks of the stack."""
    replicas: dict[str, Service | SwarmService]
    """The servers by name. They are equal; Traefik distributes the requests among them. On a cluster, one service."""
    tasks: int | None
    """The number of tasks on a cluster; None for containers."""
    docker_metrics: str | None
    """Address of the metrics of the manager's Docker daemon; None on one host, and without them."""
    credentials: list[Credential]
    """The data keys, and the credentials of users and clients."""
    data_keys: dict[str, pulumi.Output[str]]
    """The data keys as files: name to content. Secret."""

    def __init__(
        self,
        name: str,
        settings: ServerSettings,
        *,
        platform: Platform,
        database: Postgres,
        store: ObjectStore,
        route: Route,
        swarm: SwarmSettings | None = None,
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        """Check the data keys, migrate the database, then start the server."""
        super().__init__("mlflow:components:Mlflow", name, None, opts)
        self.url, self.scheme = route.url, platform.tls.scheme
        self.tasks = settings.replicas if swarm else None
        self.docker_metrics = swarm.metrics if swarm else None
        self._platform, self._database, self._route = platform, database, route
        self._secrets = ServerCredentials.create(route, platform=platform, parent=self)
        self.credentials = self._secrets.all
        self.data_keys = self._secrets.data_keys
        self._pgpass = {"pgpass": database.pgpass, **platform.tls.trust}
        self._users = {"auth.ini": _users(settings, database)} if route.by_mlflow else {}

        # First, while the old server still runs: a key that does not decrypt the data, or a database of a newer
        # MLflow, stops the update here.
        verified = self._job("verify-data-keys", self._pgpass | self.data_keys, database.service.ready)
        route_labels = self._route_labels()
        # The labels of a cluster's service are those of all its tasks.
        common = {**({} if swarm else route_labels), "store": store.credentials_file, "database": database.pgpass}
        together = _together(route, common, platform.tls) if route.balanced else None
        # An earlier server of the same schemas serves on until its own replacement; any other one stops here.
        compatible = Compatible(files=tuple(SCHEMA_FILES.values()), label=names.TOGETHER_LABEL, value=together or "")
        alone = incompatible_stopped(
            names.is_replica, compatible, new="verify-data-keys", once=verified.done, platform=self._platform
        )
        migrated = self._job(
            "migrate",
            {**self._pgpass, **self._users, **secret_file("admin-password", self._secrets.admin_password)},
            alone,
            prepares=database.volume,
            timeout_s=MIGRATION_TIMEOUT_SECONDS,
        )
        own_label = {names.TOGETHER_LABEL: together} if together else {}
        self.replicas = self._replicas(settings, store, route_labels | own_label).run(
            swarm=swarm, after=[migrated.done, store.ready], parent=self
        )
        self.register_outputs({"url": self.url})

    def _job(
        self,
        role: str,
        secrets: Mapping[str, pulumi.Input[str]],
        after: pulumi.Output[docker.Container],
        *,
        prepares: str | None = None,
        timeout_s: int = JOB_TIMEOUT_SECONDS,
    ) -> Job:
        """Run a command of the MLflow image to its end, with access to the database."""
        return Job(
            role,
            Workload(
                image=self._platform.images.mlflow,
                limits=Limits(memory_mb=768, cpus=1.0),
                networks=[self._platform.networks.backend],
                command=[role],
                env=self._database_environment,
                files=Files(secrets=secrets),
                tmpfs=private_tmpfs(),
                user=f"{UID}:{UID}",
                prepares=prepares,
            ),
            platform=self._platform,
            timeout_s=timeout_s,
            after=[after],
            opts=pulumi.ResourceOptions(parent=self),
        )

    def _replicas(
        self, settings: ServerSettings, store: ObjectStore, labels_of_all: Mapping[str, pulumi.Input[str]]
    ) -> Replicas:
        """Return what the replicas of the server have in common."""
        return Replicas(
            settings=settings,
            platform=self._platform,
            store=store,
            route=self._route,
            environment=self._database_environment,
            secrets={
                **self._pgpass,
                **self.data_keys,
                "aws-credentials": store.credentials_file,
                **self._users,
                **secret_file("flask-secret-key", self._secrets.flask_key),
            },
            labels=labels_of_all,
            prepares=self._database.volume,
        )

    @property
    def _database_environment(self) -> dict[str, str]:
        """The environment variables of every container that uses the database."""
        users = _USERS_ENVIRONMENT if self._route.by_mlflow else {}
        return {"MLFLOW_BACKEND_STORE_URI": self._database.uri, **self._platform.tls.libpq(), **users}

    def _route_labels(self) -> dict[str, pulumi.Input[str]]:
        """Return the labels of each replica that the policy pack and an existing Traefik read."""
        sso, network = self._route.traefik.single_sign_on, self._platform.networks.edge_name
        return {
            names.AUTHENTICATION_LABEL: self._route.authentication,
            **({names.SINGLE_SIGN_ON_LABEL: sso} if sso else {}),
            **labels(
                self._route, name=self._router, port=PORT, network=network, password=self._secrets.client_password
            ),
        }

    @property
    def _router(self) -> str:
        """The name of the router and of the load balancer, and the host name of the first replica."""
        return names.docker_name(pulumi.get_stack(), names.SERVER)

    @property
    def upstream(self) -> Upstream:
        """The servers, as Traefik in front of them needs them."""
        return Upstream(
            name=self._router,
            servers={name: replica.host for name, replica in self.replicas.items()},
            port=PORT,
            ready=list(self.replicas.values())[-1].ready,
            probe=probe(self._route),
            password=self._secrets.client_password,
        )

    @property
    def targets(self) -> list[Target]:
        """The scrape targets of the servers."""
        return [
            Target(
                job="mlflow",
                instance=name,
                address=f"{replica.host}:{METRICS_PORT}",
                every_task=self._route.swarm,
                tls=self._route.internal_tls,
            )
            for name, replica in self.replicas.items()
        ]


_USERS_ENVIRONMENT = {
    "MLFLOW_AUTH_CONFIG_PATH": "/run/secrets/auth.ini",
    # A route without a permission check is refused.
    "MLFLOW_BASIC_AUTH_FAIL_CLOSED": "true",
}
AUTH_CACHE_SECONDS = 60
"""How long a worker remembers a correct password. Without it, each request costs 0.19 s of CPU time."""


def _together(route: Route, common: Mapping[str, pulumi.Input[str]], tls: InternalTls) -> pulumi.Output[str]:
    """Return a hash of what replicas that run at the same time must have in common.

    An existing Traefik drops a router that two containers define differently. A health check that expects another
    status, with or without MLflow's own users, would take either the old or the new replicas for dead. The object store
    and the database accept one password each, so a replica with the earlier one would fail every transfer, or every
    request. And the proxy trusts one authority.
    """

    def digest(values: dict[str, str]) -> str:
        return short_digest(json.dumps([health_check(route), values], sort_keys=True))

    # A hash of 48 bits of a generated password reveals nothing.
    trusted = {"authority": tls.authority} if tls.authority else {}
    return pulumi.Output.unsecret(pulumi.Output.all(**common, **trusted).apply(digest))


def _users(settings: ServerSettings, database: Postgres) -> str:
    """Return the configuration of MLflow's own users. They are in the database, so a backup contains them."""
    lines = {
        "default_permission": settings.default_permission,
        "database_uri": database.uri,
        "admin_username": ADMIN,
        "authorization_function": "mlflow.server.auth:authenticate_request_basic_auth",
        "auth_cache_ttl_seconds": AUTH_CACHE_SECONDS,
    }
    return "[mlflow]\n" + "".join(f"{key} = {value}\n" for key, value in lines.items())
