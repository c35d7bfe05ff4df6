"""Test invalid input and faults on a real deployment: each is reported, and the next `make up` repairs it."""

import os
import re
import signal
import socket
import subprocess
import threading
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import docker
import pytest
from mlflow.tracking import MlflowClient

from operations.data.data_keys import as_used
from runtime.address import resolve_host
from settings import names
from tests.shipped import blocks
from tests.stack.deployment import HAS_MINIO, ROOT, Deployment, free_port
from tests.stack.probes import keep_a_gateway_secret
from tests.stack.test_deployment import ask, search


@contextmanager
def changed(path: Path, old: str, new: str) -> Iterator[None]:
    """Replace a text in a file of the checkout, and write the file back at the end of the block."""
    before = path.read_text()
    assert old in before
    path.write_text(before.replace(old, new))
    try:
        yield
    finally:
        path.write_text(before)


def refused(deployment: Deployment, verb: str = "up", **variables: str) -> str:
    """Run a verb that must fail without a traceback of this project, and return its output."""
    return "".join(streams_of_a_failure(deployment, verb, **variables))


def streams_of_a_failure(deployment: Deployment, verb: str = "up", **variables: str) -> tuple[str, str]:
    """Run a verb that must fail without a traceback of this project; return its stdout and its stderr."""
    done = deployment.make(verb, ok=False, **variables)
    said = done.stdout + done.stderr
    assert not any(f'File "{folder}' in done.stderr for folder in (ROOT, deployment.checkout)), said
    # Nor with one of Pulumi's own, which ends the program when a resource fails.
    assert "pulumi-language-python-exec" not in said, said
    return done.stdout, done.stderr


def fails_briefly(deployment: Deployment) -> str:
    """Run an `up` that must fail, with at most 25 lines after the progress, and return its output."""
    stdout, stderr = streams_of_a_failure(deployment)
    begins = "did not complete" if deployment.engineless else f"deploying {deployment.stack}\n"
    after = [stdout.partition("Diagnostics:\n")[2], stderr.partition(begins)[2]]
    lines = [line for part in after for line in part.splitlines() if not line.startswith("make: ")]
    assert len(lines) <= 25, stdout + stderr
    return stdout + stderr


def works(deployment: Deployment) -> None:
    deployment.make("up")
    deployment.make("status")
    assert search(deployment.url)


def test_all_invalid_settings_are_reported_at_once_before_any_change(undeployed: Deployment) -> None:
    with changed(undeployed.file, "workers: 2", "wrokers: 2\n    cpus: none"):
        said = refused(undeployed)
    assert "mlflow:server.wrokers: no such setting; did you mean workers?" in said
    assert "mlflow:server.cpus: must be a number, got 'none'" in said
    assert "Updating" not in said


@pytest.mark.engine
def test_invalid_settings_stop_plain_pulumi_with_the_same_message(undeployed: Deployment) -> None:
    with changed(undeployed.file, "workers: 2", "wrokers: 2"):
        done = undeployed.pulumi("preview", ok=False)
    assert "mlflow:server.wrokers: no such setting; did you mean workers?" in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert "load_settings" not in done.stdout + done.stderr


def test_a_missing_docker_daemon_is_reported(undeployed: Deployment) -> None:
    said = refused(undeployed, DOCKER_HOST="unix:///nowhere/docker.sock")
    assert "there is no Docker daemon at unix:///nowhere/docker.sock" in said


def test_an_unknown_stack_is_reported_with_the_existing_ones(undeployed: Deployment) -> None:
    assert "there is no Pulumi.nope.yaml (stacks: dev, prod, staging" in refused(undeployed, STACK="nope")


def test_a_taken_host_port_is_reported_with_a_free_one(undeployed: Deployment) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        before = undeployed.file.read_text()
        undeployed.set("postgres.port", port)
        try:
            said = refused(undeployed)
        finally:
            undeployed.file.write_text(before)
    assert f"mlflow:postgres.port: port {port} of 127.0.0.1 is in use by another program" in said
    assert f"under mlflow:postgres: port: {port + 1}" in said


@pytest.mark.long
def test_a_missing_proxy_network_is_reported_before_any_change(prod: Deployment) -> None:
    before = prod.file.read_text()
    prod.set("traefik.network", "no-such-network")
    try:
        assert "type: docker network create no-such-network" in refused(prod)
    finally:
        prod.file.write_text(before)


