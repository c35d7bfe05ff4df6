"""What goes wrong around a backup, on a real deployment: everything killed in turn, and every bad input."""

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


@pytest.mark.parametrize("victim", PHASES)
def test_whatever_is_killed_no_backup_is_unusable_and_no_restore_beyond_mending(saved: Deployment, victim: str) -> None:
    generator = random.Random(int(os.environ.get("SEED", "1")))
    for _ in range(int(os.environ.get("KILLS", "1"))):
        # At the moment itself or soon after: no phase of these takes long.
        killed(saved, victim, generator.choice(PHASES[victim]), generator.uniform(0, 0.5))


def killed(deployment: Deployment, victim: str, phase: str, seconds: float) -> None:
    """Kill something while a backup or a restore is at work; all is well again by what an operator types then."""
    deployment.make("backup")
    before, wanted = told(deployment), newest(deployment)
    verb = ["restore", f"FROM={wanted}", f"CONFIRM={deployment.stack}"] if victim == "restore" else ["backup"]
    with deployment.begun(lambda line: line.startswith(phase), *verb) as running:
        time.sleep(seconds)
        if victim == "backup":
            # The whole of it, as a container that is removed: and it comes back by itself.
            os.kill(deployment.inspect("backup")["State"]["Pid"], signal.SIGKILL)
        elif victim == "restore":
            os.killpg(running.pid, signal.SIGKILL)
            # Where it had just ended by itself, what was killed is what comes after it.
            with suppress(APIError):
                deployment.api.kill(deployment.name("restore"))
        else:
            name = deployment.store if victim == "object store" else victim
            # By its process, as the kernel would: Docker does not start again what was killed by its own command.
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


def test_what_a_killed_restore_left_is_in_nobodys_way(saved: Deployment) -> None:
    name = saved.name("restore")
    host = saved.api.create_host_config(binds=[f"{saved.name('backup-staging')}:/staging"])
    image = saved.inspect("backup")["Image"]
    container = saved.api.create_container(image, entrypoint=["sleep", "600"], name=name, host_config=host)["Id"]
    saved.api.start(container)
    assert f"a restore of {saved.stack} is at work; nothing was changed" in refused(saved, "down")
    assert "a restore is at work, and the server is down meanwhile" in refused(saved, "status")
    assert f"another restore of {saved.stack} is at work" in refused(saved, "restore", FROM="latest")
    saved.api.kill(container)
    saved.make("down")
    saved.make("up")
    saved.make("backup")


# --- bad input -----------------------------------------------------------------------------------------------------


def test_a_restore_without_a_choice_or_of_what_is_not_there_says_what_to_type(saved: Deployment) -> None:
    assert f"type: make restore STACK={saved.stack} FROM=latest" in refused(saved, "restore")
    assert "FROM=nothing: there is no such backup; there are" in refused(saved, "restore", FROM="nothing")


def test_another_stacks_backup_is_refused_by_name(saved: Deployment) -> None:
    with altered_manifest(saved, '"stack": "[^"]*"', '"stack": "other"'):
        said = refused(saved, "restore", FROM="latest", CONFIRM=saved.stack)
    assert f"this is a backup of other, not of {saved.stack}; nothing was changed" in said


def test_a_newer_mlflows_backup_is_refused(saved: Deployment) -> None:
    with altered_manifest(saved, '"schema_revision": "[^"]*"', '"schema_revision": "ffffffffffff"'):
        said = refused(saved, "restore", FROM="latest", CONFIRM=saved.stack)
    assert f"is newer than the MLflow of {saved.stack}" in said


def test_a_manifest_of_a_newer_version_is_refused(saved: Deployment) -> None:
    with altered_manifest(saved, '"format": 1', '"format": 3'):
        assert "written by a newer version of this project" in refused(saved, "restore", FROM="latest")


def test_a_truncated_dump_is_refused_and_nothing_is_changed(saved: Deployment) -> None:
    before = told(saved)
    with altered(saved, "truncate -s -100 /staging/current/mlflow.dump"):
        assert "mlflow.dump of backup" in refused(saved, "drill")
        said = refused(saved, "restore", FROM="latest", CONFIRM=saved.stack)
        assert "mlflow.dump of backup" in said
        assert "is not what was stored" in said
    assert told(saved) == before
    saved.make("drill")


@contextmanager
def altered(deployment: Deployment, command: str) -> Iterator[None]:
    """Have a newest backup that is another than it was taken, for a while."""
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
    """Have a newest backup whose manifest says something else, for a while."""
    return altered(deployment, f"sed -E -i 's/{old}/{new}/' /staging/current/manifest.json")


def test_a_damaged_repository_is_told(saved: Deployment) -> None:
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


def test_a_wrong_password_is_told_with_what_to_do(saved: Deployment) -> None:
    code, said = saved.run("backup", "sh", "-c", "mv /repository/keys /repository/hidden && mkdir /repository/keys")
    assert code == 0, said
    try:
        assert "do not open with mlflow:backupPassword" in refused(saved, "backup")
    finally:
        saved.run("backup", "sh", "-c", "rmdir /repository/keys && mv /repository/hidden /repository/keys")
    saved.make("backup")


def test_a_repository_that_has_vanished_is_not_made_anew(saved: Deployment) -> None:
    saved.run("backup", "mv", "/repository/config", "/repository/hidden")
    try:
        assert "is gone; is its disk mounted" in refused(saved, "backup")
    finally:
        saved.run("backup", "mv", "/repository/hidden", "/repository/config")
    saved.make("backup")


def test_a_stack_without_a_backup_says_how_to_have_one(dev: Deployment) -> None:
    said = refused(dev, "backup")
    assert f"{dev.stack} has no backup" in said
    assert "`mlflow:backup: {enabled: true}`" in said
