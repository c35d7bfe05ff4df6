"""Test what must hold on the Docker host before the first change."""

from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from operations.common.console import StopError
from operations.host import containers
from preconditions.host import OPERATIONS, host_problems
from runtime.daemon import Daemon
from settings import names
from settings.object_store import ObjectStoreSettings
from settings.traefik import TraefikSettings

MINIO, SEAWEEDFS = "mlflow-dev-minio-data", "mlflow-dev-seaweedfs-data"


@dataclass
class Host:
    """A Docker host with data volumes and, optionally, a server that writes to an object store."""

    held: set[str] = field(default_factory=set)
    writes_to: str | None = None
    running: bool = True
    restart: str = "always"
    """The restart policy of the server."""

    copied: int | None = None
    """Exit code of the copy from MinIO to SeaweedFS; None without one."""

    operation: str = ""
    """The operation that is running."""

    replicas: int = 1

    def volumes(self) -> set[str]:
        return self.held

    def services(self, stack: str, *, stopped: bool) -> dict[str, str]:
        assert stopped, "a server that is stopped still shows which object store has its artifacts"
        found = names.replicas(self.replicas) if self.writes_to is not None else ()
        return {"postgres": f"mlflow-{stack}-postgres"} | {name: f"mlflow-{stack}-{name}" for name in found}

    def inspect(self, container: str) -> dict[str, Any] | None:
        if container == "mlflow-dev-copy-artifacts":
            state = {"Status": "exited", "ExitCode": self.copied}
            env = ["SOURCE=minio", "TARGET=seaweedfs"]
            return None if self.copied is None else {"Config": {"Env": env}, "State": state}
        if container.removeprefix("mlflow-dev-") in OPERATIONS:
            return {"State": {"Running": True}} if container == f"mlflow-dev-{self.operation}" else None
        assert container.startswith("mlflow-dev-server")
        running = {"State": {"Running": self.running}, "HostConfig": {"RestartPolicy": {"Name": self.restart}}}
        if self.writes_to == "elsewhere":
            return {"Config": {"Env": None}, **running}
        endpoint = f"MLFLOW_S3_ENDPOINT_URL=http://mlflow-dev-{self.writes_to}:1"
        destination = "MLFLOW_ARTIFACTS_DESTINATION=s3://mlflow/artifacts"
        return {
            "Name": f"/{container}",
            "Config": {"Env": ["HOME=/tmp", endpoint, destination]},
            **running,
        }


def problems(host: Host, **settings: str) -> list[str]:
    return host_problems(
        cast("Daemon", host),
        stack="dev",
        postgres_major=18,
        object_store=ObjectStoreSettings.model_validate(settings),
        traefik=TraefikSettings(),
    )


@pytest.mark.parametrize(
    ("host", "settings"),
    [
        (Host(), {}),
        (Host(), {"kind": "seaweedfs"}),
        (Host({MINIO}), {}),
        (Host({MINIO}, "minio"), {}),
        # A foreign container with the name of the server is ignored.
        (Host({MINIO}, "elsewhere"), {}),
        # The old volume is kept after a completed move.
        (Host({MINIO, SEAWEEDFS}, "seaweedfs"), {"kind": "seaweedfs"}),
        # After `make down`, only the volumes are left to look at.
        (Host({MINIO, SEAWEEDFS}), {"kind": "seaweedfs"}),
        # The move, and a second attempt.
        (Host({MINIO}, "minio", running=False, restart="no"), {"kind": "seaweedfs", "copyFrom": "minio"}),
        (Host({MINIO, SEAWEEDFS}, "minio", running=False, restart="no"), {"kind": "seaweedfs", "copyFrom": "minio"}),
        (Host({MINIO, SEAWEEDFS}, "seaweedfs", copied=0), {"kind": "seaweedfs"}),
        # The copy failed: it is repeated, or the move is abandoned.
        (Host({MINIO, SEAWEEDFS}, copied=1), {"kind": "seaweedfs", "copyFrom": "minio"}),
        (Host({MINIO, SEAWEEDFS}, copied=1), {}),
    ],
)
def test_an_object_store_with_the_artifacts_or_a_copy_of_them_is_accepted(host: Host, settings: dict[str, str]) -> None:
    assert problems(host, **settings) == []


