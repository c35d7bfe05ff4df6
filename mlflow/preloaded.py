"""Runs uvicorn in a process that has imported MLflow already. serve.py uses it.

Importing MLflow takes 4 s of CPU time. `mlflow server` does it in its own process, to check its settings, and then in
each worker. Here it is imported once: one worker is this process, and several workers are forks of it.
"""

import gc
import importlib
import multiprocessing
import os
import signal
import sys
import threading

import idle  # noqa: F401 - replaces uvicorn's main loop
import uvicorn
from uvicorn.supervisors import multiprocess

# `mlflow server` sets these variables for its workers, and MLflow reads them when it is imported.
if directory := os.environ.get("MLFLOW_EXPOSE_PROMETHEUS"):
    os.environ |= {"prometheus_multiproc_dir": directory, "PROMETHEUS_MULTIPROC_DIR": directory}
os.environ.setdefault("MLFLOW_SERVER_X_FRAME_OPTIONS", "SAMEORIGIN")
BEFORE = dict(os.environ)
"""The environment in which MLflow is imported: serve.py imports this module first."""
READ_LATE = {
    "MLFLOW_ENABLE_WORKSPACES",
    "MLFLOW_FLASK_SERVER_SECRET_KEY",
    "MLFLOW_REGISTRY_URI",
    "MLFLOW_SERVER_SECRETS_CACHE_MAX_SIZE",
    "MLFLOW_SERVER_SECRETS_CACHE_TTL",
    "MLFLOW_TRACKING_URI",
    "_MLFLOW_ASSISTANT_DELEGATION_SIGNING_KEY",
    "_MLFLOW_AUTH_ADMIN_BOOTSTRAPPED",
    "_MLFLOW_INTERNAL_GATEWAY_AUTH_TOKEN",
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
"""Variables that `mlflow server` sets, and that MLflow reads when it handles a request, not when it is imported."""
UVICORN = ["-m", "uvicorn"]
fork = multiprocessing.get_context("fork")


def prepare(command, extra_env):
    """Import the application; return why uvicorn cannot run it in this process, or None.

    `command` is that of a new process, and `extra_env` are the variables that `mlflow server` would set for it. They
    are set in this process as well.
    """
    os.environ.update(extra_env)
    if command[1:3] != UVICORN:
        return f"MLflow starts {' '.join(command[:3])}"
    changed = {key for key in {*BEFORE, *os.environ} if BEFORE.get(key) != os.environ.get(key)}
    if unknown := changed - READ_LATE:
        return f"MLflow may read these variables when it is imported: {', '.join(sorted(unknown))}"
    importlib.import_module(command[-1].partition(":")[0])
    importlib.import_module("application")
    if threading.active_count() > 1:
        return "MLflow has started threads, which a worker would not have"
    return None


def run(command):
    """Run uvicorn as `command` would, and end this process with its exit code."""
    close_connections()
    gc.collect()
    # What is there now stays. Without this, the garbage collector visits it again and again, which also copies the
    # memory that the workers share.
    gc.freeze()
    multiprocess.get_subprocess = Worker
    uvicorn.main(command[3:])


def close_connections():
    """Close the connections of this process to the database: those of a fork would be the same ones."""
    # Late: MLflow imports it anyway, and the tests have none.
    from sqlalchemy.engine import Engine  # noqa: PLC0415

    for found in gc.get_objects():
        # Not isinstance(), which makes lazy objects import what they stand for.
        if issubclass(type(found), Engine):
            found.dispose()


class Worker(fork.Process):
    """The process of a worker, in place of uvicorn's function that starts a new Python."""

    def __init__(self, config, target, sockets):
        """Take the arguments of that function. `target` is a method of uvicorn's object for the worker."""
        super().__init__(target=begin, args=(config, target, sockets))
        self._its_end = target.__self__.child_conn

    def start(self):
        """Fork. A stop signal that arrives before `begin` has reset the handlers waits until then."""
        before = signal.pthread_sigmask(signal.SIG_BLOCK, multiprocess.SIGNALS)
        try:
            super().start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        # uvicorn asks its workers over a pipe whether they live. With the worker's end of it open here as well, the
        # parent would wait 5 s for the answer of a worker that has ended.
        self._its_end.close()


def begin(config, target, sockets):
    """Do what uvicorn does first in a worker, without what the fork has of its parent."""
    # The parent's handlers note a signal, and the worker would never end.
    for number in multiprocess.SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, multiprocess.SIGNALS)
    # Every worker would draw the same numbers. Python does this for its own generator.
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed()
    config.configure_logging()
    target(sockets=sockets)
