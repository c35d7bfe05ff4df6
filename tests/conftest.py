"""Checks the requirements of a test run, and summarizes it. Pytest's workers cannot: they print nothing."""

import gc
import os

import pytest

from operations.host import docker_daemon
from runtime.address import resolve_host
from runtime.daemon import Daemon
from tests.stack.browser import CHROMIUM
from tests.stack.deployment import HAS_ENGINE, HAS_MINIO, WITH_CI, WITH_LONG

REQUIRED, REQUIRED_ENGINE, REQUIRED_ROOT = "REQUIRE_STACK", "REQUIRE_ENGINE", "REQUIRE_ROOT"
"""Environment variables. If set to 1, the run fails without Docker, without the Pulumi engine, or without root."""


def pytest_configure(config: pytest.Config) -> None:
    """Check that Docker, the Pulumi engine and root are available if required; raise `pytest.UsageError` if not."""
    if hasattr(config, "workerinput"):
        return
    if os.environ.get(REQUIRED) == "1" and (problem := docker_daemon.docker_problem(Daemon(resolve_host()))):
        raise pytest.UsageError(f"{REQUIRED}=1: {problem}")
    if os.environ.get(REQUIRED_ENGINE) == "1" and not HAS_ENGINE:
        raise pytest.UsageError(f"{REQUIRED_ENGINE}=1: pulumi is not on the PATH")
    if os.environ.get(REQUIRED_ROOT) == "1" and os.geteuid() != 0:
        raise pytest.UsageError(f"{REQUIRED_ROOT}=1: this user is not root, and tests of the network need it")


def pytest_collection_finish() -> None:
    """Take what has been imported out of Python's garbage collection, which is a seventh of the time of fast tests."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000)


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print how the acceptance tests deployed, and which tests were left out."""
    reports = [report for kind in terminalreporter.stats.values() for report in kind]
    if not any(getattr(report, "nodeid", "").startswith("tests/stack") for report in reports):
        return
    terminalreporter.write_line(
        f"deployed {'by the Pulumi engine' if HAS_ENGINE else 'without the engine: no pulumi on the PATH'}; "
        + ("with MinIO and SeaweedFS" if HAS_MINIO else "with SeaweedFS only: no package index has the image of MinIO")
        + ("" if CHROMIUM else "; without a browser: no chromium on the PATH")
        + ("" if WITH_CI else "; without the tests of CI: CI=1 make test")
        + ("" if WITH_LONG else "; without the long tests: LONG=1 make test")
    )
