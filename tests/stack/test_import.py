"""Test the import of old deployments: equal through the new server, and the old ones unchanged."""

import hashlib
import os
import random
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import urllib3

from settings import names
from tests.stack.deployment import Deployment, free_port
from tests.stack.edge import basic, image
from tests.stack.old import (
    BUCKET,
    DATA_KEYS,
    GATEWAY_SECRET,
    KEY,
    PASSWORD,
    SECRET_KEY,
    WEBHOOK_SECRET,
    OldServer,
    Services,
    client,
    environment_of,
    keep_secrets,
    told,
)

pytestmark = pytest.mark.ci

LONG_FILL = ("20", "100000", "2000")
FILL = ("4", "2000", "20")
KILLS = int(os.environ.get("KILLS", "10"))


def said(done: subprocess.CompletedProcess[str]) -> str:
    return done.stdout + done.stderr


@contextmanager
def services(network: str, folder: Path) -> Iterator[Services]:
    found = Services(network, folder, image("postgres"), image("seaweedfs"))
    try:
        found.start()
        yield found
    finally:
        found.remove()


def env_file(folder: Path, **changes: str | None) -> Path:
    values: dict[str, str | None] = {
        "MLFLOW_BACKEND_STORE_URI": f'"postgresql://mlflow:{quote(PASSWORD, safe="")}@postgre:5432/mlflow"',
        "MLFLOW_ARTIFACT_ROOT": f"s3://{BUCKET}/artifacts",
        "MLFLOW_S3_ENDPOINT_URL": "'http://minio:9000'",
        "AWS_ACCESS_KEY_ID": KEY,
        "AWS_SECRET_ACCESS_KEY": f"'{SECRET_KEY}'",
        "MLFLOW_PORT": "5000",
        **{key: f"'{value}'" if "'" not in value else f'"{value}"' for key, value in DATA_KEYS.items()},
    }
    path = folder / ".env"
    path.write_text("".join(f"{key}={value}\n" for key, value in (values | changes).items() if value is not None))
    return path


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    deployment = Deployment(tmp_path_factory.mktemp("import"), "dev")
    deployment.set("server.port", free_port())
    deployment.set("backup.enabled", value=True)
    deployment.use(deployment.any_store)
    try:
        deployment.make("up")
        yield deployment
    finally:
        deployment.remove()


class Old:
    """A deployment as a compose file makes it: Postgres, an S3 that clients use themselves, and the stack's MLflow."""

    def __init__(self, target: Deployment, found: Services, folder: Path) -> None:
        self.services, self.folder, self.port = found, folder, free_port()
        api = target.api
        # SQLAlchemy 2.1 has another default driver.
        uri = f"postgresql+psycopg2://mlflow:{quote(PASSWORD, safe='')}@postgre:5432/mlflow"
        options = ["--backend-store-uri", uri, "--default-artifact-root", f"s3://{BUCKET}/artifacts"]
        self.container = api.create_container(
            target.inspect("server")["Image"],
            entrypoint=["mlflow", "server"],
            # One worker: uvicorn ends each of several that takes 5 s to start, which a busy machine does.
            command=[*options, "--no-serve-artifacts", "--host", "0.0.0.0", "--workers", "1"],
            environment=DATA_KEYS,
            ports=[5000],
            labels={"tests.old": found.network},
            host_config=api.create_host_config(port_bindings={5000: ("127.0.0.1", self.port)}),
            networking_config=api.create_networking_config(
                {found.network: api.create_endpoint_config()}  # type: ignore[arg-type]
            ),
        )["Id"]
        found.containers.append(self.container)
        api.start(self.container)
        deadline = time.monotonic() + 120
        while not found.sql("SELECT to_regclass('public.experiments')"):
            assert time.monotonic() < deadline, found.daemon.logs(self.container)
            time.sleep(0.5)
        self.ready()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def ready(self) -> None:
        deadline = time.monotonic() + 120
        while self.services.daemon.run(self.container, ["python", "-c", HEALTHY])[0]:
            assert time.monotonic() < deadline, self.services.daemon.logs(self.container)
            time.sleep(0.5)

    def fill(self) -> None:
        client(self.url, "fill", *FILL, **self.services.variables)

    def told(self) -> Any:  # noqa: ANN401 - JSON
        return told(self.url, **self.services.variables)

    def fingerprint(self) -> str:
        """Return a hash of the content of the old database."""
        # Not the statistics of Postgres, which it updates up to a minute later.
        return self.services.sql("SELECT md5(schema_to_xml('public', true, false, '')::text)")


