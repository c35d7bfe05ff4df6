"""Starts MLflow's server, and leaves nothing of the command that started it. usage: serve.py [OPTION]...

`mlflow server` checks its settings, prepares the database, starts uvicorn, and is its parent from then on: 160 MB that
do nothing but pass on signals. Here the command becomes uvicorn in the end. With job execution it has a second process
to look after, and stays.

It does not start while a restore or a migration holds the lock (mlflow/locked.py). `docker stop` alone does not keep a
server down: Docker starts it again when the daemon restarts.
"""

import os
import sys
import time

import mlflow.server
import psycopg2
from mlflow.cli import cli
from mlflow.environment_variables import MLFLOW_SERVER_ENABLE_JOB_EXECUTION

LOCK = 0x6D6C_666C_6F77
"""`mlflow` in ASCII; mlflow/locked.py has the same number."""
POLL_SECONDS = 1
BLOCKING = ("restore", "migrate")
"""What replaces the data. What a server wrote meanwhile would be lost. The others only read, or keep out of its way."""
HOLDER = (
    "SELECT application_name FROM pg_locks JOIN pg_stat_activity USING (pid) "
    "WHERE locktype = 'advisory' AND granted AND classid = %s AND objid = %s AND application_name = ANY(%s)"
)


def wait_for_the_lock(uri):
    """Return when neither a restore nor a migration is at work on the database, or when it does not answer.

    MLflow itself reports a database that does not answer.
    """
    told = False
    while True:
        try:
            session = psycopg2.connect(uri.replace("postgresql+psycopg2:", "postgresql:"), application_name="server")
            with session, session.cursor() as cursor:
                cursor.execute(HOLDER, (LOCK >> 32, LOCK & 0xFFFF_FFFF, list(BLOCKING)))
                holder = cursor.fetchone()
            session.close()
        except psycopg2.Error:
            return
        if holder is None:
            return
        if not told:
            print(f"serve: {holder[0]} holds the lock; the server starts when it ends", file=sys.stderr, flush=True)
            told = True
        time.sleep(POLL_SECONDS)


# MLflow's own, and private: under another name in a later release, the command stays as it always did.
start = getattr(mlflow.server, "_exec_cmd", None)


def become(command, *, extra_env=None, synchronous=True, **options):
    """Run `command` in the place of this process, where MLflow would start it as another and wait for its end."""
    if not synchronous:
        os.execvpe(command[0], command, os.environ | (extra_env or {}))  # noqa: S606 - a list of MLflow's own
    return start(command, extra_env=extra_env, **options)


wait_for_the_lock(os.environ["MLFLOW_BACKEND_STORE_URI"])
if not MLFLOW_SERVER_ENABLE_JOB_EXECUTION.get():
    mlflow.server._exec_cmd = become  # noqa: SLF001
cli(["server", *sys.argv[1:]])
