"""Test invariants over everything that the program registers, for each shipped stack."""

import json
import re
import time
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pulumi
import pytest

from components.postgres import CRASH_RECOVERY_SECONDS
from runtime.credentials import HasCredentials, warn_of_unsaved
from runtime.daemon import State
from settings import variables
from settings.names import SAVES, key_of
from settings.secrets import GENERATED_KEYS
from tests.graph.conftest import bundled
from tests.graph.mocked import (
    CONTAINER,
    DATA_KEY,
    ENVELOPE,
    IMAGE,
    NETWORK,
    PASSWORD,
    ROOT,
    VOLUME,
    Graph,
    HealthyDaemon,
    Resource,
    build,
    plain_text_of,
    unwrapped,
    values_of,
)

Program = Callable[..., Graph]


def test_the_entry_point_is_short_and_has_no_branches() -> None:
    lines = (ROOT / "__main__.py").read_text().splitlines()
    code = [line for line in lines if line.strip() and not line.startswith(("import", "from", '"""'))]
    assert len(code) <= 45
    assert not re.search(r"^\s*(for|while|class|else|elif)\b|^\s+def\b", "\n".join(code), re.MULTILINE)
    # The only branches: whether the settings ask for an optional component.
    branches = [line.strip() for line in code if line.strip().startswith("if")]
    assert branches == [
        'if settings.traefik.mode == "bundled":',
        "if Backup.exists(settings.backup):",
        "if settings.monitoring.on:",
    ]


def test_a_component_that_the_settings_turn_off_is_not_registered(graph: Graph) -> None:
    registered = {resource.name for resource in graph.resources if resource.type.startswith("mlflow:components:")}
    assert ("traefik" in registered) == graph.bundled
    assert ("backup" in registered) == graph.backed_up
    assert ("monitoring" in registered) == bool(graph.watched)


def test_an_update_ends_at_the_first_failure_without_waiting_for_others(program: Program) -> None:
    class Failing(HealthyDaemon):
        """A daemon on which creating the bucket fails and Postgres is slow to get ready."""

        def state(self, container: str) -> State:
            found = super().state(container)
            return replace(found, exit_code=3) if "minio-bootstrap" in container else found

        def run(self, container: str, command: list[str], *more: object) -> tuple[int, str]:
            return (1, "not yet") if "postgres" in container else super().run(container, command, *more)

    begun = time.monotonic()
    with pytest.raises(pulumi.RunError, match=r"minio-bootstrap: it exited with code 3"):
        program("dev", daemon_class=Failing)
    assert time.monotonic() - begun < CRASH_RECOVERY_SECONDS / 4


# --- every container that runs -------------------------------------------------------------------------------------


def test_every_container_is_hardened(graph: Graph) -> None:
    for name, container in graph.containers.items():
        plain = container.plain
        # The files of a job are uploaded into its root file system, and it does not run as their owner, root.
        assert plain["readOnly"] is (name in graph.services), name
        assert name in graph.services or re.fullmatch(r"[1-9]\d*:[1-9]\d*", plain["user"]), name
        assert plain["capabilities"]["drops"] == ["ALL"], name
        assert "adds" not in plain["capabilities"], name
        assert plain["securityOpts"] == ["no-new-privileges:true"], name
        assert "privileged" not in plain, name
        assert not any("docker.sock" in json.dumps(volume) for volume in plain["volumes"]), name
        assert not any("hostPath" in volume for volume in plain["volumes"]), name


def test_every_container_has_limits(graph: Graph) -> None:
    for name, container in graph.containers.items():
        # Without memorySwap equal to memory, every preview shows a change.
        assert container.plain["memorySwap"] == container.plain["memory"] > 0, name
        assert re.fullmatch(r"\d+\.\d+", container.plain["cpus"]), name


def test_every_log_is_rotated(graph: Graph) -> None:
    for name, container in graph.containers.items():
        assert container.plain["logDriver"] == "json-file", name
        assert container.plain["logOpts"] == {"max-size": "10m", "max-file": "5"}, name


def test_every_container_can_be_found_by_its_labels(graph: Graph) -> None:
    for container in graph.of(CONTAINER):
        assert container.labels["mlflow.stack"] == graph.stack
        assert container.plain["name"].startswith(f"mlflow-{graph.stack}-")


def test_every_container_uses_its_image_by_id(graph: Graph) -> None:
    for container in graph.of(CONTAINER):
        assert container.plain["image"].startswith("sha256:")


def test_only_a_server_that_an_existing_traefik_routes_to_is_checked_often(graph: Graph) -> None:
    checked = {name: service.plain["healthcheck"]["interval"] for name, service in graph.services.items()}
    by_docker_health = graph.services["server"].labels.get("traefik.enable") == "true"
    assert checked.pop("server") == ("5s" if by_docker_health else "30s")
    assert set(checked.values()) == {"30s"}


