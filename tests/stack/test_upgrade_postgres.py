"""Test the move of the database to another major version of Postgres: equal, killed anywhere, and back."""

import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime.address import resolve_host
from runtime.daemon import Daemon
from settings import packages
from settings.images import DEFAULTS
from settings.stack import major
from tests.stack.backups import inventory, told
from tests.stack.deployment import Deployment, free_port
from tests.stack.edge import image

pytestmark = [pytest.mark.long, pytest.mark.engine]

NEW = "docker.io/library/postgres:98.1"
"""The image of the tests under the name of a later version: its data folder is in the volume of that version."""
KILLS = int(os.environ.get("KILLS", "4"))


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    deployment = Deployment(tmp_path_factory.mktemp("upgrade"), "dev")
    deployment.set("server.port", free_port())
    deployment.set("protectData", value=True)
    deployment.use(deployment.any_store)
    repository, _, tag = NEW.rpartition(":")
    deployment.api.tag(image("postgres"), repository, tag)
    try:
        deployment.make("up")
        inventory(deployment, "fill", 4, 2000, 8, 1)
        yield deployment
    finally:
        deployment.remove()
        deployment.api.remove_image(NEW)


def mounted(deployment: Deployment) -> str:
    mounts = deployment.inspect("postgres")["Mounts"]
    return next(str(mount["Name"]) for mount in mounts if mount["Destination"] == "/var/lib/postgresql")


def said(done: subprocess.CompletedProcess[str]) -> str:
    return done.stdout + done.stderr


@pytest.mark.parametrize(
    ("to", "words"),
    [
        ("", "TO= is not set"),
        ("docker.io/library/postgres:latest", "has no tag with a version"),
        ("docker.io/library/postgres:99.1", "nothing was changed"),
        ("docker.io/library/postgres:12", "there is no volume"),
    ],
)
def test_a_wrong_version_is_refused_while_the_server_runs(to: str, words: str, old: Deployment) -> None:
    since = old.inspect("server")["State"]["StartedAt"]
    assert words in said(old.make("upgrade-postgres", ok=False, TO=to))
    assert old.inspect("server")["State"]["StartedAt"] == since


def test_a_dry_run_changes_nothing(old: Deployment) -> None:
    before = old.file.read_text()
    assert "would be copied into" in said(old.make("upgrade-postgres", TO=NEW, DRY_RUN="1"))
    assert old.file.read_text() == before
    assert old.name("postgres-98-data") not in [volume["Name"] for volume in old.api.volumes()["Volumes"]]


def test_a_move_that_fails_leaves_the_server_on_the_old_volume(old: Deployment) -> None:
    before, volume = told(old), mounted(old)
    script = old.checkout / "assets" / "upgrade" / "move.sh"
    works = script.read_text()
    # After the copy, before the comparison.
    script.write_text(
        works.replace("    fingerprint old", "    new_db psql -qc 'DELETE FROM metrics'\n    fingerprint old")
    )
    done = old.make("upgrade-postgres", ok=False, TO=NEW)
    assert "public.metrics" in said(done)
    assert "these tables differ after the move" in said(done)
    script.write_text(works)
    assert mounted(old) == volume
    old.make("status")
    assert told(old) == before
    # An incomplete move is not taken for a database.
    old.set("images.postgres", {"ref": NEW})
    old.make("up", ok=False)
    old.set("images.postgres", {"ref": image("postgres")})
    old.make("up")
    assert told(old) == before


def test_the_database_moves_and_is_equal(old: Deployment) -> None:
    before, volume = told(old), mounted(old)
    done = said(old.make("upgrade-postgres", TO=NEW))
    assert "rows are equal in both versions" in done
    assert f"docker volume rm {volume}" in done
    assert mounted(old) == old.name("postgres-98-data")
    assert told(old) == before
    old.make("status")
    assert "already" in said(old.make("upgrade-postgres", TO="98"))


def test_the_old_volume_can_be_used_again(old: Deployment) -> None:
    before = told(old)
    inventory(old, "fill", 2, 100, 2, 1)
    assert "CONFIRM=" in said(old.make("upgrade-postgres", ok=False, TO=image("postgres")))
    old.make("upgrade-postgres", TO=image("postgres"), CONFIRM=old.stack)
    assert told(old) == before
    # What was written before the way back is only in the newer volume.
    done = said(old.make("upgrade-postgres", ok=False, TO=NEW))
    assert f"{old.name('postgres-98-data')} was in use before" in done
    assert mounted(old) != old.name("postgres-98-data")


def test_a_move_that_is_killed_anywhere_completes_when_it_is_typed_again(old: Deployment) -> None:
    began = time.monotonic()
    old.make("upgrade-postgres", TO=NEW, CONFIRM=old.stack)
    whole = time.monotonic() - began
    old.make("upgrade-postgres", TO=image("postgres"), CONFIRM=old.stack)
    chosen, killed = random.Random(19), 0
    for number in range(KILLS):
        inventory(old, "fill", 2, 100, 2, 1)
        before = told(old)
        with subprocess.Popen(
            ["make", "-s", "upgrade-postgres"],
            cwd=old.checkout,
            env={**old.environment, "TO": NEW, "CONFIRM": old.stack},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        ) as running:
            time.sleep(0.9 * whole * (number + chosen.random()) / KILLS)
            os.killpg(running.pid, signal.SIGKILL)
        killed += running.returncode == -signal.SIGKILL
        # The container of a killed command goes on, and is waited for.
        deadline = time.monotonic() + 120
        while old.api.containers(filters={"name": f"^/{old.name('upgrade-postgres')}$"}):
            assert time.monotonic() < deadline
            time.sleep(0.5)
        old.make("upgrade-postgres", TO=NEW, CONFIRM=old.stack)
        assert mounted(old) == old.name("postgres-98-data")
        assert told(old) == before
        old.make("upgrade-postgres", TO=image("postgres"), CONFIRM=old.stack)
    assert killed >= KILLS / 2, "most of the moves ended before they were killed"


def test_the_database_moves_between_two_real_major_versions(tmp_path: Path) -> None:
    older, newer = packages.ref("postgres"), DEFAULTS["postgres"]["ref"]
    if missing := [ref for ref in (older, newer) if not Daemon(resolve_host()).has_image(ref)]:
        pytest.skip(f"needs {' and '.join(missing)}: no package index has the newer one, and no registry the older one")
    deployment = Deployment(tmp_path, "dev")
    deployment.use(deployment.any_store)
    deployment.set("server", {"port": free_port(), "workers": 1, "memoryMb": 1024})
    deployment.set("images.postgres", {"ref": older})
    try:
        deployment.make("up")
        inventory(deployment, "fill", 4, 2000, 8, 1)
        before, version = told(deployment), deployment.postgres_major
        deployment.make("upgrade-postgres", TO=newer)
        assert told(deployment) == before
        assert mounted(deployment) == deployment.name(f"postgres-{major(newer)}-data")
        assert version != major(newer)
    finally:
        deployment.remove()
