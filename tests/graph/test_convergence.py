"""Test what `pulumi up` waits for where the server is a Swarm service, and what it says when it waits in vain."""

import asyncio
from dataclasses import replace
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pulumi
import pytest

from runtime import compatibility, convergence
from runtime.convergence import Converged, until_converged
from runtime.tasks import Task
from settings import names

NAME = "mlflow-prod-server"
NEW, OLD = "new", "old"
LABEL = names.TOGETHER_LABEL


def task(number: int, **changed: Any) -> Task:  # noqa: ANN401
    ready = Task(
        id=f"task{number}",
        node=f"node-{number}",
        state="running",
        wanted="running",
        error="",
        since="2026-05-06T00:00:00Z",
        created="2026-05-06T00:00:00+00:00",
        lost=False,
        revision=NEW,
    )
    return replace(ready, **changed)


def service(
    revision: str = NEW, number: int = 2, update: str = "", image: str = "sha256:old", together: str = ""
) -> dict[str, Any]:
    spec = {
        "Labels": {names.IMAGE_LABEL: image, LABEL: together},
        "Mode": {"Replicated": {"Replicas": number}},
        "TaskTemplate": {
            "ContainerSpec": {
                "Env": ["A=1", f"{names.REVISION_VARIABLE}={revision}"],
                "Image": "localhost/mlflow-server:old",
                "StopGracePeriod": 36_000_000_000,
            }
        },
    }
    return {"Spec": spec, **({"UpdateStatus": {"State": update, "Message": f"it is {update}"}} if update else {})}


class ACluster:
    """A cluster whose answers are one moment after another; the last one stays."""

    def __init__(
        self, *moments: tuple[dict[str, Any] | None, list[Task]], files: dict[str, bytes] | None = None
    ) -> None:
        self.moments = list(moments)
        self.files = files or {}
        self.done: list[str] = []

    def services(self, stack: str) -> dict[str, str]:
        return {"server": names.docker_name(stack, "server")}

    def inspect(self, name: str) -> dict[str, Any] | None:
        assert name == NAME
        return self.moments[0][0]

    def tasks(self, name: str) -> list[Task]:
        assert name == NAME
        found = self.moments[0][1]
        if len(self.moments) > 1:
            self.moments.pop(0)
        return found

    def scale(self, _name: str, number: int) -> None:
        self.done.append(f"scale {number}")

    def restart(self, _name: str) -> None:
        self.done.append("restart")

    def logs(self, _name: str, _lines: int, tasks: list[str] | None = None) -> str:
        return f"the log of {', '.join(tasks or [])}"

    def read_image_file(self, _image: str, path: str) -> bytes | None:
        return self.files.get(path)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convergence, "POLL_SECONDS", 0)
    monkeypatch.setattr(compatibility, "PROBE_SECONDS", 0)
    monkeypatch.setattr(pulumi, "get_stack", lambda: "prod")


def wait(cluster: ACluster, *, prepares: str | None = None, within_s: int = 60, made: datetime | None = None) -> None:
    daemon = SimpleNamespace(volume_created_at=lambda _: made, clock=lambda: datetime(2026, 5, 6, 1, tzinfo=UTC))
    platform: Any = SimpleNamespace(cluster=cluster, daemon=daemon)
    wanted = Converged(revision=NEW, tasks=2, within_s=within_s, prepares=prepares)
    asyncio.run(until_converged(platform, NAME, wanted))


def test_a_service_is_ready_when_every_task_is() -> None:
    starting = task(2, state="starting")
    cluster = ACluster((service(), [task(1), starting]), (service(), [task(1), task(2)]))
    wait(cluster)
    assert len(cluster.moments) == 1, "it did not wait for the second task"


@pytest.mark.parametrize(
    "left", [task(3, revision=OLD), task(3, revision=OLD, wanted="shutdown"), task(3, wanted="shutdown")]
)
def test_it_is_not_ready_while_a_task_that_is_to_stop_runs(left: Task) -> None:
    cluster = ACluster((service(), [task(1), task(2), left]), (service(), [task(1), task(2)]))
    wait(cluster)
    assert len(cluster.moments) == 1


