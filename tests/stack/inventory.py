"""Fill a server with runs, and print everything that it holds, so that two states can be compared.

usage: MLFLOW_TRACKING_URI=... python inventory.py fill RUNS METRIC_POINTS FILES MEGABYTES | write | tell
`write` fills repeatedly, prints a line after each round, and continues until it is terminated.
`tell` prints JSON: each run with its parameters, tags and metric histories, each model with its versions and aliases,
each trace, and the SHA-256 of each artifact, all of it through MLflow's client.
"""

import hashlib
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import Any

from mlflow.entities import Metric, Param, RunTag
from mlflow.tracking import MlflowClient

import mlflow

BATCH = 1000
"""The number of metric points in one request."""
THREADS = 4
PAGE = 500


def fill(runs: int, points: int, files: int, megabytes: int) -> None:
    """Create two experiments with `runs` runs in total, and distribute everything else over the runs."""
    client = MlflowClient()
    now = int(time.time() * 1000)
    experiments = [client.create_experiment(f"fill-{now}-{number}", tags={"number": str(number)}) for number in (1, 2)]
    size = max(1, megabytes * 10**6 // max(1, files))

    def one(number: int) -> str:
        run_id = client.create_run(experiments[number % 2], tags={"number": str(number)}).info.run_id
        mine = range(number, points, runs)
        for start in range(0, len(mine), BATCH):
            metrics = [Metric("loss", 1 / (1 + step), now + step, step) for step in mine[start : start + BATCH]]
            client.log_batch(run_id, metrics=metrics)
        client.log_batch(run_id, params=[Param("lr", str(number / 7))], tags=[RunTag("note", f"ä ß 日本 {number}")])
        with tempfile.TemporaryDirectory() as folder:
            for file in range(number, files, runs):
                # Random content: incompressible, and never the same in two files.
                (Path(folder) / f"file $HOME {file} [x].bin").write_bytes(os.urandom(size))
            client.log_artifacts(run_id, folder, "data [1]")
        client.set_terminated(run_id)
        return str(run_id)

    with ThreadPoolExecutor(THREADS) as pool:
        made = list(pool.map(one, range(runs)))
    for number in range(3):
        name = f"model-{now}-{number}"
        client.create_registered_model(name, tags={"number": str(number)}, description="a ß")
        for run_id in made[:2]:
            client.create_model_version(name, f"runs:/{run_id}/data [1]", run_id)
        client.set_registered_model_alias(name, "champion", "2")
    mlflow.set_experiment(experiment_id=experiments[0])

    @mlflow.trace
    def add(first: int, second: int) -> int:
        return first + second

    for number in range(5):
        add(number, 1)
    mlflow.flush_trace_async_logging()


def write() -> None:
    """Fill until SIGTERM arrives, and finish the current round first."""
    wanted = Event()
    signal.signal(signal.SIGTERM, lambda *_: wanted.set())
    while not wanted.is_set():
        fill(4, 400, 8, 1)
        print("written", flush=True)


def tell(server: str | None = None) -> dict[str, Any]:
    """Return everything that `server`, or that of the environment, holds, in a fixed order."""
    client = MlflowClient(server)
    experiments = client.search_experiments()
    places = [one.experiment_id for one in experiments]
    with ThreadPoolExecutor(THREADS) as pool:
        runs = dict(pool.map(lambda run: _run(client, run), _every(client.search_runs, experiment_ids=places)))
    models = {
        model.name: {
            "tags": model.tags,
            "aliases": dict(model.aliases),
            "versions": sorted(
                (int(version.version), version.source, version.run_id)
                for version in client.search_model_versions(f"name = '{model.name}'")
            ),
        }
        for model in client.search_registered_models(max_results=PAGE)
    }
    found = _every(client.search_traces, locations=places)
    traces = {trace.info.trace_id: [span.to_dict() for span in trace.data.spans] for trace in found}
    return {
        "experiments": {one.experiment_id: [one.name, one.tags] for one in experiments},
        "runs": runs,
        "models": models,
        "traces": traces,
    }


def _every(search: Callable[..., Any], **where: object) -> list[Any]:
    """Return what a search finds, on all its pages."""
    found: list[Any] = []
    token = None
    while True:
        page = search(**where, max_results=PAGE, page_token=token)
        found += page
        token = page.token
        if not token:
            return found


def _run(client: MlflowClient, run: Any) -> tuple[str, Any]:  # noqa: ANN401 - MLflow's
    histories = {
        key: [(point.step, point.timestamp, point.value) for point in client.get_metric_history(run.info.run_id, key)]
        for key in sorted(run.data.metrics)
    }
    with tempfile.TemporaryDirectory() as folder:
        hashes = {}
        if client.list_artifacts(run.info.run_id):
            top = Path(client.download_artifacts(run.info.run_id, "", folder))
            files = sorted(path for path in top.rglob("*") if path.is_file())
            hashes = {str(path.relative_to(top)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    told = {"status": run.info.status, "tags": run.data.tags, "params": run.data.params}
    return run.info.run_id, {**told, "metrics": histories, "artifacts": hashes}


if __name__ == "__main__":
    if sys.argv[1] == "fill":
        fill(*map(int, sys.argv[2:6]))
    elif sys.argv[1] == "write":
        write()
    else:
        json.dump(tell(), sys.stdout, sort_keys=True)
