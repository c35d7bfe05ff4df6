"""Creates MLflow's administrator, or sets the administrator's password to that in the secret file.

MLflow itself reads the administrator's password only once, when it creates the administrator.
"""

import os
import sys
from pathlib import Path

from mlflow.server.auth.config import read_auth_config
from mlflow.server.auth.sqlalchemy_store import SqlAlchemyStore

SECRETS = Path(os.environ.get("SECRETS", "/run/secrets"))


def main() -> int:
    """Create the user tables, and the administrator with the password in the file. Return 0."""
    config = read_auth_config()
    password = (SECRETS / "admin-password").read_text().strip()
    store = SqlAlchemyStore()
    store.init_db(config.database_uri)
    if not store.has_user(config.admin_username):
        store.create_user(config.admin_username, password, is_admin=True)
    elif not store.authenticate_user(config.admin_username, password):
        store.update_user(config.admin_username, password=password, is_admin=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
