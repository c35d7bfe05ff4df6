"""Test the scripts of the images and of the checkout, with stand-ins for the programs that they call."""

import hashlib
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.request
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ENTRYPOINT = ROOT / "mlflow" / "docker-entrypoint.sh"
START = ROOT / "assets" / "postgres" / "start.sh"
BOOTSTRAP = ROOT / "assets" / "minio" / "bootstrap.sh"
WEED_BOOTSTRAP = ROOT / "assets" / "seaweedfs" / "bootstrap.sh"
TRIM = ROOT / "mlflow" / "trim.sh"
BUILD = ROOT / "offline" / "images" / "build.sh"
INSTALL = ROOT / "operations" / "bootstrap.sh"


class Sandbox:
    """A folder with secrets, a private folder, and programs that record how they were called."""

    def __init__(self, path: Path) -> None:
        self.path = path
        for name in ("secrets", "private", "metrics", "bin", "scratch"):
            (path / name).mkdir()
        self.calls = path / "calls"
        self.environment = {
            # The virtual environment of the tests has the packages of the images.
            "PATH": f"{path / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}",
            "STACK": "prod",
            "SECRETS": str(path / "secrets"),
            "PRIVATE": str(path / "private"),
            "METRICS": str(path / "metrics"),
            "CONFIG": str(path / "config"),
            "TMPDIR": str(path / "scratch"),
        }

    def secret(self, name: str, content: str) -> None:
        (self.path / "secrets" / name).write_text(content)

    def program(self, name: str, body: str = "") -> None:
        file = self.path / "bin" / name
        file.write_text(f'#!/bin/bash\necho "{name} $*" >>{self.calls}\n{body}\n')
        file.chmod(0o755)

    def called(self) -> list[str]:
        return self.calls.read_text().splitlines() if self.calls.exists() else []

    def source(self, script: Path, commands: str, **more: str) -> subprocess.CompletedProcess[str]:
        return self.run("bash", "-c", f". {script}\n{commands}", **more)

    def run(self, *command: str, **more: str) -> subprocess.CompletedProcess[str]:
        environment = {**self.environment, **more}
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd=self.path)


@pytest.fixture
def sandbox(tmp_path: Path) -> Sandbox:
    return Sandbox(tmp_path)


def mlflow_secrets(sandbox: Sandbox) -> None:
    sandbox.secret("pgpass", "host:5432:mlflow:mlflow:pg-secret\n")
    sandbox.secret("aws-credentials", "aws_secret_access_key = aws-secret")
    sandbox.secret("crypto-kek-passphrase", "kek-secret")
    sandbox.secret("webhook-encryption-key", "webhook-secret")


# --- the MLflow image's entrypoint ---------------------------------------------------------------------------------


def test_the_server_gets_passwords_as_files_and_data_keys_as_variables(sandbox: Sandbox) -> None:
    mlflow_secrets(sandbox)
    sandbox.program("python", "env")
    done = sandbox.run("bash", str(ENTRYPOINT), "server")
    assert done.returncode == 0, done.stderr
    environment = dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)
    assert environment["MLFLOW_CRYPTO_KEK_PASSPHRASE"] == "kek-secret"
    assert environment["MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY"] == "webhook-secret"
    assert "pg-secret" not in done.stdout
    assert "aws-secret" not in done.stdout
    assert sandbox.called() == ["python /opt/mlflow-stack/serve.py"]


def test_a_server_with_mlflow_users_has_a_form_key_and_no_admin_password(
    sandbox: Sandbox,
) -> None:
    mlflow_secrets(sandbox)
    sandbox.secret("auth.ini", "[mlflow]")
    sandbox.program("python", "env")
    refused = sandbox.run("bash", str(ENTRYPOINT), "server", MLFLOW_AUTH_CONFIG_PATH="/run/secrets/auth.ini")
    assert refused.returncode == 1
    assert "flask-secret-key is missing or empty" in refused.stderr
    sandbox.secret("flask-secret-key", "flask-secret")
    sandbox.secret("admin-password", "admin-secret")
    done = sandbox.run("bash", str(ENTRYPOINT), "server", MLFLOW_AUTH_CONFIG_PATH="/run/secrets/auth.ini")
    assert done.returncode == 0, done.stderr
    assert "MLFLOW_FLASK_SERVER_SECRET_KEY=flask-secret" in done.stdout
    assert "admin-secret" not in done.stdout
    assert sandbox.called() == ["python /opt/mlflow-stack/serve.py --app-name basic-auth"]


def test_a_migration_sets_the_admin_password_after_the_schema(sandbox: Sandbox) -> None:
    mlflow_secrets(sandbox)
    sandbox.secret("admin-password", "admin-secret")
    sandbox.program("python", 'case "$*" in *migrate.py*) exit "${FAILS:-0}" ;; esac')
    uri = {"MLFLOW_BACKEND_STORE_URI": "postgresql+psycopg2://db"}
    locked = "python /opt/mlflow-stack/locked.py migrate"
    upgrade, admin = (f"{locked} python /opt/mlflow-stack/{script}.py" for script in ("migrate", "set_admin_password"))
    assert sandbox.run("bash", str(ENTRYPOINT), "migrate", **uri).returncode == 0
    assert sandbox.called() == [upgrade]
    users = {"MLFLOW_AUTH_CONFIG_PATH": "/run/secrets/auth.ini"}
    assert sandbox.run("bash", str(ENTRYPOINT), "migrate", **uri, **users, FAILS="3").returncode == 3
    assert sandbox.called() == [upgrade, upgrade]
    assert sandbox.run("bash", str(ENTRYPOINT), "migrate", **uri, **users).returncode == 0
    assert sandbox.called()[3] == admin


