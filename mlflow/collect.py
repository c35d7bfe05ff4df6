"""Deletes for ever what was deleted longer ago than an age, artifacts included, by `mlflow gc`.

usage: collect.py AGE

Two things `mlflow gc` does not mind. It deletes a run's files, or a model's, though a version in the registry has no
others: here nothing is deleted until somebody has decided about that. And with an experiment it deletes the rows of
its logged models, and leaves their artifacts, which nobody could find any more: so the models of an experiment that
is about to go are deleted first, as of when it was.
"""

import os
import re
import subprocess
import sys
import time
from datetime import timedelta

import psycopg2

UNITS = {"d": "days", "h": "hours", "m": "minutes", "s": "seconds"}
GOING = """
WITH going AS (
    SELECT experiment_id FROM experiments WHERE lifecycle_stage = 'deleted' AND last_update_time < %(before)s
)
"""
IN_USE = f"""{GOING}, owners AS (
    SELECT run_uuid AS id FROM runs
    WHERE lifecycle_stage = 'deleted' AND deleted_time <= %(before)s OR experiment_id IN (TABLE going)
    UNION ALL SELECT model_id FROM logged_models
    WHERE lifecycle_stage = 'deleted' AND last_updated_timestamp_ms <= %(before)s OR experiment_id IN (TABLE going)
), versions AS (
    SELECT name, version,
        substring(coalesce(storage_location, source) FROM '/((?:m-)?[0-9a-f]{{32}})/artifacts') AS id
    FROM model_versions WHERE current_stage <> 'Deleted_Internal'
)
SELECT name, version, id FROM versions JOIN owners USING (id) ORDER BY name, version
"""  # noqa: S608 - of constants
"""Versions in the registry, each with the run or the logged model that has its files and is about to go."""
ACTIVE_MODELS = f"""{GOING}
SELECT model_id FROM logged_models WHERE lifecycle_stage = 'active' AND experiment_id IN (TABLE going)
"""  # noqa: S608 - of constants
DELETE_MODELS = f"""{GOING}
UPDATE logged_models SET lifecycle_stage = 'deleted', last_updated_timestamp_ms = %(before)s
WHERE experiment_id IN (TABLE going)
"""  # noqa: S608 - of constants
REVIVE_MODELS = "UPDATE logged_models SET lifecycle_stage = 'active' WHERE model_id = ANY(%(models)s)"
SHOWN = 20


def milliseconds(age: str) -> int:
    """Return an age as `mlflow gc` spells it, 1d12h, in milliseconds."""
    parts = {UNITS[unit]: int(number) for number, unit in re.findall(r"(\d+)([dhms])", age)}
    return int(timedelta(**parts).total_seconds() * 1000)


def asked(uri: str, *queries: str, **values: object) -> list[list[tuple]]:
    """Return what the database answers, by query, all in one transaction."""
    session = psycopg2.connect(uri.replace("postgresql+psycopg2:", "postgresql:"))
    try:
        with session, session.cursor() as cursor:
            answers = []
            for query in queries:
                cursor.execute(query, values)
                answers.append(cursor.fetchall() if cursor.description else [])
            return answers
    finally:
        session.close()


def main(age: str) -> int:
    """Return the exit code of `mlflow gc`, or 1 where somebody needs what it would delete."""
    uri = os.environ["MLFLOW_BACKEND_STORE_URI"]
    before = int(time.time() * 1000) - milliseconds(age)
    [used] = asked(uri, IN_USE, before=before)
    if used:
        print("nothing was deleted: these model versions have their files in what was deleted", file=sys.stderr)
        for name, version, owner in used[:SHOWN]:
            print(f"  {name} {version}: in {owner}", file=sys.stderr)
        if len(used) > SHOWN:
            print(f"  and {len(used) - SHOWN} more", file=sys.stderr)
        print("restore that run, or the experiment; or delete the versions, if nobody uses them", file=sys.stderr)
        return 1
    active, _ = asked(uri, ACTIVE_MODELS, DELETE_MODELS, before=before)
    command = ["mlflow", "gc", "--backend-store-uri", uri, "--older-than", age]
    code = subprocess.run(command, check=False).returncode
    if code:
        # Of what is left. Whoever restores an experiment gets its runs back by that, and not its models.
        asked(uri, REVIVE_MODELS, models=[model for (model,) in active])
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
