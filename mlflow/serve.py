"""Starts MLflow's server, and leaves nothing of the command that started it. usage: serve.py [OPTION]...

`mlflow server` checks its settings, prepares the database, starts uvicorn, and is its parent from then on: 160 MB that
do nothing but pass on signals. Here the command becomes uvicorn in the end. With job execution it has a second process
to look after, and stays.
"""

import os
import sys

import mlflow.server
from mlflow.cli import cli
from mlflow.environment_variables import MLFLOW_SERVER_ENABLE_JOB_EXECUTION

# MLflow's own, and private: under another name in a later release, the command stays as it always did.
start = getattr(mlflow.server, "_exec_cmd", None)


def become(command, *, extra_env=None, synchronous=True, **options):
    """Run `command` in the place of this process, where MLflow would start it as another and wait for its end."""
    if not synchronous:
        os.execvpe(command[0], command, os.environ | (extra_env or {}))  # noqa: S606 - a list of MLflow's own
    return start(command, extra_env=extra_env, **options)


if not MLFLOW_SERVER_ENABLE_JOB_EXECUTION.get():
    mlflow.server._exec_cmd = become  # noqa: SLF001
cli(["server", *sys.argv[1:]])