HEALTHY = "import urllib.request as r; r.urlopen('http://127.0.0.1:5000/health', timeout=2)"


@pytest.fixture(scope="module")
def old(target: Deployment, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Old]:
    folder = tmp_path_factory.mktemp("old")
    with services(target.name("old"), folder) as found:
        server = Old(target, found, folder)
        server.fill()
        keep_secrets(server.url)
        yield server


NEWER = "UPDATE alembic_version SET version_num = 'ffffffffffff'"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"MLFLOW_BACKEND_STORE_URI": "postgresql://mlflow:wrong@postgre/mlflow"}, "password authentication failed"),
        ({"MLFLOW_BACKEND_STORE_URI": "postgresql://mlflow:x@no-such-host/mlflow"}, "could not translate host name"),
        ({"MLFLOW_S3_ENDPOINT_URL": "http://minio:9001"}, "connection refused"),
        ({"MLFLOW_ARTIFACT_ROOT": None, "AWS_SECRET_ACCESS_KEY": None}, "AWS_SECRET_ACCESS_KEY: is missing"),
        ({"AWS_SECRET_ACCESS_KEY": "wrong"}, "SignatureDoesNotMatch"),
        ({"AWS_ACCESS_KEY_ID": "lister"}, "its files can be listed, but not read"),
        ({"MLFLOW_BACKEND_STORE_URI": "mysql://mlflow:x@postgre/mlflow"}, "only Postgres, SQLite and a folder can"),
    ],
    ids=["password", "host", "endpoint", "half", "key", "no reading", "mysql"],
)
def test_a_source_that_cannot_be_read_is_refused_with_its_reason(
    changes: dict[str, str | None], words: str, target: Deployment, old: Old
) -> None:
    since = target.inspect("server")["State"]["StartedAt"]
    done = target.make("import", ok=False, SOURCE=str(env_file(old.folder, **changes)))
    assert words in said(done)
    assert "Traceback" not in said(done)
    for secret in (PASSWORD, SECRET_KEY, *DATA_KEYS.values()):
        assert secret not in said(done)
    assert target.inspect("server")["State"]["StartedAt"] == since


GATEWAY, WEBHOOKS = DATA_KEYS
WRONG_KEYS = {GATEWAY: "wrong" * 8, WEBHOOKS: "A" * 43 + "="}
NONE_OF_ITS_OWN = {GATEWAY: None, WEBHOOKS: None}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            WRONG_KEYS,
            (
                f"{GATEWAY} does not decrypt 1 of 1 secrets of the AI gateway in the old database",
                f"{WEBHOOKS} does not decrypt 1 of 1 secrets of webhooks in the old database",
            ),
        ),
        (
            NONE_OF_ITS_OWN,
            (
                f"MLflow's default for {GATEWAY} does not decrypt 1 of 1 secrets of the AI gateway",
                f"the old database has 1 secrets of webhooks; set {WEBHOOKS} of the old server",
            ),
        ),
    ],
    ids=["wrong", "missing"],
)
def test_a_data_key_that_is_wrong_or_missing_is_refused_before_anything_changes(
    changes: dict[str, str | None], words: tuple[str, str], target: Deployment, old: Old
) -> None:
    since = target.inspect("server")["State"]["StartedAt"]
    done = target.make("import", ok=False, SOURCE=str(env_file(old.folder, **changes)))
    for some in words:
        assert some in said(done)
    for secret in (PASSWORD, SECRET_KEY, *WRONG_KEYS.values()):
        assert secret not in said(done)
    assert target.inspect("server")["State"]["StartedAt"] == since


def test_a_database_that_mlflow_cannot_use_is_refused(target: Deployment, old: Old) -> None:
    uri = f"postgresql://mlflow:{quote(PASSWORD, safe='')}@postgre/postgres"
    done = target.make("import", ok=False, SOURCE=str(env_file(old.folder, MLFLOW_BACKEND_STORE_URI=uri)))
    assert "the old database is not one of MLflow's" in said(done)
    known = old.services.sql("SELECT version_num FROM alembic_version")
    old.services.sql(NEWER)
    try:
        done = target.make("import", ok=False, SOURCE=str(env_file(old.folder)))
        assert "has the schema ffffffffffff, which MLflow" in said(done)
        assert "a newer MLflow has migrated it" in said(done)
    finally:
        old.services.sql(f"UPDATE alembic_version SET version_num = '{known}'")