def test_all_unavailable_images_are_reported_in_one_error(undeployed: Deployment) -> None:
    before = undeployed.file.read_text()
    undeployed.set("images.python", {"ref": "registry.invalid/python:3.13"})
    undeployed.set(f"images.{undeployed.store}", {"ref": "registry.invalid/store:1", "digest": "none"})
    try:
        said = refused(undeployed)
    finally:
        undeployed.file.write_text(before)
    assert re.search(r"2 of \d images are not available; nothing was deployed", said)
    assert "registry.invalid/python:3.13" in said
    assert "registry.invalid/store:1" in said


@pytest.mark.ci
def test_data_of_another_postgres_major_stops_the_deployment(dev: Deployment) -> None:
    before = dev.file.read_text()
    dev.set("images.postgres", {"ref": "docker.io/library/postgres:19.0"})
    try:
        said = refused(dev)
        plain = [] if dev.engineless else [dev.pulumi("up", "--yes", "--skip-preview", ok=False)]
    finally:
        dev.file.write_text(before)
    for words in (said, *(done.stdout + done.stderr for done in plain)):
        assert "version 19 would start with an empty database" in words
        assert f"mlflow-{dev.stack}-postgres-{dev.postgres_major}-data" in words
    assert search(dev.url)


@pytest.mark.long
def test_an_image_from_an_archive_is_loaded_without_pull_or_build(dev: Deployment) -> None:
    server = dev.api.inspect_container(dev.name("server"))
    name = f"registry.invalid/{dev.stack}/mlflow:1"
    dev.api.tag(server["Image"], name)
    saved, before = dev.checkout / "saved" / "mlflow.tar", dev.file.read_text()
    saved.parent.mkdir()
    with saved.open("wb") as file:
        file.writelines(dev.api.get_image(name))
    dev.api.remove_image(name)
    dev.set("images.mlflow", {"ref": name})
    try:
        assert f"  {name}\n" in refused(dev)
        dev.set("images.archive", "saved")
        said = dev.make("up").stderr
        assert f"loading {saved}" in said
        assert dev.api.inspect_container(dev.name("server"))["Image"] == server["Image"]
    finally:
        dev.file.write_text(before)
    works(dev)
    dev.api.remove_image(name)


@pytest.mark.long
def test_a_failed_build_shows_its_log_and_keeps_the_services_running(dev: Deployment) -> None:
    before = dev.file.read_text()
    database = dev.inspect("postgres")["Id"]
    broken = changed(dev.checkout / "mlflow" / "trim.sh", "set -eu", "set -eu\necho the trim is broken; exit 3")
    try:
        # These replace Postgres and the volume with its secrets, but only after every image is built.
        dev.set("postgres.memoryMb", 320)
        dev.set("backup.enabled", value=True)
        with broken:
            said = fails_briefly(dev)
    finally:
        dev.file.write_text(before)
    assert "the trim is broken" in said
    assert dev.inspect("postgres")["Id"] == database
    assert search(dev.url)
    works(dev)


@pytest.mark.long
def test_a_crashing_server_fails_every_update_with_its_last_lines(dev: Deployment) -> None:
    entrypoint = dev.checkout / "mlflow" / "docker-entrypoint.sh"
    with changed(entrypoint, "exec python /opt/mlflow-stack/serve.py", "echo the server is broken; exit 4"):
        for _ in range(2):
            said = fails_briefly(dev)
            assert f"{dev.name('server')}: it keeps crashing" in said
            assert "the server is broken" in said
    works(dev)


@pytest.mark.ci
def test_a_failed_migration_runs_again_at_the_next_update(dev: Deployment) -> None:
    def psql(statement: str) -> str:
        code, said = dev.run("postgres", "psql", "-U", "postgres", "-d", "mlflow", "-Atc", statement)
        assert code == 0, said
        return said

    # A revision that this MLflow does not know, as after a newer version; the data keys were verified before.
    known = psql("SELECT version_num FROM alembic_version")
    dev.api.remove_container(dev.name("migrate"), force=True)
    psql("UPDATE alembic_version SET version_num = 'unknown'")
    try:
        assert "Can't locate revision identified by 'unknown'" in fails_briefly(dev)
        # With an older image.
        since = dev.inspect("server")["State"]["StartedAt"]
        with changed(dev.checkout / "mlflow" / "healthcheck.py", "import os\n", "import os\n# another image\n"):
            said = fails_briefly(dev)
        assert "the database has the schema revision unknown (alembic_version), which MLflow" in said
        running = dev.inspect("server")["State"]
        assert (running["Running"], running["StartedAt"]) == (True, since), "the server was stopped before the check"
    finally:
        psql(f"UPDATE alembic_version SET version_num = '{known}'")
    works(dev)


