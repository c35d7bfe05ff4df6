"""Starts MLflow's server, and leaves nothing of the command that started it. usage: serve.py [OPTION]...

`mlflow server` checks its settings, prepares the database, starts uvicorn, and is its parent from then on: 200 MB that
do nothing but pass on signals. Here the command becomes uvicorn in the end. With job execution it has a second process
to look after, and stays.
"""

import os
import sys

import mlflow.server
from mlflow.cli import cli


def become(command, *, extra_env, **_options):
    """Run `command` in the place of this process. What MLflow would call instead returns a process to wait for."""
    os.execvpe(command[0], command, os.environ | extra_env)  # noqa: S606 - a list of MLflow's own


if os.environ.get("MLFLOW_SERVER_ENABLE_JOB_EXECUTION") != "true":
    # MLflow's own, and private: under another name in a later release, the command stays as it always did.
    mlflow.server._exec_cmd = become  # noqa: SLF001
cli(["server", *sys.argv[1:]])
