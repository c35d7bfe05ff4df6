"""Test what `make import` reads from an old deployment, and what becomes of the locations of its artifacts."""

import base64
import contextlib
import importlib.util
import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, Self

import pytest
from cryptography.fernet import Fernet
from mlflow.utils import crypto

from operations.common.console import StopError
from operations.importing import importing, locations, reach, source
from operations.importing.compose import Compose
from operations.importing.locations import Mapped, Places
from operations.importing.report import Plan, report
from settings import names

IMPORT = Path(__file__).parents[2] / "assets" / "import"
URI = "postgresql://mlflow:pass%40word@postgre:5432/mlflow"
ENV = f"""
# The old deployment.
BUCKET=mlflow
MLFLOW_BACKEND_STORE_URI="{URI}"
MLFLOW_ARTIFACT_ROOT = s3://${{BUCKET}}/artifacts
export MLFLOW_S3_ENDPOINT_URL='http://minio:9000'

AWS_ACCESS_KEY_ID=minio
AWS_SECRET_ACCESS_KEY='a secret #key'
MLFLOW_PORT=5000
OTHER=ignored
"""
COMPOSE = """
services:
  postgre:
    image: postgres:15
  mlflow:
    command: >
      sh -c "mlflow server --backend-store-uri ${MLFLOW_BACKEND_STORE_URI}
      --artifacts-destination=s3://${BUCKET}/artifacts --host 0.0.0.0 --port ${MLFLOW_PORT:-5000}"
    volumes:
      - ./runs:/mlruns
      - named:/var
    labels:
      - traefik.enable=true
      - traefik.http.routers.mlflow.rule=Host(`mlflow.example.com`) && PathPrefix(`/`)
      - traefik.http.routers.mlflow.entrypoints=websecure
      - traefik.http.routers.mlflow.tls.certresolver=cloudflare
      - traefik.http.routers.mlflow.middlewares=authelia@docker,secureHeaders@docker
networks:
  proxy:
    external: true
    name: shared-network
"""


@pytest.fixture(autouse=True)
def without_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*source.VARIABLES, "SOURCE", "ARTIFACTS", "MAP", "USERS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def env(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / ".env"
    path.write_text(ENV)
    monkeypatch.setenv("SOURCE", str(path))
    return path


def test_an_env_file_is_read_with_quotes_spaces_and_variables(env: Path) -> None:
    assert env.exists()
    found = source.read("dev")
    assert found.postgres == source.Postgres("postgre", 5432, "mlflow", "mlflow", "pass@word")
    assert found.artifact_root == "s3://mlflow/artifacts"
    assert found.s3 == source.S3("http://minio:9000", "minio", "a secret #key")
    assert found.port == 5000


