"""Test the backup recipes of docs/operations as written there, and rare kinds of backup targets."""

import json
import os
import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from settings.images import DEFAULTS
from tests.shipped import blocks
from tests.stack.backups import inventory, journal, newest, told
from tests.stack.deployment import Deployment
from tests.stack.probes import keep_a_gateway_secret
from tests.stack.test_faults import refused

pytestmark = pytest.mark.long


def typed(deployment: Deployment, lines: str) -> str:
    """Run shell lines as an operator of this stack types them, and return their output."""
    done = subprocess.run(
        ["bash", "-euc", lines.replace("mlflow-prod", f"mlflow-{deployment.stack}").replace("prod", deployment.stack)],
        cwd=deployment.checkout,
        env=deployment.environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.engine
def test_changing_the_backup_password_revokes_the_old_one(saved: Deployment) -> None:
    before = told(saved)
    old = saved.credentials()["backupPassword"]
    saved.make("rotate", SECRET="backupPassword")
    new = saved.credentials()["backupPassword"]
    assert new != old
    saved.make("backup")
    saved.make("drill")
    assert len(json.loads(saved.run("backup", "restic", "key", "list", "--json")[1])) == 1
    code, said = saved.run("backup", "sh", "-c", f"echo {old} > /tmp/old && restic cat config -p /tmp/old --no-lock")
    assert code != 0
    assert "wrong password" in said
    saved.make("restore", FROM="latest", CONFIRM=saved.stack)
    assert told(saved) == before


@pytest.mark.engine
def test_data_keys_are_restored_from_a_backup_after_losing_the_stack_file(saved: Deployment) -> None:
    keep_a_gateway_secret(saved)
    saved.make("backup")
    before, wanted, old = told(saved), newest(saved), saved.credentials()
    saved.make("destroy", CONFIRM=saved.stack)
    # Lost: the secrets in the stack file, the passphrase, the state. Kept elsewhere: only the backup password.
    document = yaml.safe_load(saved.file.read_text())
    document.pop("encryptionsalt")
    document["config"] = {key: value for key, value in document["config"].items() if "secure" not in str(value)}
    saved.file.write_text(yaml.safe_dump(document))
    for path in [*(saved.folder / "config").rglob("*.passphrase"), *(saved.folder / "state").rglob("*.json*")]:
        path.unlink()
    saved.make("up")
    assert saved.credentials()["cryptoKekPassphrase"] != old["cryptoKekPassphrase"]
    lines = "".join(blocks("Restore a backup that has other data keys")).replace("0123abcd", wanted)
    # The command that asks for the old backup password gets it from a file.
    asked = "config set --secret backupPassword --stack prod "
    assert asked in lines
    (saved.folder / "kept").write_text(old["backupPassword"])
    typed(saved, lines.replace(asked, f"{asked} < {saved.folder / 'kept'} "))
    # The restored secrets are encrypted with the data keys of the new stack file.
    assert saved.credentials()["cryptoKekPassphrase"] != old["cryptoKekPassphrase"]
    assert told(saved) == before
    query = "SELECT count(*) FROM secrets"
    assert saved.run("postgres", "psql", "-U", "postgres", "-d", "mlflow", "-Atc", query)[1] == "1"
    # `make up` verifies that the data key decrypts the data.
    saved.make("up")
    saved.run("postgres", "psql", "-U", "postgres", "-d", "mlflow", "-c", "DELETE FROM secrets")


@contextmanager
def a_small_disk(folder: Path, megabytes: int) -> Iterator[None]:
    """Mount a file system of `megabytes` at `folder`, and unmount it at the end of the block."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={megabytes}m,mode=0777", "tmpfs", folder], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def taken(ballast: Path, size: int) -> None:
    """Allocate `size` bytes of a disk at once, or slightly less if other programs take some meanwhile."""
    with ballast.open("wb") as file:
        while size > 1 << 20:
            try:
                os.posix_fallocate(file.fileno(), 0, size)
            except OSError:
                size -= 8 << 20
            else:
                return


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount a file system")
def test_a_full_backup_target_is_reported_and_keeps_valid_backups(saved: Deployment, tmp_path: Path) -> None:
    before = saved.file.read_text()
    target = tmp_path / "target"
    with a_small_disk(target, 1900):
        try:
            saved.set("backup.target", str(target))
            saved.make("up")
            saved.make("backup")
            kept = newest(saved)
            # The target is full before the backup starts: it is refused, and nothing changes.
            ballast = target / "ballast"
            taken(ballast, 1000 << 20)
            said = refused(saved, "backup")
            assert re.search(r"[GM]B are free", said)
            assert "nothing was changed" in said
            # The target gets full during the backup: earlier backups stay valid, and later ones are complete.
            ballast.unlink()
            inventory(saved, "fill", 2, 10, 4, 300)
            with saved.begun(lambda line: line.startswith("reading the database"), "backup") as running:
                taken(ballast, os.statvfs(target).f_bavail * os.statvfs(target).f_frsize)
                said = running.communicate()[0]
            assert running.returncode != 0
            assert "no space left on device" in said
            assert "backup" in refused(saved, "status")
            ballast.unlink()
            assert newest(saved) == kept
            saved.make("drill")
            saved.make("backup")
            assert newest(saved) != kept
            saved.make("drill")
            saved.make("status")
        finally:
            saved.file.write_text(before)
            saved.make("up")
    saved.api.remove_volume(
        next(
            volume["Name"]
            for volume in saved.api.volumes()["Volumes"]
            if f"{saved.stack}-backup-folder" in volume["Name"]
        )
    )


@pytest.mark.minio
def test_backups_on_an_append_only_target_cannot_be_deleted_by_the_stack(saved: Deployment) -> None:
    before, host = saved.file.read_text(), f"{saved.stack}-outside"
    saved.set("backup.target", f"s3:http://{host}:9000/backups/{saved.stack}")
    saved.set("backup.accessKeyId", "writer")
    saved.set("backup.deletes", value=False)
    saved.set_secret("backupTargetSecretKey", "writers-secret-key")
    saved.make("up")
    outside = saved.api.create_container(
        DEFAULTS["minio"]["ref"],
        command=["silo", "server", "/data"],
        environment={"MINIO_ROOT_USER": "root", "MINIO_ROOT_PASSWORD": "roots-secret-key"},
        name=host,
        labels={"mlflow.tests.beside": saved.stack},
        host_config=saved.api.create_host_config(network_mode=saved.name("egress"), tmpfs={"/data": ""}),
    )["Id"]
    try:
        saved.api.start(outside)
        policy = blocks("A target that deletes nothing", "json")[0]
        policy = policy.replace("mlflow-backups", "backups").replace("prod", saved.stack)
        assert json.loads(policy)
        script = (
            "export MC_CONFIG_DIR=/tmp/.mc; until mc alias set o http://127.0.0.1:9000 root roots-secret-key; do "
            "sleep 1; done; mc mb o/backups; mc version enable o/backups; echo '" + policy + "' > /tmp/p.json; "
            "mc admin policy create o writer /tmp/p.json; mc admin user add o writer writers-secret-key; "
            "mc admin policy attach o writer --user writer"
        )
        asked = saved.api.exec_create(outside, ["timeout", "60", "sh", "-c", script])["Id"]
        said = saved.api.exec_start(asked).decode()
        assert saved.api.exec_inspect(asked)["ExitCode"] == 0, said
        started = time.monotonic()
        saved.make("backup")
        saved.make("backup")
        assert len(saved.make("backups").stdout.splitlines()) == 2
        saved.make("drill")
        assert time.monotonic() - started < 120
        assert journal(saved)["backup"]["snapshots"] == 2
        said = saved.run("backup", "timeout", "20", "restic", "forget", "latest", "--retry-lock=1s")[1]
        assert len(saved.make("backups").stdout.splitlines()) == 2, said
        assert "Access Denied" in said
        saved.make("restore", FROM="latest", CONFIRM=saved.stack)
    finally:
        saved.api.remove_container(outside, force=True)
        saved.file.write_text(before)
        saved.make("up")
