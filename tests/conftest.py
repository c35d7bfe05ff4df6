"""What a whole run is told and says. Here, because pytest's workers, which have the tests, can tell nobody."""

import os

import pytest

from operations.host import docker_daemon
from runtime.daemon import Daemon, resolve_host
from tests.stack.deployment import HAS_ENGINE, HAS_MINIO, WITH_LONG

REQUIRED, REQUIRED_ENGINE = "REQUIRE_STACK", "REQUIRE_ENGINE"
"""Set to 1 where a machine without Docker, or without the Pulumi engine, is a failure."""


def pytest_configure(config: pytest.Config) -> None:
    """Refuse to run where what is required is not here; raise `pytest.UsageError` saying what that is."""
    if hasattr(config, "workerinput"):
        return
    if os.environ.get(REQUIRED) == "1" and (problem := docker_daemon.docker_problem(Daemon(resolve_host()))):
        raise pytest.UsageError(f"{REQUIRED}=1: {problem}")
    if os.environ.get(REQUIRED_ENGINE) == "1" and not HAS_ENGINE:
        raise pytest.UsageError(f"{REQUIRED_ENGINE}=1: no pulumi on the PATH")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say what was tried, and what could not be."""
    reports = [report for kind in terminalreporter.stats.values() for report in kind]
    if not any(getattr(report, "nodeid", "").startswith("tests/stack") for report in reports):
        return
    terminalreporter.write_line(
        f"deployed by {'the Pulumi engine' if HAS_ENGINE else 'the rehearsal: no pulumi on the PATH'}; "
        + ("with MinIO and SeaweedFS" if HAS_MINIO else "with SeaweedFS alone: MinIO's image is in no package index")
        + ("" if WITH_LONG else "; without the long tests: LONG=1 make test")
    )