def test_a_folder_with_an_env_file_stands_for_the_file(env: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE", str(env.parent))
    assert source.read("dev").artifact_root == "s3://mlflow/artifacts"


def test_no_password_is_in_the_text_of_a_source(env: Path) -> None:
    assert env.exists()
    assert "pass@word" not in repr(source.read("dev"))
    assert "#key" not in repr(source.read("dev"))


def test_the_compose_file_beside_it_completes_the_variables(env: Path) -> None:
    (env.parent / "docker-compose.yml").write_text(COMPOSE)
    found = source.read("dev")
    assert found.destination == "s3://mlflow/artifacts"
    assert found.compose.route == {
        "hostname": "mlflow.example.com",
        "authentication": "singleSignOn",
        "traefik": {
            "mode": "existing",
            "network": "shared-network",
            "entryPoint": "websecure",
            "certResolver": "cloudflare",
            "middlewares": ["authelia@docker", "secureHeaders@docker"],
            "singleSignOn": "authelia@docker",
        },
    }
    assert found.compose.on_host("/mlruns/1") == f"{env.parent}/runs/1"
    assert found.compose.on_host("./x") == f"{env.parent}/x"


def test_the_file_of_the_users_is_found_by_the_configuration_of_the_old_server(env: Path) -> None:
    assert source.read("dev").users == ""
    config = env.parent / "auth.ini"
    env.write_text(f"{ENV}MLFLOW_AUTH_CONFIG_PATH=auth.ini\n")
    (env.parent / "users").mkdir()
    (env.parent / "users" / "basic_auth.db").touch()
    for uri in ("sqlite:///users/basic_auth.db", "sqlite+pysqlite:///users/basic_auth.db?timeout=5"):
        config.write_text(f"[mlflow]\ndefault_permission = READ\ndatabase_uri = {uri}\n")
        assert source.read("dev").users == f"{env.parent}/users/basic_auth.db"
    for uri in (URI, URI.replace("postgresql:", "postgresql+psycopg2:").replace(":5432", "")):
        config.write_text(f"[mlflow]\ndatabase_uri = {uri}\n")
        assert source.read("dev").users == "", "they are in the database of the runs"


def test_users_in_the_sqlite_file_of_the_runs_are_no_file_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sqlite3.connect(tmp_path / "mlflow.db").execute("CREATE TABLE users (id)").connection.close()
    (tmp_path / "auth.ini").write_text("[mlflow]\ndatabase_uri = sqlite:///mlflow.db\n")
    (tmp_path / ".env").write_text("MLFLOW_BACKEND_STORE_URI=sqlite:///mlflow.db\nMLFLOW_AUTH_CONFIG_PATH=auth.ini\n")
    monkeypatch.setenv("SOURCE", str(tmp_path / ".env"))
    found = source.read("dev")
    assert (found.file, found.users) == (f"{tmp_path}/mlflow.db", "")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "auth.ini: No such file or directory"),
        ("[mlflow]\ndatabase_uri = postgresql://a:secret@other/users\n", "the users are in another database"),
        ("[other]\n", "has no database_uri in a section"),
        ("admin_password = secret@word\n[mlflow]\n", "has no database_uri in a section"),
        ("[mlflow]\nsecret@line without a value\n", "has no database_uri in a section"),
        ("[mlflow]\ndatabase_uri = sqlite:///gone.db\n", "there is no file .*/gone.db on this machine"),
    ],
)
def test_users_that_are_not_found_are_reported_with_a_way_out(
    env: Path, content: str | None, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    env.write_text(f"{ENV}MLFLOW_AUTH_CONFIG_PATH=auth.ini\n")
    if content:
        (env.parent / "auth.ini").write_text(content)
    with pytest.raises(StopError, match=words) as caught:
        source.read("dev")
    assert "USERS=none" in str(caught.value)
    assert "secret@" not in str(caught.value)
    monkeypatch.setenv("USERS", "none")
    assert (source.read("dev").users, source.read("dev").without_users) == ("", True)
    sqlite3.connect(env.parent / "basic_auth.db").execute("CREATE TABLE users (id)").connection.close()
    monkeypatch.setenv("USERS", str(env.parent / "basic_auth.db"))
    assert source.read("dev").users == f"{env.parent}/basic_auth.db"
    monkeypatch.setenv("USERS", str(env.parent / "gone.db"))
    with pytest.raises(StopError, match=r"USERS=.*/gone\.db: there is no such file"):
        source.read("dev")
    for other in (env, env.parent):
        monkeypatch.setenv("USERS", str(other))
        with pytest.raises(StopError, match=r"USERS=.*: is not an SQLite file"):
            source.read("dev")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"MLFLOW_BACKEND_STORE_URI": None}, "MLFLOW_BACKEND_STORE_URI: is missing"),
        ({"MLFLOW_BACKEND_STORE_URI": "mysql+pymysql://a:b@c/d"}, "mysql+pymysql: cannot be imported"),
        ({"MLFLOW_BACKEND_STORE_URI": "postgresql://a:b@host:port/d"}, "is not a valid URL"),
        ({"MLFLOW_BACKEND_STORE_URI": "postgresql://host"}, "has no database, no user"),
        ({"AWS_SECRET_ACCESS_KEY": None}, "AWS_SECRET_ACCESS_KEY: is missing"),
        ({"MLFLOW_S3_ENDPOINT_URL": "minio:9000"}, "must be such as http://minio:9000"),
        ({"MLFLOW_PORT": "five"}, "must be a port number (got five)"),
    ],
)
def test_a_wrong_variable_is_named(
    changes: dict[str, str | None], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values: dict[str, str | None] = {
        "MLFLOW_BACKEND_STORE_URI": URI,
        "MLFLOW_ARTIFACT_ROOT": "s3://mlflow/artifacts",
        "AWS_ACCESS_KEY_ID": "minio",
        "AWS_SECRET_ACCESS_KEY": "secret",
    }
    path = tmp_path / "old.env"
    path.write_text("".join(f"{key}={value}\n" for key, value in (values | changes).items() if value))
    monkeypatch.setenv("SOURCE", str(path))
    with pytest.raises(StopError, match="nothing was changed") as error:
        source.read("dev")
    assert words in str(error.value)


def test_all_problems_of_an_env_file_are_reported_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "half.env"
    path.write_text("MLFLOW_ARTIFACT_ROOT=s3://mlflow\n")
    monkeypatch.setenv("SOURCE", str(path))
    with pytest.raises(StopError) as error:
        source.read("dev")
    for name in ("MLFLOW_BACKEND_STORE_URI", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        assert f"{name}: is missing" in str(error.value)


def test_a_password_in_source_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE", URI)
    with pytest.raises(StopError, match="other users of this host can read") as error:
        source.read("dev")
    assert "pass" not in str(error.value).replace("has a password", "")


def test_without_source_the_variables_of_the_environment_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StopError, match=r"SOURCE= is not set.*\n.*make import STACK=team SOURCE=<path>"):
        source.read("team")
    monkeypatch.setenv("MLFLOW_BACKEND_STORE_URI", URI)
    assert source.read("team").postgres is not None


def test_a_file_of_sqlite_and_a_folder_of_runs_are_recognized(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    database, runs = tmp_path / "data" / "store", tmp_path / "mlruns"
    database.parent.mkdir()
    with sqlite3.connect(database) as session:
        session.execute("CREATE TABLE runs (id)")
    (runs / "0").mkdir(parents=True)
    monkeypatch.setenv("SOURCE", str(database))
    assert (source.read("dev").file, source.read("dev").is_file_store) == (str(database), False)
    monkeypatch.setenv("SOURCE", str(runs))
    assert (source.read("dev").file, source.read("dev").is_file_store) == (str(runs), True)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("http://127.0.0.1:5000", "is the address of a server"),
        ("text", "is neither an SQLite file nor a folder of runs"),
    ],
)
def test_a_source_of_another_kind_is_refused(
    given: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "text").write_text("import mlflow\nprint(1)\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SOURCE", given)
    with pytest.raises(StopError, match=words):
        source.read("dev")


