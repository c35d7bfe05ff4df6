"""Test backup, restore test, restore and garbage collection of a real deployment, with a real MLflow client."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import requests
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from runtime.address import resolve_host
from runtime.daemon import Daemon
from settings import packages
from settings.images import DEFAULTS
from tests.stack.backups import INVENTORY, backed_up, inventory, journal, newest, told, wiped
from tests.stack.deployment import Deployment
from tests.stack.probes import HASHES, with_s3
from tests.stack.test_faults import refused


@pytest.mark.long
def test_a_new_stack_is_restored_completely_from_a_backup(saved: Deployment) -> None:
    before = told(saved)
    assert len(before["runs"]) == 10
    assert sum(len(run["artifacts"]) for run in before["runs"].values()) == 20
    assert len(before["models"]) == 3
    assert len(before["traces"]) == 5
    latest = newest(saved)
    wiped(saved)
    # The journal was deleted with the rest. The backup program reads it back from the repository after its start.
    deadline = time.monotonic() + 60
    while "backup" not in (known := journal(saved)):
        assert time.monotonic() < deadline, known
        time.sleep(1)
    said = refused(saved, "status")
    assert f"backup: {latest[:8]}, 0 h ago" in said
    assert "the database of this stack is empty, but the newest backup has 10 runs" in said
    # An empty stack is not backed up, and a stack with even one experiment is not replaced without approval.
    assert "the database of this stack is empty, but the newest backup has 10 runs" in refused(saved, "backup")
    new = MlflowClient(saved.url).create_experiment("the first")
    assert "nothing was deleted" in refused(saved, "restore", FROM="latest")
    delete = f"DELETE FROM experiments WHERE experiment_id = {new}"
    assert saved.run("postgres", "psql", "-U", "postgres", "-d", "mlflow", "-c", delete)[0] == 0
    saved.make("restore", FROM="latest")
    assert told(saved) == before
    saved.make("status")
    # The restored stack works on: new data is in the next backup.
    inventory(saved, "fill", 2, 10, 2, 1)
    saved.make("backup")
    assert journal(saved)["backup"]["added_bytes"] < 5_000_000
    saved.make("drill")


@pytest.mark.long
@pytest.mark.minio
def test_a_stack_with_the_other_object_store_is_restored_completely(tmp_path: Path) -> None:
    with backed_up(tmp_path, "seaweedfs") as deployment:
        before = told(deployment)
        wiped(deployment)
        deployment.make("restore", FROM="latest")
        assert told(deployment) == before


def test_a_restore_over_a_used_stack_requires_confirm_and_keeps_a_backup(saved: Deployment) -> None:
    wanted, before = newest(saved), told(saved)
    run = next(iter(before["runs"]))
    code, said = with_s3(saved, OVERWRITE)
    assert code == 0, said
    inventory(saved, "fill", 2, 10, 2, 1)
    # An older run is continued.
    MlflowClient(saved.url).log_metric(run, "later", 1)
    after = told(saved)
    assert after != before
    assert "nothing was deleted" in refused(saved, "restore", FROM=wanted)
    dry = saved.make("restore", FROM=wanted, DRY_RUN="1").stderr
    assert "all later changes: 2 experiments, 3 runs, 3 models, 6 model versions, 5 traces" in dry
    assert "nothing was changed" in dry
    assert told(saved) == after
    said = saved.make("restore", FROM=wanted, CONFIRM=saved.stack).stderr
    assert "taking a backup of the current data first" in said
    assert told(saved) == before
    # The replaced data is still in a schema of the database, and in the backup before the restore.
    schema = re.search(r"schema (before_restore_\w+)", said)
    assert schema
    query = f"SELECT count(*) FROM {schema[1]}.runs"
    assert saved.run("postgres", "psql", "-U", "postgres", "-d", "mlflow", "-Atc", query)[1] == str(len(after["runs"]))
    assert run in after["runs"]


@pytest.mark.ci
def test_the_backup_that_a_restore_takes_first_is_complete(saved: Deployment) -> None:
    wanted = newest(saved)
    inventory(saved, "fill", 2, 10, 2, 1)
    after = told(saved)
    saved.make("restore", FROM=wanted, CONFIRM=saved.stack)
    assert told(saved) != after
    saved.make("restore", FROM=newest(saved), CONFIRM=saved.stack)
    assert told(saved) == after


OVERWRITE = """
import sys, boto3
s3 = boto3.client("s3", endpoint_url=sys.argv[1])
found = s3.list_objects_v2(Bucket="mlflow", Prefix="artifacts/")["Contents"][0]
s3.put_object(Bucket="mlflow", Key=found["Key"], Body=b"x" * found["Size"])
"""


def test_retention_deletes_old_backups_but_none_taken_before_a_restore(saved: Deployment) -> None:
    def stored(hour: int, *tags: str) -> str:
        moment = f"--time={datetime.now(UTC) - timedelta(days=10):%Y-%m-%d} {hour:02}:00:00"
        options = ("--json", f"--host={saved.stack}", moment, *(f"--tag={tag}" for tag in tags))
        code, said = saved.run("backup", "restic", "backup", *options, "/staging/current/manifest.json")
        assert code == 0, said
        return str(json.loads(said.splitlines()[-1])["snapshot_id"][:8])

    # Restic also keeps the oldest backup of all, while there are fewer backups than the retention policy keeps.
    oldest, early, late = (stored(hour, "mlflow") for hour in (1, 3, 5))
    before_a_restore = stored(7, "mlflow,safety")
    saved.make("backup")
    in_bucket = [line for line in with_s3(saved, HASHES)[1].splitlines() if line.startswith("artifacts/")]
    assert journal(saved)["backup"]["artifacts"] == len(in_bucket) > 0
    kept = saved.make("backups").stdout
    assert early not in kept
    assert late in kept
    assert before_a_restore in kept
    code, said = saved.run("backup", "restic", "forget", "--quiet", "--prune", oldest, late, before_a_restore)
    assert code == 0, said


@pytest.mark.long
def test_a_backup_of_an_emptied_bucket_is_refused_and_can_be_restored(saved: Deployment) -> None:
    before = told(saved)
    code, said = with_s3(saved, EMPTY)
    assert code == 0, said
    assert re.search(
        r"the object store of this stack is empty, but the newest .* has \d+ art", refused(saved, "status")
    )
    assert "has 0 artifacts, but the last backup had" in refused(saved, "backup")
    assert "the last backup failed" in refused(saved, "status")
    # The backup before a restore must keep the index, by which missing artifacts are detected.
    assert saved.run("backup", "python3", "/run/config/main.py", "safety")[0] == 0
    assert "has 0 artifacts, but the last backup had" in refused(saved, "backup")
    saved.make("restore", FROM="latest", CONFIRM=saved.stack)
    assert told(saved) == before
    saved.make("backup")
    saved.make("status")


EMPTY = """
import sys, boto3
s3 = boto3.client("s3", endpoint_url=sys.argv[1])
for page in s3.get_paginator("list_objects_v2").paginate(Bucket="mlflow", Prefix="artifacts/"):
    for found in page.get("Contents", []):
        s3.delete_object(Bucket="mlflow", Key=found["Key"])