@pytest.mark.parametrize(
    "host",
    [Host({MINIO}), Host({MINIO}, "minio"), Host({MINIO, SEAWEEDFS}, "minio", running=False)],
    ids=["stopped", "deployed", "moved back and forth"],
)
def test_an_object_store_without_the_artifacts_is_refused(host: Host) -> None:
    assert problems(host, kind="seaweedfs") == [
        "mlflow:objectStore.kind: seaweedfs would start without this stack's artifacts, which are in the volume "
        "mlflow-dev-minio-data\n"
        "    go back to minio, or add mlflow:objectStore.copyFrom: minio; docs/operations/object-store.md"
    ]


@pytest.mark.parametrize(
    ("host", "why"),
    [
        (Host({MINIO}, "minio"), "the server still writes to minio"),
        (Host({MINIO}, "minio", restart="no"), "the server still writes to minio"),
        (
            Host({MINIO}, "minio", running=False),
            "if Docker restarts, it starts the server again, which then writes to minio",
        ),
    ],
    ids=["running", "running, not to be restarted", "stopped, to be restarted"],
)
def test_a_copy_is_refused_while_the_server_runs_or_can_restart(host: Host, why: str) -> None:
    assert problems(host, kind="seaweedfs", copyFrom="minio") == [
        f"mlflow:objectStore.copyFrom: {why}, and data that it writes during the copy would be lost\n"
        "    type: docker update --restart=no mlflow-dev-server && docker stop mlflow-dev-server, then try again; "
        "docs/operations/object-store.md"
    ]


def test_a_copy_is_refused_until_every_replica_is_stopped() -> None:
    (problem,) = problems(Host({MINIO}, "minio", replicas=2), kind="seaweedfs", copyFrom="minio")
    both = "mlflow-dev-server mlflow-dev-server-2"
    assert f"docker update --restart=no {both} && docker stop {both}" in problem


def test_an_object_store_after_an_incomplete_copy_is_refused() -> None:
    assert problems(Host({MINIO, SEAWEEDFS}, copied=1), kind="seaweedfs") == [
        "mlflow:objectStore.copyFrom: not all artifacts have been copied from minio yet\n"
        "    add copyFrom: minio again, or go back to kind: minio; docs/operations/object-store.md"
    ]


@pytest.mark.parametrize("running", [True, False])
def test_a_copy_into_the_object_store_in_use_is_refused(running: bool) -> None:  # noqa: FBT001
    host = Host({MINIO, SEAWEEDFS}, "seaweedfs", running=running)
    assert problems(host, kind="seaweedfs", copyFrom="minio") == [
        "mlflow:objectStore.copyFrom: the server uses seaweedfs already; a copy from minio would overwrite newer "
        "artifacts\n    remove copyFrom from the stack file"
    ]


def test_a_bucket_that_does_not_have_the_artifacts_is_refused() -> None:
    assert problems(Host({MINIO}, "minio"), bucket="another") == [
        "mlflow:objectStore.bucket: this stack's artifacts are in the bucket mlflow, and the server would not find "
        "them\n    set it to mlflow again"
    ]


def test_a_copy_from_an_object_store_without_a_volume_is_refused() -> None:
    assert problems(Host(), kind="seaweedfs", copyFrom="minio") == [
        "mlflow:objectStore.copyFrom: there is no volume mlflow-dev-minio-data to copy from\n"
        "    remove copyFrom from the stack file"
    ]


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_deployment_is_refused_while_an_operation_runs(operation: str) -> None:
    what, lost = OPERATIONS[operation]
    (problem,) = problems(Host(operation=operation))
    assert problem.startswith(f"{what} is running, and data that the server writes now {lost}\n")
    assert f"docker logs -f mlflow-dev-{operation}" in problem


@pytest.mark.parametrize("operation", OPERATIONS)
def test_another_operation_is_refused_while_one_runs(operation: str) -> None:
    with pytest.raises(StopError, match=f"{OPERATIONS[operation][0]} of dev is running; nothing was changed"):
        containers.require_no_operation(Host(operation=operation), "dev")  # type: ignore[arg-type]
