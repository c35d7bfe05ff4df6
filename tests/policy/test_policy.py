"""The policy: every rule refuses what it forbids, and accepts the stacks that are shipped."""

from typing import Any

import pytest

from policy.rules import CONTAINER, IMAGE, RULES, SERVICE, VOLUME, Resource
from tests.graph.conftest import bundled
from tests.graph.mocked import build, values_of

GOOD: dict[str, Any] = {
    "name": "mlflow-prod-x",
    "image": "sha256:abc",
    "capabilities": {"drops": ["ALL"]},
    "securityOpts": ["no-new-privileges:true"],
    "readOnly": True,
    "memory": 256.0,
    "memorySwap": 256.0,
    "cpus": "1.0",
    "logOpts": {"max-size": "10m", "max-file": "5"},
    "healthcheck": {"tests": ["CMD", "true"]},
    "destroyGraceSeconds": 30.0,
    "envs": ["A_PASSWORD_FILE=/run/secrets/a", "TOKENS=4"],
    "labels": [{"label": "mlflow.role", "value": "service"}, {"label": "mlflow.service", "value": "x"}],
}
TASK: dict[str, Any] = {
    "image": "localhost/mlflow-server:0123",
    "commands": ["setpriv", "--no-new-privs", "entrypoint"],
    "capDrops": ["ALL"],
    "readOnly": True,
    "env": {"A_PASSWORD_FILE": "/run/secrets/a"},
    "healthcheck": {"tests": ["CMD", "true"]},
    "stopGracePeriod": "30s",
}
GOOD_SERVICE: dict[str, Any] = {
    "taskSpec": {
        "containerSpec": TASK,
        "resources": {"limits": {"memoryBytes": 1e9, "nanoCpus": 1e9}},
        "logDriver": {"name": "json-file", "options": {"max-size": "10m", "max-file": "5"}},
    },
    "endpointSpec": {"mode": "dnsrr"},
    "updateConfig": {"failureAction": "rollback", "order": "start-first"},
}
ROUTER = "traefik.http.routers.r"


def labelled(**labels: str) -> dict[str, Any]:
    found = {"mlflow.role": "service", "mlflow.service": "x"} | labels
    return {"labels": [{"label": key, "value": value} for key, value in found.items()]}


def routed(**labels: str) -> dict[str, Any]:
    return labelled(**{"traefik.enable": "true", f"{ROUTER}.rule": "Host(`h`)", **labels})


def tasks(**container: object) -> dict[str, Any]:
    """Return a Swarm service with another container of its tasks."""
    return {"taskSpec": {**GOOD_SERVICE["taskSpec"], "containerSpec": {**TASK, **container}}}


