"""Bad input and bad luck, on a real deployment: each is told in words, and mended by the next `make up`."""

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

from runtime.daemon import resolve_host
from settings import names
from tests.stack.deployment import HAS_MINIO, ROOT, Deployment, free_port
from tests.stack.probes import keep_a_gateway_secret
from tests.stack.test_deployment import ask, search


@contextmanager
def changed(path: Path, old: str, new: str) -> Iterator[None]:
    """Replace a text in a file of the deployment's checkout, for a while."""
    before = path.read_text()
    assert old in before
    path.write_text(before.replace(old, new))
    try:
        yield
    finally:
        path.write_text(before)


def refused(deployment: Deployment, verb: str = "up", **variables: str) -> str:
    """Run a verb that must fail, without a traceback but a container's, and return its error."""
    done = deployment.make(verb, ok=False, **variables)
    said = done.stdout + done.stderr
    assert not any(f'File "{folder}' in done.stderr for folder in (ROOT, deployment.checkout)), said
    return said


def works(deployment: Deployment) -> None:
    deployment.make("up")
    deployment.make("status")
    assert search(deployment.url)


def test_wrong_settings_are_told_all_at_once_before_anything(dev: Deployment) -> None:
    with changed(dev.file, "workers: 1", "wrokers: 2\n    cpus: none"):
        said = refused(dev)
    assert "mlflow:server.wrokers: no such setting; did you mean workers?" in said
    assert "mlflow:server.cpus: must be a number, got 'none'" in said
    assert "Updating" not in said


@pytest.mark.engine
def test_wrong_settings_stop_plain_pulumi_in_the_same_words(dev: Deployment) -> None:
    with changed(dev.file, "workers: 1", "wrokers: 2"):
        done = dev.pulumi("preview", ok=False)
    assert "mlflow:server.wrokers: no such setting; did you mean workers?" in done.stdout + done.stderr
    assert "config.py" not in done.stdout + done.stderr


def test_no_docker_is_told_with_what_to_do(dev: Deployment) -> None:
    said = refused(dev, DOCKER_HOST="unix:///nowhere/docker.sock")
    assert "there is no Docker daemon at unix:///nowhere/docker.sock" in said


def test_a_stack_that_does_not_exist_is_told_with_those_that_do(dev: Deployment) -> None:
    assert "there is no Pulumi.nope.yaml (there are: dev, prod, staging" in refused(dev, STACK="nope")


def test_a_taken_port_is_told_with_its_holder_and_another(dev: Deployment) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        before = dev.file.read_text()
        dev.set("postgres.port", port)
        try:
            said = refused(dev)
        finally:
            dev.file.write_text(before)
    assert f"mlflow:postgres.port: port {port} of 127.0.0.1 is taken by another program" in said
    assert f"under mlflow:postgres: port: {port + 1}" in said


@pytest.mark.long
def test_a_missing_proxy_network_is_told_before_anything(prod: Deployment) -> None:
    before = prod.file.read_text()
    prod.set("traefik.network", "no-such-network")
    try:
        assert "type: docker network create no-such-network" in refused(prod)
    finally:
        prod.file.write_text(before)


def test_every_image_that_cannot_be_had_is_told_in_one_error(dev: Deployment) -> None:
    before = dev.file.read_text()
    dev.set("images.python", {"ref": "registry.invalid/python:3.13"})
    dev.set(f"images.{dev.store}", {"ref": "registry.invalid/store:1", "digest": "none"})
    try:
        said = refused(dev)
    finally:
        dev.file.write_text(before)
    assert re.search(r"2 of \d images cannot be had; nothing was deployed", said)
    assert "registry.invalid/python:3.13" in said
    assert "registry.invalid/store:1" in said