@pytest.mark.ci
@pytest.mark.parametrize(
    "ending",
    ["raise SystemExit('broken on purpose')", pytest.param("os.kill(os.getpid(), 9)", marks=pytest.mark.long)],
    ids=["failed", "killed"],
)
def test_the_old_server_serves_again_after_a_migration_that_did_not_complete(dev: Deployment, ending: str) -> None:
    server = dev.inspect("server")["Id"]
    dockerfile, script = dev.checkout / "mlflow" / "Dockerfile", dev.checkout / "mlflow" / "migrate.py"
    # Another schema, so that the old server stops before the migration.
    newer = "\nUSER 0\nRUN echo newer >/opt/mlflow/schema-revision\nUSER 10001\n"
    kept = dockerfile.read_text()
    dockerfile.write_text(kept + newer)
    try:
        with changed(script, '    uri = os.environ["MLFLOW_BACKEND_STORE_URI"]\n', f"    {ending}\n"):
            said = refused(dev)
    finally:
        dockerfile.write_text(kept)
    assert "the migration changed nothing; starting the old server again" in said
    found = dev.inspect("server")
    assert (found["Id"], found["State"]["Running"]) == (server, True)
    assert found["HostConfig"]["RestartPolicy"]["Name"] == "always"
    works(dev)


@pytest.mark.ci
@pytest.mark.engine
def test_a_half_written_state_of_a_killed_update_is_repaired(dev: Deployment) -> None:
    notes = list((dev.folder / "state" / ".pulumi" / "stacks" / "mlflow").glob(f"{dev.stack}.json.attrs"))
    assert len(notes) == 1
    notes[0].write_text("")
    # Call Pulumi directly, because `make env` would repair the state.
    export = ["pulumi", "stack", "export", "--stack", dev.stack, "--non-interactive"]
    done = subprocess.run(export, cwd=dev.checkout, env=dev.environment, capture_output=True, text=True, check=False)
    assert "failed to load checkpoint: EOF" in done.stderr
    works(dev)


@pytest.mark.ci
@pytest.mark.engine
def test_a_wrong_data_key_is_refused_and_the_server_keeps_running(dev: Deployment) -> None:
    address = dev.url
    keep_a_gateway_secret(dev)
    server = dev.inspect("server")["Id"]
    before = dev.file.read_text()
    try:
        dev.pulumi("config", "set", "--secret", "cryptoKekPassphrase", "another-key-of-thirty-two-letters")
        said = refused(dev)
        assert "mlflow:cryptoKekPassphrase does not decrypt the gateway secrets in the database" in said
        assert "another-key" not in said
        assert dev.inspect("server")["Id"] == server
        assert search(address)
    finally:
        dev.file.write_text(before)
    works(dev)
    dev.run("postgres", "psql", "-U", "postgres", "-d", "mlflow", "-c", "delete from secrets")


@contextmanager
def starts_and_ends(deployment: Deployment) -> Iterator[list[tuple[str, str]]]:
    """Collect each start and end of a container as event and service, in the order of the daemon."""
    # Collect events live: the daemon keeps only the last 256, and every health check causes three.
    label = f"mlflow.stack={deployment.stack}"
    events = docker.APIClient(base_url=resolve_host(), version="auto").events(
        decode=True, filters={"label": label, "event": ["start", "die"]}
    )
    seen: list[tuple[str, str]] = []

    def collect() -> None:
        for event in events:
            name = event["Actor"]["Attributes"]["name"].removeprefix(f"mlflow-{deployment.stack}-")
            seen.append((event["Action"], name))

    collector = threading.Thread(target=collect, daemon=True)
    collector.start()
    yield seen
    events.close()
    collector.join(10)


@pytest.mark.long
def test_a_migration_starts_after_a_server_of_another_schema_finished_its_requests(dev: Deployment) -> None:
    address, file = urllib.parse.urlsplit(dev.url), "/opt/mlflow/schema-revision"
    with (
        socket.create_connection((address.hostname, address.port)) as upload,
        changed(dev.checkout / "mlflow" / "Dockerfile", f">{file}", f">{file} && echo >>{file}"),
        starts_and_ends(dev) as order,
    ):
        head = f"PUT /api/2.0/mlflow-artifacts/artifacts/slow HTTP/1.1\r\nHost: 127.0.0.1:{address.port}\r\n"
        upload.sendall(f"{head}Content-Length: 1000000\r\n\r\nslow".encode())
        dev.make("up")
    assert order.index(("die", "verify-data-keys")) < order.index(("die", "server"))
    assert order.index(("die", "server")) < order.index(("start", "migrate"))
    assert order.index(("die", "migrate")) < order.index(("start", "server"))


