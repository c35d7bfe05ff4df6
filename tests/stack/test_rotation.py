"""Test `make rotate` on a real deployment with MLflow's own users: values, data keys, backups, interruptions."""

import json
import os
import random
import re
import signal
import subprocess
import time
from collections.abc import Iterator

import pytest

from tests.stack.backups import newest
from tests.stack.deployment import Deployment, free_port
from tests.stack.probes import keep_a_gateway_secret
from tests.stack.rotations import UNTRIED, proofs
from tests.stack.writer import Writer

pytestmark = [pytest.mark.engine, pytest.mark.long]
KILLS = int(os.environ.get("KILLS") or 6)
"""How many rotations the long test interrupts."""
WEBHOOK = """
import os, sys, psycopg2
from cryptography.fernet import Fernet
key = open("/run/secrets/webhook-encryption-key").read()
db = psycopg2.connect(os.environ["MLFLOW_BACKEND_STORE_URI"].replace("+psycopg2", ""))
with db, db.cursor() as cursor:
    if sys.argv[1] == "keep":
        columns = "webhook_id, name, url, status, secret, creation_timestamp, last_updated_timestamp"
        cursor.execute(
            f"insert into webhooks ({columns}) values ('w1', 'w1', 'https://e.example.com', 'ACTIVE', %s, 0, 0)",
            (Fernet(key).encrypt(b"of a webhook").decode(),),
        )
    cursor.execute("select secret from webhooks")
    print(Fernet(key).decrypt(cursor.fetchone()[0].encode()).decode())
    cursor.execute("select wrapped_dek, kek_version from secrets")
    wrapped, version = cursor.fetchone()
os.environ["MLFLOW_CRYPTO_KEK_PASSPHRASE"] = open("/run/secrets/crypto-kek-passphrase").read()
import mlflow.utils.crypto as c
print(c.unwrap_dek(bytes(wrapped), c.KEKManager(kek_version=version).get_kek()).decode())
"""
"""Stores a webhook's secret, with `keep`, and decrypts it and the gateway's with the data keys of the server."""
DECRYPTED = f"of a webhook\n{'0' * 32}"


def decrypted(deployment: Deployment, *arguments: str) -> str:
    command = ("env", "PGPASSFILE=/run/mlflow/pgpass", "python", "-W", "ignore", "-c", WEBHOOK)
    code, printed = deployment.run("server", *command, *(arguments or ("read",)))
    assert code == 0, printed
    return printed


def writing(deployment: Deployment) -> Writer:
    def password() -> str:
        return deployment.make("password").stdout.strip()

    return Writer(deployment.url, "127.0.0.1", "admin", password)