def test_a_role_that_may_not_read_a_table_is_refused_and_one_that_may_is_not(target: Deployment, old: Old) -> None:
    source = str(env_file(old.folder, MLFLOW_BACKEND_STORE_URI="postgresql://reader:reader@postgre/mlflow"))
    old.services.sql("CREATE ROLE reader LOGIN PASSWORD 'reader'")
    old.services.sql("GRANT SELECT ON ALL TABLES IN SCHEMA public TO reader")
    old.services.sql("REVOKE SELECT ON webhooks, secrets FROM reader")
    done = target.make("import", ok=False, SOURCE=source, DRY_RUN="1")
    assert re.search(r"the role of the old database may not read \w+, \w+", said(done)), said(done)
    assert "GRANT SELECT ON ALL SEQUENCES IN SCHEMA public TO <role>" in said(done)
    for kind in ("TABLES", "SEQUENCES"):
        old.services.sql(f"GRANT SELECT ON ALL {kind} IN SCHEMA public TO reader")
    target.make("import", SOURCE=source, DRY_RUN="1")


def test_a_bucket_that_is_missing_is_named(target: Deployment, old: Old) -> None:
    moved = "UPDATE experiments SET artifact_location = 's3://gone/' || experiment_id"
    back = f"UPDATE experiments SET artifact_location = 's3://{BUCKET}/artifacts/' || experiment_id"
    old.services.sql(moved)
    try:
        done = target.make("import", ok=False, SOURCE=str(env_file(old.folder)))
        assert re.search(r"gone: .*(NoSuchBucket|directory not found)", said(done), re.DOTALL)
    finally:
        old.services.sql(back)


def test_a_dry_run_says_what_becomes_of_each_prefix_and_changes_nothing(target: Deployment, old: Old) -> None:
    before, written = told(target.url), old.fingerprint()
    done = target.make("import", SOURCE=str(env_file(old.folder)), DRY_RUN="1")
    assert f"s3://{BUCKET}/artifacts -> mlflow-artifacts:/  (3 experiments.artifact_location" in said(done)
    assert re.search(rf"{BUCKET}/artifacts: 2\d file\(s\), .* to copy: 2\d", said(done))
    assert "estimated time to copy the artifacts" in said(done)
    assert told(target.url) == before
    assert old.fingerprint() == written


def test_an_import_is_equal_through_the_new_server_and_leaves_the_old_one_as_it_was(
    target: Deployment, old: Old
) -> None:
    before, written = old.told(), old.fingerprint()
    done = target.make("import", SOURCE=str(env_file(old.folder)))
    assert re.search(r"tables with \d+ rows are equal", said(done))
    # Without the keys of the old store.
    assert told(target.url) == before
    assert len(before["runs"]) == 6
    assert before["traces"]
    assert old.fingerprint() == written
    assert old.told() == before
    assert opened(target) == f"{GATEWAY_SECRET}\n{WEBHOOK_SECRET}"


OPENED = """
import os
for variable in ("CRYPTO_KEK_PASSPHRASE", "WEBHOOK_SECRET_ENCRYPTION_KEY"):
    name = variable.lower().replace("secret_", "").replace("_", "-")
    os.environ["MLFLOW_" + variable] = open("/run/secrets/" + name).read()
from mlflow.store.model_registry.sqlalchemy_store import SqlAlchemyStore as Registry
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore as Tracking
tracking = Tracking(os.environ["MLFLOW_BACKEND_STORE_URI"], "/tmp")
(secret,) = tracking.list_secret_infos()
(hook,) = Registry(os.environ["MLFLOW_BACKEND_STORE_URI"]).list_webhooks()
print(tracking._get_decrypted_secret(secret.secret_id)["api_key"], hook.secret, sep="\\n")
"""


def opened(target: Deployment) -> str:
    """Return the secrets of the gateway and of the webhook, as MLflow decrypts them with the data keys of the stack."""
    command = ("env", "PGPASSFILE=/run/mlflow/pgpass", "python", "-W", "ignore", "-c", OPENED)
    code, printed = target.run("server", *command)
    assert code == 0, printed
    # Below messages of MLflow.
    return "\n".join(printed.splitlines()[-2:])


