"""Test a real deployment: plans, secrets, access, the image, and two stacks side by side."""

import base64
import gzip
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml
from mlflow.tracking import MlflowClient

from settings import variables
from tests.stack.deployment import ROOT, Deployment
from tests.stack.probes import CONNECT, S3, from_network, scan, with_s3

EMPTY = "preview", "--expect-no-changes"


def ask(address: str, **headers: str) -> tuple[int, str]:
    """GET an address and return the status and the body."""
    try:
        with urllib.request.urlopen(urllib.request.Request(address, headers=headers), timeout=10) as response:  # noqa: S310
            return response.status, response.read().decode(errors="replace")
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode(errors="replace")


def said_by(done: subprocess.CompletedProcess[str]) -> str:
    return done.stdout + done.stderr


def search(uri: str) -> list[str]:
    """Return the names of all experiments."""
    status, body = ask(f"{uri}/api/2.0/mlflow/experiments/search?max_results=100")
    assert status == 200, body
    return [experiment["name"] for experiment in json.loads(body)["experiments"]]


# --- plans ---------------------------------------------------------------------------------------------------------


@pytest.mark.engine
@pytest.mark.parametrize(
    "settings", ["dev", *(pytest.param(name, marks=pytest.mark.long) for name in ("prod", "seaweedfs"))]
)
def test_a_second_plan_is_empty_with_and_without_refresh(settings: str, request: pytest.FixtureRequest) -> None:
    deployment: Deployment = request.getfixturevalue(settings)
    # `make up` has already written the secrets back, so this is also the plan after the write-back.
    deployment.pulumi(*EMPTY)
    deployment.pulumi(*EMPTY, "--refresh")
    deployment.pulumi("refresh", "--yes", "--skip-preview")
    deployment.pulumi(*EMPTY)


@pytest.mark.engine
def test_generated_secrets_are_encrypted_in_the_stack_file(dev: Deployment) -> None:
    config = yaml.safe_load(dev.file.read_text())["config"]
    credentials = dev.credentials()
    assert len(credentials) == 5
    for key, value in credentials.items():
        assert set(config[f"mlflow:{key}"]) == {"secure"}
        assert value not in dev.file.read_text()


@pytest.mark.engine
def test_a_second_clone_with_the_passphrase_plans_nothing(dev: Deployment, tmp_path: Any) -> None:  # noqa: ANN401
    other = Deployment(tmp_path, "dev", stack=dev.stack)
    other.file.write_text(dev.file.read_text())
    other.environment["PULUMI_BACKEND_URL"] = dev.environment["PULUMI_BACKEND_URL"]
    refused = other.make("preview", ok=False)
    assert "are encrypted, and this machine has no passphrase for them" in refused.stdout
    other.environment["XDG_CONFIG_HOME"] = dev.environment["XDG_CONFIG_HOME"]
    other.pulumi(*EMPTY)


@pytest.mark.engine
def test_a_wrong_passphrase_is_reported_as_wrong(dev: Deployment) -> None:
    refused = dev.make("preview", ok=False, PULUMI_CONFIG_PASSPHRASE="wrong")
    assert "the passphrase in PULUMI_CONFIG_PASSPHRASE does not decrypt its secrets" in refused.stdout


@pytest.mark.long
@pytest.mark.engine
def test_dev_and_prod_have_different_passphrases(dev: Deployment, prod: Deployment) -> None:
    def passphrase(deployment: Deployment) -> str:
        path = deployment.folder / "config" / "pulumi-mlflow" / f"{deployment.stack}.passphrase"
        assert path.stat().st_mode & 0o777 == 0o600
        return path.read_text()

    assert passphrase(dev) != passphrase(prod)


SERVER = {"server": "replace"}
CHANGES = [
    ("server.logLevel", "debug", SERVER),
    ("postgres.memoryMb", 512, {"postgres": "replace"}),
    pytest.param("hostname", "mlflow.test.example", SERVER, marks=pytest.mark.ci),
    pytest.param("server.workers", 1, SERVER, marks=pytest.mark.ci),
    ("server.memoryMb", 2048, {"server": "update"}),
]
CHANGED = ["server.logLevel", "postgres.memoryMb", "hostname", "server.workers", "server.memoryMb"]