def health_check(answers: int, **variables: str) -> tuple[int, str]:
    """Run the health check against a server that answers with `answers`; return its exit code and its request."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        # If the health check sends no request, the test fails instead of waiting.
        server.settimeout(10)

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                asked.append(connection.recv(4096).decode())
                connection.sendall(f"HTTP/1.0 {answers} x\r\n\r\n".encode())

        asked: list[str] = []
        thread = threading.Thread(target=answer)
        thread.start()
        script = (ROOT / "mlflow" / "healthcheck.py").read_text()
        script = script.replace("PORT = 5000", f"PORT = {server.getsockname()[1]}")
        script = script.replace("/run/mlflow", variables.pop("private", "/nonexistent"))
        command = [sys.executable, "-c", script]
        done = subprocess.run(command, env={**os.environ, **variables}, capture_output=True, text=True, check=False)
        thread.join()
    return done.returncode, asked[0]


NEEDS_DATABASE = "GET /api/2.0/mlflow/experiments/search?max_results=1 "


@pytest.mark.parametrize(
    ("answers", "users", "code"),
    [(200, "", 0), (401, "", 1), (503, "", 1), (401, "x", 0), (200, "x", 1), (500, "x", 1)],
)
def test_the_health_check_requires_an_answer_that_needs_the_database(answers: int, users: str, code: int) -> None:
    found, asked = health_check(answers, MLFLOW_AUTH_CONFIG_PATH=users)
    assert found == code
    assert NEEDS_DATABASE in asked
    assert "Authorization: Basic " in asked


@pytest.mark.parametrize(("users", "ready"), [("", 200), ("x", 401)])
def test_on_a_cluster_a_server_that_was_ready_once_only_has_to_answer(tmp_path: Path, users: str, ready: int) -> None:
    """Swarm would stop every server while the database is away."""

    def checked(answers: int) -> tuple[int, bool]:
        code, asked = health_check(
            answers, MLFLOW_AUTH_CONFIG_PATH=users, HEALTHCHECK_LIVENESS="1", private=str(tmp_path)
        )
        return code, NEEDS_DATABASE in asked

    assert checked(503) == (1, True)
    assert checked(ready) == (0, True)
    assert checked(200) == (0, False)
    assert checked(500) == (1, False)


def test_on_one_host_every_health_check_needs_the_database(tmp_path: Path) -> None:
    for _ in range(2):
        code, asked = health_check(200, private=str(tmp_path))
        assert (code, NEEDS_DATABASE in asked) == (0, True)


HOSTILE = {
    "pip's": {
        "PIP_CONFIG_FILE": "[global]\nuser = true\n[install]\ntarget = /nonexistent\nprefix = /nonexistent\n",
        "PIP_USER": "1",
        "PIP_TARGET": "/nonexistent",
        "PIP_CONSTRAINT": "/nonexistent",
    },
    "Python's": {
        "PYTHONPATH": "{path}/evil",
        "PYTHONSAFEPATH": "1",
        "PYTHONHOME": "/nonexistent",
        "PYTHONSTARTUP": "/nonexistent",
        "PYTHONINSPECT": "1",
        "PYTHONWARNINGS": "error",
    },
    "the shell's and make's": {
        "CDPATH": "{path}/elsewhere",
        "MAKEFLAGS": "-j8 -k",
        "LC_ALL": "C",
        "LANG": "tr_TR.ISO-8859-9",
    },
}
"""User configuration, meant for other programs. None of the variables may have an effect."""


@pytest.fixture(scope="module")
def installed_over_a_half(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Run `bootstrap.sh` where an interrupted `venv` left its folder; return the new one, and what was printed."""
    sandbox = Sandbox(tmp_path_factory.mktemp("half"))
    (sandbox.path / "operations").mkdir()
    (sandbox.path / "operations" / "bootstrap.sh").write_text(INSTALL.read_text())
    (sandbox.path / "requirements.txt").write_text("")
    (sandbox.path / "Pulumi.prod.yaml").write_text("config: {}\n")
    # The state in which `venv` leaves the folder before it installs pip.
    half = sandbox.path / ".venv" / "bin" / "python"
    half.parent.mkdir(parents=True)
    half.symlink_to(sys.executable)
    home = f"home = {Path(sys.base_prefix) / 'bin'}\ninclude-system-site-packages = false\n"
    (sandbox.path / ".venv" / "pyvenv.cfg").write_text(home)
    done = sandbox.run("sh", "operations/bootstrap.sh", "url", PYTHON=sys.executable)
    return sandbox.path / ".venv", done.stderr


def test_an_incomplete_virtual_environment_is_created_again(installed_over_a_half: tuple[Path, str]) -> None:
    environment, printed = installed_over_a_half
    assert "No module named operations" in printed, printed
    assert (environment / "bin" / "pip").exists()


@pytest.fixture
def environment_of_tests(installed_over_a_half: tuple[Path, str]) -> Path:
    """Return a virtual environment with pip only, which each test copies: creating one takes seconds."""
    return installed_over_a_half[0]


def a_package(folder: Path) -> str:
    """Build a wheel with a program, and return the line of a lock file that installs it."""
    wheel = folder / "told-1.0-py3-none-any.whl"
    files = {
        "told.py": "def main():\n    print('of the environment')\n",
        "told-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: told\nVersion: 1.0\n",
        "told-1.0.dist-info/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "told-1.0.dist-info/entry_points.txt": "[console_scripts]\ntold = told:main\n",
    }
    with zipfile.ZipFile(wheel, "w") as content:
        for name, text in files.items():
            content.writestr(name, text)
        content.writestr("told-1.0.dist-info/RECORD", "".join(f"{name},,\n" for name in files))
    return f"told @ {wheel.as_uri()} --hash=sha256:{hashlib.sha256(wheel.read_bytes()).hexdigest()}\n"


