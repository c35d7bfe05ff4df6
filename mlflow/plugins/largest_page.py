"""Refuses an answer of `search_runs` that would take more memory than the server has.

MLflow's API allows 50,000 runs in one answer, about 160 kB of server memory each (measured, with 90 values a run). The
kernel would kill the worker, and every request in it gets no answer. A client that asks for more runs than the memory
limit has room for gets them if no more match; otherwise an error that says how to request pages. It never gets a part
without knowing.

Part of the tracking store in tracking_store.py.
"""

from pathlib import Path

from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE

SMALLEST, API_MAXIMUM = 10_000, 50_000
"""Runs in one answer: what `mlflow.search_runs` requests at a time, and MLflow's own limit
(mlflow.store.tracking.SEARCH_MAX_RESULTS_THRESHOLD); MLflow refuses more itself."""
USED_MB, RUN_MB = 600, 0.16
"""Measured with MLflow 3.18: memory of a server in use, and memory of each run with 90 values in an answer."""
LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
"""The memory limit of the container in bytes, by version 2 and 1 of Linux' control groups."""


class LimitedSearch:
    """Limits the answers of the store that it is mixed into."""

    def search_runs(
        self, experiment_ids, filter_string, run_view_type, max_results=1000, order_by=None, page_token=None
    ):
        """Return runs as MLflow's store does; raise `MlflowException` if more match than one answer may have."""
        largest = largest_page()
        limited = isinstance(max_results, int) and largest < max_results <= API_MAXIMUM
        found = super().search_runs(
            experiment_ids, filter_string, run_view_type, largest if limited else max_results, order_by, page_token
        )
        if limited and found.token:
            raise MlflowException(
                f"max_results={max_results}: more than {largest} runs match, and this server does not return more at "
                f"once. Request pages of at most {largest} runs (max_results={largest} and page_token), or ask the "
                "operator to raise mlflow:server.memoryMb.",
                error_code=INVALID_PARAMETER_VALUE,
            )
        return found


def largest_page():
    """Return how many runs one answer may have: 10,000, or more where the memory limit has room for them."""
    # Read for each request: Docker can change the limit of a running container.
    for path in map(Path, LIMITS):
        if path.exists():
            limit = path.read_text().strip()
            room = API_MAXIMUM if limit == "max" else int((int(limit) / 2**20 - USED_MB) / RUN_MB)
            return min(API_MAXIMUM, max(SMALLEST, room))
    return SMALLEST