def test_it_is_not_ready_while_swarm_still_watches_the_update() -> None:
    both = [task(1), task(2)]
    cluster = ACluster((service(update="updating"), both), (service(update="completed"), both))
    wait(cluster)
    assert len(cluster.moments) == 1


@pytest.mark.parametrize("wanted", ["running", "shutdown"])
def test_a_task_on_a_node_that_is_down_is_not_waited_for(wanted: str) -> None:
    """Swarm goes on reporting it as running, for a day."""
    wait(ACluster((service(), [task(1), task(2), task(3, revision=OLD, wanted=wanted, lost=True)])))


def test_a_task_on_a_node_that_is_down_is_not_ready() -> None:
    with pytest.raises(pulumi.RunError, match="1 of 2 tasks are ready"):
        wait(ACluster((service(), [task(1), task(2, lost=True)])), within_s=-1)


def test_tasks_that_failed_earlier_do_not_matter() -> None:
    wait(ACluster((service(), [task(1), task(2), task(3, state="failed", wanted="shutdown", error="exit 1")])))


def test_a_broken_update_fails_when_the_previous_tasks_serve_again() -> None:
    during = "2026-05-07T00:00:00+00:00"
    failed = task(3, state="failed", wanted="shutdown", error="task: non-zero exit (1)", created=during)
    old = [task(1, revision=OLD), task(2, revision=OLD)]
    cluster = ACluster(
        (service(update="updating"), [*old, failed]),
        (service(OLD, update="rollback_started"), [*old, failed]),
        (service(OLD, update="rollback_completed"), [*old, failed]),
    )
    with pytest.raises(pulumi.RunError) as found:
        wait(cluster)
    said = str(found.value)
    assert "Swarm has rolled the update back, and the previous tasks serve (it is rollback_completed)" in said
    # All tasks had been stopped before, as for another password of the database.
    none = ACluster((service(OLD, update="rollback_completed", number=0), [failed]))
    with pytest.raises(pulumi.RunError, match="rolled the update back, and no previous task runs"):
        wait(none)
    assert "on node-3: failed task: non-zero exit (1)" in said
    assert "the log of task3" in said
    assert "make up STACK=prod" in said
    assert "node-1" not in said, "a task that serves is no failure"


def test_failures_of_the_past_do_not_end_an_update() -> None:
    """Such as those while the database was down: the tasks are starting again."""
    failed = [task(number, state="failed", wanted="shutdown") for number in (3, 4, 5)]
    starting = [*failed, task(1, state="starting"), task(2, state="starting")]
    wait(ACluster((service(), starting), (service(), starting), (service(), [*failed, task(1), task(2)])))


def test_a_rollback_that_stopped_is_not_called_complete() -> None:
    with pytest.raises(pulumi.RunError, match="the update has stopped: it is rollback_paused"):
        wait(ACluster((service(OLD, update="rollback_paused"), [task(1, revision=OLD)])))


def test_a_new_service_whose_tasks_keep_failing_is_not_waited_for() -> None:
    during = "2026-05-07T00:00:00+00:00"
    failed = [
        task(number, state="rejected", wanted="shutdown", error="No such image", created=during) for number in range(3)
    ]
    with pytest.raises(pulumi.RunError, match=r"keep failing\n  on node-0: rejected No such image"):
        # The first one failed before this check began.
        wait(ACluster((service(), failed[:1]), (service(), failed)))


def test_a_stopped_update_fails() -> None:
    with pytest.raises(pulumi.RunError, match="the update has stopped: it is paused"):
        wait(ACluster((service(update="paused"), [task(1)])))


def test_a_task_for_which_there_is_no_node_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convergence, "PENDING_SECONDS", -1)
    lonely = task(2, state="pending", node="", error="no suitable node (scheduling constraints not satisfied)")
    with pytest.raises(pulumi.RunError, match="no node takes a task: no suitable node") as found:
        wait(ACluster((service(), [task(1), lonely])))
    assert "on no node: pending" in str(found.value)