def test_every_service_has_health_check_grace_period_and_restart_policy(graph: Graph) -> None:
    bundled = ["traefik"] if graph.bundled else []
    parts = [*graph.stores, *(["backup"] if graph.backed_up else []), *bundled, *graph.watched]
    assert set(graph.services) == {"server", "postgres", *parts}
    for name, service in graph.services.items():
        assert service.plain["healthcheck"]["tests"][0] == "CMD", name
        assert service.plain["restart"] == "always", name
        assert service.plain["destroyGraceSeconds"] == service.plain["stopTimeout"] >= 30, name


def test_every_job_runs_once(graph: Graph) -> None:
    assert set(graph.jobs) == {
        *(f"{store}-bootstrap" for store in graph.stores),
        *(["copy-artifacts"] if graph.source else []),
        "verify-data-keys",
        "migrate",
    }
    for job in graph.jobs.values():
        assert job.plain["restart"] == "no"
        assert job.plain["mustRun"] is False


def test_every_container_is_deleted_before_its_replacement(graph: Graph) -> None:
    for container in graph.of(CONTAINER):
        assert container.request.deleteBeforeReplace, container.name


def test_changes_that_the_provider_cannot_update_replace_the_container(graph: Graph) -> None:
    for name, container in graph.containers.items():
        assert {"healthcheck", "init", "tmpfs"} <= set(container.request.replaceOnChanges), name


def volumes_of(container: Resource) -> list[str]:
    return [entry["volumeName"] for entry in container.plain["volumes"]]


def test_files_are_written_into_volumes_that_their_consumer_mounts(graph: Graph) -> None:
    for name, writer in graph.writers.items():
        mounted = {entry["containerPath"]: entry["volumeName"] for entry in writer.plain["volumes"]}
        assert mounted == {
            entry["containerPath"]: entry["volumeName"]
            for entry in graph.containers[name.removesuffix("-files")].plain["volumes"]
            if entry.get("readOnly")
        }
        for upload in writer.plain["uploads"]:
            assert "/".join(upload["file"].split("/")[:3]) in mounted, upload["file"]


def test_labels_show_which_configuration_file_changes(program: Program) -> None:
    before, after = (
        program("prod", values=bundled(uploadMinutes=minutes)).writers["traefik-files"].labels for minutes in (60, 30)
    )
    assert {name for name in before if name.startswith("mlflow.config/")} == {
        "mlflow.config/routes.yml",
        "mlflow.config/traefik.yml",
    }
    assert {name for name in before if before[name] != after[name]} == {"mlflow.config/traefik.yml"}


def test_a_job_carries_its_files_and_labels_the_configuration(graph: Graph) -> None:
    for name, job in graph.jobs.items():
        paths = [upload["file"] for upload in job.plain["uploads"]]
        assert paths, name
        assert not volumes_of(job), name
        told = {label.removeprefix("mlflow.config/") for label in job.labels if label.startswith("mlflow.config/")}
        assert told == {path.removeprefix("/run/config/") for path in paths if path.startswith("/run/config/")}, name


def test_a_service_is_replaced_when_one_of_its_files_changes(graph: Graph) -> None:
    for name, container in graph.services.items():
        mounted = {volume["volumeName"] for volume in container.plain["volumes"]}
        writers = {writer.urn for writer in graph.writers.values() if mounted & set(volumes_of(writer))}
        assert writers, name
        assert writers <= set(container.request.replace_with), name


def test_a_writer_never_starts(graph: Graph) -> None:
    for writer in graph.writers.values():
        assert writer.plain["start"] is False
        assert writer.plain["mustRun"] is False


def test_files_are_mounted_read_only_and_by_one_consumer(graph: Graph) -> None:
    for volume in [volume for writer in graph.writers.values() for volume in volumes_of(writer)]:
        mounts = [
            entry
            for container in graph.containers.values()
            for entry in container.plain["volumes"]
            if entry["volumeName"] == volume
        ]
        assert [entry["readOnly"] for entry in mounts] == [True], volume


# --- networks and ports --------------------------------------------------------------------------------------------


def test_data_services_are_on_internal_networks_only(graph: Graph) -> None:
    assert graph.named(NETWORK, "backend").plain["internal"] is True
    assert not graph.watched or graph.named(NETWORK, "monitoring").plain["internal"] is True
    for name in ("postgres", *graph.stores, *graph.jobs):
        # The network on which Prometheus scrapes the object stores is internal, too.
        also = ["monitoring-id"] if graph.watched and name in graph.stores else []
        assert graph.containers[name].networks == ["backend-id", *also], name


def test_the_server_is_on_the_backend_and_edge_networks(graph: Graph) -> None:
    edge = "edge-id" if graph.stack == "dev" or graph.bundled else "shared-network"
    also = ["monitoring-id"] if graph.watched else []
    assert graph.containers["server"].networks == ["backend-id", edge, *also]


def test_only_expected_host_ports_are_published(graph: Graph) -> None:
    published = {name: container.plain.get("ports", []) for name, container in graph.containers.items()}
    expected = [{"internal": 5000, "external": 5000, "ip": "127.0.0.1", "protocol": "tcp"}]
    if graph.bundled:
        assert [(port["external"], port["ip"]) for port in published.pop("traefik")] == [
            (80, "0.0.0.0"),
            (443, "0.0.0.0"),
        ]
    for name, port in (("prometheus", 9090), ("alertmanager", 9093), ("grafana", 3000)) if graph.watched else ():
        assert [(entry["external"], entry["ip"]) for entry in published.pop(name)] == [(port, "127.0.0.1")]
    for name, ports in published.items():
        assert ports == (expected if (graph.stack, name) == ("dev", "server") else []), name