@pytest.mark.parametrize("variables", HOSTILE.values(), ids=HOSTILE)
def test_user_configuration_does_not_affect_the_virtual_environment(
    tmp_path: Path, environment_of_tests: Path, variables: dict[str, str]
) -> None:
    checkout = tmp_path / "checkout"
    (checkout / "operations").mkdir(parents=True)
    (tmp_path / "elsewhere" / "operations").mkdir(parents=True)
    (tmp_path / "evil").mkdir()
    (tmp_path / "evil" / "sitecustomize.py").write_text("raise SystemExit('evil')")
    for name in ("Makefile", "operations/bootstrap.sh"):
        shutil.copy(ROOT / name, checkout / name)
    shutil.copytree(environment_of_tests, checkout / ".venv", symlinks=True)
    (checkout / "Pulumi.dev.yaml").write_text("config: {}\n")
    (checkout / "requirements.txt").write_text(a_package(tmp_path))
    (checkout / "requirements-dev.txt").write_text("# others\n")
    (checkout / "operations" / "__main__.py").write_text(
        "import os, sys; assert True; print(os.getcwd(), *sys.argv[1:])"
    )
    environment = {key: value.format(path=tmp_path) for key, value in variables.items()}
    if content := variables.get("PIP_CONFIG_FILE"):
        (tmp_path / "pip.conf").write_text(content)
        environment["PIP_CONFIG_FILE"] = str(tmp_path / "pip.conf")
    command = ["sh", "-c", "umask 077; exec make -s url"]
    kept = {key: os.environ[key] for key in ("PATH", "HOME") if key in os.environ}
    done = subprocess.run(
        command,
        cwd=checkout,
        env=kept | environment,
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{checkout} url\n"
    assert sorted(path.name for path in checkout.iterdir() if path.name in ("bin", "lib")) == []
    installed = subprocess.run([checkout / ".venv/bin/told"], capture_output=True, text=True, check=True, env=kept)
    assert installed.stdout == "of the environment\n"


def test_the_password_file_is_readable_by_its_owner_only(sandbox: Sandbox) -> None:
    mlflow_secrets(sandbox)
    done = sandbox.source(ENTRYPOINT, 'use_pgpass; stat -c %a "$PGPASSFILE"')
    assert done.stdout.strip() == "600"


@pytest.mark.parametrize("name", ["pgpass", "aws-credentials", "crypto-kek-passphrase", "webhook-encryption-key"])
@pytest.mark.parametrize("how", ["missing", "empty"])
def test_a_missing_or_empty_secret_is_named_and_nothing_starts(sandbox: Sandbox, name: str, how: str) -> None:
    mlflow_secrets(sandbox)
    sandbox.program("python")
    if how == "missing":
        (sandbox.path / "secrets" / name).unlink()
    else:
        sandbox.secret(name, "")
    done = sandbox.run("bash", str(ENTRYPOINT), "server")
    assert done.returncode == 1
    assert f"the secret {sandbox.path}/secrets/{name} is missing or empty" in done.stderr
    assert "make up" in done.stderr
    assert sandbox.called() == []


def test_no_secret_is_printed(sandbox: Sandbox) -> None:
    mlflow_secrets(sandbox)
    sandbox.program("python")
    done = sandbox.run("bash", str(ENTRYPOINT), "server")
    assert done.returncode == 0
    assert sandbox.called() == ["python /opt/mlflow-stack/serve.py"]
    assert "secret" not in done.stdout + done.stderr


def test_the_migration_gets_no_password_and_no_data_key_in_its_environment(sandbox: Sandbox) -> None:
    mlflow_secrets(sandbox)
    sandbox.program("python", "env")
    done = sandbox.run("bash", str(ENTRYPOINT), "migrate", MLFLOW_BACKEND_STORE_URI="postgresql+psycopg2://m@db/m")
    assert sandbox.called() == ["python /opt/mlflow-stack/locked.py migrate python /opt/mlflow-stack/migrate.py"]
    assert "PGPASSFILE=" in done.stdout
    assert "pg-secret" not in done.stdout
    assert "kek-secret" not in done.stdout


@pytest.mark.parametrize(
    ("rows", "upgrades"),
    [
        pytest.param([(None,)], True, id="an empty database"),
        pytest.param([("alembic_version",), None], True, id="a migration that only started"),
        pytest.param([("alembic_version",), ("older",)], True, id="an older schema"),
        pytest.param([("alembic_version",), ("newer",)], True, id="a newer schema, which MLflow refuses itself"),
        pytest.param([("alembic_version",), ("newest",)], False, id="the newest schema"),
    ],
)
def test_a_database_is_migrated_unless_it_has_the_newest_schema(
    sandbox: Sandbox, rows: list[tuple[str | None] | None], *, upgrades: bool
) -> None:
    (sandbox.path / "schema-revision").write_text("newest\n")
    script = f"""
import runpy, sys, types, unittest.mock, psycopg2
sys.modules["mlflow"], commands = types.ModuleType("mlflow"), types.ModuleType("mlflow.db")
sys.modules["mlflow.db"] = commands
commands.commands = lambda arguments, prog_name: print("called:", prog_name, *arguments)
psycopg2.connect = unittest.mock.MagicMock()
session = psycopg2.connect.return_value.__enter__.return_value
session.cursor.return_value.__enter__.return_value.fetchone.side_effect = {rows}
sys.prefix = {str(sandbox.path)!r}
runpy.run_path({str(ROOT / "mlflow" / "migrate.py")!r}, run_name="__main__")
"""
    uri = "postgresql+psycopg2://m@db/m"
    done = sandbox.run(sys.executable, "-c", script, MLFLOW_BACKEND_STORE_URI=uri)
    assert done.returncode == 0, done.stderr
    assert (f"called: mlflow db upgrade {uri}\n" in done.stdout) is upgrades
    assert ("is already at revision newest" in done.stdout) is not upgrades


@pytest.mark.parametrize(
    ("rows", "code"),
    [
        pytest.param([(None,), (None,), (None,), (None,)], 0, id="an empty database"),
        pytest.param([("there",), ("older",), (None,), (None,), (None,)], 0, id="an older schema"),
        pytest.param([("there",), ("newer",), (None,), (None,), (None,)], 1, id="a newer schema"),
        pytest.param([("there",), ("older",), ("there",), ("newer",), (None,), (None,)], 1, id="newer users"),
    ],
)
def test_a_database_of_a_newer_mlflow_is_refused_before_any_server_stops(
    sandbox: Sandbox, rows: list[tuple[str | None]], code: int
) -> None:
    for name in ("known-revisions", "users-known-revisions"):
        (sandbox.path / name).write_text("newest older first\n")
    script = f"""
import importlib.metadata, runpy, sys, unittest.mock, psycopg2
psycopg2.connect = unittest.mock.MagicMock()
connection = psycopg2.connect.return_value
connection.cursor.return_value.__enter__.return_value.fetchone.side_effect = [None, *{rows}]  # First: no killed import.
sys.path.insert(0, {str(ROOT / "mlflow")!r})
importlib.metadata.version = lambda _: "3.18.0"
sys.prefix = {str(sandbox.path)!r}
runpy.run_path({str(ROOT / "mlflow" / "verify_data_keys.py")!r}, run_name="__main__")
"""
    done = sandbox.run(sys.executable, "-c", script, MLFLOW_BACKEND_STORE_URI="postgresql+psycopg2://m@db/m")
    assert done.returncode == code, done.stderr
    said = r"the database has the schema revision newer \(alembic_version(_auth)?\), which MLflow 3.18.0 does not know"
    assert bool(re.search(said, done.stderr)) is bool(code), done.stderr


def test_garbage_collection_holds_the_lock_and_gets_no_data_key(sandbox: Sandbox) -> None:
    mlflow_secrets(sandbox)
    sandbox.program("python", "env")
    uri = "postgresql+psycopg2://m@db/m"
    done = sandbox.run("bash", str(ENTRYPOINT), "gc", "30d", MLFLOW_BACKEND_STORE_URI=uri)
    assert sandbox.called() == ["python /opt/mlflow-stack/locked.py gc python /opt/mlflow-stack/collect.py 30d"]
    assert "kek-secret" not in done.stdout


def test_gc_does_not_truncate_the_password_file_of_the_server(sandbox: Sandbox) -> None:
    mlflow_secrets(sandbox)
    read = 'use_pgpass; exec 3<"$PGPASSFILE"; echo later >"$SECRETS/pgpass"; use_pgpass; cat <&3; cat "$PGPASSFILE"'
    first, second = sandbox.source(ENTRYPOINT, read).stdout.splitlines()
    assert "pg-secret" in first
    assert second == "later"


def test_the_metrics_folder_is_empty_at_every_start(sandbox: Sandbox) -> None:
    (sandbox.path / "metrics" / "counter_7.db").write_text("of a dead process")
    done = sandbox.source(ENTRYPOINT, 'fresh_metrics_directory; ls -A "$MLFLOW_EXPOSE_PROMETHEUS" | wc -l')
    assert done.stdout.strip() == "0"


def test_metrics_are_served_only_with_a_metrics_port(sandbox: Sandbox) -> None:
    sandbox.program("python")
    sandbox.source(ENTRYPOINT, "serve_metrics; wait")
    assert sandbox.called() == []
    sandbox.source(ENTRYPOINT, "serve_metrics; wait", METRICS_PORT="5001")
    assert sandbox.called() == ["python /opt/mlflow-stack/metrics.py"]


def test_the_metrics_process_has_no_secret_in_its_environment(sandbox: Sandbox) -> None:
    mlflow_secrets(sandbox)
    sandbox.program("python", 'case "$*" in *metrics*) env >"$PRIVATE/environment" ;; *) sleep 1 ;; esac')
    done = sandbox.run("bash", str(ENTRYPOINT), "server", METRICS_PORT="5001")
    assert done.returncode == 0, done.stderr
    environment = (sandbox.path / "private" / "environment").read_text()
    assert "PROMETHEUS_MULTIPROC_DIR" in environment
    for value in ("kek-secret", "webhook-secret", "pg-secret", "aws-secret"):
        assert value not in environment


def test_metrics_include_requests_start_time_and_out_of_memory_kills(sandbox: Sandbox) -> None:
    count = "from prometheus_client import Counter; Counter('mlflow_http_request', 'x').inc(7)"
    folder = {"PROMETHEUS_MULTIPROC_DIR": str(sandbox.path / "private")}
    sandbox.run(sys.executable, "-c", count, **folder)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {**sandbox.environment, **folder, "METRICS_PORT": str(port)}
    with subprocess.Popen([sys.executable, ROOT / "mlflow" / "metrics.py"], env=environment) as serving:
        deadline = time.monotonic() + 10
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
                    told = answer.read().decode()
                break
            except OSError:
                assert time.monotonic() < deadline
                time.sleep(0.1)
        serving.terminate()
    assert "mlflow_http_request_total 7.0" in told
    assert "process_start_time_seconds" in told
    assert re.search(r"(?m)^mlflow_oom_kills \d+\.0$", told)


OOM = """
import sys
import runpy
check = runpy.run_path(sys.argv[1])
check["killed_since"].__globals__.update(OOM_FILES=(sys.argv[2],), LAST=sys.argv[3])
sys.exit(check["killed_since"]())
"""


@pytest.mark.parametrize("before", ["oom_kill_disable 0\nunder_oom 0\n", "low 0\nhigh 0\nmax 8\noom 1\n"])
def test_the_health_check_fails_once_for_each_out_of_memory_kill(sandbox: Sandbox, before: str) -> None:
    events, last = sandbox.path / "memory.events", sandbox.path / "last"

    def checked(kills: int, **variables: str) -> tuple[int, str]:
        events.write_text(f"{before}oom_kill {kills}\n")
        script = str(ROOT / "mlflow" / "healthcheck.py")
        done = sandbox.run(sys.executable, "-c", OOM, script, str(events), str(last), **variables)
        assert not done.stderr
        return done.returncode, done.stdout

    assert checked(0) == (0, "")
    told = "processes killed because memory ran out: 2; raise mlflow:server.memoryMb\n"
    # A run by `make status` tells it, and leaves the failure to Docker.
    assert checked(2, HEALTHCHECK_OBSERVES="1") == (0, told)
    assert checked(2) == (1, told)
    # An earlier kill is still reported, but does not fail the health check.
    assert checked(2) == (0, told)
    assert checked(3)[0] == 1
    # A container that was started again counts from zero.
    assert checked(0) == (0, "")
    assert checked(1)[0] == 1


def test_spooled_files_of_a_killed_server_are_removed(sandbox: Sandbox) -> None:
    (sandbox.path / "scratch" / "half").mkdir()
    (sandbox.path / "scratch" / "half" / "upload").write_text("x")
    sandbox.source(ENTRYPOINT, "empty_scratch")
    assert list((sandbox.path / "scratch").iterdir()) == []


def with_data_keys(sandbox: Sandbox) -> None:
    sandbox.secret("crypto-kek-passphrase", "the-kek-passphrase")
    sandbox.secret("webhook-encryption-key", "the-webhook-key")


@contextmanager
def started(sandbox: Sandbox, **more: str) -> Iterator[subprocess.Popen[bytes]]:
    """Start the entrypoint of a server whose program is a stand-in, and yield its process once that runs."""
    with_data_keys(sandbox)
    with (
        (sandbox.path / "said").open("wb") as said,
        subprocess.Popen(
            ["bash", "-c", f". {ENTRYPOINT}\nserve"], env=sandbox.environment | more, stderr=said
        ) as running,
    ):
        try:
            deadline = time.monotonic() + 10
            while not sandbox.called() and time.monotonic() < deadline:
                time.sleep(0.02)
            yield running
        finally:
            # Otherwise a failed assertion would wait for the stand-in for ever.
            running.kill()


def test_a_replica_leaves_the_balance_before_it_stops(sandbox: Sandbox) -> None:
    sandbox.program("python", "trap 'echo stopped >>$PRIVATE/end; exit 7' TERM; while :; do sleep 0.05; done")
    with started(sandbox, LEAVE_SECONDS="1") as running:
        begun, private = time.monotonic(), sandbox.path / "private"
        running.terminate()
        while not (private / "draining").exists():
            assert time.monotonic() - begun < 10, "the proxy is not told"
            time.sleep(0.02)
        # A second signal, as from an impatient person, does not shorten it.
        running.terminate()
        assert running.wait(10) == 7, "the exit code is the server's"
        assert time.monotonic() - begun >= 1
        told, stopped = (private / "draining").stat().st_mtime, (private / "end").stat().st_mtime
        assert stopped - told >= 0.9, "the server stopped while the proxy still sent requests"
    assert "the server stops in 1 s" in (sandbox.path / "said").read_text()


def test_a_task_serves_as_before_until_the_proxy_knows_the_one_that_replaces_it(sandbox: Sandbox) -> None:
    sandbox.program("python", "trap 'exit 0' TERM; while :; do sleep 0.05; done")
    with started(sandbox, LEAVE_SECONDS="1", STAY_SECONDS="1") as running:
        begun, draining = time.monotonic(), sandbox.path / "private" / "draining"
        running.terminate()
        while not draining.exists():
            assert running.poll() is None, "it stopped before the proxy was told"
            time.sleep(0.02)
        assert time.monotonic() - begun >= 0.9
        assert running.wait(10) == 0
        assert time.monotonic() - begun >= 1.9


def test_only_the_server_of_a_replica_has_the_data_keys(sandbox: Sandbox) -> None:
    sandbox.program("python", 'env >"$PRIVATE/server"')
    sandbox.program("sleep", 'env >"$PRIVATE/sleep"')
    with_data_keys(sandbox)
    done = sandbox.source(ENTRYPOINT, "serve_until_stopped & server=$!; wait; leave", LEAVE_SECONDS="1")
    private = sandbox.path / "private"
    assert "the-kek-passphrase" in (private / "server").read_text(), done.stderr
    assert "LEAVE_SECONDS=1" in (private / "sleep").read_text()
    assert "the-kek-passphrase" not in (private / "sleep").read_text()


def test_a_replica_that_ends_by_itself_ends_its_container(sandbox: Sandbox) -> None:
    sandbox.program("python", "exit 3")
    with started(sandbox, LEAVE_SECONDS="60") as running:
        assert running.wait(10) == 3


def test_a_replica_that_ends_before_it_is_watched_ends_with_its_exit_code(sandbox: Sandbox) -> None:
    # The stand-in for `kill` reports each process as gone, as after a server that ends at once.
    done = sandbox.source(
        ENTRYPOINT, "serve_until_stopped() { return 3; }; kill() { return 1; }; serve", LEAVE_SECONDS="1"
    )
    assert (done.returncode, done.stderr) == (3, "")


def test_a_replica_that_ends_while_it_leaves_ends_with_its_exit_code(sandbox: Sandbox) -> None:
    sandbox.program("python", "sleep 0.5; exit 7")
    with started(sandbox, LEAVE_SECONDS="1") as running:
        running.terminate()
        assert running.wait(10) == 7


def test_a_replica_starts_outside_the_balance(sandbox: Sandbox) -> None:
    for name in ("draining", "in-balance"):
        (sandbox.path / "private" / name).touch()
    sandbox.program("python")
    with_data_keys(sandbox)
    assert sandbox.source(ENTRYPOINT, "serve", LEAVE_SECONDS="1").returncode == 0
    assert not list((sandbox.path / "private").iterdir())


def test_a_single_server_is_the_first_process(sandbox: Sandbox) -> None:
    sandbox.program("python", "trap 'exit 0' TERM; while :; do sleep 0.05; done")
    with started(sandbox) as running:
        assert "docker-entrypoint" not in Path(f"/proc/{running.pid}/cmdline").read_text()
        running.terminate()
        assert running.wait(10) == 0
    assert not (sandbox.path / "private" / "draining").exists()


def test_any_other_command_runs_as_it_is(sandbox: Sandbox) -> None:
    assert sandbox.run("bash", str(ENTRYPOINT), "echo", "a b").stdout == "a b\n"


# --- Postgres ------------------------------------------------------------------------------------------------------


def postgres_programs(sandbox: Sandbox, *, psql: str = "") -> None:
    sandbox.program(
        "initdb", 'for a; do case $a in --pgdata=*) mkdir -p "${a#*=}"; echo 18 >"${a#*=}/PG_VERSION";; esac; done'
    )
    sandbox.program("pg_ctl")
    sandbox.program("psql", psql)
    sandbox.program("postgres")
    sandbox.secret("mlflow-password", "pg-secret")


def start(sandbox: Sandbox) -> subprocess.CompletedProcess[str]:
    return sandbox.run("bash", str(START), "-c", "max_connections=100", PGDATA=str(sandbox.path / "18" / "docker"))


def test_a_new_cluster_is_created_aside_and_then_moved(sandbox: Sandbox) -> None:
    postgres_programs(sandbox)
    done = start(sandbox)
    assert done.returncode == 0, done.stderr
    assert (sandbox.path / "18" / "docker" / "PG_VERSION").exists()
    assert not (sandbox.path / "18" / "docker.new").exists()
    assert f"--pgdata={sandbox.path}/18/docker.new" in sandbox.called()[0]
    assert "--auth-host=reject" in sandbox.called()[0]


def test_a_half_created_cluster_is_discarded(sandbox: Sandbox) -> None:
    postgres_programs(sandbox)
    half = sandbox.path / "18" / "docker.new"
    half.mkdir(parents=True)
    (half / "rubbish").write_text("x")
    assert start(sandbox).returncode == 0
    assert not (sandbox.path / "18" / "docker" / "rubbish").exists()


@pytest.mark.parametrize("left", ["docker.incoming", "docker.incoming.new"])
def test_an_incomplete_move_from_another_version_is_not_taken_for_an_empty_folder(sandbox: Sandbox, left: str) -> None:
    postgres_programs(sandbox)
    (sandbox.path / "18" / left).mkdir(parents=True)
    done = start(sandbox)
    assert done.returncode == 1
    assert "the move of the database to this Postgres version is not complete" in done.stderr
    assert not (sandbox.path / "18" / "docker").exists()


def test_a_database_that_a_server_has_used_is_no_longer_marked_as_unused(sandbox: Sandbox) -> None:
    postgres_programs(sandbox)
    unused = sandbox.path / "18" / "docker.moved"
    unused.parent.mkdir(parents=True)
    unused.touch()
    assert start(sandbox).returncode == 0
    assert not unused.exists()


def test_an_existing_cluster_is_not_initialized_again(sandbox: Sandbox) -> None:
    postgres_programs(sandbox)
    data = sandbox.path / "18" / "docker"
    data.mkdir(parents=True)
    (data / "PG_VERSION").write_text("18")
    done = start(sandbox)
    assert done.returncode == 0, done.stderr
    assert [call.split()[0] for call in sandbox.called()] == ["pg_ctl", "psql", "pg_ctl", "postgres"]


def test_a_data_folder_without_a_database_is_refused(sandbox: Sandbox) -> None:
    postgres_programs(sandbox)
    data = sandbox.path / "18" / "docker"
    data.mkdir(parents=True)
    (data / "precious").write_text("x")
    done = start(sandbox)
    assert done.returncode == 1
    assert "holds files but no PG_VERSION" in done.stderr
    assert (data / "precious").exists()


def test_roles_are_set_at_every_start_before_connections_are_accepted(sandbox: Sandbox) -> None:
    postgres_programs(sandbox)
    start(sandbox)
    steps = [call.split()[0] for call in sandbox.called()]
    assert steps == ["initdb", "pg_ctl", "psql", "pg_ctl", "postgres"]
    assert "listen_addresses=''" in sandbox.called()[1]
    assert sandbox.called()[-1] == "postgres -c max_connections=100"


def test_no_password_is_in_an_argument_or_a_log(sandbox: Sandbox) -> None:
    postgres_programs(sandbox)
    done = start(sandbox)
    assert sandbox.called()[-1].startswith("postgres"), done.stderr
    assert "pg-secret" not in done.stdout + done.stderr + "".join(sandbox.called())


def test_a_failure_to_set_roles_stops_the_server(sandbox: Sandbox) -> None:
    postgres_programs(sandbox, psql="exit 3")
    done = start(sandbox)
    assert done.returncode == 1
    assert "roles.sql failed" in done.stderr
    assert not any(call.startswith("postgres ") for call in sandbox.called())


def test_a_missing_postgres_secret_is_named(sandbox: Sandbox) -> None:
    postgres_programs(sandbox)
    (sandbox.path / "secrets" / "mlflow-password").unlink()
    assert "mlflow-password is missing or empty" in start(sandbox).stderr


# --- MinIO ---------------------------------------------------------------------------------------------------------


def bootstrap(sandbox: Sandbox, mc: str) -> subprocess.CompletedProcess[str]:
    sandbox.secret("mc-config.json", "{}")
    sandbox.secret("mlflow-secret-key", "minio-secret")
    sandbox.program("mc", mc)
    return sandbox.run(
        "sh", str(BOOTSTRAP), ENDPOINT="http://minio:9000", BUCKET="mlflow", MC_CONFIG_DIR=str(sandbox.path / "mc")
    )


REFUSES_DEFAULTS = (
    'case "$*" in *"ls default"*) exit 1;; *"user info"*) echo "{}";; *"user add"*) cat >/dev/null;; esac'
)


def test_creating_the_bucket_and_the_identity_is_idempotent(sandbox: Sandbox) -> None:
    done = bootstrap(sandbox, REFUSES_DEFAULTS)
    assert done.returncode == 0, done.stderr
    assert "mc --quiet mb --ignore-existing store/mlflow" in sandbox.called()
    assert "mc --quiet admin user add store" in sandbox.called()
    assert "mc --quiet admin policy attach store mlflow --user mlflow" in sandbox.called()


@pytest.mark.parametrize(
    "content", ["", "[2026-11-28 10:00:00 UTC]     0B artifacts/"], ids=["empty", "with artifacts"]
)
def test_no_bucket_is_created_beside_one_with_artifacts(sandbox: Sandbox, content: str) -> None:
    buckets = "case \"$*\" in *'ls store') echo '[2026-11-28 10:00:00 UTC]     0B before/';; "
    done = bootstrap(sandbox, f"{buckets} *'ls store/before/') echo '{content}' | grep . ;; esac; {REFUSES_DEFAULTS}")
    refused = "mc --quiet mb --ignore-existing store/mlflow" not in sandbox.called()
    assert refused is bool(content) is bool(done.returncode)
    assert ("go back to mlflow:objectStore.bucket: before, and type: make up" in done.stderr) is refused


def test_no_bucket_is_created_when_buckets_cannot_be_listed(sandbox: Sandbox) -> None:
    busy = "case \"$*\" in *'ls store') echo 'Please reduce your request rate' >&2; exit 1;; esac; "
    done = bootstrap(sandbox, busy + REFUSES_DEFAULTS)
    assert done.returncode == 1
    assert "reduce your request rate" in done.stderr
    assert not any(" mb " in call for call in sandbox.called())


def test_a_policy_that_is_attached_is_not_attached_again(sandbox: Sandbox) -> None:
    attached = REFUSES_DEFAULTS.replace('echo "{}"', """echo '{"policyName":"mlflow"}'""")
    done = bootstrap(sandbox, attached)
    assert done.returncode == 0, done.stderr
    assert any("admin user add" in call for call in sandbox.called())
    assert not any("policy attach" in call for call in sandbox.called())


def test_the_secret_key_is_in_no_argument(sandbox: Sandbox) -> None:
    done = bootstrap(sandbox, REFUSES_DEFAULTS)
    assert done.returncode == 0, done.stderr
    assert any("admin user add" in call for call in sandbox.called())
    assert "minio-secret" not in "".join(sandbox.called())


def test_an_object_store_that_accepts_the_default_credentials_fails_the_job(sandbox: Sandbox) -> None:
    done = bootstrap(sandbox, "exit 0")
    assert done.returncode == 1
    assert "accepts minioadmin:minioadmin" in done.stderr


@pytest.mark.parametrize("step", ["mb --ignore", "admin policy create", "admin user add", "admin policy attach"])
def test_every_step_that_fails_fails_the_job(sandbox: Sandbox, step: str) -> None:
    failing = f'case "$*" in *"{step}"*) exit 1;; esac\n{REFUSES_DEFAULTS}'
    assert bootstrap(sandbox, failing).returncode != 0


# --- build and installation -----------------------------------------------------------------------------------------


def test_trimming_the_image_keeps_s3_and_imported_modules(tmp_path: Path) -> None:
    site = tmp_path / "lib" / "python3.13" / "site-packages"
    for folder in (
        "botocore/data/s3", "botocore/data/sts", "botocore/data/ec2", "numpy/_core/tests", "numpy/testing",
        "pandas/tests/io", "mlflow/server/js", "pip", "pip-26.dist-info",
    ):  # fmt: skip
        (site / folder).mkdir(parents=True)
    (site / "botocore/data/endpoints.json").write_text("{}")
    (site / "mlflow/server/js/main.js.map").write_text("x")
    (site / "mlflow/server/js/main.js").write_text("x")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "pip3").write_text("x")
    subprocess.run(["sh", TRIM, tmp_path], check=True)
    left = {path.relative_to(site).as_posix() for path in site.rglob("*")}
    assert {"botocore/data/s3", "botocore/data/sts", "botocore/data/endpoints.json", "numpy/testing"} <= left
    assert "mlflow/server/js/main.js" in left
    gone = {"botocore/data/ec2", "numpy/_core/tests", "pandas/tests", "pip", "mlflow/server/js/main.js.map"}
    assert not gone & left


