"""Test faults of backup and restore on a real deployment: every container killed in turn, and every invalid input."""

import os
import random
import signal
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress

import pytest
from docker.errors import APIError

from tests.stack.backups import newest, told
from tests.stack.deployment import Deployment
from tests.stack.test_faults import refused

pytestmark = pytest.mark.long

PHASES = {
    "backup": ["reading the database", "mirroring the artifacts", "storing"],
    "postgres": ["reading the database"],
    "object store": ["mirroring the artifacts"],
    "restore": ["fetching", "copying the artifacts", "restoring the database"],
}


@pytest.mark.parametrize(
    ("victim", "phase"), [(victim, phase) for victim, phases in PHASES.items() for phase in phases]
)
def test_backups_and_restores_survive_a_kill_of_any_container(saved: Deployment, victim: str, phase: str) -> None:
    generator = random.Random(os.environ.get("SEED", "1") + phase)
    for _ in range(int(os.environ.get("KILLS", "1"))):
        # At the start of the phase or soon after, because no phase takes long.
        killed(saved, victim, phase, generator.uniform(0, 0.3))


def killed(deployment: Deployment, victim: str, phase: str, seconds: float) -> None:
    """Kill `victim` during a backup or a restore, and check that the documented commands repair everything."""
    deployment.make("backup")
    before, wanted = told(deployment), newest(deployment)
    verb = ["restore", f"FROM={wanted}", f"CONFIRM={deployment.stack}"] if victim == "restore" else ["backup"]
    with deployment.begun(lambda line: line.startswith(phase), *verb) as running:
        time.sleep(seconds)
        if victim == "backup":
            # Kill the main process; Docker starts the container again.
            os.kill(deployment.inspect("backup")["State"]["Pid"], signal.SIGKILL)
        elif victim == "restore":
            os.killpg(running.pid, signal.SIGKILL)
            # If the restore container has just ended by itself, only `make` was killed.
            with suppress(APIError):
                deployment.api.kill(deployment.name("restore"))
        else:
            name = deployment.store if victim == "object store" else victim
            # Kill the process as the kernel does: Docker does not restart a container that was killed by `docker kill`.
            os.kill(deployment.inspect(name)["State"]["Pid"], signal.SIGKILL)
        said = running.communicate()[0]
    if victim in ("backup", "restore"):
        assert running.returncode != 0, said
    if victim == "restore":
        assert wanted in deployment.make("backups").stdout
        deployment.make("restore", FROM=wanted, CONFIRM=deployment.stack)
    else:
        deployment.make("up")
        deployment.make("backups")
        deployment.make("backup")
    deployment.make("drill")
    assert told(deployment) == before


def test_a_backup_fails_after_a_minute_if_the_object_store_is_down(saved: Deployment) -> None:
    saved.api.stop(saved.name(saved.store), timeout=30)
    try:
        begun = time.monotonic()
        said = refused(saved, "backup")
        assert time.monotonic() - begun < 120
        assert f"{saved.name(saved.store)}" in said
        assert "does not answer" in said
        assert "does not answer" in refused(saved, "restore", FROM="latest", DRY_RUN="1")
    finally:
        saved.make("up")
    saved.make("backup")


def test_a_killed_restore_does_not_block_later_commands(saved: Deployment) -> None:
    name = saved.name("restore")
    host = saved.api.create_host_config(binds=[f"{saved.name('backup-staging')}:/staging"])
    image = saved.inspect("backup")["Image"]
    container = saved.api.create_container(image, entrypoint=["sleep", "600"], name=name, host_config=host)["Id"]
    saved.api.start(container)
    assert f"a restore of {saved.stack} is running; nothing was changed" in refused(saved, "down")
    assert "the server is down until the restore ends" in refused(saved, "status")
    assert f"a restore of {saved.stack} is running; nothing was changed" in refused(saved, "restore", FROM="latest")
    saved.api.kill(container)
    saved.make("down")
    saved.make("up")
    saved.make("backup")


# --- invalid input -------------------------------------------------------------------------------------------------


def test_a_restore_without_a_valid_backup_id_prints_the_command(saved: Deployment) -> None:
    assert f"type: make restore STACK={saved.stack} FROM=latest" in refused(saved, "restore")
    assert "FROM=nothing: no backup matches; newest backups:" in refused(saved, "restore", FROM="nothing")