def test_ports_of_data_services_are_published_on_loopback_only(program: Program) -> None:
    graph = program("dev", values={"mlflow:postgres": {"port": 5433}, "mlflow:objectStore": {"consolePort": 9001}})
    assert graph.services["postgres"].networks == ["backend-id", "access-id"]
    assert graph.services["postgres"].plain["ports"] == [
        {"internal": 5432, "external": 5433, "ip": "127.0.0.1", "protocol": "tcp"}
    ]
    assert graph.services["minio"].networks == ["backend-id", "access-id"]
    assert graph.services["minio"].envs["MINIO_BROWSER"] == "on"
    assert graph.services["server"].networks == ["backend-id", "edge-id"]


def test_the_minio_console_is_off_unless_its_port_is_published(program: Program) -> None:
    graph = program("dev")
    assert graph.services["minio"].envs["MINIO_BROWSER"] == "off"


def test_the_server_labels_tell_traefik_whether_and_how_to_route(graph: Graph) -> None:
    labels = graph.services["server"].labels
    if graph.stack == "dev" or graph.bundled:
        assert labels["traefik.enable"] == "false"
        return
    router = f"traefik.http.routers.mlflow-{graph.stack}-server"
    assert labels["traefik.enable"] == "true"
    assert labels["traefik.docker.network"] == "shared-network"
    for name in (router, f"{router}-pages"):
        assert ",authelia@docker,secureHeaders@docker," in labels[f"{name}.middlewares"]
        assert labels[f"{name}.tls.certResolver"] == "cloudflare"


def test_allowed_hosts_and_origins_are_derived_from_the_hostname(graph: Graph) -> None:
    envs = graph.services["server"].envs
    if graph.stack == "prod":
        assert "mlflow.example.com,mlflow.example.com:*" in envs["MLFLOW_SERVER_ALLOWED_HOSTS"]
        assert envs["MLFLOW_SERVER_CORS_ALLOWED_ORIGINS"] == "https://mlflow.example.com"
    # Without this the health check gets 403, and Traefik never routes to the server.
    assert "127.0.0.1:*" in envs["MLFLOW_SERVER_ALLOWED_HOSTS"]


# --- secrets -------------------------------------------------------------------------------------------------------


def test_secrets_are_only_in_uploaded_files(graph: Graph) -> None:
    passwords = [f"generated-{resource.name}" for resource in graph.of(PASSWORD)]
    # The backup: one to read the database, one to read each object store, and the backup password.
    expected = 3 + 2 * len(graph.stores) + graph.backed_up * (2 + len(graph.stores))
    # The bundled Traefik: the client password, and the seed of its certificate.
    expected += 2 * graph.bundled
    # The authority of the services' certificates.
    expected += graph.stack != "dev"
    # The monitoring: one to count in the database, one for the metrics of MinIO, and one for Grafana.
    assert len(passwords) == expected + (3 if graph.watched else 0)
    for resource in graph.resources:
        everything = json.dumps(unwrapped({key: resource.inputs[key] for key in resource.inputs if key != "uploads"}))
        plain_text = plain_text_of(resource.inputs)
        for password in passwords:
            assert password not in plain_text, resource.urn
            assert password not in everything, resource.urn


def test_every_generated_secret_is_in_an_uploaded_file(graph: Graph) -> None:
    files = json.dumps([container.plain["uploads"] for container in graph.with_files.values()])
    for resource in graph.of(PASSWORD):
        # These reach a file in another form: in base64, as a hash, and as the certificates derived from it.
        derived = ("webhook-encryption-key", "client-password", "traefik-certificate-key", "internal-authority")
        if resource.name not in derived:
            assert f"generated-{resource.name}" in files
    if graph.bundled:
        assert "BEGIN PRIVATE KEY" in json.dumps(graph.with_files["traefik"].plain["uploads"])


def test_no_output_of_the_stack_is_a_secret(graph: Graph) -> None:
    # Every StackReference reads the outputs of a stack, secrets in plain text.
    assert set(graph.exports) == {"url"}


def test_exactly_the_data_keys_are_protected(graph: Graph) -> None:
    kept = {"crypto-kek-passphrase", "webhook-encryption-key", *(["backup-password"] if graph.backed_up else [])}
    keys = graph.of(DATA_KEY)
    assert {key.name for key in keys} == kept
    assert all(key.request.protect for key in keys)
    guarded = {password.name for password in graph.of(PASSWORD) if password.request.protect}
    assert guarded == kept, "`pulumi destroy` deletes a data key, or keeps a credential"


def test_the_backup_password_is_kept_when_the_backup_is_turned_off(program: Program) -> None:
    # The data key is protected, so it could not be deleted; and the backups still exist.
    off = {**values_of("prod"), "mlflow:backup": {"enabled": False}}
    kept = program("prod", values=off, secrets={"backupPassword": "x" * 32}).of(DATA_KEY)
    assert "backup-password" in {key.name for key in kept}
    assert "backup-password" not in {key.name for key in program("prod", values=off).of(DATA_KEY)}