def test_an_old_python_is_refused_with_what_to_do(sandbox: Sandbox) -> None:
    sandbox.program("python3.8", 'case "$*" in -V) echo "Python 3.8.1";; *version_info*) exit 1;; esac')
    (sandbox.path / "operations").mkdir()
    (sandbox.path / "operations" / "bootstrap.sh").write_text(INSTALL.read_text())
    (sandbox.path / "requirements.txt").write_text("")
    done = sandbox.run("sh", "operations/bootstrap.sh", "url", PYTHON="python3.8")
    assert done.returncode == 1
    assert "needs Python 3.11 or newer, but python3.8 is Python 3.8.1" in done.stderr


def test_the_packages_are_installed_again_after_an_upgrade_of_python(sandbox: Sandbox) -> None:
    # With this one it would install them: so its error says that it wants to.
    sandbox.program("python3.8", 'case "$*" in -V) echo "Python 3.8.1";; *version_info*) exit 1;; esac')
    (sandbox.path / "operations").mkdir()
    (sandbox.path / "operations" / "bootstrap.sh").write_text(INSTALL.read_text())
    (sandbox.path / "requirements.txt").write_text("")
    folder = sandbox.path / ".venv" / "lib" / f"python3.{sys.version_info.minor}"
    folder.mkdir(parents=True)
    (sandbox.path / ".venv" / "bin").mkdir()
    (sandbox.path / ".venv" / "bin" / "python").symlink_to(sys.executable)
    (sandbox.path / ".venv" / "requirements.txt.installed").write_text("")
    done = sandbox.run("sh", "operations/bootstrap.sh", "url", PYTHON="python3.8")
    assert "No module named operations" in done.stderr, done.stderr
    # The link to the host's Python leads to a newer one now, and the packages are in the folder of the old one.
    folder.rename(folder.with_name("python3.1"))
    done = sandbox.run("sh", "operations/bootstrap.sh", "url", PYTHON="python3.8")
    assert "needs Python 3.11 or newer, but python3.8 is Python 3.8.1" in done.stderr


