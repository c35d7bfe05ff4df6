"""What a run of the tests requires and says, as `make test` starts it: with workers, which can tell nobody."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(tests: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run `tests` where Docker is not."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PYTEST_", "REQUIRE_", "LONG"))}
    return subprocess.run(
        [sys.executable, "-m", "pytest", "--numprocesses", "2", "--dist", "loadfile", "-p", "no:cacheprovider", tests],
        cwd=ROOT,
        env=kept | {"DOCKER_HOST": "unix:///nowhere.sock"} | variables,
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_machine_without_what_is_required_fails_and_says_why() -> None:
    done = run("tests/models/test_names.py", REQUIRE_STACK="1")
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "REQUIRE_STACK=1: " in done.stderr


def test_a_run_says_what_it_deployed_by_and_what_it_left_out() -> None:
    said = run("tests/stack/test_policy.py").stdout
    assert "deployed by " in said
    assert "with SeaweedFS alone: MinIO's image is in no package index; without the long tests: LONG=1" in said
    assert "deployed by " not in run("tests/models/test_names.py").stdout