@pytest.mark.ci
@pytest.mark.parametrize(
    "service", ["server", *(pytest.param(name, marks=pytest.mark.long) for name in ("postgres", "object store"))]
)
def test_a_service_stopped_by_hand_is_started(dev: Deployment, service: str) -> None:
    service = dev.store if service == "object store" else service
    dev.api.stop(dev.name(service), timeout=30)
    said = refused(dev, "status")
    # It is reported before services that only depend on it.
    assert f"not running as expected: {dev.name(service)} (exited)" in said
    assert f"for the cause: make logs STACK={dev.stack} SERVICE={service}\n" in said
    works(dev)


@pytest.mark.long
def test_a_network_removed_by_hand_is_created_again(dev: Deployment) -> None:
    for name in dev.api.inspect_network(dev.name("edge"))["Containers"]:
        dev.api.disconnect_container_from_network(name, dev.name("edge"), force=True)
    dev.api.remove_network(dev.name("edge"))
    works(dev)


@pytest.mark.long
def test_an_image_removed_by_hand_is_built_again(dev: Deployment) -> None:
    # A separate image, because another stack may use the usual one.
    with changed(dev.checkout / "mlflow" / "healthcheck.py", '"""Succeeds', f'"""({dev.stack}) Succeeds'):
        # The checkout is readable by its owner only, as with a strict umask.
        modes = {path: path.stat().st_mode for path in (dev.checkout / "mlflow").iterdir()}
        for path in modes:
            path.chmod(0o600)
        dev.make("up")
        image = dev.inspect("server")["Image"]
        for name in dev.containers():
            if dev.api.inspect_container(name)["Image"] == image:
                dev.api.remove_container(name, force=True)
        dev.api.remove_image(image, force=True)
        works(dev)
    # Restore the modes. Otherwise the usual tag would move to another image, and other stacks would change.
    for path, mode in modes.items():
        path.chmod(mode)
    works(dev)


@pytest.mark.long
def test_a_secrets_volume_removed_by_hand_is_written_again(dev: Deployment) -> None:
    for name in ("server", "server-files"):
        dev.api.remove_container(dev.name(name), force=True)
    dev.api.remove_volume(dev.name("server-secrets"))
    works(dev)


@pytest.mark.long
@pytest.mark.parametrize("service", ["postgres", "object store"])
def test_a_stack_works_again_after_losing_a_data_volume(dev: Deployment, service: str) -> None:
    service = dev.store if service == "object store" else service
    dev.api.remove_container(dev.name(service), force=True)
    volumes = [volume["Name"] for volume in dev.api.volumes()["Volumes"]]
    lost = [volume for volume in volumes if names.is_data_volume(dev.stack, volume) and service in volume]
    assert len(lost) == 1
    dev.api.remove_volume(lost[0])
    works(dev)
    assert "5 MB up" in dev.client_day(dev.url, megabytes=5)


@pytest.mark.ci
def test_pruned_containers_are_created_again_without_restarts(dev: Deployment) -> None:
    before = {service: dev.inspect(service)["Id"] for service in ("server", "postgres", dev.store)}
    for name in dev.containers():
        if not dev.api.inspect_container(name)["State"]["Running"]:
            dev.api.remove_container(name)
    works(dev)
    assert {service: dev.inspect(service)["Id"] for service in before} == before
    # The migration finds the current schema without importing MLflow.
    assert b", the newest of this MLflow version" in dev.api.logs(dev.name("migrate"))


@pytest.mark.long
def test_a_new_image_replaces_a_server_whose_files_were_pruned(dev: Deployment) -> None:
    # The pruned files container cannot be replaced, so it does not stop the server: the migration has to stop it.
    old = dev.inspect("server")["Id"]
    with changed(dev.checkout / "mlflow" / "healthcheck.py", '"""Succeeds', '"""Now succeeds'):
        for name in dev.containers():
            if not dev.api.inspect_container(name)["State"]["Running"]:
                dev.api.remove_container(name)
        works(dev)
        assert dev.inspect("server")["Id"] != old
    works(dev)


@pytest.mark.ci
@pytest.mark.engine
@pytest.mark.parametrize(
    "moment",
    [
        *(pytest.param(moment, marks=pytest.mark.long) for moment in ("Network backend", "Container postgres")),
        "Container server",
    ],
)
def test_the_next_update_repairs_a_killed_one(dev: Deployment, moment: str) -> None:
    dev.make("down")
    with dev.begun(lambda line: f"{moment} creating" in line) as running:
        os.killpg(running.pid, signal.SIGKILL)
    works(dev)