def test_a_missing_stack_file_is_reported_before_any_installation(sandbox: Sandbox) -> None:
    (sandbox.path / "operations").mkdir()
    (sandbox.path / "operations" / "bootstrap.sh").write_text(INSTALL.read_text())
    (sandbox.path / "requirements.txt").write_text("")
    for name in ("dev", "prod"):
        (sandbox.path / f"Pulumi.{name}.yaml").write_text("config: {}\n")
    done = sandbox.run("sh", "operations/bootstrap.sh", "url", PYTHON=sys.executable, STACK="acme")
    assert done.returncode == 1
    assert "error: STACK=acme: there is no Pulumi.acme.yaml (stacks: dev prod)\n" in done.stderr
    assert not (sandbox.path / ".venv").exists()


def test_a_python_without_venv_is_refused_with_the_package_to_install(sandbox: Sandbox) -> None:
    sandbox.program("python3", 'case "$*" in *ensurepip*) exit 1;; esac')
    (sandbox.path / "operations").mkdir()
    (sandbox.path / "operations" / "bootstrap.sh").write_text(INSTALL.read_text())
    (sandbox.path / "requirements.txt").write_text("")
    done = sandbox.run("sh", "operations/bootstrap.sh", "url")
    assert "apt-get install python3-venv" in done.stderr


