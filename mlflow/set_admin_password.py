"""Makes MLflow's administrator, or gives him the password of this deployment. Passwords follow their files here, too.

The same of the user by whose name Prometheus asks, who exists for as long as there is a password for him.

MLflow itself reads the password of its administrator once, when it makes him, and never again.
"""

import os
import sys
from pathlib import Path

from mlflow.server.auth.config import read_auth_config
from mlflow.server.auth.sqlalchemy_store import SqlAlchemyStore

MONITORING = "monitoring"
SECRETS = Path(os.environ.get("SECRETS", "/run/secrets"))


def main() -> int:
    """Return 0: the tables of the users are there, and the administrator has the password of the file."""
    config = read_auth_config()
    store = SqlAlchemyStore()
    store.init_db(config.database_uri)
    follow(store, config.admin_username, (SECRETS / "admin-password").read_text().strip(), is_admin=True)
    monitoring = SECRETS / "monitoring-password"
    if monitoring.exists():
        follow(store, MONITORING, monitoring.read_text().strip(), is_admin=False)
    elif store.has_user(MONITORING):
        store.delete_user(MONITORING)
    return 0


def follow(store, user, password, *, is_admin):
    """Make a user, or give him the password, unless he has it."""
    if not store.has_user(user):
        store.create_user(user, password, is_admin=is_admin)
    elif not store.authenticate_user(user, password):
        store.update_user(user, password=password, is_admin=is_admin)


if __name__ == "__main__":
    sys.exit(main())
