"""The tracking store of MLflow's server: MLflow's own store for a database, with limited answers and batched updates.

MLflow's server loads it instead of its own through the documented entry point `mlflow.tracking_store`.
"""

import os


def store(store_uri, artifact_uri):
    """Return the tracking store of a database, as MLflow's server creates it, with the changes of this module."""
    # Imported late: clients load this entry point, too, and have no database.
    from largest_page import LimitedSearch  # noqa: PLC0415
    from mlflow.environment_variables import MLFLOW_ENABLE_WORKSPACES  # noqa: PLC0415
    from mlflow.server.constants import READ_REPLICA_BACKEND_STORE_URI_ENV_VAR  # noqa: PLC0415
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore  # noqa: PLC0415
    from mlflow.store.tracking.sqlalchemy_workspace_store import WorkspaceAwareSqlAlchemyStore  # noqa: PLC0415

    base = WorkspaceAwareSqlAlchemyStore if MLFLOW_ENABLE_WORKSPACES.get() else SqlAlchemyStore
    limited = type(f"Limited{base.__name__}", (LimitedSearch, base), {})
    created = limited(store_uri, artifact_uri, read_db_uri=os.environ.get(READ_REPLICA_BACKEND_STORE_URI_ENV_VAR))
    batch_updates(created.engine.dialect)
    return created


def batch_updates(dialect):
    """Let SQLAlchemy send up to 100 updates to the database at once, instead of waiting for the answer to each.

    `log_batch` updates one row for each metric that the run already has. This is SQLAlchemy's documented option
    `executemany_mode="values_plus_batch"` of `create_engine`, which MLflow has no setting for.
    """
    from sqlalchemy.dialects.postgresql.psycopg2 import EXECUTEMANY_VALUES_PLUS_BATCH  # noqa: PLC0415

    dialect.executemany_mode = EXECUTEMANY_VALUES_PLUS_BATCH
    # The number of updated rows is known for the last update only. SQLAlchemy sets this at the first connection, which
    # MLflow has opened already.
    dialect.supports_sane_multi_rowcount = False