# --- SeaweedFS: the bucket -----------------------------------------------------------------------------------------

AS_IT_SHOULD_BE = """
case "$*" in
*--insecure*) exit 56;;
*"PUT --config"*mlflow.curl*mlflow-probe) printf 403;;
*"PUT --config"*admin.curl*) printf 200;;
*"GET --config /dev/null"*) printf 403;;
*"GET --config"*mlflow.curl*) printf 200;;
*) printf 000;;
esac
"""


def weed_bootstrap(sandbox: Sandbox, curl: str) -> subprocess.CompletedProcess[str]:
    sandbox.program("curl", curl)
    return sandbox.run(
        "sh", str(WEED_BOOTSTRAP), ENDPOINT="http://weed:8333", BUCKET="mlflow", GRPC="https://weed:18333"
    )


@pytest.mark.parametrize("there", ["200", "409"])
def test_creating_the_seaweedfs_bucket_is_idempotent(sandbox: Sandbox, there: str) -> None:
    done = weed_bootstrap(sandbox, AS_IT_SHOULD_BE.replace("printf 200", f"printf {there}", 1))
    assert done.returncode == 0, done.stderr
    assert done.stdout == "bucket mlflow and identity mlflow are ready\n"


@pytest.mark.parametrize(
    "content", ["", "<Contents><Key>artifacts/1</Key></Contents>"], ids=["empty", "with artifacts"]
)
def test_no_seaweedfs_bucket_is_created_beside_one_with_artifacts(sandbox: Sandbox, content: str) -> None:
    buckets = "<Buckets><Bucket><Name>before</Name></Bucket><Bucket><Name>empty</Name></Bucket></Buckets>"
    there = f"""
case "$*" in
*"GET --config"*admin.curl*/mlflow/) printf 404; exit;;
*--fail*8333/) echo '{buckets}'; exit;;
*--fail*/before/*) echo '{content}'; exit;;
*--fail*/empty/*) echo '<ListBucketResult/>'; exit;;
esac
"""
    done = weed_bootstrap(sandbox, there + AS_IT_SHOULD_BE)
    assert bool(done.returncode) is bool(content), done.stderr
    assert ("go back to mlflow:objectStore.bucket: before, and type: make up" in done.stderr) is bool(content)
    assert any("PUT" in call and "admin.curl" in call for call in sandbox.called()) is not bool(content)