@pytest.mark.engine
@pytest.mark.parametrize(("path", "value", "expected"), CHANGES, ids=CHANGED)
def test_a_changed_setting_changes_only_the_containers_that_use_it(
    dev: Deployment, path: str, value: object, expected: dict[str, str]
) -> None:
    before = dev.file.read_text()
    try:
        dev.set(path, value)
        assert dev.plan() == expected
    finally:
        dev.file.write_text(before)


@pytest.mark.long
@pytest.mark.engine
def test_a_middleware_touches_only_the_server(prod: Deployment) -> None:
    before = prod.file.read_text()
    try:
        prod.set("traefik.middlewares", ["authelia@docker"])
        assert prod.plan() == SERVER
    finally:
        prod.file.write_text(before)


@pytest.mark.engine
def test_a_new_mlflow_image_replaces_migration_key_check_and_server(dev: Deployment) -> None:
    script = dev.checkout / "mlflow" / "healthcheck.py"
    before = script.read_text()
    try:
        script.write_text(before + "# another image\n")
        plan = dev.plan()
    finally:
        script.write_text(before)
    assert plan == {
        "mlflow-image": "replace",
        "migrate": "replace",
        "verify-data-keys": "replace",
        "server": "replace",
        "server-files": "replace",
    }


@pytest.mark.engine
@pytest.mark.minio
def test_a_new_minio_password_replaces_only_its_holders(dev: Deployment) -> None:
    before = dev.file.read_text()
    try:
        dev.pulumi("config", "set", "--secret", "minioPassword", "another-password-of-32-characters")
        assert dev.plan() == {
            "minio-bootstrap": "replace",
            "server": "replace",
            "server-files": "replace",
        }
    finally:
        dev.file.write_text(before)


# --- everyday use --------------------------------------------------------------------------------------------------


def test_a_client_works_for_a_day_with_600_mb(dev: Deployment) -> None:
    assert dev.make("url").stdout.strip() == dev.url
    assert "600 MB up" in dev.client_day(dev.url, megabytes=600)
    # Docker restarts a service that runs out of memory.
    assert [dev.inspect(service)["RestartCount"] for service in (dev.store, "server", "postgres")] == [0, 0, 0]
    assert any(name.startswith("day-") for name in search(dev.url))


@pytest.mark.ci
def test_client_data_survives_the_replacement_of_every_container(dev: Deployment) -> None:
    dev.client_day(dev.url, megabytes=5)
    before = search(dev.url)
    assert any(name.startswith("day-") for name in before)
    for name in dev.containers():
        dev.api.remove_container(name, force=True)
    dev.make("up")
    assert search(dev.url) == before
    dev.make("down")
    assert dev.containers() == []
    dev.make("up")
    assert search(dev.url) == before