"""


@pytest.mark.long
def test_artifacts_that_were_deleted_on_purpose_are_accepted_once(saved: Deployment) -> None:
    before, wanted = told(saved), newest(saved)
    code, said = with_s3(saved, EMPTY)
    assert code == 0, said
    accept = re.search(r"docker exec \S+-backup (truncate -s 0 \S+) && ", refused(saved, "status"))
    assert accept
    code, said = saved.run("backup", *accept[1].split())
    assert code == 0, said
    for _ in range(2):
        saved.make("backup")
        saved.make("status")
    # A new staging folder knows only what is in the newest backup.
    saved.make("down")
    saved.make("up")
    saved.make("backup")
    saved.make("status")
    saved.make("restore", FROM=wanted, CONFIRM=saved.stack)
    assert told(saved) == before
    saved.make("backup")


@pytest.mark.long
def test_a_lost_volume_of_the_object_store_is_noticed_and_its_artifacts_are_restored(saved: Deployment) -> None:
    before = told(saved)
    # This also deletes the staging folder, with the list of the last backup.
    saved.make("down")
    saved.api.remove_volume(saved.name(f"{saved.store}-data"))
    lost = (
        r"the object store of this stack is empty, but the newest backup has \d+ artifacts\n  to restore them, type: "
    )
    assert re.search(rf"warning: {lost}", saved.make("up").stderr)
    # Neither the backup before a restore nor a later one hides the loss.
    assert saved.run("backup", "python3", "/run/config/main.py", "safety")[0] == 0
    assert re.search(lost, refused(saved, "status"))
    assert "has 0 artifacts, but the last backup had" in refused(saved, "backup")
    saved.make("restore", FROM="latest", CONFIRM=saved.stack)
    assert told(saved) == before
    saved.make("backup")
    saved.make("status")


def test_the_identities_of_the_backup_can_read_but_not_write(saved: Deployment) -> None:
    query = "import database; database.use_pgpass(); c = database.connect(); c.autocommit = True; q = c.cursor(); "
    python = ("env", "-C", "/run/config", "python3", "-c")
    assert saved.run("backup", *python, query + "q.execute('SELECT count(*) FROM runs')")[0] == 0
    off = "SET default_transaction_read_only = off; "
    for statement in ("DELETE FROM runs", f"{off}DELETE FROM runs", f"{off}CREATE TABLE t (x int)"):
        code, said = saved.run("backup", *python, f"{query}q.execute('{statement}')")
        assert code != 0
        assert "read-only transaction" in said or "permission denied" in said
    assert saved.run("backup", "rclone", "lsf", "store:mlflow")[0] == 0
    for command in (["touch", "store:mlflow/x"], ["purge", "store:mlflow/artifacts"]):
        code, said = saved.run("backup", "rclone", "--retries=1", "--low-level-retries=1", *command)
        assert code != 0 and "AccessDenied" in said, (command, said)  # noqa: PT018


@pytest.mark.long
def test_a_backup_taken_during_writes_is_consistent(saved: Deployment) -> None:
    environment = {**os.environ, "MLFLOW_TRACKING_URI": saved.url, "MLFLOW_DISABLE_TELEMETRY": "true"}
    with subprocess.Popen(
        [sys.executable, "-W", "ignore", INVENTORY, "write"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as writer:
        assert writer.stdout
        assert "written\n" in writer.stdout, "the client ended before it wrote anything"
        saved.make("backup")
        writer.terminate()
        writer.communicate()
        assert writer.returncode == 0
    inventory(saved, "fill", 2, 10, 2, 1)
    written = told(saved)
    saved.make("drill")
    saved.make("restore", FROM="latest", CONFIRM=saved.stack, DRY_RUN="1")
    wanted = newest(saved)
    saved.make("restore", FROM=wanted, CONFIRM=saved.stack)
    found = told(saved)
    assert 0 < len(found["runs"]) < len(written["runs"])
    for run, values in found["runs"].items():
        now = written["runs"][run]
        # The artifacts of a run are stored before the run is marked as finished.
        if values["status"] == "FINISHED":
            assert values == now
        assert set(values["artifacts"]) <= set(now["artifacts"])


def test_gc_deletes_old_deleted_runs_and_their_artifacts_only(
    saved: Deployment,
) -> None:
    before = told(saved)
    client = MlflowClient(saved.url)
    run = client.create_run("0").info.run_id
    client.log_text(run, "not wanted any more", "note.txt")
    client.delete_run(run)
    assert "write a duration such as 30d" in refused(saved, "gc", OLDER_THAN="a month")
    assert "nothing was deleted" in refused(saved, "gc")
    assert (
        f"{saved.stack} has no data that users deleted more than 30d ago"
        in saved.make("gc", CONFIRM=saved.stack).stderr
    )
    assert client.get_run(run).info.lifecycle_stage == "deleted"
    assert f"0/{run}/artifacts/note.txt" in with_s3(saved, HASHES)[1]
    said = saved.make("gc", CONFIRM=saved.stack, OLDER_THAN="0s").stderr
    assert f"permanently deleted in {saved.stack}: 1 run\n" in said
    with pytest.raises(MlflowException, match="not found"):
        client.get_run(run)
    assert run not in with_s3(saved, HASHES)[1]
    assert told(saved) == before


TRACED = """
import sys, mlflow
client = mlflow.MlflowClient()
span = client.start_trace("asked", experiment_id=sys.argv[1])
client.end_trace(span.trace_id)
mlflow.flush_trace_async_logging()
print(span.trace_id)
"""


@pytest.mark.long
def test_gc_of_an_experiment_deletes_artifacts_of_its_models_and_traces(saved: Deployment, tmp_path: Path) -> None:
    before = told(saved)
    client = MlflowClient(saved.url)
    experiment = client.create_experiment("not wanted any more")
    kept = client.create_experiment("wanted")
    (tmp_path / "weights.bin").write_text("large")
    models = [client.create_logged_model(each, name="net").model_id for each in (experiment, kept)]
    for model in models:
        client.log_model_artifacts(model, str(tmp_path))
    environment = {**os.environ, "MLFLOW_TRACKING_URI": saved.url, "MLFLOW_DISABLE_TELEMETRY": "true"}
    traced = [sys.executable, "-W", "ignore", "-c", TRACED, experiment]
    trace = subprocess.run(traced, env=environment, capture_output=True, text=True, check=True).stdout.strip()
    place = client.get_trace(trace).info.tags["mlflow.artifactLocation"].removeprefix("mlflow-artifacts:/")
    stored = requests.put(f"{saved.url}/api/2.0/mlflow-artifacts/artifacts/{place}/attachment", b"large", timeout=60)
    stored.raise_for_status()
    client.delete_experiment(experiment)
    assert f"{models[0]}/artifacts/weights.bin" in with_s3(saved, HASHES)[1]
    said = saved.make("gc", CONFIRM=saved.stack, OLDER_THAN="30d").stderr
    assert "nothing" in said
    assert models[0] in with_s3(saved, HASHES)[1]
    assert trace in with_s3(saved, HASHES)[1]
    assert "1 logged model, 1 trace" in saved.make("gc", CONFIRM=saved.stack, OLDER_THAN="0s").stderr
    listed = with_s3(saved, HASHES)[1]
    assert models[0] not in listed
    assert trace not in listed
    assert models[1] in listed
    client.delete_experiment(kept)
    saved.make("gc", CONFIRM=saved.stack, OLDER_THAN="0s")
    assert told(saved) == before


@pytest.mark.ci
def test_gc_deletes_runs_of_the_default_experiment_but_never_the_experiment(saved: Deployment, tmp_path: Path) -> None:
    client = MlflowClient(saved.url)
    before = client.get_experiment("0")
    kept = [run.info.run_id for run in client.search_runs(["0"])]
    run = client.create_run("0").info.run_id
    client.log_text(run, "not wanted any more", "note.txt")
    client.delete_run(run)
    client.delete_experiment("0")
    try:
        # Runs that were deleted only with their experiment would be collected, too.
        for other in kept:
            client.restore_run(other)
        for _ in range(2):
            saved.make("gc", CONFIRM=saved.stack, OLDER_THAN="0s")
        assert client.get_experiment("0").lifecycle_stage == "deleted"
        with pytest.raises(MlflowException, match="not found"):
            client.get_run(run)
    finally:
        client.restore_experiment("0")
    after = client.get_experiment("0")
    assert (after.artifact_location, after.creation_time) == (before.artifact_location, before.creation_time)
    run = client.create_run("0").info.run_id
    client.log_text(run, "wanted", "note.txt")
    assert Path(client.download_artifacts(run, "note.txt", str(tmp_path))).read_text() == "wanted"
    client.delete_run(run)
    saved.make("gc", CONFIRM=saved.stack, OLDER_THAN="0s")


WITHOUT_A_DEFAULT = """
export MLFLOW_BACKEND_STORE_URI=sqlite:////tmp/gc.db MLFLOW_TRACKING_URI=http://127.0.0.1:5000
python -W ignore /opt/mlflow-stack/collect.py gc 1s >&2
python -c "import sqlite3; print(*sqlite3.connect('/tmp/gc.db').execute('SELECT artifact_location FROM experiments'))"
rm /tmp/gc.db
"""


@pytest.mark.long
def test_gc_creates_a_missing_default_experiment_as_the_server_does(saved: Deployment) -> None:
    # gc creates it, on a database that has none.
    printed = saved.run("server", "sh", "-ec", WITHOUT_A_DEFAULT)[1]
    assert printed.splitlines()[-1] == f"('{MlflowClient(saved.url).get_experiment('0').artifact_location}',)"


@pytest.mark.long
def test_gc_is_refused_while_model_versions_use_the_artifacts(saved: Deployment, tmp_path: Path) -> None:
    before = told(saved)
    client = MlflowClient(saved.url)
    experiment = client.create_experiment("where the model was trained")
    (tmp_path / "weights.bin").write_text("large")
    model = client.create_logged_model(experiment, name="net").model_id
    client.log_model_artifacts(model, str(tmp_path))
    run = client.create_run("0").info.run_id
    client.log_artifacts(run, str(tmp_path), "net")
    client.create_registered_model("in use")
    # Registered as current clients do, and as clients of MLflow 2 did.
    client.create_model_version("in use", f"models:/{model}", model_id=model)
    client.create_model_version("in use", f"{client.get_run(run).info.artifact_uri}/net", run)
    client.create_model_version("in use", f"runs:/{run}/net", run)
    client.delete_experiment(experiment)
    client.delete_run(run)
    listed = with_s3(saved, HASHES)[1]
    said = refused(saved, "gc", CONFIRM=saved.stack, OLDER_THAN="0s")
    assert "nothing was deleted: registered model versions need the files; to keep a version, call:" in said
    assert f'in use 1: MlflowClient().restore_experiment("{experiment}")\n' in said
    assert f'in use 2: MlflowClient().restore_run("{run}")\n' in said
    assert f'in use 3: MlflowClient().restore_run("{run}")\n' in said
    assert with_s3(saved, HASHES)[1] == listed
    # The printed commands solve it.
    client.restore_experiment(experiment)
    client.restore_run(run)
    assert (
        f"nothing to delete: {saved.stack} has no data that users deleted more than 0s ago"
        in saved.make("gc", CONFIRM=saved.stack, OLDER_THAN="0s").stderr
    )
    assert client.get_logged_model(model).model_id == model
    client.delete_logged_model(model)
    said = refused(saved, "gc", CONFIRM=saved.stack, OLDER_THAN="0s")
    assert f"in use 1: {model} was deleted, which MLflow cannot undo: docs/operations/gc.md" in said
    client.delete_run(run)
    client.delete_experiment(experiment)
    client.delete_registered_model("in use")
    said = saved.make("gc", CONFIRM=saved.stack, OLDER_THAN="0s").stderr
    assert "1 run, 1 logged model, 1 experiment" in said
    assert not {model, run} & set(re.findall(r"m-[0-9a-f]{32}|[0-9a-f]{32}", with_s3(saved, HASHES)[1]))
    assert told(saved) == before


@pytest.mark.long
def test_gc_names_artifacts_that_could_not_be_deleted(saved: Deployment, tmp_path: Path) -> None:
    client = MlflowClient(saved.url)
    experiment = client.create_experiment("half collected")
    (tmp_path / "weights.bin").write_text("large")
    model = client.create_logged_model(experiment, name="net").model_id
    client.log_model_artifacts(model, str(tmp_path))
    client.delete_experiment(experiment)
    # The server deletes the artifacts, and gc cannot reach it at this address.
    environment = {"MLFLOW_TRACKING_URI": "http://127.0.0.1:1", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
    said: list[str] = []
    daemon = Daemon(resolve_host())
    gc = ["docker-entrypoint.sh", "gc", "0s"]
    assert daemon.show(saved.name("server"), gc, said.append, environment=environment) == 1, said
    place = f"mlflow-artifacts:/{experiment}/models/{model}/artifacts"
    assert f"{place} could not be deleted: " in "".join(said)
    assert "MLflow does not refer to it any more, so delete it yourself" in "".join(said)
    assert "Traceback" not in "".join(said)


def test_the_last_run_is_exported_to_prometheus(saved: Deployment) -> None:
    saved.make("drill")
    script = "import urllib.request as u; print(u.urlopen('http://127.0.0.1:9110/metrics').read().decode())"
    said = saved.run("backup", "python3", "-c", script)[1]
    assert "mlflow_backup_last_result 1.0" in said
    assert "mlflow_drill_last_result 1.0" in said


IN_SERVER = {"MLFLOW_TRACKING_URI": "http://127.0.0.1:5000"}


@pytest.mark.long
def test_backup_restore_test_gc_and_migration_wait_for_the_exclusive_lock(saved: Deployment) -> None:
    with locked(saved, "somebody else") as release:
        waits = "waiting for somebody else, which is running"
        with saved.begun(lambda line: waits in line, "drill") as drill:
            release()
            said = drill.communicate()[0]
        assert drill.returncode == 0, said
    with locked(saved, "somebody else") as release:
        printed: list[str] = []

        def hear(words: str) -> None:
            printed.append(words)
            if "gc: waiting for somebody else, which is running" in "".join(printed):
                release()

        gc = ["docker-entrypoint.sh", "gc", "30d"]
        assert Daemon(resolve_host()).show(saved.name("server"), gc, hear, environment=IN_SERVER) == 0
        assert "gc: waiting for somebody else" in "".join(printed)
    with locked(saved, "somebody else") as release:
        migrate, began = saved.name("migrate"), time.time()
        saved.api.start(migrate)
        deadline = time.monotonic() + 60
        while b"migrate: waiting for somebody else" not in saved.api.logs(migrate, since=began):
            assert time.monotonic() < deadline, saved.api.logs(migrate, tail=20)
            time.sleep(0.2)
        assert saved.api.inspect_container(migrate)["State"]["Running"]
        release()
        assert saved.api.wait(migrate)["StatusCode"] == 0


@contextmanager
def locked(deployment: Deployment, owner: str) -> Iterator[Callable[[], None]]:
    """Hold the exclusive lock as `owner`, until the yielded function is called, or until the end."""
    hold, backup = "/staging/hold", deployment.name("backup")
    assert deployment.run("backup", "sh", "-c", f"touch {hold}; rm -f {hold}.held")[0] == 0
    holder = deployment.api.exec_create(backup, ["env", "-C", "/run/config", "python3", "-c", HOLD, owner])
    deployment.api.exec_start(holder["Id"], detach=True)
    deadline = time.monotonic() + 60
    while deployment.run("backup", "test", "-e", f"{hold}.held")[0]:
        assert time.monotonic() < deadline, "the lock is not free"
        time.sleep(0.1)
    try:
        yield lambda: assert_zero(deployment.run("backup", "rm", "-f", hold))
    finally:
        deployment.run("backup", "rm", "-f", hold)


def assert_zero(done: tuple[int, str]) -> None:
    assert done[0] == 0, done[1]


@pytest.mark.long
def test_an_outside_bucket_works_as_a_backup_target(saved: Deployment) -> None:
    before = saved.file.read_text()
    host = f"{saved.stack}-outside"
    saved.set("backup.target", f"s3:http://{host}:8333/backups/{saved.stack}")
    saved.set("backup.accessKeyId", "outside")
    key = {"accessKey": "outside", "secretKey": "a-secret-key-of-its-own"}
    identity = {"name": "outside", "credentials": [key], "actions": ["Admin", "Read", "Write", "List"]}
    saved.set_secret("backupTargetSecretKey", key["secretKey"])
    saved.make("up")
    outside = saved.api.create_container(
        next(filter(Daemon(resolve_host()).has_image, (DEFAULTS["seaweedfs"]["ref"], packages.ref("seaweedfs")))),
        entrypoint=["sh", "-c"],
        command=[
            'echo "$IDENTITIES" > /tmp/identities.json && exec weed server -dir=/data -s3 -ip.bind=0.0.0.0 '
            "-s3.config=/tmp/identities.json -master.volumeSizeLimitMB=64"
        ],
        environment={"IDENTITIES": json.dumps({"identities": [identity]})},
        name=host,
        labels={"mlflow.stack": saved.stack},
        host_config=saved.api.create_host_config(network_mode=saved.name("egress"), tmpfs={"/data": "mode=1777"}),
    )["Id"]
    try:
        assert "cannot be reached" in refused(saved, "backup")
        saved.api.start(outside)
        signed = f"--aws-sigv4 aws:amz:us-east-1:s3 --user outside:{key['secretKey']}"
        made = f"curl -sf -o /dev/null {signed} -X PUT http://127.0.0.1:8333/backups"
        wait = saved.api.exec_create(outside, ["timeout", "60", "sh", "-c", f"until {made}; do sleep 1; done"])["Id"]
        saved.api.exec_start(wait)
        assert saved.api.exec_inspect(wait)["ExitCode"] == 0
        saved.make("backup")
        saved.make("drill")
        assert len(saved.make("backups").stdout.splitlines()) == 1
        assert told(saved)
        saved.make("restore", FROM="latest", DRY_RUN="1")
        assert "on the same disk as the data" not in saved.make("status").stdout
    finally:
        saved.api.remove_container(outside, force=True)
        saved.file.write_text(before)
    saved.make("up")
    saved.make("backup")


HOLD = """
import database, pathlib, sys, time
database.use_pgpass()
with database.locked(sys.argv[1]):
    pathlib.Path("/staging/hold.held").touch()
    while pathlib.Path("/staging/hold").exists():
        time.sleep(0.2)
"""
"""Holds the exclusive lock as long as a file exists, and says in another file that it has the lock."""


@pytest.mark.long
def test_a_server_started_during_a_restore_waits_until_it_ends(saved: Deployment) -> None:
    server = saved.name("server")
    with locked(saved, "restore"):
        # Like a restart of the daemon: `restart: always` starts a container that `docker stop` had stopped.
        saved.api.restart(server)
        deadline = time.monotonic() + 60
        while b"serve: waiting for restore" not in saved.api.logs(server, tail=5):
            assert time.monotonic() < deadline, saved.api.logs(server, tail=20)
            time.sleep(0.2)
        time.sleep(3)
        with pytest.raises(requests.ConnectionError):
            requests.get(f"{saved.url}/health", timeout=5)
    deadline = time.monotonic() + 60
    while saved.run("server", "python", "/opt/mlflow-stack/healthcheck.py")[0]:
        assert time.monotonic() < deadline, "the server does not start after the end of the restore"
        time.sleep(0.5)