@pytest.mark.long
def test_data_of_the_stack_are_replaced_only_by_name_and_after_a_backup(target: Deployment, old: Old) -> None:
    client(target.url, "fill", *FILL)
    target.make("backup")
    own = told(target.url)
    done = target.make("import", ok=False, SOURCE=str(env_file(old.folder)))
    assert "This replaces 6 runs, 2 experiments" in said(done)
    assert f"CONFIRM={target.stack}" in said(done)
    assert told(target.url) == own
    done = target.make("import", SOURCE=str(env_file(old.folder)), CONFIRM=target.stack)
    assert "taking a backup" in said(done)
    assert told(target.url) == old.told()
    target.make("restore", FROM="latest", CONFIRM=target.stack)
    assert told(target.url) == own
    target.make("import", SOURCE=str(env_file(old.folder)), CONFIRM=target.stack)


def test_a_second_import_copies_only_what_is_new(target: Deployment, old: Old) -> None:
    old.fill()
    done = target.make("import", SOURCE=str(env_file(old.folder)))
    assert re.search(r"to copy: (2\d|30), ", said(done)), said(done)
    assert told(target.url) == old.told()


def test_a_server_that_starts_after_a_killed_import_has_the_previous_data(target: Deployment, old: Old) -> None:
    before = told(target.url)
    old.fill()
    source = str(env_file(old.folder))
    with target.begun(
        lambda line: "migrating the database" in line, "import", f"SOURCE={source}", f"CONFIRM={target.stack}"
    ) as running:
        os.killpg(running.pid, signal.SIGKILL)
        running.wait()
    # The imported tables are in use now, and the previous ones are kept aside.
    count = ("psql", "-U", "postgres", "-d", "mlflow", "-Atc", "SELECT count(*) FROM before_import.experiments")
    code, printed = target.run("postgres", *count)
    assert code == 0, printed
    assert int(printed) > 0
    # As an import that was killed a moment earlier, whose container then ended by itself.
    target.api.create_container(
        target.inspect("backup")["Image"],
        name=target.name(names.IMPORT),
        entrypoint=["true"],
        labels={names.STACK_LABEL: target.stack},
    )
    target.make("up")
    assert target.name(names.IMPORT) not in target.containers()
    assert target.run("postgres", *count)[0] != 0
    assert "an import was not completed; the previous data are in use again" in (
        target.api.logs(target.name("server")).decode()
    )
    assert told(target.url) == before
    assert opened(target) == f"{GATEWAY_SECRET}\n{WEBHOOK_SECRET}"


@pytest.fixture
def with_users(target: Deployment) -> Iterator[Deployment]:
    """The stack with MLflow's own users."""
    before = target.file.read_text()
    target.set("authentication", "mlflow")
    target.make("up")
    # Its command differs from that of a stack without users.
    assert b"serve: starting a new process" not in target.api.logs(target.name("server"))
    yield target
    target.file.write_text(before)
    target.make("up")


CREATE_USERS = """
import sqlite3, sys
from mlflow.server.auth.sqlalchemy_store import SqlAlchemyStore
store = SqlAlchemyStore()
store.init_db("sqlite:////tmp/basic_auth.db")
store.create_user("admin", "old-admin-password", is_admin=True)
store.create_user("ängström", "old-user-password", is_admin=False)
store.create_user("bob", "old-bob-password", is_admin=False)
store.create_experiment_permission(sys.argv[1], "bob", "DENY")
sys.stdout.buffer.write(open("/tmp/basic_auth.db", "rb").read())
"""


def asked(target: Deployment, path: str, user: str, password: str) -> int:
    url = f"{target.url}/api/2.0/mlflow/{path}"
    headers = {"Authorization": basic(user, password)["Authorization"]}
    return urllib3.request("GET", url, headers=headers, retries=False).status


KEPT = "gone:/=keep,/tmp/mlruns=keep"
CREATE_RUNS = """
import sys
import mlflow
mlflow.set_tracking_uri("sqlite:////tmp/mlflow.db")
experiment = mlflow.create_experiment("in a file", artifact_location="gone:/x")
with mlflow.start_run(experiment_id=experiment):
    mlflow.log_metric("loss", 1)
sys.stdout.buffer.write(open("/tmp/mlflow.db", "rb").read())
"""


