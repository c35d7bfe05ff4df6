"""Test what a run of the tests requires and reports, started as by `make test`: with workers, which cannot print."""

import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests import conftest
from tests.stack.browser import CHROMIUM

ROOT = Path(__file__).parents[2]


def run(tests: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run `tests` without a Docker daemon."""
    kept = {
        key: value for key, value in os.environ.items() if not key.startswith(("PYTEST_", "REQUIRE_", "LONG", "CI"))
    }
    return subprocess.run(
        [sys.executable, "-m", "pytest", "--numprocesses", "1", "--dist", "loadfile", "-p", "no:cacheprovider", tests],
        cwd=ROOT,
        env=kept | {"DOCKER_HOST": "unix:///nowhere.sock"} | variables,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def without_docker() -> subprocess.CompletedProcess[str]:
    """Run the acceptance tests without a Docker daemon."""
    return run("tests/stack")


def test_a_run_without_a_required_tool_fails_and_says_why() -> None:
    done = run("tests/models/test_names.py", REQUIRE_STACK="1")
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "REQUIRE_STACK=1: " in done.stderr


def test_a_run_without_docker_skips_the_acceptance_tests_and_succeeds(
    without_docker: subprocess.CompletedProcess[str],
) -> None:
    assert without_docker.returncode == 0, without_docker.stdout
    assert re.search(r"= \d+ skipped in ", without_docker.stdout)


def test_a_run_reports_how_it_deployed_and_what_it_skipped(without_docker: subprocess.CompletedProcess[str]) -> None:
    said = without_docker.stdout
    # One of the two, according to this machine.
    assert re.search(r"(?m)^deployed (by the Pulumi engine|without the engine: no pulumi on the PATH); with ", said)
    assert "with SeaweedFS only: no package index has the image of MinIO; " in said
    assert "; without the tests of CI: CI=1 make test; without the long tests: LONG=1 make test" in said
    assert ("; without a browser: " in said) is (CHROMIUM is None)


def test_a_run_of_fast_tests_alone_reports_no_deployment() -> None:
    written: list[str] = []
    reports = [SimpleNamespace(nodeid="tests/models/test_names.py::test_a", longrepr=None)]
    reporter: Any = SimpleNamespace(stats={"passed": reports}, write_line=written.append, line=written.append)
    conftest.pytest_terminal_summary(reporter)
    assert written == []
