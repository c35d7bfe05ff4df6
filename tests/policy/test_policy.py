"""The policy pack: every rule refuses what it is for, and nothing that we ship."""

from typing import Any

import pytest

from policy.rules import CONTAINER, IMAGE, RULES, VOLUME, Resource
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
ROUTER = "traefik.http.routers.r"


def labelled(**labels: str) -> dict[str, Any]:
    found = {"mlflow.role": "service", "mlflow.service": "x"} | labels
    return {"labels": [{"label": key, "value": value} for key, value in found.items()]}


def routed(**labels: str) -> dict[str, Any]:
    return labelled(**{"traefik.enable": "true", f"{ROUTER}.rule": "Host(`h`)", **labels})


BAD: list[tuple[str, str, dict[str, Any], str]] = [
    ("no-privileges", CONTAINER, {"privileged": True}, "privileged: true gives it the host"),
    (
        "no-privileges",
        CONTAINER,
        {"capabilities": {"drops": ["ALL"], "adds": ["CAP_NET_ADMIN"]}},
        "capabilities.adds: CAP_NET_ADMIN; a service of this project needs none",
    ),
    ("no-privileges", CONTAINER, {"networkMode": "host"}, "networkMode: host leaves the container"),
    ("no-privileges", CONTAINER, {"pidMode": "host"}, "pidMode: host leaves the container"),
    (
        "no-privileges",
        CONTAINER,
        {"devices": [{"hostPath": "/dev/kmsg"}]},
        "devices: it is handed a device of the host",
    ),
    ("hardened", CONTAINER, {"capabilities": {}}, "capabilities.drops: must have ALL"),
    ("hardened", CONTAINER, {"securityOpts": []}, "securityOpts: must have no-new-privileges:true"),
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
            "readOnly, user: of a job, one must be true, or the other two numbers that are not 0",
        )
        for user in ("0:0", "10001", "root", "1:0", None)
    ),
    (
        "no-host-paths",
        CONTAINER,
        {"volumes": [{"hostPath": "/var/run/docker.sock", "containerPath": "/s"}]},
        "volumes: /var/run/docker.sock of the host, Docker's socket: whoever has it is root",
    ),
    (
        "no-host-paths",
        CONTAINER,
        {"volumes": [{"hostPath": "/etc", "containerPath": "/s"}]},
        "volumes: /etc of the host",
    ),
    (
        "no-host-paths",
        CONTAINER,
        {"mounts": [{"type": "bind", "source": "/root", "target": "/s"}]},
        "mounts: /root of the host",
    ),
    (
        "pinned-images",
        IMAGE,
        {"name": "docker.io/library/postgres:18.6"},
        "name: docker.io/library/postgres:18.6 has no digest, and may be another image tomorrow; type: make pin "
        "STACK=prod",
    ),
    ("images-by-id", CONTAINER, {"image": "mlflow:1"}, "image: mlflow:1 is a name; take the id of a RemoteImage"),
    (
        "published-ports",
        CONTAINER,
        {"ports": [{"internal": 5000, "external": 5000, "ip": "0.0.0.0"}]},
        "ports: 5000 is published on 0.0.0.0, past the edge",
    ),
    (
        "published-ports",
        CONTAINER,
        {"ports": [{"internal": 5000, "external": 5000}]},
        "ports: 5000 is published on 0.0.0.0, past the edge",
    ),
    ("authenticated-routers", CONTAINER, routed(), "labels: the router r (Host(`h`)) asks nobody who he is"),
    (
        "authenticated-routers",
        CONTAINER,
        routed(**{f"{ROUTER}.middlewares": "secureHeaders@docker"}),
        "labels: the router r (Host(`h`)) asks nobody who he is",
    ),
    (
        "authenticated-routers",
        CONTAINER,
        # One that is defined and not used.
        routed(**{"traefik.http.middlewares.m.basicAuth.users": "u:p"}),
        "labels: the router r (Host(`h`)) asks nobody who he is",
    ),
    (
        "authenticated-routers",
        CONTAINER,
        routed(**{f"{ROUTER}.middlewares": "no-auth@docker,skip-sso@file,oidc-bypass@docker"}),
        "labels: the router r (Host(`h`)) asks nobody who he is",
    ),
    (
        "no-host-folders",
        VOLUME,
        {"name": "mlflow-prod-x", "driverOpts": {"type": "none", "o": "bind", "device": "/var/run"}},
        "driverOpts: /var/run of the host",
    ),
    (
        "no-host-folders",
        VOLUME,
        {"name": "mlflow-prod-backup-folder-0a1b2c3d", "driverOpts": {"type": "none", "o": "bind", "device": "/etc"}},
        "driverOpts: /etc of the host",
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
        "ports: 443 on 0.0.0.0 lets in everybody (mlflow:authentication: anonymous)",
    ),
    ("watched", CONTAINER, {"healthcheck": None}, "healthcheck: nobody would know that it does not answer"),
    (
        "watched",
        CONTAINER,
        {"destroyGraceSeconds": None},
        "destroyGraceSeconds: below 10, it is killed with what it has not written yet",
    ),
    ("limited", CONTAINER, {"memory": None}, "memory, memorySwap: must be set, and equal"),
    ("limited", CONTAINER, {"memorySwap": 512.0}, "memory, memorySwap: must be set, and equal"),
    ("limited", CONTAINER, {"cpus": None}, "cpus: must be set"),
    ("limited", CONTAINER, {"logOpts": {}}, "logOpts: without max-size and max-file, its log fills the disk"),
    (
        "protected-data",
        VOLUME,
        {"name": "mlflow-prod-postgres-18-data"},
        "protect: must be set outside dev (mlflow:protectData)",
    ),
    (
        "secrets-in-files",
        CONTAINER,
        {"envs": ["POSTGRES_PASSWORD=hunter2"]},
        "envs: POSTGRES_PASSWORD has a value that looks like a secret; hand it over as a file",
    ),
    (
        "secrets-in-files",
        CONTAINER,
        {"envs": ["URI=postgresql://u:hunter2@db/x"]},
        "envs: URI has a value that looks like a secret; hand it over as a file",
    ),
]