CAPABILITIES = "taskSpec.containerSpec: capDrops must contain ALL, and capAdds nothing"
UPDATE = "updateConfig: failureAction must be rollback, and order start-first"
BAD_SERVICES: list[tuple[str, str, dict[str, Any], str]] = [
    ("hardened-tasks", SERVICE, tasks(capDrops=[]), CAPABILITIES),
    ("hardened-tasks", SERVICE, tasks(capAdds=["CAP_NET_ADMIN"]), CAPABILITIES),
    ("hardened-tasks", SERVICE, tasks(readOnly=False), "taskSpec.containerSpec.readOnly: must be true"),
    (
        "hardened-tasks",
        SERVICE,
        tasks(commands=["entrypoint"]),
        "taskSpec.containerSpec.commands: must begin with setpriv --no-new-privs",
    ),
    (
        "hardened-tasks",
        SERVICE,
        tasks(mounts=[{"type": "bind", "source": "/var/run/docker.sock", "target": "/s"}]),
        "taskSpec.containerSpec.mounts: mounts the path /var/run/docker.sock of a node; use a volume or a secret",
    ),
    (
        "hardened-tasks",
        SERVICE,
        {"endpointSpec": {"ports": [{"targetPort": 5000.0}]}},
        "endpointSpec.ports: port 5000 is open on every node; use Traefik",
    ),
    (
        "limited-tasks",
        SERVICE,
        {"taskSpec": {**GOOD_SERVICE["taskSpec"], "resources": {"limits": {"memoryBytes": 1e9}}}},
        "taskSpec.resources.limits: must set memoryBytes and nanoCpus",
    ),
    (
        "limited-tasks",
        SERVICE,
        {"taskSpec": {**GOOD_SERVICE["taskSpec"], "logDriver": {"name": "json-file"}}},
        "taskSpec.logDriver.options: must set max-size and max-file; without them, the log fills the disk",
    ),
    (
        "watched-tasks",
        SERVICE,
        tasks(healthcheck=None),
        "taskSpec.containerSpec.healthcheck: must be set; without it, a task that does not answer gets requests",
    ),
    (
        "watched-tasks",
        SERVICE,
        tasks(stopGracePeriod=None),
        "taskSpec.containerSpec.stopGracePeriod: must be set: requests in flight need time to end",
    ),
    ("watched-tasks", SERVICE, {"updateConfig": {"failureAction": "pause", "order": "start-first"}}, UPDATE),
    ("watched-tasks", SERVICE, {"updateConfig": {"failureAction": "rollback"}}, UPDATE),
    (
        "authenticated-tasks",
        SERVICE,
        routed(),
        "labels: the router r (Host(`h`)) has no authentication middleware; "
        "set mlflow:authentication to another value than anonymous",
    ),
    (
        "task-secrets-in-files",
        SERVICE,
        tasks(env={"POSTGRES_PASSWORD": "hunter2"}),
        "envs: POSTGRES_PASSWORD has a value that looks like a secret; pass it in a secret file",
    ),
]
BAD: list[tuple[str, str, dict[str, Any], str]] = [
    (
        "no-privileges",
        CONTAINER,
        {"privileged": True},
        "privileged: true gives the container full access to the host; set it to false",
    ),
    (
        "no-privileges",
        CONTAINER,
        {"capabilities": {"drops": ["ALL"], "adds": ["CAP_NET_ADMIN"]}},
        "capabilities.adds: adds CAP_NET_ADMIN; no service of this project needs a capability; remove it",
    ),
    (
        "no-privileges",
        CONTAINER,
        {"networkMode": "host"},
        "networkMode: host shares a namespace of the host with the container; remove it",
    ),
    (
        "no-privileges",
        CONTAINER,
        {"pidMode": "host"},
        "pidMode: host shares a namespace of the host with the container; remove it",
    ),
    (
        "no-privileges",
        CONTAINER,
        {"devices": [{"hostPath": "/dev/kmsg"}]},
        "devices: gives the container a device of the host; remove it",
    ),
    ("hardened", CONTAINER, {"capabilities": {}}, "capabilities.drops: must contain ALL"),
    ("hardened", CONTAINER, {"securityOpts": []}, "securityOpts: must contain no-new-privileges:true"),
    (
        "hardened",
        CONTAINER,
        {"readOnly": False, "user": "999:999"},
        "readOnly: must be true",
    ),
    *(
        (
            "hardened",
            CONTAINER,
            {"readOnly": False, "user": user, "labels": [{"label": "mlflow.role", "value": "job"}]},
            "readOnly, user: for a job, set readOnly to true, or user to UID:GID as numbers other than 0",
        )
        for user in ("0:0", "10001", "root", "1:0", None)
    ),
    (
        "no-host-paths",
        CONTAINER,
        {"volumes": [{"hostPath": "/var/run/docker.sock", "containerPath": "/s"}]},
        "volumes: mounts the host path /var/run/docker.sock; use a Docker volume "
        "(access to Docker's socket is root access to the host)",
    ),
    (
        "no-host-paths",
        CONTAINER,
        {"volumes": [{"hostPath": "/etc", "containerPath": "/s"}]},
        "volumes: mounts the host path /etc; use a Docker volume",
    ),
    (
        "no-host-paths",
        CONTAINER,
        {"mounts": [{"type": "bind", "source": "/root", "target": "/s"}]},
        "mounts: mounts the host path /root; use a Docker volume",
    ),
    (
        "pinned-images",
        IMAGE,
        {"name": "docker.io/library/postgres:18.6"},
        "name: docker.io/library/postgres:18.6 has no digest, so its content can change; type: make pin STACK=prod",
    ),
    (
        "images-by-id",
        CONTAINER,
        {"image": "mlflow:1"},
        "image: mlflow:1 is a name; set it to the image_id of a RemoteImage",
    ),
    (
        "published-ports",
        CONTAINER,
        {"ports": [{"internal": 5000, "external": 5000, "ip": "0.0.0.0"}]},
        "ports: host port 5000 is published on 0.0.0.0 by a service other than Traefik; "
        "set ip to 127.0.0.1 (for the server: mlflow:server.bindAddress)",
    ),
    (
        "published-ports",
        CONTAINER,
        {"ports": [{"internal": 5000, "external": 5000}]},
        "ports: host port 5000 is published on 0.0.0.0 by a service other than Traefik; "
        "set ip to 127.0.0.1 (for the server: mlflow:server.bindAddress)",
    ),
    (
        "authenticated-routers",
        CONTAINER,
        routed(),
        "labels: the router r (Host(`h`)) has no authentication middleware; "
        "set mlflow:authentication to another value than anonymous",
    ),
    (
        "authenticated-routers",
        CONTAINER,
        routed(**{f"{ROUTER}.middlewares": "secureHeaders@docker"}),
        "labels: the router r (Host(`h`)) has no authentication middleware; "
        "set mlflow:authentication to another value than anonymous",
    ),
    (
        "authenticated-routers",
        CONTAINER,
        # The middleware is defined, and no router uses it.
        routed(**{"traefik.http.middlewares.m.basicAuth.users": "u:p"}),
        "labels: the router r (Host(`h`)) has no authentication middleware; "
        "set mlflow:authentication to another value than anonymous",
    ),
    (
        "authenticated-routers",
        CONTAINER,
        routed(**{f"{ROUTER}.middlewares": "no-auth@docker,skip-sso@file,oidc-bypass@docker"}),
        "labels: the router r (Host(`h`)) has no authentication middleware; "
        "set mlflow:authentication to another value than anonymous",
    ),
    (
        "no-host-folders",
        VOLUME,
        {"name": "mlflow-prod-x", "driverOpts": {"type": "none", "o": "bind", "device": "/var/run"}},
        "driverOpts: binds the volume to the host folder /var/run; only the backup target (mlflow:backup.target) "
        "may be a host folder, and never a system folder",
    ),
    (
        "no-host-folders",
        VOLUME,
        {"name": "mlflow-prod-backup-folder-0a1b2c3d", "driverOpts": {"type": "none", "o": "bind", "device": "/etc"}},
        "driverOpts: binds the volume to the host folder /etc; only the backup target (mlflow:backup.target) "
        "may be a host folder, and never a system folder",
    ),
    (
        "authenticated-edge",
        CONTAINER,
        {
            "labels": [
                {"label": "mlflow.service", "value": "traefik"},
                {"label": "mlflow.role", "value": "service"},
                {"label": "mlflow.authentication", "value": "anonymous"},
            ],
            "ports": [{"internal": 443, "external": 443, "ip": "0.0.0.0"}],
        },
        "ports: host port 443 on 0.0.0.0 has no authentication (mlflow:authentication: anonymous); "
        "set mlflow:authentication, or mlflow:traefik.bindAddress to the address of one network",
    ),
    (
        "watched",
        CONTAINER,
        {"healthcheck": None},
        "healthcheck: must be set; without it, Docker does not notice that the service does not answer",
    ),
    (
        "watched",
        CONTAINER,
        {"destroyGraceSeconds": None},
        "destroyGraceSeconds: must be at least 10: a service needs time to write its data",
    ),
    ("limited", CONTAINER, {"memory": None}, "memory, memorySwap: must both be set, to the same value"),
    ("limited", CONTAINER, {"memorySwap": 512.0}, "memory, memorySwap: must both be set, to the same value"),
    ("limited", CONTAINER, {"cpus": None}, "cpus: must be set"),
    (
        "limited",
        CONTAINER,
        {"logOpts": {}},
        "logOpts: must set max-size and max-file; without them, the log fills the disk",
    ),
    (
        "protected-data",
        VOLUME,
        {"name": "mlflow-prod-postgres-18-data"},
        "protect: must be true for a data volume outside dev; set mlflow:protectData to true",
    ),
    (
        "secrets-in-files",
        CONTAINER,
        {"envs": ["POSTGRES_PASSWORD=hunter2"]},
        "envs: POSTGRES_PASSWORD has a value that looks like a secret; pass it in a secret file",
    ),
    (
        "secrets-in-files",
        CONTAINER,
        {"envs": ["URI=postgresql://u:hunter2@db/x"]},
        "envs: URI has a value that looks like a secret; pass it in a secret file",
    ),
]