@pytest.mark.parametrize("fails", ["8333/", "/before/"])
def test_no_seaweedfs_bucket_is_created_when_buckets_cannot_be_listed(sandbox: Sandbox, fails: str) -> None:
    there = f"""
case "$*" in
*"GET --config"*admin.curl*/mlflow/) printf 404; exit;;
*--fail*{fails}*) exit 22;;
*--fail*8333/) echo '<Name>before</Name>'; exit;;
esac
"""
    done = weed_bootstrap(sandbox, there + AS_IT_SHOULD_BE)
    assert done.returncode == 1
    assert "could not be listed" in done.stderr
    assert not any("PUT" in call for call in sandbox.called())


@pytest.mark.parametrize(
    ("changed", "to", "said"),
    [
        ("admin.curl*) printf 200", "admin.curl*) printf 500", "the bucket mlflow could not be created (HTTP 500)"),
        ('/dev/null"*) printf 403', '/dev/null"*) printf 200', "the object store accepts anonymous requests"),
        ('GET --config"*mlflow.curl*) printf 200', 'GET --config"*mlflow.curl*) printf 403', "cannot use its bucket"),
        ("mlflow-probe) printf 403", "mlflow-probe) printf 200", "the identity mlflow may create buckets"),
        ("exit 56", "exit 0", "https://weed:18333 does not require a client certificate (curl: 0)"),
        ("exit 56", "exit 35", "does not require a client certificate (curl: 35)"),
        ("exit 56", "exit 7", "does not answer (curl: 7)"),
        ("exit 56", "exit 28", "does not answer (curl: 28)"),
        ("exit 56", "exit 6", "does not answer (curl: 6)"),
    ],
)
def test_a_seaweedfs_with_wrong_access_rules_fails_the_job(sandbox: Sandbox, changed: str, to: str, said: str) -> None:
    assert changed in AS_IT_SHOULD_BE
    done = weed_bootstrap(sandbox, AS_IT_SHOULD_BE.replace(changed, to))
    assert done.returncode == 1
    assert said in done.stderr