def test_data_of_another_postgres_major_stop_everything_before_anything(dev: Deployment) -> None:
    before = dev.file.read_text()
    dev.set("images.postgres", {"ref": "docker.io/library/postgres:19.0"})
    try:
        said = refused(dev)
        plain = [] if dev.rehearsed else [dev.pulumi("up", "--yes", "--skip-preview", ok=False)]
    finally:
        dev.file.write_text(before)
    for words in (said, *(done.stdout + done.stderr for done in plain)):
        assert "version 19 would start on an empty database" in words
        assert f"mlflow-{dev.stack}-postgres-{dev.postgres_major}-data" in words
    assert search(dev.url)


@pytest.mark.long
def test_an_image_that_only_a_saved_file_has_is_loaded_and_neither_pulled_nor_built(dev: Deployment) -> None:
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
def test_a_build_that_fails_shows_its_log_and_stops_nothing(dev: Deployment) -> None:
    before = dev.file.read_text()
    database = dev.inspect("postgres")["Id"]
    broken = changed(dev.checkout / "mlflow" / "trim.sh", "set -eu", "set -eu\necho the trim is broken; exit 3")
    try:
        # Which makes another one, once the images are there.
        dev.set("postgres.memoryMb", 320)
        with broken:
            said = refused(dev)
    finally:
        dev.file.write_text(before)
    assert "the trim is broken" in said
    assert dev.inspect("postgres")["Id"] == database
    assert search(dev.url)
    works(dev)


@pytest.mark.long
def test_a_server_that_crashes_fails_the_up_with_its_last_lines_and_fails_it_again(dev: Deployment) -> None:
    entrypoint = dev.checkout / "mlflow" / "docker-entrypoint.sh"
    with changed(entrypoint, "exec python /opt/mlflow-stack/serve.py", "echo the server is broken; exit 4"):
        for _ in range(2):
            said = refused(dev)
            assert f"{dev.name('server')}: it keeps crashing" in said
            assert "the server is broken" in said
    works(dev)


def test_a_migration_that_failed_is_run_again_by_the_next_up(dev: Deployment) -> None:
    def psql(statement: str) -> str:
        code, said = dev.run("postgres", "psql", "-U", "postgres", "-d", "mlflow", "-Atc", statement)
        assert code == 0, said
        return said

    # A revision that this MLflow has never heard of, as a newer one would leave it.
    known = psql("SELECT version_num FROM alembic_version")
    dev.api.remove_container(dev.name("migrate"), force=True)
    psql("UPDATE alembic_version SET version_num = 'unknown'")
    try:
        assert "Can't locate revision identified by 'unknown'" in refused(dev)
    finally:
        psql(f"UPDATE alembic_version SET version_num = '{known}'")
    works(dev)


@pytest.mark.engine
def test_a_state_that_was_being_written_when_its_up_was_killed_is_read(dev: Deployment) -> None:
    notes = list((dev.folder / "state" / ".pulumi" / "stacks" / "mlflow").glob(f"{dev.stack}.json.attrs"))
    assert len(notes) == 1
    notes[0].write_text("")
    # Not by `make env`, which mends it, too.
    export = ["pulumi", "stack", "export", "--stack", dev.stack, "--non-interactive"]
    done = subprocess.run(export, cwd=dev.checkout, env=dev.environment, capture_output=True, text=True, check=False)
    assert "failed to load checkpoint: EOF" in done.stderr
    works(dev)


@pytest.mark.engine
def test_a_data_key_that_does_not_open_the_data_is_refused_while_the_server_runs_on(dev: Deployment) -> None:
    address = dev.url
    keep_a_gateway_secret(dev)
    server = dev.inspect("server")["Id"]
    before = dev.file.read_text()
    try:
        dev.pulumi("config", "set", "--secret", "cryptoKekPassphrase", "another-key-of-thirty-two-letters")
        said = refused(dev)
        assert "cryptoKekPassphrase does not open the gateway secrets in the database" in said
        assert "another-key" not in said
        assert dev.inspect("server")["Id"] == server
        assert search(address)
    finally:
        dev.file.write_text(before)
    works(dev)
    dev.run("postgres", "psql", "-U", "postgres", "-d", "mlflow", "-c", "delete from secrets")


