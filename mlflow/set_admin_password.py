"""Makes MLflow's administrator, or gives him the password of this deployment. Passwords follow their files here, too.

MLflow itself reads the password of its administrator once, when it makes him, and never again.
"""

import os
import sys
from pathlib import Path

from mlflow.server.auth.config import read_auth_config
from mlflow.server.auth.sqlalchemy_store import SqlAlchemyStore

SECRETS = Path(os.environ.get("SECRETS", "/run/secrets"))


def main() -> int:
    """Return 0: the tables of the users are there, and the administrator has the password of the file."""
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