def test_the_error_of_an_unusual_url_does_not_print_its_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE", "postgresql://mlflow:hidden\u2100@host/mlflow")
    with pytest.raises(StopError) as error:
        source.read("dev")
    assert "hidden" not in str(error.value)


def test_a_missing_env_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE", str(tmp_path / "none.env"))
    with pytest.raises(StopError, match="there is no such file"):
        source.read("dev")


@pytest.fixture(scope="module")
def prefixes() -> Iterator[Any]:
    spec = importlib.util.spec_from_file_location("prefixes", IMPORT / "prefixes.py")
    assert spec
    assert spec.loader
    sys.modules["prefixes"] = loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    yield loaded
    del sys.modules["prefixes"]


RUN = "0123456789abcdef0123456789abcdef"


def test_locations_are_counted_by_the_prefix_of_their_experiment(prefixes: Any) -> None:  # noqa: ANN401
    found = prefixes.Prefixes()
    found.add_experiments(
        [(0, "s3://mlflow/artifacts/0"), (12, "s3://mlflow/artifacts/12"), (3, "s3://own/place"), (4, None)]
    )
    found.add(
        "runs.artifact_uri",
        [f"s3://mlflow/artifacts/12/{RUN}/artifacts", f"s3://own/place/{RUN}/artifacts", f"/mlruns/7/{RUN}/artifacts"],
    )
    found.add("model_versions.source", [f"s3://mlflow/artifacts/0/{RUN}/artifacts/model", f"runs:/{RUN}/model", None])
    found.add("logged_models.artifact_location", [f"/mlruns/7/models/m-{RUN}/artifacts"])
    assert {prefix: dict(rows) for prefix, rows in found.rows.items()} == {
        "s3://mlflow/artifacts": {
            "experiments.artifact_location": 2,
            "runs.artifact_uri": 1,
            "model_versions.source": 1,
        },
        "s3://own/place": {"experiments.artifact_location": 1, "runs.artifact_uri": 1},
        "/mlruns": {"runs.artifact_uri": 1, "logged_models.artifact_location": 1},
    }


def test_both_lists_of_locations_are_equal(prefixes: Any) -> None:  # noqa: ANN401
    assert prefixes.LOCATIONS == locations.LOCATIONS