def written(target: Deployment, path: Path, script: str, *arguments: str) -> Path:
    """Write the file that a script prints that runs in the server's container."""
    command = ["docker", "exec", target.name("server"), "python", "-W", "ignore", "-c", script, *arguments]
    path.write_bytes(subprocess.run(command, capture_output=True, check=True).stdout)
    return path


def imported_with_users(target: Deployment, users: Path, experiment: str, source: Path, where: str = "") -> None:
    """Import, and check that bob must not read an experiment, while others may, each with the old password."""
    before = digests(users.parent)
    done = target.make("import", SOURCE=str(source), USERS=str(users), CONFIRM=target.stack, MAP=where)
    assert re.search(r" 3 users\b", said(done))
    assert digests(users.parent) == before
    search, get = "experiments/search?max_results=1", f"experiments/get?experiment_id={experiment}"
    assert asked(target, get, "ängström", "old-user-password") == 200
    assert asked(target, search, "ängström", "another-password") == 401
    assert asked(target, get, "bob", "old-bob-password") == 403
    assert asked(target, search, "admin", "old-admin-password") == 401
    assert asked(target, get, "admin", target.make("password").stdout.strip()) == 200


def test_users_in_a_file_of_their_own_keep_their_passwords_and_permissions(
    with_users: Deployment, tmp_path: Path
) -> None:
    source = written(with_users, tmp_path / "mlflow.db", CREATE_RUNS)
    done = with_users.make("import", SOURCE=str(source), MAP=KEPT, DRY_RUN="1", CONFIRM=with_users.stack)
    assert "no users are imported, and the stack keeps its own" in said(done)
    users = written(with_users, tmp_path / "basic_auth.db", CREATE_USERS, "1")
    with closing(sqlite3.connect(users)) as file:
        # As in a file that MLflow before 3.6 has created.
        file.execute("CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL)")
        file.execute("INSERT INTO alembic_version VALUES ('8606fa83a998')")
        file.commit()
    imported_with_users(with_users, users, "1", source, KEPT)


@pytest.mark.long
def test_users_beside_an_old_postgres_keep_their_passwords_and_permissions(
    with_users: Deployment, old: Old, tmp_path: Path
) -> None:
    experiment = next(number for number, (_, stage, _) in old.told()["experiments"].items() if stage == "active")
    users = written(with_users, tmp_path / "basic_auth.db", CREATE_USERS, experiment)
    imported_with_users(with_users, users, experiment, env_file(old.folder))
    variables = {
        "MLFLOW_TRACKING_USERNAME": "admin",
        "MLFLOW_TRACKING_PASSWORD": with_users.make("password").stdout.strip(),
    }
    assert told(with_users.url, **variables) == old.told()


CREATE_OLD_USERS = """
import os
from mlflow.server import get_app_client
client = get_app_client("basic-auth", tracking_uri=os.environ["MLFLOW_TRACKING_URI"])
client.create_user("alice", "alice-secret-password")
if hasattr(client, "create_experiment_permission"):
    client.create_experiment_permission("0", "alice", "MANAGE")
"""


@pytest.mark.long
# Before version 3.6, users cannot be in the database of the runs: both have the same table for their revision.
@pytest.mark.parametrize(("version", "file"), [("2.22.1", "basic_auth.db"), ("3.14.0", "mlflow.db")])
def test_users_of_an_old_version_are_migrated(version: str, file: str, with_users: Deployment, tmp_path: Path) -> None:
    (tmp_path / "auth.ini").write_text(AUTH_INI.replace("mlflow.db", file))
    users = "" if file == "mlflow.db" else str(tmp_path / file)
    options = ["--backend-store-uri", "sqlite:///mlflow.db", "--app-name", "basic-auth", "--workers", "1"]
    administrator = {"MLFLOW_TRACKING_USERNAME": "admin", "MLFLOW_TRACKING_PASSWORD": "old-admin-password"}
    variables = {"MLFLOW_AUTH_CONFIG_PATH": str(tmp_path / "auth.ini"), "MLFLOW_FLASK_SERVER_SECRET_KEY": "x"}
    server = OldServer(version, tmp_path, options, variables | administrator)
    with server.running():
        server.client("fill", *FILL)
        python = str(environment_of(version) / "bin" / "python")
        environment = {**os.environ, **administrator, "MLFLOW_TRACKING_URI": server.url}
        subprocess.run([python, "-W", "ignore", "-c", CREATE_OLD_USERS], env=environment, check=True)
    source = str(tmp_path / "mlflow.db")
    artifacts = str(tmp_path / "mlartifacts")
    with_users.make("import", SOURCE=source, CONFIRM=with_users.stack, USERS=users, ARTIFACTS=artifacts)
    get, password = "experiments/get?experiment_id=0", with_users.make("password").stdout.strip()
    assert asked(with_users, get, "alice", "alice-secret-password") == 200
    assert asked(with_users, get, "admin", "old-admin-password") == 401
    assert asked(with_users, get, "admin", password) == 200
    # Left out, the stack keeps the users that it has.
    with_users.make("import", SOURCE=source, CONFIRM=with_users.stack, USERS="none", ARTIFACTS=artifacts)
    assert asked(with_users, get, "alice", "alice-secret-password") == 200


