"""Deletes for ever what was deleted longer ago than an age, artifacts included, by `mlflow gc`.

usage: collect.py AGE

With an experiment, `mlflow gc` deletes the rows of its logged models, and leaves their artifacts, which nobody could
find any more. So the models of an experiment that is about to go are deleted first, as of when it was.
"""

import os
import re
import sys
import time
from datetime import timedelta

import psycopg2

UNITS = {"d": "days", "h": "hours", "m": "minutes", "s": "seconds"}
DELETE_MODELS = """
UPDATE logged_models
SET lifecycle_stage = 'deleted', last_updated_timestamp_ms = experiments.last_update_time
FROM experiments
WHERE experiments.experiment_id = logged_models.experiment_id
    AND experiments.lifecycle_stage = 'deleted' AND experiments.last_update_time < %s
"""


def milliseconds(age: str) -> int:
    """Return an age as `mlflow gc` spells it, 1d12h, in milliseconds."""
    parts = {UNITS[unit]: int(number) for number, unit in re.findall(r"(\d+)([dhms])", age)}
    return int(timedelta(**parts).total_seconds() * 1000)


def main(age: str) -> None:
    """Become `mlflow gc`, once the models of what it will delete are its to delete."""
    uri = os.environ["MLFLOW_BACKEND_STORE_URI"]
    session = psycopg2.connect(uri.replace("postgresql+psycopg2:", "postgresql:"))
    with session, session.cursor() as cursor:
        cursor.execute(DELETE_MODELS, (int(time.time() * 1000) - milliseconds(age),))
    session.close()
    os.execvp("mlflow", ["mlflow", "gc", "--backend-store-uri", uri, "--older-than", age])  # noqa: S606, S607


if __name__ == "__main__":
    main(sys.argv[1])
