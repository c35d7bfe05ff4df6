"""Refuses an answer of `search_runs` that would take more memory than the server has.

MLflow's API allows 50,000 runs in one answer, about 160 kB of server memory each (measured, with 90 values a run). The
kernel would kill the worker, and every request in it gets no answer. A client that asks for more runs than LARGEST_PAGE
gets them if no more match; otherwise an error that says how to request pages. It never gets a part without knowing.

MLflow's server loads this store instead of its own through the documented entry point `mlflow.tracking_store`.
"""

import os

from mlflow.environment_variables import MLFLOW_ENABLE_WORKSPACES
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE

DEFAULT_PAGE = 10_000
"""Runs in the largest answer: what `mlflow.search_runs` requests at a time."""
API_MAXIMUM = 50_000
"""MLflow's own limit (mlflow.store.tracking.SEARCH_MAX_RESULTS_THRESHOLD); MLflow refuses more itself."""


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
    """Return the number of runs in the largest answer, from the variable LARGEST_PAGE."""
    return int(os.environ.get("LARGEST_PAGE") or DEFAULT_PAGE)


def store(store_uri, artifact_uri):
    """Return the tracking store of a database, as MLflow's server creates it, with limited answers."""
    # Imported late: clients load this entry point, too, and have no database.
    from mlflow.server.constants import READ_REPLICA_BACKEND_STORE_URI_ENV_VAR  # noqa: PLC0415
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore  # noqa: PLC0415
    from mlflow.store.tracking.sqlalchemy_workspace_store import WorkspaceAwareSqlAlchemyStore  # noqa: PLC0415

    base = WorkspaceAwareSqlAlchemyStore if MLFLOW_ENABLE_WORKSPACES.get() else SqlAlchemyStore
    limited = type(f"Limited{base.__name__}", (LimitedSearch, base), {})
    return limited(store_uri, artifact_uri, read_db_uri=os.environ.get(READ_REPLICA_BACKEND_STORE_URI_ENV_VAR))