AUTH_INI = """[mlflow]
default_permission = READ
database_uri = sqlite:///mlflow.db
admin_username = admin
admin_password = old-admin-password
authorization_function = mlflow.server.auth:authenticate_request_basic_auth
"""


def test_a_stack_without_mlflow_users_refuses_to_import_them(target: Deployment, old: Old, tmp_path: Path) -> None:
    users = str(written(target, tmp_path / "basic_auth.db", CREATE_USERS, "0"))
    done = target.make("import", ok=False, SOURCE=str(env_file(old.folder)), USERS=users)
    assert "set mlflow:authentication: mlflow" in said(done)


@pytest.mark.long
def test_an_import_whose_migration_fails_leaves_the_stack_as_it_was(target: Deployment, old: Old) -> None:
    before = told(target.url)
    known = old.services.sql("SELECT version_num FROM alembic_version")
    # The first revision: its migrations would create tables that exist.
    old.services.sql("UPDATE alembic_version SET version_num = '451aebb31d03'")
    try:
        # Other tests have imported other data, which this import replaces.
        done = target.make("import", ok=False, SOURCE=str(env_file(old.folder)), CONFIRM=target.stack)
        assert "the previous tables of the stack are in use again" in said(done)
    finally:
        old.services.sql(f"UPDATE alembic_version SET version_num = '{known}'")
    assert told(target.url) == before
    target.make("import", SOURCE=str(env_file(old.folder)), CONFIRM=target.stack)


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "server.log"
    }


def filled(server: OldServer, *, registry: bool = True) -> Any:  # noqa: ANN401 - JSON
    with server.running():
        server.client("fill", *LONG_FILL, *([] if registry else ["without a registry"]))
        return server.told()


def check(target: Deployment, server: OldServer, before: Any, source: Path) -> str:  # noqa: ANN401
    """Import an old deployment, and compare it through the new server, with an old client and a new one."""
    done = said(target.make("import", SOURCE=str(source), CONFIRM=target.stack))
    assert server.told(target.url, {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}) == before
    new = told(target.url)
    assert {key: new[key] for key in before} == before
    assert len(before["runs"]) == 22
    return done


@pytest.mark.long
def test_a_compose_set_up_of_2_9_whose_clients_use_the_store_themselves(target: Deployment, tmp_path: Path) -> None:
    with services(target.name("old-2-9"), tmp_path) as found:
        uri = f"postgresql://mlflow:{quote(PASSWORD, safe='')}@127.0.0.1:{found.ports['postgre']}/mlflow"
        options = ["--backend-store-uri", uri, "--default-artifact-root", f"s3://{BUCKET}/artifacts"]
        server = OldServer("2.9.2", tmp_path, options, found.variables)
        before = filled(server)
        (tmp_path / "docker-compose.yml").write_text(COMPOSE)
        done = check(target, server, before, env_file(tmp_path))
        assert "mlflow:hostname: mlflow.example.com" in done
        with server.running():
            assert server.told() == before


COMPOSE = """
services:
  mlflow:
    command: mlflow server --backend-store-uri ${MLFLOW_BACKEND_STORE_URI} --host 0.0.0.0 --port ${MLFLOW_PORT}
    labels:
      - traefik.enable=true
      - traefik.http.routers.mlflow.rule=Host(`mlflow.example.com`)
      - traefik.http.routers.mlflow.entrypoints=websecure
      - traefik.http.routers.mlflow.tls.certresolver=cloudflare
      - traefik.http.routers.mlflow.middlewares=authelia@docker,secureHeaders@docker
    networks: [shared-network]
networks:
  shared-network:
    external: true
"""