@contextmanager
def starts_and_ends(deployment: Deployment) -> Iterator[list[tuple[str, str]]]:
    """Collect each start and end of a container: what happened, to which service. In the order of the daemon."""
    # As they come: asked afterwards, the daemon remembers 256 events, and every health check is three.
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


def test_a_new_image_waits_for_a_request_in_flight_before_it_migrates(dev: Deployment) -> None:
    address = urllib.parse.urlsplit(dev.url)
    with (
        socket.create_connection((address.hostname, address.port)) as upload,
        changed(dev.checkout / "mlflow" / "healthcheck.py", '"""Succeeds', '"""It succeeds'),
        starts_and_ends(dev) as order,
    ):
        head = f"PUT /api/2.0/mlflow-artifacts/artifacts/slow HTTP/1.1\r\nHost: 127.0.0.1:{address.port}\r\n"
        upload.sendall(f"{head}Content-Length: 1000000\r\n\r\nslow".encode())
        dev.make("up")
    assert order.index(("die", "verify-data-keys")) < order.index(("die", "server"))
    assert order.index(("die", "server")) < order.index(("start", "migrate"))
    assert order.index(("die", "migrate")) < order.index(("start", "server"))


@pytest.mark.parametrize("service", ["server", "postgres", "object store"])
def test_a_service_stopped_by_hand_is_started(dev: Deployment, service: str) -> None:
    service = dev.store if service == "object store" else service
    dev.api.stop(dev.name(service), timeout=30)
    said = refused(dev, "status")
    # Before whatever only waits for it.
    assert f"not as it should be: {dev.name(service)} (exited)" in said
    assert f"why it is so: make logs STACK={dev.stack} SERVICE={service}\n" in said
    works(dev)


def test_a_network_and_everything_on_it_removed_by_hand_is_made_again(dev: Deployment) -> None:
    for name in dev.api.inspect_network(dev.name("edge"))["Containers"]:
        dev.api.disconnect_container_from_network(name, dev.name("edge"), force=True)
    dev.api.remove_network(dev.name("edge"))
    works(dev)


@pytest.mark.long
def test_an_image_removed_by_hand_is_built_again(dev: Deployment) -> None:
    # An image of its own, since another stack may run from the usual one.
    with changed(dev.checkout / "mlflow" / "healthcheck.py", '"""Succeeds', f'"""({dev.stack}) Succeeds'):
        # And from a checkout that is nobody else's to read, as a strict umask makes it.
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
    # As they were, or the usual image would become another under its name, and other stacks would be planned anew.
    for path, mode in modes.items():
        path.chmod(mode)
    works(dev)


def test_the_secrets_of_a_service_removed_by_hand_are_written_again(dev: Deployment) -> None:
    for name in ("server", "server-files"):
        dev.api.remove_container(dev.name(name), force=True)
    dev.api.remove_volume(dev.name("server-secrets"))
    works(dev)


@pytest.mark.long
@pytest.mark.parametrize("service", ["postgres", "object store"])
def test_data_that_were_lost_with_their_volume_leave_a_stack_that_works(dev: Deployment, service: str) -> None:
    service = dev.store if service == "object store" else service
    dev.api.remove_container(dev.name(service), force=True)
    volumes = [volume["Name"] for volume in dev.api.volumes()["Volumes"]]
    lost = [volume for volume in volumes if names.is_data_volume(dev.stack, volume) and service in volume]
    assert len(lost) == 1
    dev.api.remove_volume(lost[0])
    works(dev)
    assert "5 MB up" in dev.client_day(dev.url, megabytes=5)


def test_pruned_containers_are_made_again_and_nothing_restarts(dev: Deployment) -> None:
    before = {service: dev.inspect(service)["Id"] for service in ("server", "postgres", dev.store)}
    for name in dev.containers():
        if not dev.api.inspect_container(name)["State"]["Running"]:
            dev.api.remove_container(name)
    works(dev)
    assert {service: dev.inspect(service)["Id"] for service in before} == before
    # Nor is MLflow imported to find that the database has its schema.
    assert b"already, the newest of this MLflow" in dev.api.logs(dev.name("migrate"))


