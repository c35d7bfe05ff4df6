"""Deletes for ever what was deleted longer ago than an age, artifacts included, by `mlflow gc`.

usage: collect.py AGE

The default experiment (0) stays, also where somebody deleted it: MLflow makes it anew when it is gone. Its deleted runs
are collected as those of any other.

Of two things `mlflow gc` takes no care. It deletes the files of a run or a model, though a version in the registry has
no others: here nothing is deleted until somebody has decided about that. And with an experiment it deletes the rows of
its models and traces, and leaves their artifacts, which nobody could find any more: those are deleted here, after it.
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
"""`mlflow gc` looks at the clock itself, once it has started."""
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
"""Versions in the registry whose files are about to go: with the run or logged model that has them, and the client's
call that brings that back."""
WITH_EXPERIMENTS = f"""{GOING}
SELECT 'Logged model', model_id, artifact_location FROM logged_models
WHERE experiment_id IN (TABLE going) AND NOT (lifecycle_stage = 'deleted' AND last_updated_timestamp_ms <= %(before)s)
UNION ALL SELECT 'Run', run_uuid, artifact_uri FROM runs
WHERE experiment_id IN (TABLE going) AND lifecycle_stage = 'active'
UNION ALL SELECT 'Trace', request_id, value FROM trace_info JOIN trace_tags USING (request_id)
WHERE experiment_id IN (TABLE going) AND key = 'mlflow.artifactLocation'
"""  # noqa: S608 - of constants
"""What `mlflow gc` deletes with an experiment, and where the artifacts are that it leaves."""
STILL_THERE = """
SELECT model_id FROM logged_models WHERE model_id = ANY(%(ids)s)
UNION ALL SELECT run_uuid FROM runs WHERE run_uuid = ANY(%(ids)s)
UNION ALL SELECT request_id FROM trace_info WHERE request_id = ANY(%(ids)s)
"""
SHOWN = 20
DEFAULT_EXPERIMENT = "0"
ROOT = "mlflow-artifacts:/"
"""Where the server puts a new experiment's artifacts. `mlflow gc` opens MLflow's store, which makes the default
experiment where it is missing, and would take the root from MLFLOW_ARTIFACTS_DESTINATION, where no client gets."""


def milliseconds(age: str) -> int:
    """Return an age as `mlflow gc` spells it, 1d12h, in milliseconds."""
    parts = {UNITS[unit]: int(number) for number, unit in re.findall(r"(\d+)([dhms])", age)}
    return int(timedelta(**parts).total_seconds() * 1000)


def asked(uri: str, query: str, **values: object) -> list[tuple[Any, ...]]:
    """Return what the database answers."""
    session = psycopg2.connect(uri.replace("postgresql+psycopg2:", "postgresql:"))
    try:
        with session, session.cursor() as cursor:
            cursor.execute(query, values)
            return list(cursor.fetchall())
    finally:
        session.close()


def told(used: list[tuple[Any, ...]]) -> None:
    """Say of each version what is to be decided."""
    print("nothing was deleted: model versions in the registry have their files in what would go\n", file=sys.stderr)
    for name, version, owner, way_back in used[:SHOWN]:
        gone = f"{owner} was deleted, which MLflow cannot take back: docs/operations/gc.md"
        way = f"MlflowClient().{way_back}" if way_back else gone
        print(f"  {name} {version}: {way}", file=sys.stderr)
    if len(used) > SHOWN:
        print(f"  and {len(used) - SHOWN} more", file=sys.stderr)
    print('\nor, of those that nobody uses: MlflowClient().delete_model_version("name", "version")', file=sys.stderr)


def deleted(places: list[tuple[str, str, str]]) -> bool:
    """Delete what is in each place, told by kind and id; return whether all of it could be."""
    # Seconds, for whoever does not need them.
    from mlflow.exceptions import MlflowException  # noqa: PLC0415
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository  # noqa: PLC0415

    complete = True
    for kind, identity, place in places:
        try:
            get_artifact_repository(place).delete_artifacts()
            print(f"{kind} with ID {identity} has been permanently deleted.")
        except (MlflowException, OSError) as error:
            print(f"{place} could not be deleted, and nothing leads there any more: {error}", file=sys.stderr)
            complete = False
    return complete


def main(age: str) -> int:
    """Return the exit code of `mlflow gc`; 1 where somebody needs what it would delete, or artifacts are left."""
    uri = os.environ["MLFLOW_BACKEND_STORE_URI"]
    before = int(time.time() * 1000) - milliseconds(age) + LATER_MS
    if used := asked(uri, IN_USE, before=before):
        told(used)
        return 1
    leaving = asked(uri, WITH_EXPERIMENTS, before=before)
    # A process of its own: whatever becomes of it, what it left behind is looked at below.
    code = subprocess.run([sys.executable, "-W", "ignore", __file__, "gc", age], check=False).returncode
    # Whatever became of it: only of what is gone, and only where nothing else can be.
    there = {identity for (identity,) in asked(uri, STILL_THERE, ids=[identity for _, identity, _ in leaving])}
    gone = [
        (kind, identity, place)
        for kind, identity, place in leaving
        if identity not in there and f"/{identity}/" in place
    ]
    return code if not gone or deleted(gone) else code or 1


def mlflow_gc(age: str) -> None:
    """Run `mlflow gc` on every experiment but the default one."""
    import mlflow.cli  # noqa: PLC0415

    # Private, and checked when the image is built: the command has no option that leaves an experiment out.
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