# --- images from packages ------------------------------------------------------------------------------------------

APT = r"""
echo 'Acquire::http::Proxy "http://user:secret@proxy.example.com:3128";'
echo 'Acquire::https::CAInfo "/etc/company.pem";'
echo 'Acquire::http::Dl-Limit "";'
echo 'APT::Architecture "amd64";'
"""


def test_a_root_file_system_is_built_with_proxy_and_mirror_of_the_host(sandbox: Sandbox) -> None:
    sandbox.program("apt-config", APT)
    sandbox.program("mmdebstrap", 'for word in "$@"; do echo "$word"; done; cat')
    source = "deb https://mirror.example.com/debian trixie main"
    command = ("sh", str(BUILD), "trixie", "/recipe", str(sandbox.path / "root.tar"), "curl,passwd", "sources")
    done = sandbox.run("sh", "-c", f"echo '{source}' | {' '.join(command)}")
    assert done.returncode == 0, done.stderr
    words = done.stdout.splitlines()
    assert "--include=curl,passwd" in words
    assert words[-4:] == ["trixie", str(sandbox.path / "root.tar"), "-", source]
    options = sandbox.path / "root.tar.apt"
    assert f"--aptopt={options}" in words
    assert options.stat().st_mode & 0o777 == (0o600 if os.geteuid() == 0 else 0o644)
    assert options.read_text().splitlines() == [
        'Acquire::http::Proxy "http://user:secret@proxy.example.com:3128";',
        'Acquire::https::CAInfo "/etc/company.pem";',
    ]


def test_proxy_and_mirror_of_the_host_are_removed_from_the_image(sandbox: Sandbox) -> None:
    sandbox.program("apt-config")
    hooks = sandbox.path / "hooks"
    sandbox.program(
        "mmdebstrap", f'for w in "$@"; do case "$w" in --customize-hook=rm*) echo "${{w#*=}}";; esac; done >{hooks}'
    )
    sandbox.run("sh", str(BUILD), "trixie", "/recipe", str(sandbox.path / "root.tar"), "curl")
    root = sandbox.path / "root"
    for name in (
        "etc/apt/sources.list",
        "etc/apt/sources.list.d/0000.list",
        "etc/apt/apt.conf.d/99mmdebstrap",
        "etc/resolv.conf",
    ):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("http://user:secret@mirror.example.com")
    sandbox.run("sh", "-c", hooks.read_text(), "hook", str(root))
    assert [path for path in root.rglob("*") if path.is_file()] == []


# --- make test -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("processors", "files"), [(1, 2), (2, 3), (3, 4), (4, 4), (16, 4)])
def test_the_arguments_of_make_test_reach_pytest(sandbox: Sandbox, processors: int, files: int) -> None:
    sandbox.program("getconf", f"echo {processors}")
    tools = ("mypy", "ruff", "lint-imports", "shellcheck", "shfmt", "hadolint", "zizmor", "actionlint", "python")
    for tool in (*tools, "git"):
        sandbox.program(tool)
    (sandbox.path / ".venv").mkdir()
    (sandbox.path / ".venv" / "bin").symlink_to(sandbox.path / "bin")
    done = sandbox.run("sh", str(ROOT / "operations" / "check.sh"), ARGS="-x tests/stack/test_mail.py")
    assert done.returncode == 0, done.stderr
    assert {call.split()[0] for call in sandbox.called()} == {*tools, "git", "getconf"}
    assert re.fullmatch(
        rf"python -m pytest --numprocesses {files} .* -x tests/stack/test_mail\.py", sandbox.called()[-1]
    )
