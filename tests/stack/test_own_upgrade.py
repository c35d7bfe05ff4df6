"""Test the upgrade of this program: the last commit of release 0.1.0, then this checkout over it."""

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from settings import names
from tests.stack.backups import inventory, told
from tests.stack.deployment import ROOT, Deployment, free_port

RELEASE = "a3afc7f028d1eec9fa249ee1b093b7216ef49bdf"
"""The last commit of 0.1.0."""
HAS_RELEASE = not subprocess.run(
    ["git", "cat-file", "-e", f"{RELEASE}^{{commit}}"], cwd=ROOT, capture_output=True, check=False
).returncode
pytestmark = [
    pytest.mark.long,
    pytest.mark.engine,
    pytest.mark.skipif(not HAS_RELEASE, reason="this clone does not have the commits of the last release"),
]


def use(checkout: Path, *, release: bool) -> None:
    """Replace the files of a checkout by those of the release, or of this checkout. Stack files stay."""
    kept = {path.name for path in checkout.glob("Pulumi.t*.yaml")} | {".venv"}
    for path in checkout.iterdir():
        if path.name in kept:
            continue
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    if release:
        archive = subprocess.run(["git", "archive", RELEASE], cwd=ROOT, capture_output=True, check=True).stdout
        subprocess.run(["tar", "-x"], cwd=checkout, input=archive, check=True)
        return
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, listed.split("\0")):
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, checkout / name)


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    deployment = Deployment(tmp_path_factory.mktemp("own"), "dev")
    use(deployment.checkout, release=True)
    deployment.set("server.port", free_port())
    deployment.set("backup.enabled", value=True)
    deployment.use(deployment.any_store)
    try:
        deployment.make("up")
        inventory(deployment, "fill", 4, 2000, 20, 1)
        deployment.make("backup")
        yield deployment
    finally:
        use(deployment.checkout, release=False)
        deployment.remove()


def volumes(deployment: Deployment) -> set[str]:
    """Return the volumes with data."""
    found = (volume["Name"] for volume in deployment.api.volumes()["Volumes"])
    return {
        name
        for name in found
        if names.survives_down(deployment.stack, name) or names.is_backup_volume(deployment.stack, name)
    }


def secrets(deployment: Deployment) -> dict[str, Any]:
    shown = json.loads(deployment.pulumi("config", "--json", "--show-secrets").stdout)
    return {key: entry["value"] for key, entry in shown.items() if entry["secret"]}


def test_this_checkout_over_the_last_release_loses_no_volume_no_secret_and_no_data(released: Deployment) -> None:
    before, kept, known = told(released), volumes(released), secrets(released)
    assert len(kept) == 3
    assert known
    use(released.checkout, release=False)
    released.make("up")
    assert volumes(released) == kept
    assert {key: secrets(released).get(key) for key in known} == known
    assert told(released) == before
    released.make("status")
    # A backup of the release can be restored, and the next one continues it.
    released.make("restore", FROM="latest", CONFIRM=released.stack)
    assert told(released) == before
    released.make("backup")
    released.pulumi("preview", "--expect-no-changes")
