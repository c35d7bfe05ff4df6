"""Test the settings: what is refused, and with which message."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from components.server import allowed_hosts
from settings.backup import BackupSettings
from settings.errors import InvalidSettingsError
from settings.images import DEFAULTS
from settings.parsing import parse_settings, settings_warnings
from settings.secrets import SECRET_KEYS
from tests.shipped import stack_file

ROOT = Path(__file__).parents[2]
STACKS = ("dev", "staging", "prod")
SHA = "sha256:" + "a" * 64


def stack_values(stack: str) -> dict[str, object]:
    values = yaml.safe_load(stack_file(stack))["config"]
    return {key.removeprefix("mlflow:"): value for key, value in values.items()}


def problems(values: dict[str, object], hidden: list[str] | None = None) -> list[str]:
    with pytest.raises(InvalidSettingsError) as caught:
        parse_settings(values, hidden=hidden)
    return caught.value.problems


ON_SWARM: dict[str, object] = {
    "runtime": "swarm",
    "hostname": "mlflow.example.com",
    "authentication": "password",
    "traefik": {"mode": "bundled"},
    "postgres": {"maxConnections": 200},
}
BEHIND = {"hostname": "m.example.com", "authentication": "password", "traefik": {"mode": "bundled"}}
REFUSED = [
    (
        {"runtime": "swarm", "postgres": {"maxConnections": 200}},
        "mlflow:runtime: swarm needs Traefik, which distributes the requests among the tasks, and mlflow:traefik.mode "
        "is off; set it to bundled or existing; docs/operations/swarm.md#turn-it-on",
    ),
    (
        {**ON_SWARM, "server": {"port": 5000}},
        "mlflow:server.port: a host port reaches one server, and mlflow:runtime is swarm; remove the port: requests "
        "pass through Traefik to all tasks",
    ),
    (
        {**ON_SWARM, "server": {"jobs": True, "memoryMb": 4096}},
        "mlflow:server.jobs: runs in one server only, and mlflow:runtime is swarm, where a new task starts before the "
        "old one stops; set jobs to false, or runtime to container",
    ),
    (
        {**ON_SWARM, "server": {"replicas": 3}, "postgres": {"maxConnections": 204}},
        # 15 for each of two workers of three old and three new tasks, and 25.
        "mlflow:postgres.maxConnections: must be at least 205 for mlflow:server.workers 2 and mlflow:server.replicas 3 "
        "with mlflow:runtime swarm (twice as many tasks during an update), got 204; raise it, or lower the replicas or "
        "the workers",
    ),
    (
        {**ON_SWARM, "images": {"mlflow": {"ref": "registry.example.com/mlflow:1"}}},
        "mlflow:images.mlflow.digest: is required with mlflow:runtime swarm, so that every node runs the same image; "
        "set it to the digest in the registry. Only an image that you copy to every node needs none; its name begins "
        "with localhost/, got 'registry.example.com/mlflow:1'",
    ),
    (
        {**ON_SWARM, "swarm": {"constraints": ["labels.mlflow=true"]}},
        "mlflow:swarm.constraints.0: must be a placement constraint of Docker, such as node.labels.mlflow==true, got "
        "'labels.mlflow=true'",
    ),
    (
        {"swarm": {"constraints": ["node.role==worker"]}},
        "mlflow:swarm.constraints: is ignored while mlflow:runtime is container; set it to swarm, or remove this "
        "setting",
    ),
    ({"runtime": "kubernetes"}, "mlflow:runtime: must be one of 'container' or 'swarm', got 'kubernetes'"),
    (
        {"backup": {"schedule": "61 3 * * *"}},
        "mlflow:backup.schedule: must be minute, hour, day of the month, month and day of the week, such as "
        "17 3 * * *, got '61 3 * * *'",
    ),
    ({"postgres": {"memoryMb": 64}}, "mlflow:postgres.memoryMb: must be at least 256, got 64"),
    ({"postgres": {"memroyMb": 512}}, "mlflow:postgres.memroyMb: no such setting; did you mean memoryMb?"),
    ({"hostnam": "a"}, "mlflow:hostnam: no such setting; did you mean hostname?"),
    ({"postgresPasswrd": "a"}, "mlflow:postgresPasswrd: no such setting; did you mean postgresPassword?"),
    (
        {"traefik": {"zzz": 1}},
        "mlflow:traefik.zzz: no such setting; known keys: acmeEmail, acmeServer, bindAddress, certResolver, "
        "certificate, cpus, entryPoint, forwardAuth, forwardAuthNetwork, httpPort, httpsPort, memoryMb, middlewares, "
        "mode, network, serversTransport, singleSignOn, tls, uploadMinutes",
    ),
    ({"logLevel": "debug"}, "mlflow:logLevel: no such setting; did you mean mlflow:server.logLevel?"),
    (
        {"traefik": {"workers": 2}},
        "mlflow:traefik.workers: no such setting; did you mean mlflow:server.workers?",
    ),
    ({"images": {"minio": {"tag": "x"}}}, "mlflow:images.minio.tag: no such setting; known keys: digest, ref"),
    (
        {"zzz": 1},
        "mlflow:zzz: no such setting; known keys: authentication, backup, hostname, images, monitoring, networks, "
        "objectStore, postgres, protectData, rotation, runtime, server, swarm, tls, traefik; secrets: "
        "docs/operations/rotate.md#rotate-a-secret",
    ),
    ({"server": {"workers": "many"}}, "mlflow:server.workers: must be a whole number, got 'many'"),
    ({"server": {"workers": 2.5}}, "mlflow:server.workers: must be a whole number, got 2.5"),
    ({"server": {"cpus": "fast"}}, "mlflow:server.cpus: must be a number, got 'fast'"),
    ({"server": {"jobs": "perhaps"}}, "mlflow:server.jobs: must be true or false, got 'perhaps'"),
    ({"server": {"port": 80}}, "mlflow:server.port: must be at least 1024, got 80"),
    ({"server": {"port": 70000}}, "mlflow:server.port: must be at most 65535, got 70000"),
    (
        {"server": {"logLevel": "loud"}},
        "mlflow:server.logLevel: must be one of 'debug', 'info', 'warning' or 'error', got 'loud'",
    ),
    ({"server": "big"}, "mlflow:server: must be a section of settings (key: value), got 'big'"),
    ({"traefik": {"middlewares": "authelia"}}, "mlflow:traefik.middlewares: must be a list, got 'authelia'"),
    (
        {"traefik": {"middlewares": ["authelia"]}},
        "mlflow:traefik.middlewares.0: must be <name>@<provider> as Traefik's dashboard shows it, such as "
        "authelia@docker, got 'authelia'",
    ),
    (
        {"hostname": "https://mlflow.example.com"},
        "mlflow:hostname: must be a lowercase host name such as mlflow.example.com, without scheme, port or path, "
        "got 'https://mlflow.example.com'",
    ),
    (
        {"images": {"postgres": {"ref": "postgres:latest"}}},
        "mlflow:images.postgres.ref: must be <image>:<tag> with a tag other than latest; set the digest under the "
        "key digest, got 'postgres:latest'",
    ),
    (
        {"images": {"postgres": {"ref": "postgres:bookworm"}}},
        "mlflow:images.postgres.ref: must be a Debian variant whose tag begins with a major version of at "
        "least 18, such as postgres:18.6, got 'postgres:bookworm'",
    ),
    (
        {"images": {"postgres": {"ref": "postgres:17.11"}}},
        "mlflow:images.postgres.ref: must be a Debian variant whose tag begins with a major version of at "
        "least 18, such as postgres:18.6, got 'postgres:17.11'",
    ),
    (
        {"images": {"postgres": {"ref": "postgres:18.6-bookworm"}}, "backup": {"enabled": True}},
        "mlflow:images.postgres.ref: must be based on Debian 13, such as postgres:18.6: the backup image is built on "
        "it, and the restic of earlier Debian releases lacks functions that a backup needs, got "
        "'postgres:18.6-bookworm'",
    ),
    (
        {"images": {"postgres": {"ref": "postgres:18.6-alpine"}}},
        "mlflow:images.postgres.ref: must be a Debian variant whose tag begins with a major version of at "
        "least 18, such as postgres:18.6, got 'postgres:18.6-alpine'",
    ),
    (
        {"server": {"bindAddress": "0.0.0.0"}},
        "mlflow:hostname: is required when mlflow:server.bindAddress is 0.0.0.0: the server rejects requests for any "
        "other host name",
    ),
    (
        {"server": {"bindAddress": "999.1.1.1"}},
        "mlflow:server.bindAddress: must be an IPv4 address of this host such as 127.0.0.1, got '999.1.1.1'",
    ),
    (
        {"server": {"cpus": 10}},
        "mlflow:server.cpus: must not be a multiple of ten: the Docker provider misreads it in every plan; use 9.9, "
        "got 10",
    ),
    (
        {"images": {"minio": {"digest": "sha256:1234"}}},
        "mlflow:images.minio.digest: must be sha256:<64 hex digits>, or none, got 'sha256:1234'",
    ),
    (
        {"server": {"memoryMb": 600}},
        "mlflow:server.memoryMb: must be at least 768 for 2 workers, got 600; raise it, or lower mlflow:server.workers",
    ),
    (
        {"server": {"memoryMb": 2048, "jobs": True}},
        "mlflow:server.memoryMb: must be at least 2304 for 2 workers and jobs, got 2048; raise it, or lower "
        "mlflow:server.workers",
    ),
    (
        {"server": {"workers": 8, "memoryMb": 4096}},
        "mlflow:postgres.maxConnections: must be at least 145 for mlflow:server.workers 8, got 100; raise it, "
        "or lower the workers",
    ),
    (
        {"tls": {"internal": True}},
        "mlflow:tls.internal: needs Traefik, whose certificate clients trust, and mlflow:traefik.mode is off; set it "
        "to bundled or existing, or internal to false; docs/operations/tls.md",
    ),
    (
        {**BEHIND, "tls": {"internal": True}, "server": {"port": 5000}},
        "mlflow:server.port: 5000 would need clients that trust the stack's own authority, because mlflow:tls.internal "
        "is true; remove the port: requests pass through Traefik",
    ),
    (
        {**BEHIND, "tls": {"internal": True}, "traefik": {"mode": "existing"}},
        "mlflow:traefik.serversTransport: is required with mlflow:tls.internal: the serversTransport of your Traefik "
        "that trusts the stack's authority, such as mlflow@file; docs/operations/tls.md#an-existing-traefik",
    ),
    (
        {**BEHIND, "traefik": {"mode": "existing", "serversTransport": "mlflow@file"}},
        "mlflow:traefik.serversTransport: 'mlflow@file' is ignored while mlflow:tls.internal is false; remove it, or "
        "set internal to true",
    ),
    (
        {"tls": {"issued": "2999-01-01T00:00:00Z"}},
        f"mlflow:tls.issued: is in the future: 2999-01-01, and the clock of this machine says "
        f"{datetime.now(UTC):%Y-%m-%d}; correct the clock; if it is right, remove the line: make up writes it",
    ),
    (
        {"tls": {"issued": "yesterday"}},
        "mlflow:tls.issued: must be a time with its time zone, such as 2026-11-29T09:00:00Z, got 'yesterday'",
    ),
    (
        {"traefik": {"tls": False, "certResolver": "cloudflare"}},
        "mlflow:traefik.certResolver: 'cloudflare' is ignored while mlflow:traefik.tls is false; set tls to true, "
        "or remove certResolver",
    ),
    (
        {"traefik": {"mode": "existing"}, "authentication": "anonymous"},
        "mlflow:hostname: is required when mlflow:traefik.mode is existing; add to the "
        "stack file: mlflow:hostname: mlflow.example.com",
    ),
    (
        {"traefik": {"mode": "bundled"}, "hostname": "m.example.com"},
        "mlflow:authentication: is required when mlflow:traefik.mode is bundled: one of anonymous, password, "
        "singleSignOn, singleSignOnAndPassword, mlflow; docs/security.md#authentication",
    ),
    (
        {"traefik": {"mode": "bundled"}, "hostname": "m.example.com", "authentication": "anonymous"},
        "mlflow:authentication: anonymous would allow everybody who reaches this host to read, change and delete "
        "everything; choose password, or set mlflow:traefik.bindAddress to 127.0.0.1 or to an address in a private "
        "network",
    ),
    (
        {
            "traefik": {"mode": "existing", "singleSignOn": "no-auth@docker", "middlewares": ["no-auth@docker"]},
            "hostname": "m.example.com",
            "authentication": "singleSignOn",
        },
        "mlflow:traefik.singleSignOn: the name no-auth@docker says that it does not authenticate; set the middleware "
        "that does, such as authelia@docker",
    ),
    (
        {"server": {"environment": {"MLFLOW_WORKERS": "4"}}},
        "mlflow:server.environment.MLFLOW_WORKERS: is set by the stack; set mlflow:server.workers instead; "
        "docs/mlflow-variables.md",
    ),
    (
        {"server": {"environment": {"MLFLOW_BACKEND_STORE_URI": "sqlite://"}}},
        "mlflow:server.environment.MLFLOW_BACKEND_STORE_URI: is set by this stack and cannot be changed: It is the "
        "stack's own database.; docs/mlflow-variables.md",
    ),
    (
        {"server": {"environment": {"OPENAI_API_KEY": "sk-1"}}},
        "mlflow:server.environment.OPENAI_API_KEY: is a secret, and `docker inspect` shows the server's environment to "
        "everybody on the host; docs/mlflow-variables.md",
    ),
    (
        {"server": {"environment": {"HTTPS_PROXY": "http://me:pw@proxy:3128"}}},
        "mlflow:server.environment.HTTPS_PROXY: is a secret, and `docker inspect` shows the server's environment to "
        "everybody on the host; docs/mlflow-variables.md",
    ),
    (
        {"server": {"environment": {"MLFLOW_WEBHOOK_ALLOW_PRIVATE_IP": "true"}}},
        "mlflow:server.environment.MLFLOW_WEBHOOK_ALLOW_PRIVATE_IP: is not a variable of this MLflow version; did you "
        "mean MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS?; docs/mlflow-variables.md",
    ),
    (
        {"server": {"environment": {"PGPASSFILE": "/x"}}},
        "mlflow:server.environment.PGPASSFILE: is set by this stack; it cannot be changed; docs/mlflow-variables.md",
    ),
    (
        {"networks": {"subnets": {"backend": "8.8.8.0/24"}}},
        "mlflow:networks.subnets.backend: must be a private IPv4 network of /8 to /28 such as 10.213.0.0/26, got "
        "'8.8.8.0/24'",
    ),
    (
        {"networks": {"subnets": {"backend": "10.0.0.0/24", "edge": "10.0.0.128/25"}}},
        "mlflow:networks.subnets.backend: 10.0.0.0/24 overlaps with 10.0.0.128/25 of edge",
    ),
    (
        {"networks": {"subnets": {"egress": "10.0.0.0/24"}}},
        "mlflow:networks.subnets.egress: is ignored: with these settings the stack has no network egress; remove it",
    ),
    (
        {"backup": {"enabled": True, "target": "/var/run"}},
        "mlflow:backup.target: must be volume, a folder on the Docker host such as /srv/backup (not a system folder), "
        "or s3:https://s3.example.com/bucket/path, got '/var/run'",
    ),
    (
        {"authentication": "password"},
        "mlflow:authentication: password needs Traefik, and mlflow:traefik.mode is off; use mlflow or anonymous",
    ),
    (
        {"traefik": {"mode": "existing"}, "hostname": "m.example.com", "authentication": "singleSignOn"},
        "mlflow:traefik.singleSignOn: must be the entry of mlflow:traefik.middlewares that authenticates, such as "
        "authelia@docker, because mlflow:authentication is singleSignOn; got None",
    ),
    (
        {
            "traefik": {"mode": "existing", "singleSignOn": "authelia@docker", "middlewares": ["authelia@file"]},
            "hostname": "m.example.com",
            "authentication": "singleSignOnAndPassword",
        },
        "mlflow:traefik.singleSignOn: must be the entry of mlflow:traefik.middlewares that authenticates, such as "
        "authelia@docker, because mlflow:authentication is singleSignOnAndPassword; got 'authelia@docker'",
    ),
    (
        {"traefik": {"mode": "bundled"}, "hostname": "m.example.com", "authentication": "singleSignOn"},
        "mlflow:traefik.forwardAuth: is required for mlflow:authentication singleSignOn: the URL of your identity "
        "provider, such as http://authelia:9091/api/authz/forward-auth",
    ),
    (
        {
            "traefik": {
                "mode": "existing",
                "singleSignOn": "authelia@docker",
                "middlewares": ["authelia@docker"],
                "tls": False,
            },
            "hostname": "m.example.com",
            "authentication": "singleSignOn",
        },
        "mlflow:traefik.tls: must be true for mlflow:authentication singleSignOn: a login page and its cookies "
        "need TLS",
    ),
    (
        {
            "traefik": {"mode": "existing", "singleSignOn": "authelia@docker"},
            "hostname": "m.example.com",
            "authentication": "password",
        },
        "mlflow:traefik.singleSignOn: 'authelia@docker' is ignored while mlflow:authentication is password; remove "
        "it, or set mlflow:authentication to singleSignOn",
    ),
    (
        {
            "traefik": {"mode": "existing"},
            "hostname": "m.example.com",
            "authentication": "password",
            "server": {"port": 5050, "bindAddress": "192.168.1.2"},
        },
        "mlflow:server.port: would publish the server on 192.168.1.2 without authentication; remove it, or "
        "mlflow:server.bindAddress",
    ),
    (
        {
            "traefik": {"mode": "bundled", "middlewares": ["authelia@docker"]},
            "hostname": "m.example.com",
            "authentication": "password",
        },
        "mlflow:traefik.middlewares: is ignored while mlflow:traefik.mode is bundled; remove it",
    ),
    (
        {
            "traefik": {"mode": "existing", "httpsPort": 8443},
            "hostname": "m.example.com",
            "authentication": "password",
        },
        "mlflow:traefik.httpsPort: is ignored while mlflow:traefik.mode is existing; remove it",
    ),
    (
        {
            "traefik": {"mode": "bundled", "certificate": "acme"},
            "hostname": "m.example.com",
            "authentication": "password",
            "acmeDnsToken": "x",
        },
        "mlflow:traefik.acmeEmail: is required for mlflow:traefik.certificate acme: the certificate authority sends "
        "its messages there",
    ),
    (
        {
            "traefik": {"mode": "bundled", "certificate": "own"},
            "hostname": "m.example.com",
            "authentication": "password",
            "tlsCertificate": {"secure": "x"},
        },
        'mlflow:tlsKey: is required for mlflow:traefik.certificate own; type: eval "$(make -s env STACK=dev)" && '
        "pulumi config set --stack dev --secret tlsKey",
    ),
    (
        {"backup": {"enabled": True, "target": "s3:https://s3.example.com/b/p", "accessKeyId": "x"}},
        "mlflow:backupTargetSecretKey: is required for the S3 target of mlflow:backup; type: "
        'eval "$(make -s env STACK=dev)" && pulumi config set --stack dev --secret backupTargetSecretKey',
    ),
    (
        {
            "server": {"bindAddress": "192.0.2.1"},
            "traefik": {"mode": "existing"},
            "hostname": "m.example.com",
            "authentication": "password",
        },
        "mlflow:server.bindAddress: is ignored while the server has no host port; set mlflow:server.port, or remove it",
    ),
    (
        {"server": {"defaultPermission": "EDIT"}},
        "mlflow:server.defaultPermission: is ignored while mlflow:authentication is not mlflow; remove this setting",
    ),
    (
        {
            "backup": {
                "enabled": True,
                "target": "s3:https://s3.example.com/b/p",
                "accessKeyId": "x",
                "deletes": False,
                "keepDaily": 3,
            },
            "backupTargetSecretKey": "x",
        },
        "mlflow:backup.keepDaily: is ignored while mlflow:backup.deletes is false, so no backup is deleted; remove "
        "this setting",
    ),
    (
        {"monitoring": {"mode": "exporters", "retentionDays": 90}},
        "mlflow:monitoring.retentionDays: is ignored while mlflow:monitoring.mode is exporters; set it to bundled",
    ),
    (
        {
            "traefik": {"mode": "bundled", "httpPort": 443},
            "hostname": "m.example.com",
            "authentication": "password",
        },
        "mlflow:traefik.httpsPort: port 443 is already used by mlflow:traefik.httpPort",
    ),
    (
        {"authentication": "mlflow", "server": {"workers": 4, "memoryMb": 4096}},
        "mlflow:postgres.maxConnections: must be at least 145 for mlflow:server.workers 4 with mlflow:authentication "
        "mlflow, got 100; raise it, or lower the workers",
    ),
    (
        {"postgres": {"port": 5000}},
        "mlflow:postgres.port: port 5000 is already used by mlflow:server.port",
    ),
    (
        {"postgres": {"port": 9001}, "objectStore": {"consolePort": 9001}},
        "mlflow:objectStore.consolePort: port 9001 is already used by mlflow:postgres.port",
    ),
    (
        {"images": {"mlflow": {"ref": "mlflow:1", "digets": "none"}}},
        "mlflow:images.mlflow.digets: no such setting; did you mean digest?",
    ),
    ({"images": {"mlflow": {}}}, "mlflow:images.mlflow.ref: is required"),
    (
        {"images": {"archive": "images", "minio": {"digest": "none"}}},
        "mlflow:images.archive: an image loaded from a file has no digest; set digest: none for "
        "docker.io/pgsty/mc:RELEASE.2026-09-16T00-00-00Z",
    ),
    (
        {"objectStore": {"kind": "seaweedfs", "memoryMb": 512}},
        "mlflow:objectStore.memoryMb: must be at least 1024 for seaweedfs, got 512",
    ),
    (
        {"objectStore": {"kind": "seaweedfs", "consolePort": 9001}},
        "mlflow:objectStore.consolePort: seaweedfs has no console; remove it",
    ),
    (
        {"server": {"replicas": 2, "port": 5000}},
        "mlflow:server.replicas: 2 replicas need Traefik, which distributes the requests, and mlflow:traefik.mode is "
        "off; set it to bundled or existing and remove mlflow:server.port, or replicas to 1; "
        "docs/operations/replicas.md#turn-it-on",
    ),
    (
        {**BEHIND, "server": {"replicas": 2, "port": 5000}},
        "mlflow:server.port: a host port reaches one server, and mlflow:server.replicas is 2; remove the port: "
        "requests pass through Traefik to all replicas",
    ),
    (
        {**BEHIND, "server": {"replicas": 2, "jobs": True, "memoryMb": 8192}},
        "mlflow:server.jobs: runs in one server only, and mlflow:server.replicas is 2: each replica would start the "
        "jobs of the others again; set replicas to 1, or jobs to false",
    ),
    (
        {
            "backup": {"enabled": True, "target": "s3:https://s3.example.com/backups"},
            "backupTargetSecretKey": "of-the-target",
        },
        "mlflow:backup.accessKeyId: is required for the S3 target of mlflow:backup",
    ),
    (
        {**BEHIND, "traefik": {"mode": "bundled", "forwardAuth": "http://authelia:9091/api/authz/forward-auth"}},
        "mlflow:traefik.forwardAuth: 'http://authelia:9091/api/authz/forward-auth' is ignored while "
        "mlflow:authentication is password; remove it, or set mlflow:authentication to singleSignOn",
    ),
    (
        {"server": {"environment": {"MLFLOW_ACTIVE_MODEL_ID": "m-1"}}},
        "mlflow:server.environment.MLFLOW_ACTIVE_MODEL_ID: has no effect on the server: For training programs: what "
        "they log, and where to. Set it where the client runs; docs/mlflow-variables.md",
    ),
    (
        {"objectStore": {"kind": "minio", "copyFrom": "minio"}},
        "mlflow:objectStore.copyFrom: must differ from mlflow:objectStore.kind, got 'minio'",
    ),
]


@pytest.mark.parametrize(("values", "message"), REFUSED, ids=[message[:70] for _, message in REFUSED])
def test_an_invalid_setting_is_refused_with_its_exact_message(values: dict[str, object], message: str) -> None:
    assert problems(values) == [message]


def test_all_invalid_settings_and_contradictions_are_reported_at_once() -> None:
    found = problems(
        {
            "postgres": {"memoryMb": 64, "memroyMb": 1},
            "server": {"memoryMb": 600},
            "traefik": {"tls": False, "certResolver": "x"},
        }
    )
    assert [line.split(": ")[0] for line in found] == [
        "mlflow:postgres.memoryMb",
        "mlflow:postgres.memroyMb",
        "mlflow:server.memoryMb",
        "mlflow:traefik.certResolver",
    ]


def test_a_setting_is_not_called_unused_when_its_condition_is_invalid() -> None:
    values: dict[str, object] = {"server": {"defaultPermission": "EDIT"}, "authentication": "mlfow"}
    assert [problem.split(":")[1] for problem in problems(values)] == ["authentication"]


def test_a_contradiction_with_an_invalid_section_is_not_guessed() -> None:
    # 8 workers need 145 connections, but the value of maxConnections is invalid and so unknown.
    found = problems({"server": {"workers": 8, "memoryMb": 4096}, "postgres": {"maxConnections": "lots"}})
    assert found == ["mlflow:postgres.maxConnections: must be a whole number, got 'lots'"]


def test_no_possible_secret_is_repeated_in_a_message() -> None:
    assert "hunter2" not in str(problems({"server": {"adminPassword": "hunter2"}}))
    assert "hunter2" not in str(problems({"server": {"workers": "hunter2"}}, hidden=["server"]))


def test_every_setting_has_a_default() -> None:
    assert parse_settings({}).route.published_port == 5000


@pytest.mark.parametrize("stack", STACKS)
def test_every_stack_file_is_valid(stack: str) -> None:
    parse_settings(stack_values(stack))


def test_prod_is_protected_and_behind_traefik() -> None:
    prod = parse_settings(stack_values("prod"))
    assert prod.protect_data
    assert prod.traefik.network == "shared-network"
    assert prod.traefik.middlewares == ("authelia@docker", "secureHeaders@docker")
    assert prod.route.published_port is None
    assert prod.route.url == "https://mlflow.example.com"


@pytest.mark.parametrize(
    ("monitoring", "words"),
    [
        (
            {"mode": "exporters", "prometheusPort": 9090},
            "prometheusPort: is ignored while mlflow:monitoring.mode is exporters",
        ),
        ({"webhook": True}, "webhook: is ignored while mlflow:monitoring.mode is off"),
        ({"mode": "bundled", "webhook": True}, "mlflow:alertWebhookUrl: is required for mlflow:monitoring"),
        ({"mode": "bundled", "deadMansSwitch": True}, "mlflow:deadMansSwitchUrl: is required"),
        ({"mode": "bundled", "mail": {"to": "x"}}, "must be an e-mail address"),
        (
            {"mode": "bundled", "mail": {"to": "a@b.de", "sender": "c@d.de", "server": "mail"}},
            "must be a host and a port such as smtp.example.com:587",
        ),
        ({"mode": "bundled", "prometheusPort": 5432, "grafanaPort": 5432}, "is already used by mlflow:monitoring"),
    ],
)
def test_invalid_monitoring_settings_are_refused(monitoring: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidSettingsError) as refused:
        parse_settings({"monitoring": monitoring})
    assert words in str(refused.value)


def test_grafana_requires_an_image_with_packages_images() -> None:
    values = {
        "monitoring": {"mode": "bundled", "grafanaPort": 3000},
        "images": {"source": "packages"},
        "objectStore": {"kind": "seaweedfs", "memoryMb": 1024},
    }
    with pytest.raises(InvalidSettingsError, match="Grafana cannot be built from packages"):
        parse_settings(values)
    parse_settings(values | {"images": {"source": "packages", "grafana": {"ref": "mirror.example.com/grafana:13.2.3"}}})


def test_the_shipped_stack_files_hold_no_secret() -> None:
    for stack in STACKS:
        text = stack_file(stack)
        assert "secure:" not in text
        assert "encryptionsalt" not in text


def test_generated_secrets_are_accepted_in_the_stack_file() -> None:
    parse_settings(dict.fromkeys(SECRET_KEYS, "anything-that-has-32-characters-"))


def test_the_same_tag_from_a_mirror_keeps_the_default_digest() -> None:
    config = parse_settings({"images": {"minio": {"ref": "mirror.example.com/silo:RELEASE.2026-09-16T00-00-00Z"}}})
    assert config.images.minio.digest == DEFAULTS["minio"]["digest"]


def test_the_default_schedules_are_valid_settings() -> None:
    default = BackupSettings()
    schedules = {"schedule": default.schedule, "drillSchedule": default.drill_schedule}
    assert BackupSettings.model_validate(schedules) == default


def test_another_tag_drops_the_default_digest() -> None:
    config = parse_settings({"images": {"minio": {"ref": "docker.io/pgsty/silo:RELEASE.2027-01-01T00-00-00Z"}}})
    assert config.images.minio.digest == "none"


def test_the_bind_address_of_the_server_is_an_allowed_host() -> None:
    assert allowed_hosts("server", None, "192.168.1.10")[-2:] == ["192.168.1.10", "192.168.1.10:*"]


def test_a_digest_is_part_of_the_image_name() -> None:
    config = parse_settings({"images": {"postgres": {"ref": "postgres:18.6", "digest": SHA}}})
    assert config.images.postgres.name == f"postgres:18.6@{SHA}"


@pytest.mark.parametrize(
    "values",
    [
        {"images": {"postgres": {"ref": "registry.example.com/bookworm/postgres:18.6"}}, "backup": {"enabled": True}},
        {"images": {"postgres": {"ref": "postgres:18.6-bookworm"}}},
        {
            "images": {"postgres": {"ref": "postgres:18.6-bookworm"}, "backup": {"ref": "backup:1"}},
            "backup": {"enabled": True},
        },
    ],
    ids=["in another part of the name", "without a backup", "with a configured backup image"],
)
def test_bookworm_is_refused_only_when_the_backup_image_is_built_on_it(values: dict[str, Any]) -> None:
    assert parse_settings(values).postgres_major == 18


@pytest.mark.parametrize(
    ("ref", "major"),
    [("postgres:18.6", 18), ("mirror:5000/library/postgres:19.1-trixie", 19), ("docker.io/library/postgres:18", 18)],
)
def test_the_postgres_major_comes_from_the_tag(ref: str, major: int) -> None:
    assert parse_settings({"images": {"postgres": {"ref": ref}}}).postgres_major == major


def test_allowed_hosts_have_each_name_with_and_without_a_port() -> None:
    # MLflow compares the whole Host header; `name:*` does not match the bare name.
    assert allowed_hosts("mlflow-dev-server", "mlflow.example.com", "0.0.0.0") == [
        "mlflow.example.com",
        "mlflow.example.com:*",
        "mlflow-dev-server",
        "mlflow-dev-server:*",
        "localhost",
        "localhost:*",
        "127.0.0.1",
        "127.0.0.1:*",
    ]


WARNED = [
    ({}, []),
    (
        {
            "traefik": {"mode": "bundled"},
            "hostname": "m.example.com",
            "authentication": "password",
            "server": {"port": 5055},
        },
        ["http://127.0.0.1:5055 accepts everybody who reaches it, although mlflow:authentication is password"],
    ),
    (
        {"hostname": "m.example.com", "authentication": "mlflow", "server": {"bindAddress": "0.0.0.0"}},
        ["http://0.0.0.0:5000 accepts passwords without TLS"],
    ),
    ({"authentication": "mlflow"}, []),
    (
        {
            "traefik": {"mode": "bundled", "bindAddress": "10.0.0.7"},
            "hostname": "m.example.com",
            "authentication": "anonymous",
        },
        ["https://m.example.com allows everybody who reaches 10.0.0.7 to read, change and delete everything"],
    ),
    ({"backupPassword": "plaintext-plaintext"}, ["mlflow:backupPassword: is plain text"]),
    ({"backupPassword": {"secure": "v1:x"}}, []),
]


@pytest.mark.parametrize(("values", "begin"), WARNED)
def test_valid_but_risky_settings_are_warned_about(values: dict[str, Any], begin: list[str]) -> None:
    told = settings_warnings(parse_settings(values), values)
    assert len(told) == len(begin)
    for words, beginning in zip(told, begin, strict=True):
        assert words.startswith(beginning)
        assert "plaintext" not in words


def test_a_plain_text_secret_is_refused_outside_dev_with_the_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ENGINELESS", raising=False)
    with pytest.raises(InvalidSettingsError) as told:
        parse_settings({"backupPassword": "plaintext-plaintext"}, stack="prod")
    assert told.value.problems == [
        "mlflow:backupPassword: is plain text, readable by everybody who reads the stack file or its history; "
        'type: eval "$(make -s env STACK=prod)" && pulumi config set --stack prod --secret backupPassword'
    ]
    parse_settings({"backupPassword": ""}, hidden=["backupPassword"], stack="prod")


def test_every_endpoint_is_listed_with_its_authentication() -> None:
    values = {
        "traefik": {"mode": "bundled"},
        "hostname": "m.example.com",
        "authentication": "password",
        "server": {"port": 5055},
    }
    assert parse_settings(values).route.endpoints == [
        ("https://m.example.com", "password"),
        ("http://127.0.0.1:5055", "anonymous"),
    ]
    assert parse_settings({}).route.endpoints == [("http://127.0.0.1:5000", "anonymous")]


def test_a_contradiction_is_reported_beside_invalid_values_of_its_section() -> None:
    values = {"server": {"workers": 8, "memoryMb": 1000, "logLevel": "loud"}, "traefik": {"mode": "bundled", "cpus": 0}}
    with pytest.raises(InvalidSettingsError) as told:
        parse_settings(values)
    words = "\n".join(told.value.problems)
    assert "mlflow:server.logLevel: must be one of" in words
    assert "mlflow:traefik.cpus: must be at least 0.1" in words
    assert "mlflow:server.memoryMb: must be at least 2304 for 8 workers, got 1000" in words
    assert "mlflow:hostname: is required when mlflow:traefik.mode is bundled" in words


def test_no_contradiction_is_derived_from_the_default_of_an_invalid_value() -> None:
    with pytest.raises(InvalidSettingsError) as told:
        parse_settings({"server": {"workers": "many", "memoryMb": 600}})
    assert told.value.problems == ["mlflow:server.workers: must be a whole number, got 'many'"]


@pytest.mark.parametrize(
    ("key", "length", "accepted"),
    [
        ("clientPassword", 31, "32 to 64"),
        ("objectStoreKey", 44, "32"),
        ("webhookEncryptionKey", 33, "32 or 44"),
        ("cryptoKekPassphrase", 65, "12 to 64"),
    ],
)
def test_a_secret_of_another_length_is_refused_with_the_settings(key: str, length: int, accepted: str) -> None:
    with pytest.raises(InvalidSettingsError) as told:
        parse_settings({key: "k" * length, "server": {"workers": "many"}})
    assert f"mlflow:{key}: must be {accepted} letters, digits, hyphens, underscores or equals signs" in (
        told.value.problems
    )
    assert len(told.value.problems) == 2
    parse_settings({key: "k" * 32})


def test_a_secret_of_an_invalid_format_is_refused_with_the_settings() -> None:
    with pytest.raises(InvalidSettingsError) as told:
        parse_settings({"backupPassword": "plaintext"})
    (problem,) = told.value.problems
    assert problem.startswith("mlflow:backupPassword: must be 12 to 64 letters, digits")
    assert "plaintext" not in problem