def test_the_web_interface_loads_and_can_send_requests(dev: Deployment) -> None:
    address = dev.url
    status, page = ask(address)
    assert status == 200
    script = re.search(r'src="(static-files/[^"]+\.js)"', page)
    assert script
    assert ask(f"{address}/{script.group(1)}")[0] == 200
    request = urllib.request.Request(  # noqa: S310
        f"{address}/ajax-api/2.0/mlflow/experiments/search",
        data=b'{"max_results": 1}',
        headers={"Origin": address, "Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=10) as response:  # noqa: S310
        assert response.status == 200


def test_another_host_header_is_refused(dev: Deployment) -> None:
    assert ask(f"{dev.url}/api/2.0/mlflow/experiments/search?max_results=1", Host="evil.example")[0] == 403


def test_the_server_counts_its_requests_for_prometheus(dev: Deployment) -> None:
    status, body = ask(f"{dev.url}/metrics")
    assert status == 200
    assert "mlflow_http_request_total" in body


# --- secrets -------------------------------------------------------------------------------------------------------


def test_no_secret_is_readable_anywhere(each: Deployment) -> None:
    credentials = each.credentials()
    values = {**credentials, "webhook": base64.urlsafe_b64encode(credentials["webhookEncryptionKey"].encode()).decode()}
    places = {
        "stack file": each.file.read_text(),
        "up": said_by(each.make("up")),
    }
    if not each.engineless:
        places["plan"] = each.pulumi("preview", "--diff", "--json").stdout + each.pulumi("preview", "--diff").stdout
        places["outputs"] = each.pulumi("stack", "output", "--json").stdout
    for path in (each.folder / "state").rglob("*"):
        if path.is_file():
            places[f"state {path.name}"] = path.read_text(errors="replace")
    for name in each.containers():
        inspected = each.api.inspect_container(name)
        places[f"docker inspect {name}"] = json.dumps(inspected)
        places[f"image of {name}"] = json.dumps(each.api.inspect_image(inspected["Image"]))  # type: ignore[no-untyped-call]
        history = each.api.history(inspected["Image"])  # type: ignore[no-untyped-call]
        places[f"history of {name}"] = json.dumps(history)
        places[f"log of {name}"] = each.api.logs(name).decode(errors="replace")
    for where, text in places.items():
        for key, value in values.items():
            assert value not in text, f"{key} is readable in: {where}"


def saved(deployment: Deployment, image: str, path: Path) -> Iterator[bytes]:
    """Yield the content of all layers of an image in overlapping pieces. Newer daemons save the layers compressed."""
    with path.open("wb") as file:
        for chunk in deployment.api.get_image(image):
            file.write(chunk)
    with tarfile.open(path) as archive:
        for member in archive:
            if not (opened := archive.extractfile(member)):
                continue
            compressed = opened.read(2) == b"\x1f\x8b"
            opened.seek(0)
            content = gzip.GzipFile(fileobj=opened) if compressed else opened
            tail = b""
            while chunk := content.read(1 << 20):
                yield tail + chunk
                tail = chunk[-100:]


def test_no_layer_of_the_built_image_holds_a_secret(dev: Deployment, tmp_path: Path) -> None:
    values = {key: value.encode() for key, value in dev.credentials().items()}
    marker = b"libpq ignores a password file"  # A comment of the entrypoint, to prove that the search reads the files.
    values["the entrypoint"] = marker
    image = dev.api.inspect_container(dev.name("server"))["Image"]
    found: set[str] = set()
    for window in saved(dev, image, tmp_path / "image.tar"):
        found |= {key for key, value in values.items() if value in window}
    assert found == {"the entrypoint"}


def test_no_process_has_a_secret_but_the_data_keys_of_the_server(each: Deployment) -> None:
    credentials = each.credentials()
    data_keys = {"cryptoKekPassphrase", "webhookEncryptionKey"}
    for service in ("server", "postgres", each.store):
        shell = 'for p in /proc/[0-9]*; do cat "$p/cmdline" "$p/environ" 2>/dev/null; done | tr "\\0" "\\n"'
        _, seen = each.run(service, "sh", "-c", shell)
        assert "PATH=" in seen
        for key, value in credentials.items():
            if service == "server" and key in data_keys:
                continue
            assert value not in seen, f"{key} in a process of {service}"


# --- access --------------------------------------------------------------------------------------------------------


def test_only_mlflow_can_use_the_object_store_and_only_its_bucket(each: Deployment) -> None:
    code, said = with_s3(each, S3)
    assert (code, said.splitlines()[-1]) == (0, "ok"), said


@pytest.mark.minio
def test_minio_without_its_password_does_not_start(dev: Deployment) -> None:
    # The same container without its volumes, so that the secret file with the password is missing.
    ours = dev.api.inspect_container(dev.name("minio"))["Config"]
    lost = dev.api.create_container(
        ours["Image"], entrypoint=ours["Entrypoint"], command=ours["Cmd"], environment=ours["Env"]
    )["Id"]
    try:
        dev.api.start(lost)
        code = dev.api.wait(lost, timeout=30)["StatusCode"]
        said = dev.api.logs(lost).decode()
    finally:
        dev.api.remove_container(lost, force=True, v=True)
    assert code != 0
    assert "MINIO_ROOT_PASSWORD" in said


@pytest.mark.minio
def test_the_minio_identity_of_mlflow_cannot_create_users(dev: Deployment) -> None:
    key = dev.credentials()["minioPassword"]
    own = ("env", "MC_CONFIG_DIR=/tmp/test", f"MC_HOST_own=http://mlflow:{key}@127.0.0.1:9000")
    assert dev.run("minio", *own, "mc", "ls", "own")[0] == 0
    code, said = dev.run("minio", *own, "mc", "admin", "user", "add", "own", "eve", "evepassword")
    assert code != 0
    assert "Access Denied" in said


def test_the_postgres_role_of_mlflow_is_limited_to_its_database(dev: Deployment) -> None:
    script = (
        "import psycopg2, os\n"
        "c = psycopg2.connect(os.environ['MLFLOW_BACKEND_STORE_URI'].replace('+psycopg2', ''))\n"
        "q = c.cursor()\n"
        "q.execute('select rolsuper, rolcreatedb, rolcreaterole from pg_roles where rolname = current_user')\n"
        "print(q.fetchone())\n"
        "q.execute('select datname from pg_database '\n"
        "          'where datallowconn and has_database_privilege(datname, $$connect$$)')\n"
        "print(q.fetchall())\n"
        "try:\n"
        "    psycopg2.connect(os.environ['MLFLOW_BACKEND_STORE_URI'].replace('+psycopg2', '')[:-6] + 'postgres')\n"
        "except psycopg2.OperationalError as error:\n"
        "    print('refused')\n"
    )
    code, said = dev.run("server", "env", "PGPASSFILE=/run/mlflow/pgpass", "python", "-c", script)
    assert code == 0, said
    assert said.splitlines() == ["(False, False, False)", "[('mlflow',)]", "refused"]


@pytest.fixture
def outside() -> Iterator[str]:
    """Create a host outside, in a network namespace; yield the address and port of a listener there."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("needs root and iproute2 to create a host outside")
    space, near, far = "mlflow-outside", "198.51.100.1", "198.51.100.2"
    steps = [
        f"ip netns add {space}",
        "ip link add mlo0 type veth peer name mlo1",
        f"ip link set mlo1 netns {space}",
        f"ip addr add {near}/24 dev mlo0",
        "ip link set mlo0 up",
        f"ip -n {space} addr add {far}/24 dev mlo1",
        f"ip -n {space} link set mlo1 up",
        f"ip -n {space} route add default via {near}",
    ]
    try:
        for step in steps:
            subprocess.run(step.split(), check=True)
        listen = f"import socket; s = socket.create_server(({far!r}, 8099)); print(flush=True)\nwhile 1: s.accept()"
        command = ["ip", "netns", "exec", space, sys.executable, "-c", listen]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as listener:
            assert listener.stdout
            listener.stdout.readline()
            yield f"{far}:8099"
            listener.kill()
    finally:
        subprocess.run(["ip", "netns", "del", space], check=False)
        subprocess.run(["ip", "link", "del", "mlo0"], check=False, stderr=subprocess.DEVNULL)


def test_the_backend_network_cannot_reach_outside(dev: Deployment, outside: str) -> None:
    # The edge network can reach it, which proves that the test works.
    assert from_network(dev, dev.name("edge"), CONNECT, outside).split() == ["open"]
    assert from_network(dev, dev.name("backend"), CONNECT, outside).split() == ["closed"]


@pytest.mark.long
def test_a_changed_bucket_name_is_refused_while_artifacts_exist(each: Deployment) -> None:
    client = MlflowClient(each.url)
    run = client.create_run("0").info.run_id
    client.log_text(run, "here", "note.txt")
    bucket = f"{each.stack}-another"
    each.make("down")
    each.set("objectStore.bucket", bucket)
    done = each.make("up", ok=False)
    assert f"there is no bucket {bucket}, and there are objects in mlflow: " in done.stdout + done.stderr
    assert "go back to mlflow:objectStore.bucket: mlflow, and type: make up" in done.stdout + done.stderr
    # The server does not exist without the bucket, so its log cannot be shown.
    assert f"make logs STACK={each.stack} SERVICE={each.store}-bootstrap\n" in each.make("status", ok=False).stderr
    each.set("objectStore.bucket", "mlflow")
    each.make("up")
    assert [file.path for file in client.list_artifacts(run)] == ["note.txt"]


def test_only_the_listed_ports_answer_on_the_data_network(each: Deployment) -> None:
    said = scan(each, each.name("backend"), "server", "postgres", each.store).splitlines()
    assert said == [
        f"{each.name('server')} [5000]",
        f"{each.name('postgres')} [5432]",
        f"{each.name(each.store)} {[9000] if each.store == 'minio' else [8333, 9327, 18333]}",
    ]


def test_the_data_services_cannot_be_reached_from_the_edge(each: Deployment) -> None:
    addresses = {
        service: each.inspect(service)["NetworkSettings"]["Networks"][each.name("backend")]["IPAddress"]
        for service in ("postgres", each.store)
    }
    targets = [
        f"{addresses['postgres']}:5432",
        f"{addresses[each.store]}:{9000 if each.store == 'minio' else 8333}",
        f"{each.name('postgres')}:5432",
    ]
    said = from_network(each, each.name("edge"), CONNECT, *targets).split()
    assert said == ["closed", "closed", "closed"]


# --- the image -----------------------------------------------------------------------------------------------------


def test_the_image_is_small_and_has_no_build_tools(dev: Deployment) -> None:
    image = dev.api.inspect_image(dev.inspect("server")["Image"])  # type: ignore[no-untyped-call]
    # Not `Size`: with the containerd image store, it includes the compressed layers.
    layers = dev.api.history(image["Id"])  # type: ignore[no-untyped-call]
    assert sum(layer["Size"] for layer in layers) < 450_000_000
    assert image["Config"]["User"] == "10001:10001"
    # One at a time: some shells look for the first name only.
    search = "for tool in gcc cc make ld; do command -v $tool; done; test -e /opt/mlflow/bin/pip && echo pip; exit 0"
    assert dev.run("server", "sh", "-c", search) == (0, "")
    packed, _ = dev.api.get_archive(dev.name("server"), "/root")
    with tarfile.open(fileobj=io.BytesIO(b"".join(packed))) as home:
        assert not [entry.name for entry in home if ".cache" in entry.name]


def test_the_server_runs_without_capabilities_on_a_read_only_root(dev: Deployment) -> None:
    _, said = dev.run("server", "sh", "-c", "id -u; grep CapEff /proc/1/status; touch /opt/x 2>&1")
    assert said.splitlines()[0] == "10001"
    assert said.splitlines()[1].split()[1] == "0000000000000000"
    assert "Read-only file system" in said


SERVE = """
import os, sys
from pathlib import Path
found = {}
for process in Path("/proc").glob("[0-9]*"):
    try:
        command = (process / "cmdline").read_bytes()
        lines = dict(line.split(":\\t", 1) for line in (process / "status").read_text().splitlines())
    except OSError:
        continue
    if command.endswith(b"/serve.py\\0"):
        found[process] = int(lines["PPid"]), int(lines["voluntary_ctxt_switches"])
workers = {process for process, (parent, _) in found.items() if Path(f"/proc/{parent}") in found}
"""
"""Finds the processes of the server, with their parents and the number of their wakeups, and the workers among them."""
WORKERS = (
    SERVE
    + """
print(len(found), *sorted(int(process.name) for process in workers))
"""
)
SOCKETS = (
    SERVE
    + """
print(*[link for process in workers for link in {os.readlink(entry) for entry in (process / "fd").iterdir()}
        if link.startswith("socket:")])
"""
)
IDLE = (
    SERVE
    + """
import time
before = {process: found[process][1] for process in workers}
time.sleep(10)
for process in workers:
    status = (process / "status").read_text()
    print(int(status.split("\\nvoluntary_ctxt_switches:\\t")[1].split()[0]) - before[process])
"""
)
"""Prints how often the main thread of each worker woke up in ten seconds."""


def in_server(deployment: Deployment, script: str) -> list[str]:
    code, said = deployment.run("server", "python", "-c", script)
    assert code == 0, said
    return said.split()


def workers_of(deployment: Deployment) -> list[str]:
    """Return the process IDs of the workers. Fails if the server has more than these and the one they are forks of."""
    number, *workers = in_server(deployment, WORKERS)
    assert int(number) == len(workers) + 1
    return workers


def test_the_workers_are_forks_of_the_process_that_imported_mlflow(dev: Deployment) -> None:
    assert len(workers_of(dev)) == 2
    said = dev.api.logs(dev.name("server"))
    assert b"serve: starting a new process" not in said
    assert b"application: requests take longer" not in said


def test_workers_share_no_connection_to_the_database(dev: Deployment) -> None:
    with ThreadPoolExecutor(8) as threads:
        assert len(list(threads.map(search, [dev.url] * 40))) == 40
    # The sockets that they have of their parent: the one that they listen on, and pipes of uvicorn.
    shared = Counter(in_server(dev, SOCKETS))
    of_parent = set(in_server(dev, SOCKETS.replace("in workers", "in set(found) - workers")))
    assert of_parent
    assert {link for link, number in shared.items() if number > 1} <= of_parent
    connections = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'mlflow'"
    _, said = dev.run("postgres", "psql", "-U", "postgres", "-Atc", connections)
    assert int(said) >= 2
    # A connection of the parent would be one that both use.
    own = [link for link, number in shared.items() if number == 1 and link not in of_parent]
    assert len(own) >= int(said)


def test_a_killed_worker_is_replaced_while_the_other_one_serves(dev: Deployment) -> None:
    before = workers_of(dev)
    in_server(dev, f"import os; os.kill({before[0]}, 9)")
    deadline = time.monotonic() + 20
    while len(after := workers_of(dev)) < 2 or before[0] in after:
        assert time.monotonic() < deadline, dev.logs()
        time.sleep(0.2)
    assert before[1] in after
    assert search(dev.url)


def test_an_idle_worker_wakes_up_about_once_a_second(dev: Deployment) -> None:
    numbers = [int(number) for number in in_server(dev, IDLE)]
    assert len(numbers) == 2
    # uvicorn's own loop: 100. A health check may come in between.
    assert all(8 <= number < 50 for number in numbers)


BATCHES = """
import os
from mlflow.entities import Metric
from mlflow.server.handlers import _get_tracking_store
from psycopg2 import extras

sent, send = [], extras.execute_batch
def execute_batch(cursor, statement, values, **options):
    sent.append(len(values))
    send(cursor, statement, values, **options)
extras.execute_batch = execute_batch
store = _get_tracking_store(os.environ["MLFLOW_BACKEND_STORE_URI"], "mlflow-artifacts:/")
experiment = store.create_experiment("batches", None, [])
run = store.create_run(experiment, "me", 1, [], "batches").info.run_id
for step in 1, 3, 2:
    store.log_batch(run, [Metric(f"m{n}", step * 100 + n, 1, step) for n in range(150)], [], [])
found = store.get_run(run).data.metrics
assert found == {f"m{n}": 300 + n for n in range(150)}, found
assert len(store.get_metric_history(run, "m7")) == 3
store.delete_experiment(experiment)
print(*sent)
"""
"""Prints how many rows each call of psycopg2's function for batches updates. The third batch is an older step."""


def test_the_rows_that_log_batch_updates_are_sent_together(dev: Deployment) -> None:
    code, said = dev.run("server", "env", "PGPASSFILE=/run/mlflow/pgpass", "python", "-W", "ignore", "-c", BATCHES)
    assert code == 0, said
    assert said.splitlines()[-1] == "150"


ANSWERS = r"""
import asyncio
import re
from mlflow.server.fastapi_app import create_fastapi_app
from shorter import PIECE_BYTES, shorten

async def ask(application, method, path, body=b"", **headers):
    path, _, query = path.partition("?")
    headers = {"host": "localhost:5000", "content_length": str(len(body)), **headers}
    scope = {"type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "scheme": "http",
        "path": path, "raw_path": path.encode(), "query_string": query.encode(), "root_path": "", "state": {},
        "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 5000), "headers": [
        (name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]}
    sent, done = [], asyncio.Event()
    async def receive():
        nonlocal body
        if body is None:
            await done.wait()
            return {"type": "http.disconnect"}
        message, body = {"type": "http.request", "body": body}, None
        return message
    async def send(message):
        sent.append(message)
        if message["type"] == "http.response.body" and not message.get("more_body"):
            done.set()
    await application(scope, receive, send)
    volatile = (b"date", b"expires", b"x-mlflow-gateway-duration-ms")
    headers = sorted((name.lower(), name.lower() in volatile or value) for name, value in sent[0]["headers"])
    return sent[0]["status"], headers, b"".join(message["body"] for message in sent[1:])

REQUESTS = [
    (("GET", "/"), {}), (("HEAD", "/"), {}), (("GET", "/nothing"), {}), (("GET", "/health"), {}),
    (("GET", "/version"), {}), (("GET", "/static-files/manifest.json"), {}), (("GET", "/static-files/nothing"), {}),
    (("GET", "/api/2.0/mlflow/experiments/get?experiment_id=x"), {}), (("PUT", "/api/2.0/mlflow/runs/create"), {}),
    (("GET", "/api/2.0/mlflow/runs/get?run_id=x"), {"x_mlflow_workspace": "other"}),
    (("POST", "/api/2.0/mlflow/runs/log-metric", b"{bad"), {"content_type": "application/json"}),
    (("POST", "/api/2.0/mlflow/runs/create", b"{}"), {"origin": "http://evil.example"}),
    (("GET", "/api/2.0/mlflow/runs/get?run_id=x"), {"host": "evil.example"}),
    (("OPTIONS", "/api/2.0/mlflow/runs/create"),
        {"origin": "http://evil.example", "access_control_request_method": "POST"}),
    (("POST", "/ajax-api/2.0/mlflow/upload-artifact?run_uuid=x&path=y", b"x"), {}),
    (("POST", "/gateway/x/mlflow/invocations", b"{}"), {"content_type": "application/json"}),
    (("POST", "/graphql", b'{"query": "{__typename}"}'), {"content_type": "application/json"}),
]

async def main():
    own, shorter = create_fastapi_app(), create_fastapi_app()
    assert shorten(shorter) == []
    page = (await ask(own, "GET", "/"))[2].decode()
    script = re.search(r"static-files/static/js/main[^\"]+", page)[0]
    for request, headers in [*REQUESTS, (("GET", "/" + script), {})]:
        expected, found = [await ask(application, *request, **headers) for application in (own, shorter)]
        assert found == expected, (request, headers, found, expected)
        print(found[0])
        if request[1].startswith("/gateway/"):
            assert b"x-mlflow-gateway-duration-ms" in dict(found[1])
    assert len(found[2]) > PIECE_BYTES

asyncio.run(main())
"""
"""Compares the answers of MLflow's application and of the shortened one, and prints their status."""


def test_the_shorter_ways_through_mlflow_change_no_answer(dev: Deployment) -> None:
    refuse_uploads = "MLFLOW_ARTIFACTS_PRESIGNED_ONLY=true"
    code, said = dev.run("server", "env", refuse_uploads, "python", "-W", "ignore", "-c", ANSWERS)
    assert code == 0, said
    statuses = [int(line) for line in said.splitlines() if line.isdigit()]
    assert len(statuses) == 18
    assert {200, 403, 404, 405} <= set(statuses)


@pytest.mark.ci
def test_the_server_stops_on_sigterm(dev: Deployment) -> None:
    started = time.monotonic()
    dev.api.stop(dev.name("server"), timeout=30)
    assert time.monotonic() - started < 15
    assert dev.inspect("server")["State"]["ExitCode"] == 0
    assert dev.api.logs(dev.name("server"), tail=20).count(b"Finished server process") == 2
    dev.make("up")


# --- side by side --------------------------------------------------------------------------------------------------


@pytest.mark.long
def test_two_stacks_share_nothing(dev: Deployment, prod: Deployment) -> None:
    def things(deployment: Deployment) -> set[str]:
        found = set(deployment.containers())
        for name in deployment.containers():
            inspected = deployment.api.inspect_container(name)
            found |= {mount["Name"] for mount in inspected["Mounts"] if "Name" in mount}
            found |= {network["NetworkID"] for network in inspected["NetworkSettings"]["Networks"].values()}
            found |= {str(ports) for ports in (inspected["HostConfig"]["PortBindings"] or {}).values()}
        return found - {""}

    none = things(dev) & things(prod)
    # The writers of files, which never start, are on Docker's network "none".
    assert {name for name in none if name.startswith("mlflow")} == set()
    assert len(none) <= 1
    assert ask(f"{dev.url}/health")[0] == 200
    assert prod.make("status").returncode == 0


@pytest.mark.long
def test_prod_publishes_nothing(prod: Deployment) -> None:
    for name in prod.containers():
        assert not prod.api.inspect_container(name)["HostConfig"]["PortBindings"]


def test_every_variable_of_the_installed_mlflow_is_classified(dev: Deployment) -> None:
    script = (ROOT / "tests" / "stack" / "variables.py").read_text()
    where = "import mlflow.environment_variables as m, sys; sys.argv = ['', m.__file__]"
    code, printed = dev.run("server", "python", "-W", "ignore", "-c", f"{where}\n{script}")
    assert code == 0, printed
    decided = {name for name, entry in variables.known().items() if entry.get("listed", True)}
    assert set(printed.split()) == decided, "add the missing variables to mlflow/variables.toml, then type: make docs"


@pytest.mark.long
def test_a_configured_variable_reaches_the_server(dev: Deployment) -> None:
    name = "MLFLOW_GATEWAY_API_BASE_ALLOW_PRIVATE_IPS"
    assert dev.run("server", "printenv", "MLFLOW_GATEWAY_URI") == (0, "http://127.0.0.1:5000")
    dev.set("server.environment", {name: "true"})
    try:
        dev.make("up")
        assert dev.run("server", "printenv", name) == (0, "true")
    finally:
        dev.set("server.environment", {})
        dev.make("up")