def test_the_state_holds_the_data_keys_encrypted(graph: Graph) -> None:
    for key in graph.of(DATA_KEY):
        (outputs,) = (found for urn, found in graph.outputs.items() if urn == key.urn)
        assert ENVELOPE in outputs["value"], "the data key is in the state in plain text"
        assert unwrapped(outputs["value"]).startswith(f"generated-{key.name}")


def test_a_configured_secret_replaces_the_generated_one_but_not_its_resource(program: Program) -> None:
    graph = program("dev", secrets={"postgresPassword": "my-own-password"})
    uploads = json.dumps(graph.writers["postgres-files"].plain["uploads"])
    assert "my-own-password" in uploads
    assert "generated" not in uploads
    # A generator that depended on the setting would be deleted by the update after the write-back.
    assert "postgres-password" in [resource.name for resource in graph.of(PASSWORD)]
    assert "my-own-password" not in " ".join(plain_text_of(resource.inputs) for resource in graph.resources)


def test_secrets_only_in_the_state_are_warned_about_by_name(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(pulumi.log, "warn", said.append)
    program("dev", secrets={"postgresPassword": "my-own-password"})
    assert len(said) == 1
    assert "minioRootPassword, minioPassword, cryptoKekPassphrase, webhookEncryptionKey" in said[0]
    assert "postgresPassword" not in said[0]


@pytest.mark.parametrize("value", ["pass:word-with-a-colon", "short", "[1, 2, 3, 4, 5, 6]", "with a space in it"])
def test_an_invalid_secret_is_refused_without_being_printed(program: Program, value: str) -> None:
    with pytest.raises(pulumi.RunError) as caught:
        program("dev", secrets={"postgresPassword": value})
    assert "mlflow:postgresPassword: must be 12 to 64 letters" in str(caught.value)
    assert value not in str(caught.value)


def test_a_webhook_key_of_another_length_is_refused(program: Program) -> None:
    with pytest.raises(pulumi.RunError, match="webhookEncryptionKey: must be 32 or 44 letters"):
        program("dev", secrets={"webhookEncryptionKey": "x" * 20})


def test_uploads_are_marked_secret_exactly_in_the_secrets_folder(graph: Graph) -> None:
    unmarked = set()
    for name, writer in graph.with_files.items():
        for upload in writer.inputs["uploads"]:
            _, _, folder, file = upload["file"].split("/", 3)
            assert folder in ("secrets", "config"), name
            if folder == "secrets" and ENVELOPE not in upload["content"]:
                unmarked.add(file)
            assert folder == "secrets" or ENVELOPE not in upload["content"], f"{name}: {file}"
    # Files that a service expects among its secrets, but that are none: a certificate, the name of an administrator.
    assert unmarked <= {"mlflow-username", "authority.pem"}, unmarked


def test_no_file_is_empty(graph: Graph) -> None:
    # The provider refuses an empty file, and does so only under the engine.
    for writer in graph.with_files.values():
        assert all(upload["content"] for upload in writer.plain["uploads"]), writer.name


def test_generated_passwords_are_long_and_need_no_escaping(graph: Graph) -> None:
    for password in graph.of(PASSWORD):
        assert password.plain == {"length": 32, "special": False}
        assert {"length", "special"} <= set(password.request.ignoreChanges)


# --- data ----------------------------------------------------------------------------------------------------------


def test_data_volumes_are_retained_and_protected_outside_dev(graph: Graph) -> None:
    data = {volume.plain["name"]: volume for volume in graph.of(VOLUME) if volume.request.retainOnDelete}
    stores = {f"mlflow-{graph.stack}-{store}-data" for store in graph.stores}
    backups = {f"mlflow-{graph.stack}-backup-repository"} if graph.backed_up else set()
    history = {f"mlflow-{graph.stack}-prometheus-history"} if graph.watched else set()
    assert set(data) == {f"mlflow-{graph.stack}-postgres-18-data"} | stores | backups | history
    for name, volume in data.items():
        # Another backup target replaces the volume of the backups, which protection would prevent.
        assert volume.request.protect is (graph.stack != "dev" and name not in backups | history)
        # A changed label would replace the volume.
        assert "labels" not in volume.plain


def test_only_data_volumes_and_data_keys_are_protected(graph: Graph) -> None:
    for resource in graph.resources:
        if not resource.request.retainOnDelete and DATA_KEY not in resource.urn:
            assert not resource.request.protect, resource.urn


def test_uploads_are_spooled_on_a_volume_not_in_memory(graph: Graph) -> None:
    server = graph.services["server"].plain
    assert {"volumeName": f"mlflow-{graph.stack}-server-scratch", "containerPath": "/scratch"} in server["volumes"]
    assert graph.services["server"].envs["TMPDIR"] == "/scratch"


class WithMinioData(HealthyDaemon):
    """A daemon on which this stack has a data volume of MinIO."""

    def volumes(self) -> set[str]:
        return {"mlflow-prod-minio-data"}


def test_artifacts_are_copied_before_the_server_starts_on_a_new_object_store(program: Program) -> None:
    store = {"mlflow:objectStore": {"kind": "seaweedfs", "copyFrom": "minio"}}
    graph = program("prod", values=values_of("prod") | store, daemon_class=WithMinioData)
    for earlier in ("minio-bootstrap", "seaweedfs-bootstrap"):
        assert depends(graph, "copy-artifacts", earlier)
    assert depends(graph, "server", "copy-artifacts")
    assert graph.services["server"].envs["MLFLOW_S3_ENDPOINT_URL"] == "https://mlflow-prod-seaweedfs:8333"
    assert graph.jobs["copy-artifacts"].networks == ["backend-id"]
    # The stopped old server must exist until the copy is complete: it shows where the artifacts are.
    assert depends(graph, "server-files", "copy-artifacts")
    # Protection would prevent a later removal from the stack; the volumes themselves are kept in any case.
    volumes = {volume.name: volume.request for volume in graph.of(VOLUME)}
    assert (volumes["seaweedfs-data"].protect, volumes["minio-data"].protect) == (False, False)
    assert volumes["seaweedfs-data"].retainOnDelete
    assert volumes["minio-data"].retainOnDelete


# --- ingress -------------------------------------------------------------------------------------------------------


def uploaded(graph: Graph, consumer: str, file: str) -> str:
    """Return the content of a file that is uploaded for a container."""
    uploads = graph.with_files[consumer].plain["uploads"]
    return next(str(upload["content"]) for upload in uploads if upload["file"].endswith(f"/{file}"))


def test_the_bundled_traefik_reads_files_and_starts_after_the_server(program: Program) -> None:
    graph = program("prod", values=bundled())
    traefik = graph.services["traefik"]
    assert traefik.networks == ["edge-id"]
    assert depends(graph, "traefik", "server")
    static = json.loads(uploaded(graph, "traefik", "traefik.yml"))
    assert set(static["providers"]) == {"file"}
    assert {"api", "metrics"}.isdisjoint(static)
    points = static["entryPoints"]
    assert points["websecure"]["transport"]["respondingTimeouts"] == {"readTimeout": "120m"}
    assert points["websecure"]["http"] == {"aliasHeadersStrategy": "delete"}
    assert points["ping"]["address"] == "127.0.0.1:8082"
    routes = json.loads(uploaded(graph, "traefik", "routes.yml"))
    balancer = routes["http"]["services"]["mlflow-prod-server"]["loadBalancer"]
    assert balancer["servers"] == [{"url": "https://mlflow-prod-server:5000"}]
    # The same call as in the health check of the server: it needs the database.
    assert balancer["healthCheck"]["path"] == "/api/2.0/mlflow/experiments/search?max_results=1"
    assert uploaded(graph, "traefik", "users").startswith("mlflow:{SHA}")


def test_acme_certificates_are_retained_and_the_dns_token_is_a_file(program: Program) -> None:
    acme = bundled(certificate="acme", acmeEmail="ops@example.com")
    graph = program("prod", values=acme, secrets={"acmeDnsToken": "token-of-cloudflare"})
    traefik = graph.services["traefik"]
    # In the image, every folder that could hold the certificates belongs to root.
    assert traefik.plain["user"] == "0:0"
    assert traefik.envs["CF_DNS_API_TOKEN_FILE"] == "/run/secrets/dns-token"
    assert uploaded(graph, "traefik", "dns-token") == "token-of-cloudflare"
    static = json.loads(uploaded(graph, "traefik", "traefik.yml"))
    resolver = static["certificatesResolvers"]["acme"]["acme"]
    assert resolver["dnsChallenge"] == {"provider": "cloudflare"}
    volume = graph.named(VOLUME, "traefik-certificates")
    assert volume.request.retainOnDelete
    mounted = {entry["containerPath"]: entry["volumeName"] for entry in traefik.plain["volumes"]}
    assert mounted["/certificates"] == volume.plain["name"] == "mlflow-prod-traefik-certificates"
    assert resolver["storage"].startswith("/certificates/")


def test_a_required_secret_without_generator_is_requested_first(program: Program) -> None:
    with pytest.raises(pulumi.RunError, match="mlflow:acmeDnsToken: is required for"):
        program("prod", values=bundled(certificate="acme", acmeEmail="ops@example.com"))


def test_the_bundled_traefik_joins_the_network_of_the_single_sign_on(program: Program) -> None:
    sso = {"forwardAuth": "http://authelia:9091/api/authz/forward-auth", "forwardAuthNetwork": "shared-network"}
    values = bundled(**sso) | {"mlflow:authentication": "singleSignOn"}
    graph = program("prod", values=values)
    assert graph.services["traefik"].networks == ["edge-id", "shared-network"]
    assert "client-password" not in [password.name for password in graph.of(PASSWORD)]


def test_mlflow_users_are_configured_without_the_admin_password_in_the_server(program: Program) -> None:
    values = bundled() | {"mlflow:authentication": "mlflow", "mlflow:postgres": {"maxConnections": 200}}
    graph = program("prod", values=values)
    server, migrate = graph.services["server"], graph.jobs["migrate"]
    for container in (server, migrate):
        assert container.envs["MLFLOW_AUTH_CONFIG_PATH"] == "/run/secrets/auth.ini"
    files = [upload["file"] for upload in graph.writers["server-files"].plain["uploads"]]
    assert "/run/secrets/flask-secret-key" in files
    assert not [file for file in files if "admin" in file]
    assert uploaded(graph, "migrate", "admin-password").startswith("generated-admin-password")
    ini = uploaded(graph, "server", "auth.ini")
    assert "auth_cache_ttl_seconds = 60" in ini
    assert "postgresql+psycopg2://mlflow@mlflow-prod-postgres:5432/mlflow" in ini
    routes = json.loads(uploaded(graph, "traefik", "routes.yml"))
    probe = routes["http"]["services"]["mlflow-prod-server"]["loadBalancer"]["healthCheck"]
    assert probe["status"] == 401


# --- backup --------------------------------------------------------------------------------------------------------


def with_backup(**more: object) -> dict[str, Any]:
    return values_of("prod") | {"mlflow:backup": {"enabled": True, **more}}


def test_the_backup_service_gets_only_its_own_identities(graph: Graph) -> None:
    if not graph.backed_up:
        assert "backup" not in graph.services
        return
    envs = graph.services["backup"].envs
    assert envs["PGUSER"] == "mlflow_backup"
    uploads = {upload["file"]: upload["content"] for upload in graph.writers["backup-files"].plain["uploads"]}
    assert "mlflow_backup:generated-postgres-backup-password" in uploads["/run/secrets/pgpass"]
    assert f"generated-{graph.store}-backup-password" in uploads["/run/secrets/store-credentials"]
    assert "generated-postgres-password" not in json.dumps(uploads)


def test_the_backup_service_gets_the_data_keys(program: Program) -> None:
    uploads = json.dumps(program("prod").writers["backup-files"].plain["uploads"])
    for key in ("crypto-kek-passphrase", "webhook-encryption-key"):
        assert f"/run/secrets/data-keys/{key}" in uploads


def test_the_backup_service_is_on_egress_only_with_an_outside_target(program: Program) -> None:
    assert program("prod").services["backup"].networks == ["backend-id"]
    outside = with_backup(target="s3:https://s3.example.com/backups/prod", accessKeyId="prod-backup")
    graph = program("prod", values=outside, secrets={"backupTargetSecretKey": "not-generated-here"})
    assert graph.services["backup"].networks == ["backend-id", "egress-id"]
    assert not graph.named(NETWORK, "egress").plain.get("internal")
    assert graph.services["backup"].envs["RESTIC_REPOSITORY"] == "s3:https://s3.example.com/backups/prod"
    assert "not-generated-here" not in " ".join(plain_text_of(resource.inputs) for resource in graph.resources)
    assert not [volume for volume in graph.of(VOLUME) if "repository" in volume.name]
    for name in ("server", "postgres", "minio"):
        assert "egress-id" not in graph.services[name].networks


def test_a_host_folder_as_target_gets_its_own_volume_name(program: Program) -> None:
    graph = program("prod", values=with_backup(target="/srv/backup"))
    volume = graph.named(VOLUME, "backup-repository").plain
    assert volume["driverOpts"] == {"type": "none", "o": "bind", "device": "/srv/backup"}
    assert volume["name"] == "mlflow-prod-backup-folder-83eda4ca"
    other = program("prod", values=with_backup(target="/srv/other")).named(VOLUME, "backup-repository").plain
    assert other["name"] != volume["name"]


# --- order ---------------------------------------------------------------------------------------------------------


def test_what_is_deleted_before_it_is_replaced_waits_for_every_image_that_is_built(graph: Graph) -> None:
    # Otherwise Pulumi deletes what depends on it, such as Postgres, while an image is built that may fail.
    built = {image.urn for image in graph.of(IMAGE) if image.plain.get("build")}
    assert built
    first = [*graph.of(NETWORK), *(volume for volume in graph.of(VOLUME) if volume.request.deleteBeforeReplace)]
    assert len(first) > len(graph.of(NETWORK)), "no volume of files was found"
    for resource in first:
        assert built <= waited_for(graph, resource.urn), resource.name


def depends(graph: Graph, later: str, earlier: str) -> bool:
    """Return whether container `later` waits, directly or not, for container `earlier`."""
    return graph.containers[earlier].urn in waited_for(graph, graph.named(CONTAINER, later).urn)


def waited_for(graph: Graph, later: str) -> set[str]:
    """Return the URNs of all resources that `later` waits for, directly or not."""
    by_urn = {resource.urn: resource for resource in graph.resources}
    seen: set[str] = set()
    waiting = [later]
    while waiting:
        urn = waiting.pop()
        if urn in seen:
            continue
        seen.add(urn)
        waiting += by_urn[urn].request.dependencies if urn in by_urn else []
    return seen


@pytest.mark.parametrize(
    ("later", "earlier"),
    [
        # Both stop the server, which must keep running until the data keys are verified.
        ("migrate", "verify-data-keys"),
        ("server-files", "migrate"),
        ("STORE-bootstrap", "STORE"),
        ("verify-data-keys", "postgres"),
        ("server", "migrate"),
        ("server", "STORE-bootstrap"),
    ],
)
def test_containers_start_in_the_order_of_their_dependencies(graph: Graph, later: str, earlier: str) -> None:
    assert depends(graph, later.replace("STORE", graph.store), earlier.replace("STORE", graph.store))


def test_a_migration_does_not_replace_a_server(graph: Graph) -> None:
    assert graph.jobs["migrate"].urn not in graph.services["server"].request.replace_with


STOPPED_FOR_GOOD = {"State": {"Running": False}, "HostConfig": {"RestartPolicy": {"Name": "no"}}}


class WithServers(HealthyDaemon):
    """A daemon on which two servers and Postgres of an earlier deployment run."""

    def services(self, stack: str, *, stopped: bool = False) -> dict[str, str]:
        super().services(stack, stopped=stopped)
        return {name: f"mlflow-{stack}-{name}" for name in ("server", "server-2", "postgres")}

    def inspect(self, container: str) -> dict[str, Any] | None:
        super().inspect(container)
        return {"Config": {"Labels": {}, "Env": []}, **STOPPED_FOR_GOOD} if "-server" in container else None


def test_a_migration_compares_the_schema_of_every_server_that_runs() -> None:
    asked = build("dev", daemon_class=WithServers).asked
    for container in ("server", "server-2", "verify-data-keys"):
        assert f"read mlflow-dev-{container} /opt/mlflow/schema-revision" in asked
    assert not [question for question in asked if question.startswith("read mlflow-dev-postgres")]


def test_a_configured_mlflow_image_is_not_built(program: Program) -> None:
    values = values_of("dev")
    values["mlflow:images"] |= {"mlflow": {"ref": "registry.example.com/mlflow:3.18.0-1"}}
    graph = program("dev", values=values)
    assert not [image.name for image in graph.of(IMAGE) if "build" in image.plain]
    assert graph.named(IMAGE, "mlflow-image").plain["name"] == "registry.example.com/mlflow:3.18.0-1"
    for name in ("verify-data-keys", "migrate", "server"):
        assert graph.containers[name].plain["image"] == "sha256:mlflow-image"


def test_every_image_is_built_before_a_service_changes(graph: Graph) -> None:
    built = [image.urn for image in graph.of(IMAGE) if "build" in image.plain]
    for name in graph.services:
        assert set(built) <= waited_for(graph, graph.containers[name].urn), name


def test_the_migration_uses_the_image_of_the_server(graph: Graph) -> None:
    assert graph.jobs["migrate"].plain["image"] == graph.services["server"].plain["image"]


# --- plans and readiness checks ------------------------------------------------------------------------------------


def test_a_preview_does_not_query_the_docker_daemon(program: Program) -> None:
    assert program("prod", preview=True).asked == []


def test_a_preview_registers_every_resource(program: Program) -> None:
    # No resource is created inside an apply, where a plan could not see it.
    planned = {resource.urn for resource in program("dev", preview=True).resources}
    assert planned == {resource.urn for resource in program("dev").resources}


def test_an_update_checks_every_service_and_job(graph: Graph) -> None:
    asked = " ".join(graph.asked)
    for name in graph.services:
        assert f"run {name}-id" in asked
    for name in graph.jobs:
        assert f"state {name}-id" in asked


def test_images_are_tagged_by_content_and_kept_locally(graph: Graph) -> None:
    for image in graph.of(IMAGE):
        assert image.plain["keepLocally"] is True
    built = graph.named(IMAGE, "mlflow-image").plain
    assert built["name"].startswith("localhost/mlflow-server:")
    assert built["triggers"]["content"].startswith(built["name"].rpartition(":")[2])
    assert built["build"]["context"] == "mlflow"


class BrokenDaemon:
    """A daemon that lacks the networks and has a database of another major version than the program needs."""

    def __init__(self, host: str) -> None:
        self.host = host

    def inspect(self, _container: str) -> None:
        return None

    def services(self, _stack: str, **_: bool) -> dict[str, str]:
        return {}

    def networks(self) -> set[str]:
        return set()

    def volumes(self) -> set[str]:
        return {"mlflow-dev-postgres-17-data"}


def test_invalid_settings_stop_the_program_before_any_resource(program: Program) -> None:
    with pytest.raises(pulumi.RunError, match=r"mlflow:postgres\.memoryMb: must be at least 256, got 1"):
        program("dev", values={"mlflow:postgres": {"memoryMb": 1}})


def test_data_of_another_postgres_major_stops_the_program_first(program: Program) -> None:
    with pytest.raises(pulumi.RunError) as caught:
        program("dev", daemon_class=BrokenDaemon)
    assert "version 18 would start with an empty database" in str(caught.value)
    assert "mlflow-dev-postgres-17-data" in str(caught.value)


def test_a_missing_proxy_network_is_reported_with_its_command(program: Program) -> None:
    class NoNetwork(BrokenDaemon):
        def volumes(self) -> set[str]:
            return set()

    with pytest.raises(pulumi.RunError, match="docker network create shared-network"):
        program("prod", daemon_class=NoNetwork)


def test_every_component_registers_its_outputs() -> None:
    found = 0
    for path in [*(ROOT / "components").glob("*.py"), *(ROOT / "runtime").glob("*.py")]:
        text = path.read_text()
        classes = text.count("(pulumi.ComponentResource)")
        found += classes
        assert text.count("self.register_outputs({") == classes, path.name
        assert "register_outputs({})" not in text, path.name
    assert found >= 13


def test_a_stack_without_any_setting_deploys(program: Program) -> None:
    assert len(program("dev", values={}).services) == 3


@pytest.mark.parametrize(("run", "saves", "warned"), [("an up", "", 1), ("a plan", "", 0), ("an up", "1", 0)])
def test_unsaved_generated_secrets_are_warned_about(
    monkeypatch: pytest.MonkeyPatch, run: str, saves: str, warned: int
) -> None:
    said: list[str] = []
    monkeypatch.setattr(pulumi.log, "warn", said.append)
    monkeypatch.setattr(pulumi.runtime, "is_dry_run", lambda: run == "a plan")
    monkeypatch.setenv(SAVES, saves)
    made, known, opens = (
        SimpleNamespace(key="made", configured=False, kind="password"),
        SimpleNamespace(key="known", configured=True, kind="data key"),
        SimpleNamespace(key="opens", configured=False, kind="data key"),
    )
    component = SimpleNamespace(credentials=[made, known, opens])
    warn_of_unsaved(cast("HasCredentials", component), None)
    assert len(said) == warned
    assert all("only in the state: made, opens; type: make up STACK=" in words for words in said)
    assert all(words.endswith("Without opens, data and backups cannot be decrypted") for words in said)


def test_the_key_of_a_secret_is_its_name_in_camel_case(graph: Graph) -> None:
    # The engine-less deployment stores secrets by name and hands them over to the engine by key.
    assert {key_of(password.name) for password in graph.of(PASSWORD)} <= set(GENERATED_KEYS)


def test_minio_gets_one_policy_for_each_of_its_identities(graph: Graph) -> None:
    if "minio" not in graph.stores:
        return
    files = [upload["file"].rpartition("/")[2] for upload in graph.jobs["minio-bootstrap"].plain["uploads"]]
    policies = {file.removesuffix("-policy.json") for file in files if file.endswith("-policy.json")}
    assert policies
    assert policies == {file.removesuffix("-secret-key") for file in files if file.endswith("-secret-key")}


def test_variables_set_by_the_stack_cannot_be_configured(program: Program) -> None:
    watched = {**values_of("dev"), "mlflow:monitoring": {"mode": "exporters"}, "mlflow:authentication": "mlflow"}
    ours = program("dev", values=watched).services["server"].envs
    refused = dict(variables.refused(dict.fromkeys(ours, "x")))
    assert set(refused) == set(ours)


def test_configured_variables_are_added_to_those_of_the_stack(program: Program) -> None:
    server = {**values_of("dev")["mlflow:server"], "environment": {"MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS": "true"}}
    before = program("dev").services["server"].envs
    after = program("dev", values={**values_of("dev"), "mlflow:server": server}).services["server"].envs
    assert after == before | {"MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS": "true"}


class WithOtherKeys(HealthyDaemon):
    """A daemon whose containers have other data keys than the generated ones, as after a rotation."""

    def read_file(self, container: str, path: str) -> bytes | None:
        if container.endswith("-files") and path.startswith("/run/secrets/"):
            return b"of-an-earlier-rotation"
        return super().read_file(container, path)


@pytest.mark.parametrize("key", ["cryptoKekPassphrase", "webhookEncryptionKey", "backupPassword"])
def test_a_generated_data_key_never_replaces_another_one_that_is_in_use(program: Program, key: str) -> None:
    """The stack file may be lost, and `pulumi up` typed by hand: the value in use would be forgotten."""
    others = dict.fromkeys(("cryptoKekPassphrase", "webhookEncryptionKey", "backupPassword"), "x" * 32)
    others.pop(key)
    with pytest.raises(pulumi.RunError, match=f"mlflow:{key}: the stack file has lost it.*\n.*make up STACK=prod"):
        program("prod", values=bundled(), secrets=others, daemon_class=WithOtherKeys)


def test_a_configured_data_key_is_not_compared(program: Program) -> None:
    keys = dict.fromkeys(("cryptoKekPassphrase", "webhookEncryptionKey", "backupPassword"), "x" * 32)
    program("prod", values=bundled(), secrets=keys, daemon_class=WithOtherKeys)


@pytest.mark.parametrize("key", ["nextCryptoKekPassphrase", "nextWebhookEncryptionKey"])
def test_nothing_is_deployed_during_an_interrupted_rotation(program: Program, key: str) -> None:
    with pytest.raises(
        pulumi.RunError, match=f"mlflow:{key}: a rotation .* was interrupted.*\n.*make rotate STACK=prod"
    ):
        program("prod", values=bundled(), secrets={key: "x" * 32}, preview=True)