def test_a_backup_of_another_stack_is_refused_by_name(saved: Deployment) -> None:
    with altered_manifest(saved, '"stack": "[^"]*"', '"stack": "other"'):
        said = refused(saved, "restore", FROM="latest", CONFIRM=saved.stack)
    assert f"this is a backup of other, not of {saved.stack}; nothing was changed" in said


def test_a_backup_of_a_newer_mlflow_is_refused(saved: Deployment) -> None:
    with altered_manifest(saved, '"schema_revision": "[^"]*"', '"schema_revision": "ffffffffffff"'):
        said = refused(saved, "restore", FROM="latest", CONFIRM=saved.stack)
    assert f"is newer than the MLflow of {saved.stack}" in said


def test_a_backup_with_a_newer_manifest_format_is_refused(saved: Deployment) -> None:
    with altered_manifest(saved, '"format": 1', '"format": 3'):
        assert "written by a newer version of this project" in refused(saved, "restore", FROM="latest")


def test_a_truncated_dump_is_refused_before_any_change(saved: Deployment) -> None:
    before = told(saved)
    with altered(saved, "truncate -s -100 /staging/current/mlflow.dump"):
        assert "mlflow.dump of backup" in refused(saved, "drill")
        said = refused(saved, "restore", FROM="latest", CONFIRM=saved.stack)
        assert "mlflow.dump of backup" in said
        assert "is damaged; choose another backup" in said
    assert told(saved) == before
    saved.make("drill")


@contextmanager
def altered(deployment: Deployment, command: str) -> Iterator[None]:
    """Store a newest backup whose files `command` has changed, and delete it at the end of the block."""
    stored = "restic backup --quiet --tag=mlflow /staging/current"
    code, said = deployment.run("backup", "sh", "-c", f"cp -a /staging/current /staging/kept && {command} && {stored}")
    assert code == 0, said
    stored = newest(deployment)
    try:
        yield
    finally:
        restored = "rm -rf /staging/current && mv /staging/kept /staging/current"
        code, said = deployment.run("backup", "sh", "-c", f"restic forget --quiet {stored} && {restored}")
        assert code == 0, said


def altered_manifest(deployment: Deployment, old: str, new: str) -> AbstractContextManager[None]:
    """Store a newest backup with a changed manifest, and delete it at the end of the block."""
    return altered(deployment, f"sed -E -i 's/{old}/{new}/' /staging/current/manifest.json")


def test_a_damaged_backup_repository_is_reported(saved: Deployment) -> None:
    script = "f=$(ls -S /repository/data/*/* | head -n 1); cp $f /staging/kept-pack; chmod u+w $f; echo x > $f; echo $f"
    code, path = saved.run("backup", "sh", "-c", script)
    assert code == 0, path
    try:
        said = refused(saved, "backup")
        assert "the repository is damaged" in said
        assert "backup" in refused(saved, "status")
    finally:
        saved.run("backup", "sh", "-c", f"cat /staging/kept-pack > {path}; rm /staging/kept-pack")
    saved.make("backup")
    saved.make("status")


def test_a_wrong_backup_password_is_reported(saved: Deployment) -> None:
    code, said = saved.run("backup", "sh", "-c", "mv /repository/keys /repository/hidden && mkdir /repository/keys")
    assert code == 0, said
    try:
        assert "mlflow:backupPassword does not decrypt the backups" in refused(saved, "backup")
    finally:
        saved.run("backup", "sh", "-c", "rmdir /repository/keys && mv /repository/hidden /repository/keys")
    saved.make("backup")


def test_a_missing_backup_repository_is_not_created_again(saved: Deployment) -> None:
    saved.run("backup", "mv", "/repository/config", "/repository/hidden")
    try:
        assert "is missing; check that its disk is mounted" in refused(saved, "backup")
    finally:
        saved.run("backup", "mv", "/repository/hidden", "/repository/config")
    saved.make("backup")


def test_a_stack_without_backups_explains_how_to_enable_them(dev: Deployment) -> None:
    said = refused(dev, "backup")
    assert f"backup is off for {dev.stack}" in said
    assert "mlflow:backup: {enabled: true}" in said
