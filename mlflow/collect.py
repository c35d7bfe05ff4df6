"""Permanently deletes what users deleted longer ago than AGE, with the artifacts, by `mlflow gc`.

usage: collect.py AGE

The default experiment (0) stays, even if a user deleted it: MLflow creates it again when it is missing. Its deleted
runs are collected like those of other experiments.

This program adds two things to `mlflow gc`. First, `mlflow gc` deletes the files of a run or model even if a version in
the model registry uses them: this program then deletes nothing and lists these versions. Second, with an experiment
`mlflow gc` deletes the rows of its models and traces, but leaves their artifacts: this program then deletes those.
"""

import os
import re
import subprocess
import sys
import time
from datetime import timedelta
from typing import Any

import psycopg2

UNITS = {"d": "days", "h": "hours", "m": "minutes", "s": "seconds"}
LATER_MS = 60_000
"""Added to the time of the check, because `mlflow gc` reads the clock later, when it has started."""
GOING = """
WITH going AS (
    SELECT experiment_id FROM experiments
    WHERE lifecycle_stage = 'deleted' AND last_update_time < %(before)s AND experiment_id <> 0
)
"""
IN_USE = f"""{GOING}, owners AS (
    SELECT run_uuid AS id, format('restore_run("%%s")', run_uuid) AS way_back FROM runs
    WHERE lifecycle_stage = 'deleted' AND deleted_time <= %(before)s AND experiment_id NOT IN (TABLE going)
    UNION ALL SELECT model_id, '' FROM logged_models
    WHERE lifecycle_stage = 'deleted' AND last_updated_timestamp_ms <= %(before)s
    UNION ALL SELECT id, format('restore_experiment("%%s")', experiment_id) FROM (
        SELECT run_uuid AS id, experiment_id FROM runs
        UNION ALL SELECT model_id, experiment_id FROM logged_models
        WHERE NOT (lifecycle_stage = 'deleted' AND last_updated_timestamp_ms <= %(before)s)
    ) AS owned WHERE experiment_id IN (TABLE going)
), versions AS (
    SELECT name, version, coalesce(
        substring(storage_location FROM '^runs:/+([0-9a-f]{{32}})'),
        substring(storage_location FROM '/((?:m-)?[0-9a-f]{{32}})/artifacts')
    ) AS id FROM (
        SELECT name, version, coalesce(storage_location, source) AS storage_location
        FROM model_versions WHERE current_stage <> 'Deleted_Internal'
    ) AS registered
)
SELECT name, version, id, way_back FROM versions JOIN owners USING (id) ORDER BY name, version
"""  # noqa: S608 - of constants
"""Model versions in the registry whose files would be deleted: with the run or logged model that has the files, and the
client's call that restores it."""
WITH_EXPERIMENTS = f"""{GOING}
SELECT 'Logged model', model_id, artifact_location FROM logged_models
WHERE experiment_id IN (TABLE going) AND NOT (lifecycle_stage = 'deleted' AND last_updated_timestamp_ms <= %(before)s)
UNION ALL SELECT 'Run', run_uuid, artifact_uri FROM runs
WHERE experiment_id IN (TABLE going) AND lifecycle_stage = 'active'
UNION ALL SELECT 'Trace', request_id, value FROM trace_info JOIN trace_tags USING (request_id)
WHERE experiment_id IN (TABLE going) AND key = 'mlflow.artifactLocation'
"""  # noqa: S608 - of constants
"""What `mlflow gc` deletes with an experiment, and the locations of the artifacts that it leaves."""
STILL_THERE = """
SELECT model_id FROM logged_models WHERE model_id = ANY(%(ids)s)
UNION ALL SELECT run_uuid FROM runs WHERE run_uuid = ANY(%(ids)s)
UNION ALL SELECT request_id FROM trace_info WHERE request_id = ANY(%(ids)s)
"""
SHOWN = 20
DEFAULT_EXPERIMENT = "0"
ROOT = "mlflow-artifacts:/"
"""Where the server puts the artifacts of a new experiment. `mlflow gc` opens MLflow's store, which creates the default
experiment if it is missing; with the root in MLFLOW_ARTIFACTS_DESTINATION, no client could reach its artifacts."""