@pytest.mark.long
def test_sqlite_and_a_local_folder_of_2_22(target: Deployment, tmp_path: Path) -> None:
    options = ["--backend-store-uri", "sqlite:///mlflow.db", "--default-artifact-root", "./mlruns"]
    server = OldServer("2.22.1", tmp_path, [*options, "--no-serve-artifacts"], {})
    before = filled(server)
    files = digests(tmp_path)
    check(target, server, before, tmp_path / "mlflow.db")
    assert digests(tmp_path) == files


@pytest.mark.long
def test_postgres_and_served_artifacts_of_3_14(target: Deployment, tmp_path: Path) -> None:
    with services(target.name("old-3-14"), tmp_path) as found:
        port = found.ports["postgre"]
        uri = f"postgresql://mlflow:{quote(PASSWORD, safe='')}@127.0.0.1:{port}/mlflow"
        options = ["--backend-store-uri", uri, "--artifacts-destination", f"s3://{BUCKET}/served", "--workers", "1"]
        server = OldServer("3.14.0", tmp_path, options, found.variables)
        before = filled(server)
        source = env_file(
            tmp_path,
            # As published on this host.
            MLFLOW_BACKEND_STORE_URI=f'"{uri}"',
            MLFLOW_ARTIFACT_ROOT=None,
            MLFLOW_ARTIFACTS_DESTINATION=f"s3://{BUCKET}/served",
            MLFLOW_S3_ENDPOINT_URL=found.variables["MLFLOW_S3_ENDPOINT_URL"],
        )
        check(target, server, before, source)
        with server.running():
            assert server.told() == before


@pytest.mark.long
def test_a_file_store_of_1_30(target: Deployment, tmp_path: Path) -> None:
    folder = tmp_path / "mlruns"
    options = ["--backend-store-uri", "./mlruns", "--default-artifact-root", str(folder)]
    server = OldServer("1.30.1", tmp_path, options, {})
    before = filled(server, registry=False)
    for run in before["runs"].values():
        # A database of MLflow stores the largest number for an infinite one.
        for key, points in run["metrics"].items():
            run["metrics"][key] = [
                [step, at, value.replace("inf", repr(sys.float_info.max))] for step, at, value in points
            ]
        if run["experiment"] == "2":
            # The old server does not find the artifacts of a deleted experiment, because it has moved them.
            assert run["artifacts"] == {}
            (moved,) = (folder / ".trash" / "2").glob("*/artifacts")
            run["artifacts"] = digests(moved)
    files = digests(folder)
    check(target, server, before, folder)
    assert digests(folder) == files


@pytest.mark.long
def test_an_import_that_is_killed_anywhere_completes_when_it_is_typed_again(target: Deployment, old: Old) -> None:
    source = str(env_file(old.folder))
    began = time.monotonic()
    target.make("import", SOURCE=source, CONFIRM=target.stack)
    whole = time.monotonic() - began
    chosen, killed = random.Random(27), 0
    for number in range(KILLS):
        old.fill()
        with subprocess.Popen(
            ["make", "-s", "import"],
            cwd=target.checkout,
            env={**target.environment, "SOURCE": source, "CONFIRM": target.stack},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        ) as running:
            # Up to nine tenths of the time, because the last one must not be too late on a machine that is faster now.
            time.sleep(0.9 * whole * (number + chosen.random()) / KILLS)
            os.killpg(running.pid, signal.SIGKILL)
        killed += running.returncode == -signal.SIGKILL
        if number % 2:
            # Its container as well, at the same moment.
            subprocess.run(
                ["docker", "kill", names.docker_name(target.stack, names.IMPORT)], capture_output=True, check=False
            )
        deadline = time.monotonic() + 120
        while (container := target.api.containers(filters={"name": f"^/{target.name(names.IMPORT)}$"})) and (
            time.monotonic() < deadline
        ):
            time.sleep(0.5)
        assert not container
        target.make("import", SOURCE=source, CONFIRM=target.stack)
        assert told(target.url) == old.told()
        assert opened(target) == f"{GATEWAY_SECRET}\n{WEBHOOK_SECRET}"
        target.make("status")
    assert killed >= KILLS / 2, "most of the imports ended before they were killed"