def broken(resource: Resource) -> dict[str, list[str]]:
    """Return the violations that each rule reports for a resource; no entry for a rule that holds."""
    found = {rule.name: list(rule.broken(resource)) for rule in RULES if rule.type == resource.type}
    return {name: words for name, words in found.items() if words}


def one(kind: str, props: dict[str, Any], *, stack: str = "prod", protected: bool = False) -> Resource:
    base = {CONTAINER: GOOD, SERVICE: GOOD_SERVICE}.get(kind, {})
    return Resource(type=kind, name="x", stack=stack, props=base | props, protected=protected)


BAD += BAD_SERVICES


@pytest.mark.parametrize(("rule", "kind", "props", "words"), BAD, ids=[f"{entry[0]}: {entry[3][:30]}" for entry in BAD])
def test_each_rule_reports_its_violation_with_the_exact_message(
    rule: str, kind: str, props: dict[str, Any], words: str
) -> None:
    assert broken(one(kind, props)) == {rule: [words]}


def test_every_rule_has_a_violation_in_the_table() -> None:
    assert {rule.name for rule in RULES} == {entry[0] for entry in BAD}


def test_no_message_contains_a_secret() -> None:
    assert not any("hunter2" in words for *_, words in BAD)


@pytest.mark.parametrize(
    "props",
    [
        {},
        {"ports": [{"internal": 5000, "external": 5000, "ip": "127.0.0.1"}]},
        {"ports": [{"internal": 8443, "external": 443, "ip": "0.0.0.0"}]}
        | labelled(**{"mlflow.service": "traefik", "mlflow.authentication": "password"}),
        routed(**{f"{ROUTER}.middlewares": "headers@docker,authelia@docker"}),
        routed(**{f"{ROUTER}.middlewares": "keycloak@docker", "mlflow.single-sign-on": "keycloak@docker"}),
        routed(**{f"{ROUTER}.middlewares": "public-auth@file"}),
        {"ports": [{"internal": 8443, "external": 443, "ip": "192.168.7.5"}]}
        | labelled(**{"mlflow.service": "traefik", "mlflow.authentication": "anonymous"}),
        routed(**{f"{ROUTER}.middlewares": "m", "traefik.http.middlewares.m.basicAuth.users": "u:p"}),
        routed() | {"envs": ["MLFLOW_AUTH_CONFIG_PATH=/run/secrets/auth.ini"]},
        labelled(**{"traefik.enable": "false"}),
        {"healthcheck": None, "destroyGraceSeconds": None} | labelled(**{"mlflow.role": "job"}),
    ],
)
def test_allowed_arguments_are_accepted(props: dict[str, Any]) -> None:
    assert broken(one(CONTAINER, props)) == {}