@pytest.fixture(scope="module")
def owned(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """Deploy a stack with MLflow's own users and a backup, whose database has values that only the data keys open."""
    deployment = Deployment(tmp_path_factory.mktemp("rotation"), "dev")
    deployment.set("server", {"workers": 1, "memoryMb": 1024, "port": free_port()})
    deployment.set("authentication", "mlflow")
    deployment.use("seaweedfs")
    deployment.set("backup.enabled", value=True)
    try:
        deployment.make("up")
        keep_a_gateway_secret(deployment)
        assert decrypted(deployment, "keep") == DECRYPTED
        yield deployment
    finally:
        deployment.remove()


def test_a_dry_run_tells_what_restarts_and_changes_nothing(owned: Deployment) -> None:
    before = owned.file.read_text()
    said = owned.make("rotate", DRY_RUN="1")
    assert "postgresPassword: the password of the Postgres role mlflow" in said.stdout
    assert "restarts: Postgres, the server" in said.stdout
    assert "the server is away for one to two minutes" in said.stdout
    assert "nothing was changed" in said.stderr
    assert owned.file.read_text() == before
    stays = owned.make("rotate", DRY_RUN="1", SECRET="backupPassword").stdout
    assert "the server stays up" in stays


def test_a_rotation_before_the_first_backup_has_no_key_to_replace_there(owned: Deployment) -> None:
    proved = proofs(owned.make("rotate", SECRET="backupPassword").stdout)
    assert set(proved) == {"backupPassword"}
    assert proved["backupPassword"][0] == "not tried: there is no backup yet"


def test_every_secret_is_rotated_while_a_client_writes(owned: Deployment) -> None:
    owned.make("backup")
    # Of a person, for an emergency. A rotation keeps it.
    code, said = owned.run("backup", "sh", "-c", "echo of-a-person > /tmp/k; restic key add --new-password-file /tmp/k")
    assert code == 0, said
    earlier, old = newest(owned), owned.credentials()
    with writing(owned) as writer:
        time.sleep(3)
        proved = proofs(owned.make("rotate").stdout)
        time.sleep(5)
    new = owned.credentials()
    assert {key for key in old if old[key] == new.get(key)} == set()
    assert set(proved) == set(old)
    untried = {key for key, found in proved.items() if found[0].startswith("not tried")}
    assert untried == {*UNTRIED, "flaskSecretKey"}
    assert {proved[key] for key in set(proved) - untried} == {("refused", "accepted")}
    assert len(writer.runs) > 10
    assert writer.writes, "the client never came back"
    assert writer.lost() == []
    assert sum(end - start for start, end in writer.away) < 180
    assert decrypted(owned) == DECRYPTED
    assert not owned.plan()
    assert len(json.loads(owned.run("backup", "restic", "key", "list", "--json")[1])) == 2
    opened = "echo of-a-person > /tmp/k; restic cat config --no-lock --password-file /tmp/k"
    assert owned.run("backup", "sh", "-c", opened)[0] == 0
    # Backups from before and after.
    owned.make("backup")
    for backup in (newest(owned), earlier):
        owned.make("restore", FROM=backup, CONFIRM=owned.stack)
        assert decrypted(owned) == DECRYPTED
        # `make up` verifies that the data keys decrypt the data.
        owned.make("up")


def test_an_interrupted_rotation_of_data_keys_refuses_an_update_until_it_is_completed(owned: Deployment) -> None:
    old = owned.credentials()
    with owned.begun(lambda line: "stopping the server" in line, "rotate", "SECRET=cryptoKekPassphrase") as running:
        os.killpg(running.pid, signal.SIGKILL)
        running.wait()
    assert "nextCryptoKekPassphrase" in owned.file.read_text()
    refused = owned.make("up", ok=False).stderr
    assert "a rotation of the data keys was interrupted" in refused
    assert f"make rotate STACK={owned.stack}" in refused
    by_hand = owned.pulumi("up", "--yes", "--skip-preview", ok=False)
    assert "a rotation of the data keys was interrupted" in by_hand.stdout + by_hand.stderr
    assert "a rotation of the data keys was interrupted" in owned.make("status", ok=False).stderr
    owned.make("rotate", SECRET="cryptoKekPassphrase")
    assert owned.credentials()["cryptoKekPassphrase"] != old["cryptoKekPassphrase"]
    assert "next" not in owned.file.read_text()
    assert decrypted(owned) == DECRYPTED
    assert not owned.plan()


@pytest.mark.parametrize("line", ["Container postgres created", "Container migrate created"])
def test_a_rotation_that_is_killed_while_it_deploys_is_completed_by_the_next_one(owned: Deployment, line: str) -> None:
    """Postgres has its new password then, and the server's files still have the old one."""
    with owned.begun(lambda printed: line in printed, "rotate") as running:
        os.killpg(running.pid, signal.SIGKILL)
        running.wait()
    proved = proofs(owned.make("rotate").stdout)
    assert {found for found in proved.values() if not found[0].startswith("not tried")} == {("refused", "accepted")}
    assert decrypted(owned) == DECRYPTED
    assert not owned.plan()


def test_a_rotation_that_is_killed_and_then_loses_its_containers_is_completed(owned: Deployment) -> None:
    with owned.begun(
        lambda printed: "stopping the server" in printed, "rotate", "SECRET=webhookEncryptionKey"
    ) as running:
        os.killpg(running.pid, signal.SIGKILL)
        running.wait()
    owned.make("down")
    owned.make("rotate", SECRET="webhookEncryptionKey")
    assert decrypted(owned) == DECRYPTED
    assert not owned.plan()


def test_an_older_stack_file_does_not_replace_the_key_of_the_backups(owned: Deployment) -> None:
    before = owned.file.read_text()
    owned.make("rotate", SECRET="backupPassword")
    after = owned.file.read_text()
    owned.file.write_text(before)
    assert "mlflow:backupPassword: the backups do not open with the value in" in owned.make("up", ok=False).stderr
    owned.file.write_text(after)
    owned.make("up")
    owned.make("backup")


def test_a_backup_is_refused_while_the_rows_have_other_data_keys_than_it_would_contain(owned: Deployment) -> None:
    mark = "COMMENT ON TABLE secrets IS 'data key sha256:of-an-interrupted-rotation'"
    psql = ("psql", "-U", "postgres", "-d", "mlflow", "-c")
    assert owned.run("postgres", *psql, mark)[0] == 0
    assert "the database is encrypted with another key than this container has" in owned.make("backup", ok=False).stderr
    owned.make("rotate", SECRET="cryptoKekPassphrase")
    owned.make("backup")


def test_the_status_tells_the_age_of_the_secrets(owned: Deployment) -> None:
    assert re.search(r"secrets: \d+, the oldest 0 days old \(\w+\)", owned.make("status").stdout)
    owned.set(
        "rotation",
        {**owned.values["mlflow:rotation"], "afterDays": 30, "done": {"flaskSecretKey": "2026-01-01T00:00:00Z"}},
    )
    said = owned.make("status").stdout
    assert "older than 30 days: flaskSecretKey; type: make rotate" in said


def test_a_rotation_that_is_killed_anywhere_is_completed_by_the_next_one(owned: Deployment) -> None:
    seed = int(os.environ.get("SEED") or time.time())
    print(f"seed {seed}")
    moments = random.Random(seed)
    began = time.monotonic()
    owned.make("rotate")
    lasts, killed = time.monotonic() - began, 0
    with writing(owned) as writer:
        for _ in range(KILLS):
            running = subprocess.Popen(
                ["make", "-s", "rotate"],
                cwd=owned.checkout,
                env=owned.environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
            time.sleep(moments.uniform(0.5, 0.9 * lasts))
            os.killpg(running.pid, signal.SIGKILL)
            killed += running.wait() == -signal.SIGKILL
        assert killed >= KILLS / 2, "most of the rotations ended before they were killed"
        proved = proofs(owned.make("rotate").stdout)
        time.sleep(5)
    assert {found for found in proved.values() if not found[0].startswith("not tried")} == {("refused", "accepted")}
    assert writer.lost() == []
    assert decrypted(owned) == DECRYPTED
    assert not owned.plan()
