"""Starts MLflow's server without its parent process. usage: serve.py [OPTION]...

`mlflow server` checks its settings, prepares the database, starts uvicorn and stays as its parent: 160 MB that only
forward signals. Here uvicorn runs in that process (preloaded.py). With job execution, the parent has to supervise a
second process, and stays.

The server does not start while a restore or a migration holds the exclusive lock (mlflow/locked.py). `docker stop` is
not enough: Docker starts the container again when the daemon restarts.
"""

import os
import sys
import time
from itertools import pairwise

# First, because `mlflow.server` checks hosts and origins only if it finds uvicorn imported.
import preloaded  # isort: skip
import mlflow.server
import psycopg2
from mlflow.cli import cli
from mlflow.environment_variables import MLFLOW_SERVER_ENABLE_JOB_EXECUTION
from take_back import take_back

LOCK = 0x6D6C_666C_6F77
"""The exclusive lock: `mlflow` in ASCII. mlflow/locked.py has the same number."""
POLL_SECONDS = 1
BLOCKING = ("restore", "import", "migrate", "rotate")
"""Operations that replace the data, which would discard a server's changes, or the data keys. The others can run beside
a server."""
HOLDER = (
    "SELECT application_name FROM pg_locks JOIN pg_stat_activity USING (pid) "
    "WHERE locktype = 'advisory' AND granted AND classid = %s AND objid = %s AND application_name = ANY(%s)"
)


def wait_for_the_lock(uri):
    """Wait until no restore or migration holds the lock, and take back what a killed import has left.

    Return at once if the database does not answer: MLflow itself reports that.
    """
    told = False
    while True:
        try:
            session = psycopg2.connect(uri.replace("postgresql+psycopg2:", "postgresql:"), application_name="server")
            with session, session.cursor() as cursor:
                cursor.execute(HOLDER, (LOCK >> 32, LOCK & 0xFFFF_FFFF, list(BLOCKING)))
                holder = cursor.fetchone()
        except psycopg2.Error:
            return
        if holder is None:
            if take_back(session):
                print("serve: an import was not completed; the previous data are in use again", file=sys.stderr)
            session.close()
            return
        session.close()
        if not told:
            print(f"serve: waiting for {holder[0]}, which holds the exclusive lock", file=sys.stderr, flush=True)
            told = True
        time.sleep(POLL_SECONDS)


# A private function of MLflow. If a later release renames it, the parent process stays, as in `mlflow server`.
start = getattr(mlflow.server, "_exec_cmd", None)


def become(command, *, extra_env=None, synchronous=True, **options):
    """Become the server where MLflow would start a child process and wait for its end.

    With job execution, MLflow starts two child processes, and supervises them.
    """
    if synchronous or MLFLOW_SERVER_ENABLE_JOB_EXECUTION.get():
        return start(idle(own(command)), extra_env=extra_env, synchronous=synchronous, **options)
    against = preloaded.prepare(command, extra_env or {})
    command = own(command)
    if against is None:
        return preloaded.run(command)
    print(f"serve: starting a new process: {against}", file=sys.stderr, flush=True)
    command = idle(command)
    return os.execvpe(command[0], command, os.environ)  # noqa: S606 - a list of MLflow's own


def own(command):
    """Return uvicorn's command for plugins/application.py, which finds MLflow's application in the environment.

    Any other command is returned as it is.
    """
    if command[1:3] != ["-m", "uvicorn"]:
        return command
    os.environ["APPLICATION"] = command[-1] + ("()" if "--factory" in command else "")
    return [*(word for word in command[:-1] if word != "--factory"), "--factory", "application:create"]


def idle(command):
    """Return the command that runs uvicorn by plugins/idle.py."""
    return ["idle" if before == "-m" and word == "uvicorn" else word for before, word in pairwise(["", *command])]


if __name__ == "__main__":
    wait_for_the_lock(os.environ["MLFLOW_BACKEND_STORE_URI"])
    mlflow.server._exec_cmd = become  # noqa: SLF001
    cli(["server", *sys.argv[1:]])
