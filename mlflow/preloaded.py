"""Runs uvicorn in a process that has imported MLflow already. serve.py uses it.

Importing MLflow takes 4 s of CPU time. `mlflow server` does it in its own process, to check its settings, and then in
each worker. Here it is imported once: one worker is this process, and several workers are forks of it.
"""

import gc
import importlib
import multiprocessing
import os
import signal
import threading

import idle  # noqa: F401 - replaces uvicorn's main loop
import uvicorn
from uvicorn.supervisors import multiprocess

READ_LATE = {
    "MLFLOW_FLASK_SERVER_SECRET_KEY",
    "MLFLOW_SERVER_SECRETS_CACHE_MAX_SIZE",
    "MLFLOW_SERVER_SECRETS_CACHE_TTL",
    "_MLFLOW_AUTH_ADMIN_BOOTSTRAPPED",
    "_MLFLOW_IN_JOB_EXECUTOR",
    "_MLFLOW_SERVER_ARTIFACT_DESTINATION",
    "_MLFLOW_SERVER_ARTIFACT_ROOT",
    "_MLFLOW_SERVER_BOOT_ID",
    "_MLFLOW_SERVER_FILE_STORE",
    "_MLFLOW_SERVER_REGISTRY_STORE",
    "_MLFLOW_SERVER_SERVE_ARTIFACTS",
    "_MLFLOW_SERVER_TLS_LISTENER",
    "_MLFLOW_SGI_NAME",
}
"""Variables that `mlflow server` sets for its workers, and that MLflow reads when it handles a request, not when it is
imported."""
fork = multiprocessing.get_context("fork")


def reason_against(extra_env):
    """Return why uvicorn cannot run in this process, or None. Then it has to be started as a new process.

    `extra_env` are the variables that `mlflow server` sets for its workers.
    """
    if threading.active_count() > 1:
        return "MLflow has started threads, which a worker would not have"
    changed = {key for key, value in extra_env.items() if os.environ.get(key) != value}
    if unknown := changed - READ_LATE:
        return f"MLflow may read these variables when it is imported: {', '.join(sorted(unknown))}"
    return None


def run(arguments, application):
    """Run uvicorn with these arguments, and end this process with its exit code.

    `application` is MLflow's, as an argument of uvicorn. It can differ from the last argument.
    """
    importlib.import_module(application.partition(":")[0])
    close_connections()
    gc.collect()
    # What is there now stays. Without this, the garbage collector visits it again and again, which also copies the
    # memory that the workers share.
    gc.freeze()
    multiprocess.get_subprocess = worker
    uvicorn.main(arguments)


def close_connections():
    """Close the connections of this process to the database: those of a fork would be the same ones."""
    # Late: MLflow imports it anyway, and the tests have none.
    from sqlalchemy.engine import Engine  # noqa: PLC0415

    for found in gc.get_objects():
        # Not isinstance(), which makes lazy objects import what they stand for.
        if issubclass(type(found), Engine):
            found.dispose()


def worker(config, target, sockets):
    """Return the process of a worker, not yet started. uvicorn's own function starts a new Python."""
    return fork.Process(target=begin, args=(config, target, sockets))


def begin(config, target, sockets):
    """Do what uvicorn does first in a worker, without the signal handlers of its parent."""
    for number in multiprocess.SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    config.configure_logging()
    target(sockets=sockets)