def places(main: str = "", destination: str = "", **given: str) -> Places:
    return Places(main, destination, given, lambda path: path if path.startswith("/") else f"/beside/{path}")


def targets(found: list[Mapped]) -> dict[str, tuple[str | None, str]]:
    return {entry.prefix: (entry.place, entry.new) for entry in found}


ROWS = {"runs.artifact_uri": 2}


def test_the_main_place_goes_to_the_top_and_others_below_imported() -> None:
    known = ["s3://mlflow/artifacts", "s3://own/place", "/mlruns", "mlflow-artifacts:", "s3://mlflow/artifacts/sub"]
    found = locations.mapped(dict.fromkeys(known, ROWS), places("s3://mlflow/artifacts", "s3://mlflow/artifacts"))
    assert targets(found) == {
        "s3://mlflow/artifacts": ("mlflow/artifacts", "mlflow-artifacts:/"),
        "s3://own/place": ("own/place", "mlflow-artifacts:/imported/own/place"),
        "/mlruns": ("/mlruns", "mlflow-artifacts:/imported/mlruns"),
        "mlflow-artifacts:": ("mlflow/artifacts", "mlflow-artifacts:/"),
        "s3://mlflow/artifacts/sub": ("mlflow/artifacts/sub", "mlflow-artifacts:/sub"),
    }
    assert [move["source"] for move in locations.moves(found)] == ["/mlruns", "mlflow/artifacts", "own/place"]


@pytest.mark.parametrize(
    ("prefix", "place"),
    [
        ("file:///home/me/ml%20runs", "/home/me/ml runs"),
        ("file:/home/me", "/home/me"),
        ("./mlruns", "/beside/./mlruns"),
        ("mlruns", "/beside/mlruns"),
        ("mlflow-artifacts://old:5000", "mlflow/artifacts"),
        ("mlflow-artifacts:/team", "mlflow/artifacts/team"),
    ],
)
def test_every_form_of_a_location_has_its_place(prefix: str, place: str) -> None:
    found = locations.mapped({prefix: ROWS}, places(destination="s3://mlflow/artifacts"))
    assert found[0].place == place


def test_what_cannot_be_mapped_is_named_before_anything_is_written() -> None:
    with pytest.raises(StopError) as error:
        locations.mapped({"dbfs:/databricks/mlflow": ROWS, "mlflow-artifacts:": ROWS, "s3://a": ROWS}, places())
    assert "dbfs:/databricks/mlflow (2 runs.artifact_uri): dbfs: cannot be read from here" in str(error.value)
    assert "mlflow-artifacts: (2 runs.artifact_uri): the old server stored these files itself" in str(error.value)
    assert "s3://a (" not in str(error.value)


def test_an_experiment_without_anything_in_it_is_served_by_the_stack_wherever_its_place_was() -> None:
    """Such as the default one of a server that began in a folder that is gone, or in a container."""
    gone = Places("", "", {"/kept": "keep"}, str, exists=lambda folder: folder == "/there")
    alone = {"experiments.artifact_location": 1}
    prefixes = {"/tmp/mlruns": alone, "/there": ROWS, "mlflow-artifacts:": alone, "/kept": alone}  # noqa: S108
    found = locations.mapped(prefixes, gone)
    assert targets(found) == {
        "/tmp/mlruns": (None, "mlflow-artifacts:/imported/tmp/mlruns"),  # noqa: S108
        "/there": ("/there", "mlflow-artifacts:/"),
        "mlflow-artifacts:": (None, "mlflow-artifacts:/"),
        "/kept": (None, "/kept"),
    }
    assert [move["source"] for move in locations.moves(found)] == ["/there"], "there is nothing else to copy"
    rewritten = locations.rewriting(found, {"experiments": ["artifact_location"]})
    assert "= '/tmp/mlruns' THEN 'mlflow-artifacts:/imported/tmp/mlruns'" in rewritten
    assert "/kept" not in rewritten


def test_map_names_a_place_or_keeps_a_prefix() -> None:
    given = locations.parsed_map("dbfs:/=keep, /mlruns=/home/me/mlruns")
    found = locations.mapped({"dbfs:/x": ROWS, "/mlruns": ROWS}, places(**given))
    assert targets(found) == {
        "dbfs:/x": (None, "dbfs:/x"),
        "/mlruns": ("/home/me/mlruns", "mlflow-artifacts:/"),
    }
    for wrong in ("/mlruns", "/mlruns=keeep", "=/home"):
        with pytest.raises(StopError, match="must be prefix=place"):
            locations.parsed_map(wrong)