@pytest.mark.ci
@pytest.mark.engine
def test_secrets_generated_by_a_killed_update_are_saved_by_down(dev: Deployment) -> None:
    before = dev.file.read_text()
    try:
        dev.set("authentication", "mlflow")
        with dev.begun(lambda line: "Container migrate creating" in line) as running:
            os.killpg(running.pid, signal.SIGKILL)
        assert "flaskSecretKey" not in dev.file.read_text()
        dev.make("down")
        assert "flaskSecretKey" in dev.file.read_text()
    finally:
        dev.file.write_text(before)
    works(dev)


@pytest.mark.long
@pytest.mark.engine
def test_a_concurrent_update_is_refused(dev: Deployment) -> None:
    dev.make("down")
    with dev.begun(lambda line: "Updating" in line) as first:
        assert f"{dev.stack} is being changed by another run: make up, process" in refused(dev, "destroy")
        rest = first.communicate()[0]
        assert first.returncode == 0, rest
    assert ask(f"{dev.url}/health")[0] == 200


@pytest.mark.long
@pytest.mark.engine
def test_an_update_beside_a_plain_pulumi_is_refused(dev: Deployment) -> None:
    dev.make("down")
    with subprocess.Popen(
        ["pulumi", "up", "--yes", "--skip-preview", "--non-interactive", "--stack", dev.stack],
        cwd=dev.checkout,
        env={**dev.environment, **dev.exports},
        stdout=subprocess.PIPE,
        text=True,
    ) as first:
        assert first.stdout
        assert any("Updating" in line for line in first.stdout)
        assert "is being changed by another run: process" in refused(dev)
        rest = first.communicate()[0]
        assert first.returncode == 0, rest
    assert ask(f"{dev.url}/health")[0] == 200


@pytest.mark.ci
def test_destroy_requires_the_stack_name_and_leaves_nothing(dev: Deployment) -> None:
    assert "nothing was deleted; to go on, type: make destroy" in refused(dev, "destroy")
    assert "nothing was deleted" in refused(dev, "destroy", CONFIRM="dev")
    assert search(dev.url)
    dev.make("destroy", CONFIRM=dev.stack)
    assert dev.containers() == []
    assert not any(volume["Name"].startswith(f"mlflow-{dev.stack}-") for volume in dev.api.volumes()["Volumes"] or [])
    # The stack can be deployed again.
    works(dev)


@pytest.mark.engine
@pytest.mark.long
def test_a_lost_passphrase_loses_passwords_but_neither_data_nor_data_keys(tmp_path: Path) -> None:
    deployment = Deployment(tmp_path, "dev")
    deployment.set("server.port", free_port())
    deployment.set("server.workers", 1)
    deployment.use("minio" if HAS_MINIO else "seaweedfs")
    try:
        deployment.make("up")
        client = MlflowClient(deployment.url)
        run = client.create_run("0").info.run_id
        client.log_text(run, "here", "note.txt")
        keep_a_gateway_secret(deployment)
        before = deployment.credentials()
        (tmp_path / "config" / "pulumi-mlflow" / f"{deployment.stack}.passphrase").unlink()
        assert "are encrypted, and this machine has no passphrase for them" in refused(deployment)
        recipe = blocks("A lost passphrase")[0]
        state = f"{tmp_path}/state/.pulumi/stacks/mlflow/{deployment.stack}.json"
        for theirs, ours in (
            ("~/.local/state/pulumi-mlflow/.pulumi/stacks/mlflow/dev.json", state),
            ("Pulumi.dev.yaml", deployment.file.name),
            ("mlflow-dev-", deployment.name("")),
            ("--stack dev", f"--stack {deployment.stack}"),
        ):
            assert theirs in recipe
            recipe = recipe.replace(theirs, ours)
        subprocess.run(["sh", "-ec", recipe], cwd=deployment.checkout, env=deployment.environment, check=True)
        removals = re.findall(r"(?m)^    (docker (?:rm -f|network rm) .*)$", refused(deployment))
        assert len(removals) == 2
        for line in removals:
            subprocess.run(line.split(), check=True, capture_output=True)
        deployment.make("up")
        assert search(deployment.url)
        assert [file.path for file in client.list_artifacts(run)] == ["note.txt"]
        after = deployment.credentials()
        kept = {"cryptoKekPassphrase", "webhookEncryptionKey"}
        # The file of the webhook key has it in the form in which MLflow uses it.
        assert {key: as_used(key, after[key]) for key in kept} == {key: as_used(key, before[key]) for key in kept}
        assert not any(after[key] == before[key] for key in before.keys() - kept)
    finally:
        deployment.remove()
