"""What is measured of a set-up, with plain HTTP requests as MLflow's client sends them."""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import requests

from operations.bench.plain import SetUp
from runtime.daemon import Daemon

REQUESTS = 40
"""Requests of each kind in one round; the median counts."""
BATCH = 200
"""Metrics in one `log-batch`."""
ARTIFACT_MB = 64
SETTLE_SECONDS, IDLE_SECONDS = 60, 90
"""How long nobody uses a set-up before and while its CPU time at rest is measured. The services first complete what the
load has left them, such as Postgres its autovacuum, which starts once a minute."""
CALM_CORES = 0.1
"""A server that takes less than this part of a core has started all its workers."""
API = "/api/2.0/mlflow"


def ready_seconds(daemon: Daemon, setup: SetUp) -> float:
    """Restart the server's container; return the seconds from its start to the first answer from the database."""
    daemon.api.stop(setup.server, timeout=60)
    begun = time.monotonic()
    daemon.api.start(setup.server)
    wait_until_ready(setup)
    return time.monotonic() - begun


def wait_until_calm(daemon: Daemon, setup: SetUp, seconds: float = 120) -> None:
    """Return when the server takes little CPU time: the first worker answers while others may still start.

    Raises `TimeoutError` after `seconds`.
    """
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        before, begun = _cpu_seconds(daemon, [setup.server]), time.monotonic()
        time.sleep(1)
        if _cpu_seconds(daemon, [setup.server]) - before < CALM_CORES * (time.monotonic() - begun):
            return
    raise TimeoutError(f"{setup.name}: the server still works {seconds:.0f} s after its start")


def wait_until_ready(setup: SetUp, seconds: float = 180) -> None:
    """Return when the server answers a request that needs the database; raise `TimeoutError` after `seconds`."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            url = f"{setup.url}{API}/experiments/search?max_results=1"
            if setup.session().get(url, timeout=5).ok:
                return
        except requests.RequestException:
            pass
        time.sleep(0.05)
    raise TimeoutError(f"{setup.name}: no answer within {seconds:.0f} s")


def memory_mb(daemon: Daemon, setup: SetUp) -> float:
    """Return the memory of the server's container in MB, without the page cache."""
    stats = daemon.api.stats(setup.server, stream=False)["memory_stats"]
    inactive = stats["stats"].get("total_inactive_file", stats["stats"].get("inactive_file", 0))
    return float(stats["usage"] - inactive) / 1e6


def idle_percents(daemon: Daemon, *setups: SetUp) -> dict[str, float]:
    """Return the CPU time of all containers while nobody uses them, in percent of one core, by name of the set-up.

    All set-ups are measured at the same time.
    """
    time.sleep(SETTLE_SECONDS)
    begun = {setup: (_cpu_seconds(daemon, setup.containers), time.monotonic()) for setup in setups}
    time.sleep(IDLE_SECONDS)
    return {
        setup.name: 100 * (_cpu_seconds(daemon, setup.containers) - before) / (time.monotonic() - started)
        for setup, (before, started) in begun.items()
    }


def _cpu_seconds(daemon: Daemon, containers: Sequence[str]) -> float:
    usage = [daemon.api.stats(name, stream=False)["cpu_stats"]["cpu_usage"]["total_usage"] for name in containers]
    return float(sum(usage)) / 1e9


def latencies(setup: SetUp) -> dict[str, float]:
    """Return the median of each common call, in milliseconds."""
    session = setup.session()

    def post(path: str, **body: Any) -> Any:  # noqa: ANN401 - JSON
        answer = session.post(f"{setup.url}{API}/{path}", json=body, timeout=60)
        answer.raise_for_status()
        return answer.json()

    def get(path: str) -> None:
        session.get(f"{setup.url}{API}/{path}", timeout=60).raise_for_status()

    metrics = [{"key": f"metric-{number}", "value": 1.0, "timestamp": 1, "step": 0} for number in range(BATCH)]

    def filled(runs: int, of: int) -> tuple[str, list[str]]:
        """Return the ids of a new experiment and of its runs, each with `of` metrics."""
        experiment = post("experiments/create", name=f"bench-{time.time_ns()}")["experiment_id"]
        found = [post("runs/create", experiment_id=experiment)["run"]["info"]["run_id"] for _ in range(runs)]
        for run in found:
            post("runs/log-batch", run_id=run, metrics=metrics[:of])
        return experiment, found

    (experiment, runs), (_, small) = filled(20, 40), filled(1, 4)
    steps = iter(range(1, 10**9))

    def batch() -> None:
        step = next(steps)
        post("runs/log-batch", run_id=runs[0], metrics=[{**metric, "step": step} for metric in metrics])

    calls: dict[str, Callable[[], object]] = {
        "search 3 experiments": lambda: get("experiments/search?max_results=3"),
        "get run of 4 metrics": lambda: get(f"runs/get?run_id={small[0]}"),
        "get run of 40 metrics": lambda: get(f"runs/get?run_id={runs[1]}"),
        "search 20 runs": lambda: post("runs/search", experiment_ids=[experiment], max_results=20),
        "log metric": lambda: post(
            "runs/log-metric", run_id=runs[0], key="m", value=1.0, timestamp=1, step=next(steps)
        ),
        f"log batch of {BATCH}": batch,
    }
    return {name: _median_ms(call) for name, call in calls.items()}


def _median_ms(call: Callable[[], object]) -> float:
    call()
    times = []
    for _ in range(REQUESTS):
        begun = time.monotonic()
        call()
        times.append(time.monotonic() - begun)
    return 1000 * statistics.median(times)


def artifacts(setup: SetUp) -> dict[str, float]:
    """Return the throughput of one artifact through the server, in MB/s."""
    content = bytes(range(256)) * 4096 * ARTIFACT_MB
    url = f"{setup.url}/api/2.0/mlflow-artifacts/artifacts/bench/{time.time_ns()}.bin"
    session = setup.session()
    begun = time.monotonic()
    session.put(url, data=content, timeout=600).raise_for_status()
    uploaded = time.monotonic()
    found = session.get(url, timeout=600)
    downloaded = time.monotonic()
    if found.content != content:
        raise ValueError(f"{setup.name}: the artifact came back with other bytes")
    return {
        "upload": len(content) / 1e6 / (uploaded - begun),
        "download": len(content) / 1e6 / (downloaded - uploaded),
    }