def test_a_prefix_in_map_must_occur() -> None:
    asked = Places("", "", {"/mlrun": "/home/me"}, str, asked=frozenset({"/mlrun"}))
    with pytest.raises(StopError, match=r"MAP=/mlrun=...: no location begins so; the prefixes are: /mlruns"):
        locations.mapped({"/mlruns": ROWS}, asked)


@pytest.mark.parametrize("start", ["/home/me/special", "file:///home/me/special"])
def test_map_names_a_folder_with_or_without_its_scheme(start: str) -> None:
    found = locations.mapped({"file:///home/me/special": ROWS}, places(**{start: "/elsewhere"}))
    assert found[0].place == "/elsewhere"


def test_a_folder_that_does_not_exist_is_named_with_the_way_out() -> None:
    gone = Places("", "", {}, str, exists=lambda folder: folder != "/gone")
    with pytest.raises(StopError) as error:
        locations.mapped({"file:///gone": ROWS, "/there": ROWS}, gone)
    assert "file:///gone (2 runs.artifact_uri): there is no folder /gone on the Docker host" in str(error.value)
    assert "MAP=<prefix>=<place>" in str(error.value)


def test_a_file_store_copies_only_artifacts_and_those_of_deleted_experiments() -> None:
    found = locations.mapped({"/runs": ROWS}, places())
    moves = locations.moves(found, file_store="/runs")
    assert [(move["source"], move["target"]) for move in moves] == [("/runs", ""), ("/runs/.trash", "")]
    assert all(move["filters"] == list(locations.FILE_STORE) for move in moves)


def test_rewriting_changes_whole_prefixes_only_and_the_longest_first() -> None:
    known = ["s3://mlflow/artifacts", "s3://mlflow/artifacts/own's", "mlflow-artifacts://old:5000"]
    found = locations.mapped(dict.fromkeys(known, ROWS), places("s3://mlflow/artifacts", "s3://other/served"))
    sql = locations.rewriting(found, {"experiments": ["artifact_location"], "trace_tags": ["key", "value"]})
    session = sqlite3.connect(":memory:")
    session.execute("CREATE TABLE experiments (artifact_location)")
    session.execute("CREATE TABLE trace_tags (key, value)")
    before = {
        "s3://mlflow/artifacts": "mlflow-artifacts:/imported/mlflow/artifacts",
        "s3://mlflow/artifacts/1": "mlflow-artifacts:/imported/mlflow/artifacts/1",
        "s3://mlflow/artifacts2/1": "s3://mlflow/artifacts2/1",
        "s3://mlflow/artifacts/own's/1": "mlflow-artifacts:/imported/mlflow/artifacts/own's/1",
        "mlflow-artifacts://old:5000/3": "mlflow-artifacts:/3",
        "mlflow-artifacts://old:5000": "mlflow-artifacts:/",
    }
    session.executemany("INSERT INTO experiments VALUES (?)", [(location,) for location in before])
    tags = [("mlflow.artifactLocation", "s3://mlflow/artifacts/1"), ("note", "s3://mlflow/artifacts/1")]
    session.executemany("INSERT INTO trace_tags VALUES (?, ?)", tags)
    session.executescript(sql)
    assert [row[0] for row in session.execute("SELECT artifact_location FROM experiments")] == list(before.values())
    assert [row[0] for row in session.execute("SELECT value FROM trace_tags")] == [
        "mlflow-artifacts:/imported/mlflow/artifacts/1",
        "s3://mlflow/artifacts/1",
    ]
    session.close()


def container(name: str, networks: dict[str, list[str]], ports: dict[str, str] | None = None, **labels: str) -> Any:  # noqa: ANN401
    return {
        "Name": f"/{name}",
        "Config": {"Hostname": name[:12], "Labels": {key.replace("_", "."): value for key, value in labels.items()}},
        "NetworkSettings": {
            "Networks": {
                network: {"Aliases": aliases, "IPAddress": "172.17.0.9"} for network, aliases in networks.items()
            },
            "Ports": {inside: [{"HostPort": outside}] for inside, outside in (ports or {}).items()},
        },
    }


def daemon(*containers: Any) -> Any:  # noqa: ANN401
    return SimpleNamespace(
        api=SimpleNamespace(containers=lambda: [{"Id": number} for number in range(len(containers))]),
        inspect=lambda number: containers[number],
    )


