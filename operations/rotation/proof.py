"""Proves a rotation: tries each old value and each new one at the service that it opens."""

import base64
import http.client
import json
import socket
import ssl
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from operations.common.checkout import ROOT
from operations.common.stack import Stack
from operations.data import backup_key
from operations.data.data_keys import FILES, secret_of
from operations.host.once import backend, networks_of, run_once
from operations.host.servers import Servers, servers
from operations.observe.ingress import Listener, listeners
from settings import names
from settings.monitoring import GRAFANA_PORT
from settings.server import ADMIN, PORT, READINESS_PATH
from settings.traefik import CLIENT_USER

ACCEPTED, REFUSED, UNTRIED = "accepted", "refused", "not tried"
POSTGRES_ROLES = {
    "postgresPassword": "mlflow",
    "postgresBackupPassword": "mlflow_backup",
    "postgresMonitoringPassword": "mlflow_monitoring",
}
IDENTITIES = {
    "minioRootPassword": "mlflow-admin",
    "minioPassword": "mlflow",
    "minioBackupPassword": "mlflow-backup",
    "minioMonitoringPassword": "mlflow-monitoring",
    "seaweedfsAdminPassword": "mlflow-admin",
    "seaweedfsPassword": "mlflow",
    "seaweedfsBackupPassword": "mlflow-backup",
}
WHY_UNTRIED = {
    "flaskSecretKey": "it signs forms; no request shows it",
    "traefikCertificateKey": "it is not sent; the certificate of Traefik is another one",
    "certificates": "the old ones are valid until their end; the services have others",
    "cryptoKekPassphrase": "compared in the database: the new one decrypts every value",
    "webhookEncryptionKey": "compared in the database: the new one decrypts every value",
}
"""Why the old value of a secret cannot be tried, by its key."""


def tried(stack: Stack, values: Mapping[str, str], *, old: bool) -> dict[str, str]:
    """Try the old or the new value of each secret. Return by key whether it is accepted, or why that is unknown."""
    deployed = servers(stack)
    found = {key: f"{UNTRIED}: {why}" for key, why in WHY_UNTRIED.items() if key in values}
    if "clientPassword" in values:
        found["clientPassword"] = _at_traefik(stack, values["clientPassword"])
    if "backupPassword" in values:
        opens = backup_key.accepts(stack, values["backupPassword"])
        found["backupPassword"] = f"{UNTRIED}: there is no backup yet" if opens is None else (REFUSED, ACCEPTED)[opens]
    if "grafanaPassword" in values and stack.settings.tls.internal:
        # Its port has no TLS, and the attempt would send the password over a network.
        found["grafanaPassword"] = f"{UNTRIED}: Grafana has no TLS"
    attempts = [
        attempt
        for key, value in values.items()
        if key not in found and (attempt := _attempt(stack, deployed, key, value, old=old))
    ]
    return found | (_in_the_stack(stack, deployed, attempts) if attempts else {})


def _attempt(stack: Stack, deployed: Servers, key: str, value: str, *, old: bool) -> dict[str, Any] | None:
    """Return what assets/rotation/attempts.py tries for a secret; None if that is not done there."""
    named = {"id": key, "value": value}
    if role := POSTGRES_ROLES.get(key):
        return {**named, "kind": "postgres", "host": names.docker_name(stack.name, "postgres"), "user": role}
    if identity := IDENTITIES.get(key):
        there = {
            "endpoint": deployed.environment["MLFLOW_S3_ENDPOINT_URL"],
            "bucket": stack.settings.object_store.bucket,
        }
        return {**named, "kind": "s3", "user": identity, **there}
    server = names.docker_name(stack.name, names.SERVER)
    if key == "adminPassword":
        url = f"{deployed.scheme}://{server}:{PORT}{READINESS_PATH}"
        return {**named, "kind": "http", "url": url, "user": ADMIN, "cached": old}
    if key == "grafanaPassword":
        url = f"http://{names.docker_name(stack.name, 'grafana')}:{GRAFANA_PORT}/api/user"
        return {**named, "kind": "http", "url": url, "user": "admin"}
    if key == "internalAuthority":
        return {**named, "kind": "tls", "host": server, "port": PORT}
    return None


def _in_the_stack(stack: Stack, deployed: Servers, attempts: list[dict[str, Any]]) -> dict[str, str]:
    """Run the attempts in a container on the networks of the stack."""
    files = {
        "attempts.py": (ROOT / "assets" / "rotation" / "attempts.py").read_text(),
        "attempts.json": json.dumps(attempts),
    }
    if deployed.scheme == "https":
        files[names.AUTHORITY_FILE] = secret_of(deployed, names.AUTHORITY_FILE)
    printed: list[str] = []
    grafana = [name for name in networks_of(stack, "grafana") if name.endswith("-monitoring")]
    run_once(
        stack,
        names.ROTATE,
        image=deployed.images[0],
        command=["python", "-W", "ignore", f"{FILES}/attempts.py"],
        environment={"FILES": FILES, "HOME": "/tmp"},  # noqa: S108 - inside the container
        files={f"{FILES}/{name}": content for name, content in files.items()},
        networks=[*backend(stack), *grafana],
        tell=printed.append,
    )
    lines = [line for line in "".join(printed).splitlines() if line.startswith("{")]
    found: dict[str, str] = json.loads(lines[-1]) if lines else {}
    return {attempt["id"]: found.get(attempt["id"], f"no answer: {''.join(printed)[-300:]}") for attempt in attempts}


def _at_traefik(stack: Stack, password: str) -> str:
    """Send a request with the password of clients to Traefik, as `make up` sends one without."""
    found = []
    for listener in listeners(stack):
        # Some Docker installations do not route the addresses of containers from the host.
        with suppress(OSError, http.client.HTTPException):
            found.append(_status(listener, stack.settings.hostname or "", password))
    if not found:
        return f"{UNTRIED}: Traefik cannot be reached from here"
    if http.HTTPStatus.UNAUTHORIZED in found:
        return REFUSED
    return ACCEPTED if set(found) == {http.HTTPStatus.OK} else f"no answer: HTTP {', '.join(map(str, found))}"


def _status(listener: Listener, hostname: str, password: str) -> int:
    context = ssl._create_unverified_context()  # noqa: S323, SLF001 - `make doctor` verifies the certificate
    basic = base64.b64encode(f"{CLIENT_USER}:{password}".encode()).decode()
    with socket.create_connection((listener.address, listener.port), timeout=30) as plain:
        wrapped = context.wrap_socket(plain, server_hostname=hostname) if listener.tls else plain
        with wrapped as connection:
            lines = (f"GET {READINESS_PATH} HTTP/1.1", f"Host: {hostname}", f"Authorization: Basic {basic}")
            connection.sendall("\r\n".join([*lines, "Connection: close", "", ""]).encode())
            response = http.client.HTTPResponse(connection)
            response.begin()
            return response.status