def milliseconds(age: str) -> int:
    """Return an age in the format of `mlflow gc`, such as 1d12h, in milliseconds."""
    parts = {UNITS[unit]: int(number) for number, unit in re.findall(r"(\d+)([dhms])", age)}
    return int(timedelta(**parts).total_seconds() * 1000)


def asked(uri: str, query: str, **values: object) -> list[tuple[Any, ...]]:
    """Run a query and return its rows."""
    session = psycopg2.connect(uri.replace("postgresql+psycopg2:", "postgresql:"))
    try:
        with session, session.cursor() as cursor:
            cursor.execute(query, values)
            return list(cursor.fetchall())
    finally:
        session.close()


def report_in_use(used: list[tuple[Any, ...]]) -> None:
    """Print each model version in `used`, with the call that restores its files."""
    print("nothing was deleted: registered model versions need the files; to keep a version, call:\n", file=sys.stderr)
    for name, version, owner, way_back in used[:SHOWN]:
        gone = f"{owner} was deleted, which MLflow cannot undo: docs/operations/gc.md"
        way = f"MlflowClient().{way_back}" if way_back else gone
        print(f"  {name} {version}: {way}", file=sys.stderr)
    if len(used) > SHOWN:
        print(f"  and {len(used) - SHOWN} more", file=sys.stderr)
    print('\nto delete a version: MlflowClient().delete_model_version("name", "version")', file=sys.stderr)


def delete_artifacts(places: list[tuple[str, str, str]]) -> bool:
    """Delete the artifacts of each (kind, id, location), and report them; return whether all were deleted."""
    if not places:
        return True
    # Imported here, because it takes seconds and is rarely needed.
    from mlflow.exceptions import MlflowException  # noqa: PLC0415
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository  # noqa: PLC0415

    complete = True
    for kind, identity, place in places:
        try:
            get_artifact_repository(place).delete_artifacts()
            print(f"{kind} with ID {identity} has been permanently deleted.")
        except (MlflowException, OSError) as error:
            print(f"{place} could not be deleted: {error}", file=sys.stderr)
            print("MLflow does not refer to it any more, so delete it yourself", file=sys.stderr)
            complete = False
    return complete


def main(age: str) -> int:
    """Return the exit code of `mlflow gc`; 1 if a model version needs the files, or artifacts were left."""
    uri = os.environ["MLFLOW_BACKEND_STORE_URI"]
    before = int(time.time() * 1000) - milliseconds(age) + LATER_MS
    if used := asked(uri, IN_USE, before=before):
        report_in_use(used)
        return 1
    leaving = asked(uri, WITH_EXPERIMENTS, before=before)
    # In a separate process: even if it fails, the artifacts that it left are deleted below.
    code = subprocess.run([sys.executable, "-W", "ignore", __file__, "gc", age], check=False).returncode
    # Only if the row is gone, and only from a location that belongs to this id alone.
    there = {identity for (identity,) in asked(uri, STILL_THERE, ids=[identity for _, identity, _ in leaving])}
    gone = [
        (kind, identity, place)
        for kind, identity, place in leaving
        if identity not in there and f"/{identity}/" in place
    ]
    complete = delete_artifacts(gone)
    return code if complete else code or 1


def mlflow_gc(age: str) -> None:
    """Run `mlflow gc` on every experiment except the default one."""
    import mlflow.cli  # noqa: PLC0415

    # A private function, which the image build checks: the command has no option to exclude an experiment.
    open_store = mlflow.cli._get_store  # noqa: SLF001

    def store_without_default(*arguments: Any) -> Any:
        store = open_store(*arguments)
        search = store.search_experiments

        def without_default(**options: Any) -> Any:
            page = search(**options)
            page[:] = [found for found in page if found.experiment_id != DEFAULT_EXPERIMENT]
            return page

        store.search_experiments = without_default
        return store

    mlflow.cli._get_store = store_without_default  # noqa: SLF001
    uri = os.environ["MLFLOW_BACKEND_STORE_URI"]
    mlflow.cli.gc(["--backend-store-uri", uri, "--artifacts-destination", ROOT, "--older-than", age])


if __name__ == "__main__":
    if sys.argv[1] == "gc":
        mlflow_gc(sys.argv[2])
    sys.exit(main(sys.argv[1]))
