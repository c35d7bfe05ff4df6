"""Do what a person does with MLflow on an ordinary day; a script for any client version from 2.9 on.

usage: MLFLOW_TRACKING_URI=... python client_day.py [ARTIFACT_MB]. Prints one line for each step with its seconds, and
exits with 1 at the first step that fails. Uses the defaults of the client throughout, because they are under test.
"""

import hashlib
import os
import sys
import tempfile
import time
from pathlib import Path

from mlflow.entities import Metric, Param, RunTag
from mlflow.tracking import MlflowClient

import mlflow

MEGABYTE = 1 << 20
VERSION = tuple(int(part) for part in mlflow.__version__.split(".")[:2])


def step(function):  # noqa: ANN001, ANN201
    """Decorate a step: measure its time and print it."""

    def run(*arguments):  # noqa: ANN002, ANN202
        started = time.monotonic()
        result = function(*arguments)
        print(f"{mlflow.__version__} {function.__name__}: {time.monotonic() - started:.1f} s", flush=True)
        return result

    return run


def random_file(folder: str, megabytes: int) -> tuple[Path, str]:
    """Write an incompressible file; return its path and its SHA-256."""
    path, digest = Path(folder) / "artifact.bin", hashlib.sha256()
    with path.open("wb") as file:
        for _ in range(megabytes):
            block = os.urandom(MEGABYTE)
            digest.update(block)
            file.write(block)
    return path, digest.hexdigest()


def sha256(path: str) -> str:
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while block := file.read(MEGABYTE):
            digest.update(block)
    return digest.hexdigest()


@step
def runs_with_metrics_and_tags(client: MlflowClient, experiment: str) -> str:
    run_id = client.create_run(experiment, tags={"team": "vision"}).info.run_id
    now = int(time.time() * 1000)
    for batch in range(3):
        metrics = [Metric("loss", 1 / (1 + step), now, step) for step in range(batch * 1000, (batch + 1) * 1000)]
        client.log_batch(run_id, metrics=metrics)
    client.log_batch(run_id, params=[Param("lr", "0.1")], tags=[RunTag("note", "ä ß 日本")])
    history = client.get_metric_history(run_id, "loss")
    assert len(history) == 3000, len(history)
    run = client.get_run(run_id)
    assert run.data.params == {"lr": "0.1"}
    assert run.data.tags["note"] == "ä ß 日本"
    return run_id


@step
def artifact_up_and_down(client: MlflowClient, run_id: str, megabytes: int) -> None:
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as target:
        path, digest = random_file(folder, megabytes)
        started = time.monotonic()
        client.log_artifact(run_id, str(path))
        up = time.monotonic() - started
        path.unlink()
        found = client.download_artifacts(run_id, "artifact.bin", target)
        down = time.monotonic() - started - up
        assert sha256(found) == digest, "the downloaded artifact differs from the uploaded one"
        print(f"{mlflow.__version__} {megabytes} MB up {up:.1f} s, down {down:.1f} s, SHA-256 equal", flush=True)


@step
def model_logged_registered_and_loaded(client: MlflowClient, run_id: str) -> None:
    class Doubler(mlflow.pyfunc.PythonModel):
        def predict(self, context, model_input, params=None):  # noqa: ANN001, ANN202, ARG002
            return model_input["x"] * 2

    import pandas as pd  # noqa: PLC0415

    name = f"doubler-{run_id[:8]}"
    with mlflow.start_run(run_id=run_id):
        if VERSION >= (3, 0):
            mlflow.pyfunc.log_model(name="model", python_model=Doubler(), registered_model_name=name)
        else:
            mlflow.pyfunc.log_model("model", python_model=Doubler(), registered_model_name=name)
    client.set_registered_model_alias(name, "champion", "1")
    model = mlflow.pyfunc.load_model(f"models:/{name}@champion")
    assert list(model.predict(pd.DataFrame({"x": [1, 2]}))) == [2, 4]


@step
def search_finds_the_run(client: MlflowClient, experiment: str, run_id: str) -> None:
    found = client.search_runs([experiment], "metrics.loss < 0.01 and tags.team = 'vision'")
    assert run_id in [run.info.run_id for run in found]


@step
def trace_is_stored(experiment: str) -> None:
    mlflow.set_experiment(experiment_id=experiment)

    @mlflow.trace
    def add(first: int, second: int) -> int:
        return first + second

    add(1, 2)
    if hasattr(mlflow, "flush_trace_async_logging"):
        mlflow.flush_trace_async_logging()
    deadline = time.monotonic() + 20
    arguments = {"locations": [experiment]} if VERSION >= (3, 4) else {"experiment_ids": [experiment]}
    while not len(mlflow.search_traces(**arguments)):
        assert time.monotonic() < deadline, "the trace was not stored within 20 s"
        time.sleep(0.5)


def main() -> None:
    megabytes = int(sys.argv[1]) if len(sys.argv) > 1 else 50
    client = MlflowClient()
    experiment = client.create_experiment(f"day-{mlflow.__version__}-{time.time_ns()}")
    run_id = runs_with_metrics_and_tags(client, experiment)
    artifact_up_and_down(client, run_id, megabytes)
    search_finds_the_run(client, experiment, run_id)
    try:
        import pandas  # noqa: F401, ICN001, PLC0415
    except ImportError:
        print(f"{mlflow.__version__} model: skipped, this client has no pandas", flush=True)
    else:
        model_logged_registered_and_loaded(client, run_id)
    if VERSION >= (2, 14):
        trace_is_stored(experiment)
    client.set_terminated(run_id)
    print(f"{mlflow.__version__} done: run {run_id}", flush=True)


if __name__ == "__main__":
    main()