def test_an_alias_of_a_compose_service_is_reached_through_its_network() -> None:
    found = reach.reach(daemon(container("old-postgre-1", {"old_default": ["postgre"]})), "postgre", 5432, None)
    assert found == reach.Address("postgre", 5432, "old_default")


class Session:
    """A session of Postgres and its cursor: what was executed, and one answer."""

    def __init__(self, answer: tuple[str | None] | None) -> None:
        self.answer = answer
        self.executed: list[str] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def cursor(self) -> Self:
        return self

    def execute(self, statement: str, _values: object = ()) -> None:
        self.executed.append(statement)

    def fetchone(self) -> tuple[str | None] | None:
        return self.answer


@pytest.mark.parametrize(
    ("comment", "moved"),
    [(None, []), ("still in use: users experiment_permissions", ["users", "experiment_permissions"])],
)
def test_a_server_takes_the_tables_back_that_a_killed_import_has_kept(comment: str | None, moved: list[str]) -> None:
    spec = importlib.util.spec_from_file_location("take_back", IMPORT.parents[1] / "mlflow" / "take_back.py")
    assert spec
    assert spec.loader
    script: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    session = Session((comment,))
    assert script.take_back(session)
    assert session.executed[0].startswith("SELECT pg_advisory_xact_lock"), "two replicas start at the same time"
    assert session.executed[2:] == [
        *(f'ALTER TABLE IF EXISTS public."{table}" SET SCHEMA before_import' for table in moved),
        "DROP SCHEMA public CASCADE; ALTER SCHEMA before_import RENAME TO public",
    ]
    nothing = Session(None)
    assert not script.take_back(nothing)
    assert not [statement for statement in nothing.executed if "DROP" in statement]
    assert 'MOVED = "still in use: "' in (IMPORT / "loading.py").read_text()


def test_a_new_copy_of_the_runs_keeps_the_copy_of_the_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE", str(tmp_path / "mlflow.db"))
    monkeypatch.setenv("WORK", str(tmp_path / "work"))
    monkeypatch.syspath_prepend(str(IMPORT))
    monkeypatch.setenv("FILES", str(tmp_path))
    for name in ("psycopg2", "psycopg2.extras"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    spec = importlib.util.spec_from_file_location("from_sqlite", IMPORT / "from_sqlite.py")
    assert spec
    assert spec.loader
    script: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    monkeypatch.setattr(script, "_copy", lambda: None)
    monkeypatch.setattr(script, "_migrate", lambda: None)
    script.prepare()
    for name in ("source.db", "users/source.db", "files/left"):
        (tmp_path / "work" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "work" / name).touch()
    script.prepare()
    assert [str(path.relative_to(tmp_path / "work")) for path in (tmp_path / "work").rglob("*")] == [
        "users",
        "users/source.db",
    ]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"services: {a: 1, a: of-a-secret}", ":1: the key a is there twice; remove one of the two"),
        (b"services: 'of-a-secret", ":1: cannot be read as YAML: found unexpected end of stream"),
        ("services: é".encode("latin-1"), ": is not UTF-8"),
    ],
)
def test_a_compose_file_that_cannot_be_read_is_refused_without_its_values(
    tmp_path: Path, content: bytes, words: str
) -> None:
    file = tmp_path / "docker-compose.yml"
    file.write_bytes(content)
    with pytest.raises(StopError) as caught:
        Compose.beside(tmp_path / ".env", {})
    assert str(caught.value) == f"{file}{words}"