def test_dev_and_locally_built_images_are_exempt() -> None:
    assert broken(one(IMAGE, {"name": "docker.io/pgsty/silo:1"}, stack="dev")) == {}
    assert broken(one(VOLUME, {"name": "mlflow-dev-minio-data"}, stack="dev")) == {}
    assert broken(one(IMAGE, {"name": "localhost/mlflow-server:0123"})) == {}


DIGEST = "sha256:" + "0" * 64
PINNED = {
    "mlflow:images": {
        "postgres": {"ref": "docker.io/library/postgres:18.6", "digest": DIGEST},
        "python": {"ref": "docker.io/library/python:3.13-slim-trixie", "digest": DIGEST},
        "traefik": {"ref": "docker.io/library/traefik:v3.7.15", "digest": DIGEST},
    }
}
"""The digests that `make pin` writes into the stack file if a registry is reachable."""
ON_SWARM = {"mlflow:runtime": "swarm", "mlflow:postgres": {"maxConnections": 200}}
STACKS = {
    "dev": ("dev", values_of("dev")),
    "staging": ("staging", values_of("staging") | PINNED),
    "prod": ("prod", values_of("prod") | PINNED),
    "prod, bundled": ("prod", bundled() | PINNED),
    "prod, on a cluster": ("prod", bundled() | PINNED | ON_SWARM),
    "prod, two ways": ("prod", values_of("prod") | PINNED | {"mlflow:authentication": "singleSignOnAndPassword"}),
}


@pytest.mark.parametrize("name", STACKS)
def test_shipped_stacks_violate_no_rule(name: str) -> None:
    stack, values = STACKS[name]
    graph = build(stack, values=values, preview=True)
    for found in graph.resources:
        resource = Resource(
            type=found.type, name=found.name, stack=stack, props=found.plain, protected=found.request.protect
        )
        assert broken(resource) == {}, found.name


def test_prod_without_digests_and_authentication_is_refused() -> None:
    open_door = {"mlflow:authentication": "anonymous"}
    traefik = {"mlflow:traefik": {"mode": "existing", "network": "shared-network", "serversTransport": "mlflow@file"}}
    graph = build("prod", values=values_of("prod") | open_door | traefik)
    said = {
        name
        for found in graph.resources
        for name in broken(
            Resource(type=found.type, name=found.name, stack="prod", props=found.plain, protected=found.request.protect)
        )
    }
    assert said == {"pinned-images", "authenticated-routers"}