def broken(resource: Resource) -> dict[str, list[str]]:
    """Return what each rule says of a resource, if it says anything."""
    found = {rule.name: list(rule.broken(resource)) for rule in RULES if rule.type == resource.type}
    return {name: words for name, words in found.items() if words}


def one(kind: str, props: dict[str, Any], *, stack: str = "prod", protected: bool = False) -> Resource:
    base = GOOD if kind == CONTAINER else {}
    return Resource(type=kind, name="x", stack=stack, props=base | props, protected=protected)


@pytest.mark.parametrize(("rule", "kind", "props", "words"), BAD, ids=[f"{entry[0]}: {entry[3][:30]}" for entry in BAD])
def test_what_a_rule_is_for_is_refused_in_exactly_these_words(
    rule: str, kind: str, props: dict[str, Any], words: str
) -> None:
    assert broken(one(kind, props)) == {rule: [words]}


def test_every_rule_refuses_something() -> None:
    assert {rule.name for rule in RULES} == {entry[0] for entry in BAD}


def test_no_rule_repeats_a_secret() -> None:
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
def test_what_is_right_is_not_refused(props: dict[str, Any]) -> None:
    assert broken(one(CONTAINER, props)) == {}


def test_a_laptop_may_run_what_was_built_there_and_protects_nothing() -> None:
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
"""As `make pin` leaves a stack's file, where a registry answers."""
STACKS = {
    "dev": ("dev", values_of("dev")),
    "staging": ("staging", values_of("staging") | PINNED),
    "prod": ("prod", values_of("prod") | PINNED),
    "prod, bundled": ("prod", bundled() | PINNED),
    "prod, two ways": ("prod", values_of("prod") | PINNED | {"mlflow:authentication": "singleSignOnAndPassword"}),
}


@pytest.mark.parametrize("name", STACKS)
def test_what_we_ship_breaks_no_rule(name: str) -> None:
    stack, values = STACKS[name]
    graph = build(stack, values=values)
    for found in graph.resources:
        resource = Resource(
            type=found.type, name=found.name, stack=stack, props=found.plain, protected=found.request.protect
        )
        assert broken(resource) == {}, found.name


def test_prod_without_digests_or_authentication_is_refused() -> None:
    open_door = {"mlflow:authentication": "anonymous"}
    traefik = {"mlflow:traefik": {"mode": "existing", "network": "shared-network"}}
    graph = build("prod", values=values_of("prod") | open_door | traefik)
    said = {
        name
        for found in graph.resources
        for name in broken(
            Resource(type=found.type, name=found.name, stack="prod", props=found.plain, protected=found.request.protect)
        )
    }
    assert said == {"pinned-images", "authenticated-routers"}