def test_what_the_old_deployment_got_and_lost_meanwhile_is_told_apart(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SOURCE", "/old/.env")
    stack: Any = SimpleNamespace(name="team", settings=SimpleNamespace(route=SimpleNamespace(url="http://team")))
    compared = {"artifacts": 1, "artifact_bytes": 100}
    report(stack, {"runs": 5}, compared, {"metrics": 7, "runs": -2}, (10, 5))
    told = capsys.readouterr().out
    assert "1 artifacts, 100 B" in told
    assert "the old deployment has more by now, which is not imported: 7 metrics\n" in told
    assert "the old deployment has fewer by now, and team has them still: 2 runs\n" in told
    assert "make import SOURCE=/old/.env STACK=team" in told
    report(stack, {"runs": 5}, compared, {}, (10, 5))
    assert "by now" not in capsys.readouterr().out


def test_a_container_that_is_removed_meanwhile_is_not_considered() -> None:
    running = daemon(None, container("old-postgre-1", {"old_default": ["postgre"]}))
    assert reach.reach(running, "postgre", 5432, None) == reach.Address("postgre", 5432, "old_default")


def test_localhost_is_reached_through_the_network_of_the_container_that_publishes_the_port() -> None:
    published = container("db", {"old_default": ["db"]}, {"5432/tcp": "15432"})
    assert reach.reach(daemon(published), "127.0.0.1", 15432, None) == reach.Address("172.17.0.9", 5432, "old_default")
    on_bridge = container("db", {"bridge": []}, {"5432/tcp": "15432"})
    assert reach.reach(daemon(on_bridge), "localhost", 15432, None) == reach.Address("172.17.0.9", 5432, "bridge")
    assert reach.reach(daemon(), "localhost", 5432, None) == reach.Address(reach.OUTSIDE, 5432)


@pytest.mark.parametrize("more", [["/data/a-b", "s3://data/a-b"], ["s3://data/a-b/c"]], ids=["equal", "one in another"])
def test_places_whose_folders_would_be_the_same_get_different_ones(more: list[str]) -> None:
    known = ["/data/a b", *more, "/data/a-b-c"]
    found = {
        entry.prefix: entry.target for entry in locations.mapped(dict.fromkeys(known, ROWS), places("/none", "/none"))
    }
    assert len(set(found.values())) == len(known)
    for one in found.values():
        assert not any(other.startswith(f"{one}/") for other in found.values())
    assert found["/data/a-b-c"] == "imported/data/a-b-c"


def test_a_name_that_several_containers_have_is_refused() -> None:
    both = daemon(container("a-db-1", {"a": ["db"]}), container("b-db-1", {"b": ["db"]}))
    with pytest.raises(StopError, match=r"db: several containers have this name \(a-db-1, b-db-1\)"):
        reach.reach(both, "db", 5432, None)


def test_the_container_of_the_same_compose_project_is_preferred(tmp_path: Path) -> None:
    ours = container("b-db-1", {"b": ["db"]})
    ours["Config"]["Labels"][reach.FOLDER] = str(tmp_path)
    both = daemon(container("a-db-1", {"a": ["db"]}), ours)
    assert reach.reach(both, "db", 5432, tmp_path).network == "b"


def test_what_was_written_during_the_copy_is_not_replaced_unseen(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[str] = []
    monkeypatch.setattr(importing, "in_container", lambda _, verb: taken.append(verb))
    stack: Any = SimpleNamespace(name="team")
    plan: Any = SimpleNamespace(found={"own": {"runs": 1}, "used": True})
    importer: Any = SimpleNamespace(ask=lambda _: {"runs": 3, "webhooks": 1})
    with pytest.raises(StopError, match="was used during the copy, and has 2 runs, 1 webhooks that would be lost"):
        importing._back_up(stack, plan, importer)
    assert taken == []
    importer.ask = lambda _: {"runs": 1}
    importing._back_up(stack, plan, importer)
    assert taken == ["safety"]


def test_a_disk_without_room_for_the_copy_is_refused_before_anything_changes() -> None:
    stack: Any = SimpleNamespace(name="team")
    found = {"free_bytes": 5 * 2**30, "bytes": 1 * 2**30, "own": {}, "used": False}
    sizes = [{"missing_bytes": 2 * 2**30}]
    with pytest.raises(
        StopError, match=r"5\.4 GB are free on the Docker host, 6\.4 GB are needed\n  nothing was changed"
    ):
        importing._approve(stack, Plan(found, [], [], sizes))
    importing._approve(stack, Plan(found | {"free_bytes": 7 * 2**30}, [], [], sizes))


def test_the_generator_of_a_secret_is_the_inverse_of_its_key() -> None:
    for key in ("cryptoKekPassphrase", "webhookEncryptionKey"):
        assert names.key_of(names.generator_of(key)) == key


def test_a_compose_file_without_mlflow_says_nothing(tmp_path: Path) -> None:
    (tmp_path / "compose.yaml").write_text("services: {web: {image: nginx}}\n")
    assert Compose.beside(tmp_path / ".env", {}).variables == {}


def test_every_value_is_tried_with_the_data_key_of_the_old_server(tmp_path: Path) -> None:
    wrapped = [
        (crypto.wrap_dek(bytes(32), crypto.KEKManager(passphrase, version).get_kek()).hex(), version)
        for passphrase, version in (("right", 1), ("right", 2), ("wrong", 1))
    ]
    right, wrong = Fernet.generate_key(), Fernet.generate_key()
    secrets = [(Fernet(key).encrypt(b"of a webhook").hex(), 1) for key in (right, wrong, wrong)]
    (tmp_path / "values.json").write_text(json.dumps({"cryptoKekPassphrase": wrapped, "webhookEncryptionKey": secrets}))
    (tmp_path / "cryptoKekPassphrase.old").write_text("right")

    def tried() -> object:
        environment = {**os.environ, "FILES": str(tmp_path), "VALUES": str(tmp_path / "values.json")}
        command = [sys.executable, "-W", "ignore", str(IMPORT / "old_keys.py")]
        return json.loads(subprocess.run(command, env=environment, check=True, capture_output=True).stdout)

    assert tried() == {"cryptoKekPassphrase": 1}
    (tmp_path / "webhookEncryptionKey.old").write_bytes(right)
    assert tried() == {"cryptoKekPassphrase": 1, "webhookEncryptionKey": 2}
    (tmp_path / "webhookEncryptionKey.old").write_text("not a key of Fernet")
    assert tried() == {"cryptoKekPassphrase": 1, "webhookEncryptionKey": 3}


def test_a_data_key_as_in_a_stack_file_is_used_as_mlflow_gets_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_BACKEND_STORE_URI", URI)
    monkeypatch.setenv("MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY", "a" * 32)
    monkeypatch.delenv("SOURCE", raising=False)
    key = source.read("team").keys["webhookEncryptionKey"]
    assert base64.urlsafe_b64decode(key) == b"a" * 32


def test_a_failed_import_says_which_data_the_stack_has(capsys: pytest.CaptureFixture[str]) -> None:
    stack: Any = SimpleNamespace(name="team")
    for finishing, recovered, words in (
        (False, True, "team has its previous data"),
        (False, False, "team has its previous data"),
        (True, True, "team has its previous data"),
        (True, False, "team has the data of the old deployment; only the report is lost"),
    ):
        importer: Any = SimpleNamespace(ask=lambda *_, answer=recovered, **__: answer)
        importing._take_back(stack, importer, finishing=finishing)
        assert words in capsys.readouterr().err

    def fails(*_: object, **__: object) -> bool:
        raise StopError("the database does not answer")

    broken: Any = SimpleNamespace(ask=fails)
    with pytest.raises(
        StopError, match=r"(?s)does not answer.*has no server.*same import again, or: make up STACK=team"
    ):
        importing._take_back(stack, broken, finishing=False)


@pytest.mark.parametrize(
    ("sample", "seconds"),
    [
        ({}, 0),
        ({"sample_files": 10, "sample_seconds": 0.5, "sample_bytes": 0}, 1.5),
        # One large file among small ones: 400 MB at 40 MB/s.
        ({"sample_files": 29, "sample_seconds": 0.29, "sample_bytes": 4e6, "sample_byte_seconds": 0.1}, 10.3),
        ({"sample_files": 0, "sample_bytes": 4e6, "sample_byte_seconds": 0.1}, 10),
    ],
    ids=["no files", "small files", "one large file", "large files"],
)
def test_the_estimate_counts_files_and_bytes_apart(sample: dict[str, float], seconds: float) -> None:
    size = {"missing": 30, "missing_bytes": 400e6, **sample}
    assert Plan({}, [], [], [size]).seconds == pytest.approx(seconds)


def test_the_secret_of_a_deleted_webhook_is_not_imported() -> None:
    origin: Any = SimpleNamespace(postgres=None, keys={})
    found = {"encrypted": {}, "columns": {}, "webhooks": True}
    with contextlib.closing(sqlite3.connect(":memory:")) as session:
        session.execute("CREATE TABLE webhooks (secret TEXT, deleted_timestamp INTEGER)")
        session.execute("INSERT INTO webhooks VALUES ('of a deleted one', 1), ('in use', NULL)")
        session.executescript(importing._sql(origin, found, []))
        assert session.execute("SELECT secret FROM webhooks").fetchall() == [(None,), ("in use",)]
    assert importing._sql(origin, {**found, "webhooks": False}, []) == ""