def test_a_service_that_takes_too_long_is_reported_with_its_count() -> None:
    with pytest.raises(pulumi.RunError, match="after -1 s, 1 of 2 tasks are ready"):
        wait(ACluster((service(), [task(1), task(2, state="starting")])), within_s=-1)


def test_a_service_that_was_removed_by_hand_is_reported() -> None:
    with pytest.raises(pulumi.RunError, match="removed by hand"):
        wait(ACluster((None, [])))


def test_a_service_that_was_stopped_is_started_again() -> None:
    stopped: tuple[dict[str, Any] | None, list[Task]] = (service(number=0), [])
    cluster = ACluster(stopped, stopped, (service(), [task(1), task(2)]))
    wait(cluster)
    assert cluster.done == ["scale 2"]


def test_tasks_that_prepared_a_lost_volume_are_replaced_and_waited_for() -> None:
    later = "2026-05-08T00:00:00+00:00"
    old, new = [task(1), task(2)], [task(3, created=later), task(4, created=later)]
    cluster = ACluster(*((service(), tasks) for tasks in (old, old, [*old, new[0]], new)))
    wait(cluster, prepares="data", made=datetime(2026, 5, 7, tzinfo=UTC))
    assert cluster.done == ["restart"]
    assert len(cluster.moments) == 1, "it did not wait for the new tasks"


def test_tasks_that_are_younger_than_their_volume_stay() -> None:
    cluster = ACluster((service(), [task(1), task(2)]))
    wait(cluster, prepares="data", made=datetime(2026, 5, 5, tzinfo=UTC))
    assert cluster.done == []


FILES = ("/schema", "/users-schema")


def stop_incompatible(
    cluster: ACluster, *, image: str = "sha256:new", value: str = "same", schema: bytes = b"1"
) -> None:
    daemon = SimpleNamespace(inspect=lambda _: {"Image": image}, read_file=lambda *_: schema)
    platform: Any = SimpleNamespace(cluster=cluster, daemon=daemon)
    compatible = compatibility.Compatible(files=FILES, label=LABEL, value=value)
    asyncio.run(compatibility._until_tasks_compatible(platform, NAME, ("mlflow-prod-verify", value), compatible))


@pytest.mark.parametrize(
    ("there", "value", "image", "schema", "stopped"),
    [
        ("same", "same", "sha256:old", b"2", False),  # the same image needs no comparison
        ("same", "same", "sha256:new", b"1", False),
        ("same", "same", "sha256:new", b"2", True),
        ("other", "same", "sha256:old", b"1", True),
    ],
)
def test_tasks_stop_before_the_migration_unless_they_may_run_beside_the_new_ones(
    there: str,
    value: str,
    image: str,
    schema: bytes,
    stopped: bool,  # noqa: FBT001
) -> None:
    moments = [
        (service(together=there), [task(1)]),
        (service(number=0), [task(1, wanted="shutdown")]),
        (service(number=0), []),
    ]
    cluster = ACluster(*moments, files=dict.fromkeys(FILES, b"1"))
    stop_incompatible(cluster, image=image, value=value, schema=schema)
    assert cluster.done == (["scale 0"] if stopped else [])
    if stopped:
        assert not cluster.moments[0][1], "it did not wait for the end of the tasks"


def test_tasks_of_an_image_that_the_manager_no_longer_has_stop() -> None:
    cluster = ACluster((service(together="same"), [task(1)]), (service(number=0), []))
    stop_incompatible(cluster)
    assert cluster.done == ["scale 0"]


def test_nothing_is_migrated_while_a_task_on_a_node_that_is_down_may_still_write() -> None:
    cluster = ACluster((service(together="other"), [task(1), task(2, wanted="shutdown", lost=True)]))
    with pytest.raises(pulumi.RunError, match=r"(?s)node-2 of the cluster is down.*docker node rm --force node-2"):
        stop_incompatible(cluster)
    assert cluster.done == []


def test_tasks_that_do_not_stop_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compatibility, "STOP_TIMEOUT_SECONDS", -60)
    with pytest.raises(pulumi.RunError, match="tasks still run on node-1, and new ones must not start beside them"):
        stop_incompatible(ACluster((service(together="other"), [task(1)])))