@pytest.mark.long
def test_a_new_image_replaces_a_server_whose_files_were_pruned(dev: Deployment) -> None:
    # Its new files replace nothing, and the server with them: something else has to stop it for the migration.
    old = dev.inspect("server")["Id"]
    with changed(dev.checkout / "mlflow" / "healthcheck.py", '"""Succeeds', '"""Now succeeds'):
        for name in dev.containers():
            if not dev.api.inspect_container(name)["State"]["Running"]:
                dev.api.remove_container(name)
        works(dev)
        assert dev.inspect("server")["Id"] != old
    works(dev)


@pytest.mark.engine
@pytest.mark.parametrize("moment", ["Network backend", "Container postgres", "Container server"])
def test_an_up_that_was_killed_is_mended_by_the_next(dev: Deployment, moment: str) -> None:
    dev.make("down")
    with dev.begun(lambda line: f"{moment} creating" in line) as running:
        os.killpg(running.pid, signal.SIGKILL)
    works(dev)


@pytest.mark.engine
def test_what_a_killed_up_generated_is_saved_before_the_stack_goes_down(dev: Deployment) -> None:
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


@pytest.mark.engine
def test_a_second_up_at_the_same_time_is_refused(dev: Deployment) -> None:
    dev.make("down")
    with dev.begun(lambda line: "Updating" in line) as first:
        assert "is being changed by somebody else: process" in refused(dev)
        rest = first.communicate()[0]
        assert first.returncode == 0, rest
    assert ask(f"{dev.url}/health")[0] == 200


def test_destroy_wants_the_stacks_name_and_leaves_nothing(dev: Deployment) -> None:
    assert "nothing was deleted; to go on, type: make destroy" in refused(dev, "destroy")
    assert "nothing was deleted" in refused(dev, "destroy", CONFIRM="dev")
    assert search(dev.url)
    dev.make("destroy", CONFIRM=dev.stack)
    assert dev.containers() == []
    assert not any(volume["Name"].startswith(f"mlflow-{dev.stack}-") for volume in dev.api.volumes()["Volumes"] or [])
    # And it can be had again.
    works(dev)


@pytest.mark.engine
@pytest.mark.long
def test_a_lost_passphrase_costs_the_secrets_and_not_the_data(tmp_path: Path) -> None:
    deployment = Deployment(tmp_path, "dev")
    deployment.set("server.port", free_port())
    deployment.set("server.workers", 1)
    deployment.use("minio" if HAS_MINIO else "seaweedfs")
    try:
        deployment.make("up")
        client = MlflowClient(deployment.url)
        run = client.create_run("0").info.run_id
        client.log_text(run, "here", "note.txt")
        (tmp_path / "config" / "pulumi-mlflow" / f"{deployment.stack}.passphrase").unlink()
        assert "its secrets were encrypted elsewhere, and their passphrase is not here" in refused(deployment)
        page = (ROOT / "docs" / "operations.md").read_text().split("### A lost passphrase", 1)[1]
        recipe = page.split("```sh\n", 1)[1].split("make up", 1)[0]
        state = f"{tmp_path}/state/.pulumi/stacks/mlflow/{deployment.stack}.json"
        recipe = recipe.replace("~/.local/state/pulumi-mlflow/.pulumi/stacks/mlflow/dev.json", state)
        typed = recipe.replace("Pulumi.dev.yaml", deployment.file.name)
        subprocess.run(["sh", "-ec", typed], cwd=deployment.checkout, check=True)
        assert "secure:" not in deployment.file.read_text()
        removals = re.findall(r"(?m)^    (docker (?:rm -f|network rm) .*)$", refused(deployment))
        assert len(removals) == 2
        for line in removals:
            subprocess.run(line.split(), check=True, capture_output=True)
        deployment.make("up")
        assert search(deployment.url)
        assert [file.path for file in client.list_artifacts(run)] == ["note.txt"]
    finally:
        deployment.remove()
