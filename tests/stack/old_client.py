"""Fill an old server, and print everything that a server holds. Runs with clients of MLflow 1.30 to 3.

usage: MLFLOW_TRACKING_URI=... python old_client.py fill RUNS METRIC_POINTS FILES | tell
`tell` prints JSON without anything that an import changes: where the artifacts are.
"""

import hashlib
import json
import os
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from mlflow.entities import Metric, Param, RunTag, ViewType
from mlflow.tracking import MlflowClient

import mlflow

VERSION = tuple(int(part) for part in mlflow.__version__.split(".")[:2])
HAS_ALIASES, HAS_TRACES, HAS_STAGES = VERSION >= (2, 3), VERSION >= (2, 14), VERSION < (3, 0)
BATCH = 1000
PAGE = 1000
ODD = 'tab\t new\nline back\\slash "quote" \\N ä ß 日本 🙂'


def fill(runs, points, files, registry):
    client = MlflowClient()
    now = int(time.time() * 1000)
    first = client.create_experiment(f"Ünïcode 日本 {now}", tags={"odd": ODD})
    deleted = client.create_experiment(f"deleted {now}")

    def one(number):
        run = client.create_run(deleted if number == 1 else first, tags={"number": str(number)})
        mine = range(number, points, runs)
        for start in range(0, len(mine), BATCH):
            steps = mine[start : start + BATCH]
            client.log_batch(run.info.run_id, metrics=[Metric("loss", 1 / (1 + s), now + s, s) for s in steps])
        client.log_batch(
            run.info.run_id,
            metrics=[
                Metric("odd", value, now, step) for step, value in enumerate((float("nan"), float("inf"), -1e-300))
            ],
            params=[Param("lr", str(number / 7)), Param("odd", ODD)],
            tags=[RunTag("odd", ODD)],
        )
        with tempfile.TemporaryDirectory() as folder:
            for file in range(number, files, runs):
                (Path(folder) / f"file {file} [ä].bin").write_bytes(os.urandom(2000))
            (Path(folder) / "same.txt").write_text("the same in every run")
            client.log_artifacts(run.info.run_id, folder, "data [1]")
        client.set_terminated(run.info.run_id)
        return run.info

    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(one, range(runs)))
    for number in range(2):
        child = client.create_run(first, tags={"mlflow.parentRunId": made[0].run_id})
        client.set_terminated(child.info.run_id, "FAILED")
        if number:
            client.delete_run(child.info.run_id)
    if registry:
        name = f"model {now} ä"
        client.create_registered_model(name, tags={"odd": ODD}, description=ODD)
        for info in (made[0], made[2]):
            client.create_model_version(name, f"{info.artifact_uri}/data [1]", info.run_id, tags={"odd": ODD})
        if HAS_STAGES:
            client.transition_model_version_stage(name, "1", "Production")
        if HAS_ALIASES:
            client.set_registered_model_alias(name, "champion", "2")
    if HAS_TRACES:
        mlflow.set_experiment(experiment_id=first)

        @mlflow.trace
        def add(left, right):
            return {"sum": left + right, "odd": ODD}

        for number in range(5):
            add(number, 1)
        flush = getattr(mlflow, "flush_trace_async_logging", None)
        if flush:
            try:
                flush()
            except Exception as error:  # noqa: BLE001 - a client without asynchronous logging has nothing to flush
                print(error, file=sys.stderr)
    client.delete_experiment(deleted)


def tell():
    client = MlflowClient()
    experiments = client.search_experiments(view_type=ViewType.ALL)
    numbers = [one.experiment_id for one in experiments]
    runs, token = [], None
    while True:
        page = client.search_runs(numbers, run_view_type=ViewType.ALL, max_results=PAGE, page_token=token)
        runs += page
        token = page.token
        if not token:
            break
    with ThreadPoolExecutor(4) as pool:
        told = dict(pool.map(lambda run: _run(client, run), runs))
    found = {
        "experiments": {one.experiment_id: [one.name, one.lifecycle_stage, dict(one.tags)] for one in experiments},
        "runs": told,
        "models": _models(client),
    }
    if HAS_TRACES:
        found["traces"] = _traces(client, [one.experiment_id for one in experiments if one.lifecycle_stage == "active"])
    return found


def _models(client):
    try:
        models = client.search_registered_models()
    except Exception as error:  # noqa: BLE001 - a file store of 1.30 has none
        print(error, file=sys.stderr)
        return {}
    return {
        model.name: {
            "tags": dict(model.tags),
            "description": model.description,
            "aliases": dict(getattr(model, "aliases", None) or {}),
            "versions": sorted(
                [int(one.version), one.run_id, one.current_stage, dict(one.tags)]
                for one in client.search_model_versions(f"name='{model.name}'")
            ),
        }
        for model in models
    }


def _traces(client, experiments):
    found = {}
    for number in experiments:
        for trace in client.search_traces([number]):
            info = trace.info
            name = getattr(info, "trace_id", None) or info.request_id
            found[name] = [json.dumps(span.inputs) + json.dumps(span.outputs) + span.name for span in trace.data.spans]
    return found


def _run(client, run):
    name = run.info.run_id
    histories = {
        key: [(point.step, point.timestamp, repr(point.value)) for point in client.get_metric_history(name, key)]
        for key in sorted(run.data.metrics)
    }
    hashes = {}
    with tempfile.TemporaryDirectory() as folder:
        if client.list_artifacts(name):
            top = Path(client.download_artifacts(name, "", folder))
            for path in sorted(top.rglob("*")):
                if path.is_file():
                    hashes[str(path.relative_to(top))] = hashlib.sha256(path.read_bytes()).hexdigest()
    return name, {
        "status": run.info.status,
        "stage": run.info.lifecycle_stage,
        "experiment": run.info.experiment_id,
        "tags": run.data.tags,
        "params": run.data.params,
        "metrics": {key: sorted(points) for key, points in histories.items()},
        "artifacts": hashes,
    }


if __name__ == "__main__":
    if sys.argv[1] == "fill":
        fill(*map(int, sys.argv[2:5]), registry=len(sys.argv) < 6)
    else:
        json.dump(tell(), sys.stdout, sort_keys=True)
