"""Test the backup without a deployment: manifest, index of artifacts, journal, mirror, status, restore checks."""

import contextlib
import http.server
import importlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from docker.errors import ImageNotFound

from operations.common import console
from operations.common.console import StopError
from operations.data import backup, backup_status, gc, restore
from operations.data.backup_status import KINDS
from operations.deployment import deploy
from operations.engine.write_back import report_kept_backups
from operations.host import checks
from preconditions import host as preconditions
from settings import names
from settings.backup import BackupSettings

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "assets" / "backup"))

manifests: Any = importlib.import_module("manifest")
shell: Any = importlib.import_module("shell")
repository: Any = importlib.import_module("repository")
journals: Any = importlib.import_module("journal")
program: Any = importlib.import_module("main")
take: Any = importlib.import_module("take")
restoring: Any = importlib.import_module("restoring")
scheduler: Any = importlib.import_module("scheduler")
database: Any = importlib.import_module("database")
objects: Any = importlib.import_module("objects")
NOW = datetime(2026, 5, 6, 12, tzinfo=UTC)


@pytest.fixture(autouse=True)
def in_its_container(monkeypatch: pytest.MonkeyPatch) -> None:
    """Set the environment variable that every container of a stack has."""
    monkeypatch.setenv("STACK", "prod")


def a_manifest(**more: object) -> Any:  # noqa: ANN401 - loaded at run time
    values = {
        "stack": "prod",
        "taken_at": "2026-05-06T03:17:00+00:00",
        "mlflow": "3.18.0",
        "schema_revision": "abc",
        "postgres": "18.6",
        "rows": {"runs": 7, "experiments": 2},
        "objects": 3,
        "object_bytes": 5_000_000_000,
        "dump_bytes": 10,
        "dump_sha256": "d",
        "index_sha256": "i",
        "data_keys": {"key": "k"},
    }
    return manifests.Manifest(**(values | more))


def test_a_program_ends_when_a_check_of_its_progress_fails() -> None:
    def full() -> None:
        raise shell.Failure("the disk is full")

    began = time.monotonic()
    with pytest.raises(shell.Failure, match="the disk is full"):
        shell.show(sys.executable, "-c", "import time; print('copying', flush=True); time.sleep(60)", check=full)
    assert time.monotonic() - began < 30


def test_a_manifest_survives_writing_and_reading() -> None:
    assert manifests.Manifest.read(a_manifest().written()) == a_manifest()
    assert a_manifest().summary == "2 experiments, 7 runs; 3 artifacts, 5.0 GB"


def test_a_manifest_of_a_newer_format_is_refused() -> None:
    with pytest.raises(shell.Failure, match="format 3, written by a newer version of this project"):
        manifests.Manifest.read(a_manifest(format=3).written())


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"format": 1}'])
def test_a_manifest_that_was_damaged_is_refused(text: str) -> None:
    with pytest.raises(shell.Failure, match="manifest cannot be read"):
        manifests.Manifest.read(text)


def test_unchanged_artifacts_are_not_hashed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "artifacts"
    (folder / "1").mkdir(parents=True)
    (folder / "1" / "a").write_text("a")
    (folder / "1" / "b").write_text("b")
    first = manifests.indexed(folder, {})
    manifests.write_index(tmp_path / "index", first)
    known = manifests.read_index(tmp_path / "index")
    assert list(known.values()) == first
    read: list[str] = []

    def hashed(path: Path) -> str:
        read.append(path.name)
        return "new"

    monkeypatch.setattr(manifests, "sha256", hashed)
    (folder / "1" / "b").write_text("other")
    again = {entry.path: entry.sha256 for entry in manifests.indexed(folder, known)}
    assert read == ["b"]
    assert again == {"1/a": first[0].sha256, "1/b": "new"}


def test_a_truncated_or_missing_index_reads_as_empty(tmp_path: Path) -> None:
    (tmp_path / "index").write_text('["a", 1, 2, "x"]\n["b", 1')
    assert manifests.read_index(tmp_path / "index") == {}
    assert manifests.read_index(tmp_path / "missing") == {}


def test_missing_and_changed_artifacts_are_listed(tmp_path: Path) -> None:
    for name in ("good", "changed", "missing"):
        (tmp_path / name).write_text(name)
    entries = manifests.indexed(tmp_path, {})
    (tmp_path / "changed").write_text("changes")
    (tmp_path / "missing").unlink()
    assert manifests.damaged(lambda entry: tmp_path / entry.path, entries) == ["changed", "missing"]


@pytest.mark.parametrize(
    ("code", "words"), [(10, "there is no backup at /r"), (12, "mlflow:backupPassword"), (1, "exit code 1")]
)
def test_each_restic_exit_code_is_explained(code: int, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RESTIC_REPOSITORY", "/r")
    assert words in repository._explained("snapshots", code, "Fatal: its own words")


def test_json_messages_of_restic_become_plain_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RESTIC_REPOSITORY", "/r")
    said = '{"message_type":"exit_error","code":1,"message":"Fatal: unable to open"}'
    assert repository._explained("snapshots", 1, said).endswith("at /r\n    Fatal: unable to open")
    # The first line says everything already.
    assert (
        repository._explained("snapshots", 10, said)
        == f"{backup.NO_BACKUP_MESSAGE} /r yet\n  type: make backup STACK=prod"
    )
    said = '{"message_type":"error","error":{"message":"permission denied"},"during":"scan","item":"/staging/x"}'
    assert repository._message(said) == "/staging/x: permission denied"
    for line in ("Fatal: no JSON", "[1]", "{}", "12"):
        assert repository._message(line) == line


@pytest.mark.parametrize(
    ("size", "words"),
    [(0, "0 B"), (1, "1 B"), (7_400, "7 kB"), (999_600, "1 MB"), (12_345_678, "12 MB"), (3_140_000_000, "3.1 GB")],
)
def test_sizes_are_printed_in_the_largest_fitting_unit(size: int, words: str) -> None:
    assert shell.amount(size) == console.format_bytes(size) == words


def test_an_unreachable_backup_target_is_reported_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RESTIC_REPOSITORY", "s3:http://127.0.0.1:9/bucket/path")
    with pytest.raises(shell.Failure, match=r"cannot be reached: .*refused"):
        repository.require_reachable()
    monkeypatch.setenv("RESTIC_REPOSITORY", "/repository")
    repository.require_reachable()


@pytest.mark.parametrize("look", ["identity", "require"])
def test_a_target_that_denies_access_is_reported_without_waiting_for_restic(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, look: str
) -> None:
    program = tmp_path / "restic"
    program.write_text("#!/bin/sh\necho 'Save returned error, retrying: access denied' >&2\nexec sleep 60\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("RESTIC_REPOSITORY", "s3:http://s3.example.com/bucket")
    monkeypatch.setattr(repository, "ANSWER_SECONDS", 1)
    monkeypatch.setattr(repository, "require_reachable", lambda: None)
    with pytest.raises(shell.Failure, match=r"its access key is valid and may write to it.*\n.*access denied"):
        getattr(repository, look)()


def test_a_missing_backup_repository_reads_as_no_backup_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RESTIC_REPOSITORY", "/r")
    monkeypatch.setattr(repository, "identity", lambda: None)
    with pytest.raises(shell.Failure, match=rf"{backup.NO_BACKUP_MESSAGE} /r yet\n  type: make backup STACK=prod"):
        repository.require()


def test_a_path_is_escaped_for_restic_patterns() -> None:
    assert repository._escaped("a b/[1]*.$x ") == "/a[ ]b/\\[1\\]\\*.$$x[ ]"


def test_a_failed_run_is_recorded_and_the_last_success_is_kept(tmp_path: Path) -> None:
    journal = journals.Journal(tmp_path / "journal.json")
    with journal.recorded("backup") as result:
        result["snapshot"] = "abc"
    good = journal.read()["backup"]
    with pytest.raises(shell.Failure), journal.recorded("backup"):
        raise shell.Failure("the disk is full")
    now = journal.read()["backup"]
    assert (now["last_result"], now["error"]) == (0, "the disk is full")
    assert now["last_success_timestamp_seconds"] == good["last_success_timestamp_seconds"]
    assert now["snapshot"] == "abc"


def test_a_restore_clears_a_recorded_failure_but_not_the_last_success(tmp_path: Path) -> None:
    journal = journals.Journal(tmp_path / "journal.json")
    journal.excuse("backup")
    assert journal.read() == {}
    journal.write("backup", {"snapshot": "0a", "last_success_timestamp_seconds": 1.0})
    journal.failed("backup", "the database of this stack is empty")
    journal.excuse("backup")
    assert journal.read()["backup"].keys() == {
        "snapshot",
        "last_success_timestamp_seconds",
        "last_end_timestamp_seconds",
    }
    # A successful result is kept.
    journal.write("backup", {"last_result": 1})
    journal.excuse("backup")
    assert journal.read()["backup"]["last_result"] == 1


def test_the_last_run_is_exported_to_prometheus(tmp_path: Path) -> None:
    journal = journals.Journal(tmp_path / "journal.json")
    assert list(journals._Collected(journal, {}).collect()) == []
    with journal.recorded("drill") as result:
        result["source_bytes"] = 7
    found = {metric.name: metric.samples[0].value for metric in journals._Collected(journal, {}).collect()}
    assert found["mlflow_drill_last_result"] == 1
    assert found["mlflow_drill_source_bytes"] == 7
    assert set(found) == {
        f"mlflow_drill_{name}"
        for name in (
            *("last_success_timestamp_seconds", "last_end_timestamp_seconds", "last_result"),
            *("duration_seconds", "source_bytes"),
        )
    }


def test_the_due_time_of_the_next_backup_is_exported(tmp_path: Path) -> None:
    journal = journals.Journal(tmp_path / "journal.json")

    def due() -> datetime:
        metric = next(iter(journals._Collected(journal, {"backup": "17 3 * * *"}).collect()))
        assert metric.name == "mlflow_backup_due_timestamp_seconds"
        return datetime.fromtimestamp(metric.samples[0].value, UTC)

    # Scheduled on a Monday evening, and never taken: due on Tuesday, however long ago that is.
    journal.write("scheduled", {"backup": datetime(2026, 11, 23, 20, tzinfo=UTC).timestamp()})
    assert due() == datetime(2026, 11, 24, 3, 17, tzinfo=UTC)
    journal.write("backup", {"last_success_timestamp_seconds": datetime(2026, 11, 24, 3, 18, tzinfo=UTC).timestamp()})
    assert due() == datetime(2026, 11, 25, 3, 17, tzinfo=UTC)
    # The stack was down for days, and the journal has its last backup.
    journal.write("scheduled", {"backup": datetime(2026, 11, 28, 5, tzinfo=UTC).timestamp()})
    assert due() == datetime(2026, 11, 29, 3, 17, tzinfo=UTC)


def test_backup_and_migration_hold_the_same_lock() -> None:
    in_image = (ROOT / "mlflow" / "locked.py").read_text()
    assert "LOCK = 0x6D6C_666C_6F77" in in_image
    assert database.LOCK == 0x6D6C_666C_6F77 == int.from_bytes(b"mlflow")


class Refusing(http.server.BaseHTTPRequestHandler):
    """An object store that refuses every request without credentials."""

    def do_GET(self) -> None:
        self.send_error(403)

    def log_message(self, *_: object) -> None:
        pass


def test_an_object_store_that_refuses_anonymous_requests_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objects, "ANSWER_SECONDS", 0)
    with http.server.HTTPServer(("127.0.0.1", 0), Refusing) as server:
        monkeypatch.setenv("RCLONE_CONFIG_STORE_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        threading.Thread(target=server.handle_request).start()
        objects.require_answer()


def test_a_backup_fails_soon_and_without_the_lock_if_the_object_store_is_down(
    journal: Any,  # noqa: ANN401 - loaded at run time
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(objects, "ANSWER_SECONDS", 0)
    # Nothing listens there.
    monkeypatch.setenv("RCLONE_CONFIG_STORE_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setattr(database, "locked", lambda *_: pytest.fail("the lock was taken"))
    words = r"the object store \(http://127.0.0.1:1\) does not answer: .*refused\n  type: make status STACK=prod"
    with pytest.raises(shell.Failure, match=words):
        take.backup()
    assert "does not answer" in journal.read()["backup"]["error"]
    with pytest.raises(shell.Failure, match=words):
        restoring.plan("latest")


@pytest.mark.parametrize(
    ("hours_since", "due"),
    [(None, "2026-05-07T03:17"), (5, "2026-05-07T03:17"), (9, "2026-05-06T12:00")],
    ids=["never ran", "ran since", "the host was off"],
)
def test_a_missed_scheduled_backup_is_due_at_once(hours_since: float | None, due: str) -> None:
    last_end = None if hours_since is None else NOW.timestamp() - hours_since * 3600
    assert scheduler.next_due("17 3 * * *", NOW, last_end).isoformat().startswith(due)


@pytest.fixture
def journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:  # noqa: ANN401 - loaded at run time
    """Return a new journal, beside a repository with two snapshots."""
    new = journals.Journal(tmp_path / "journal.json")
    for module in (program, take, scheduler, restoring):
        monkeypatch.setattr(module, "journal", new)
    monkeypatch.setenv("TARGET", "volume")
    monkeypatch.setenv("RESTIC_REPOSITORY", "/repository")
    summary = {
        "backup_start": "2026-05-06T03:17:00.123456789Z",
        "backup_end": "2026-05-06T03:17:42.123456789Z",
        "total_bytes_processed": 5_000_000_000,
        "data_added_packed": 7,
    }
    older = {"id": "0a", "short_id": "0a", "time": "2026-05-05T03:17:00Z", "tags": ["mlflow"]}
    newer = {"id": "0b", "short_id": "0b", "time": "2026-05-06T03:17:00Z", "tags": ["mlflow"], "summary": summary}
    monkeypatch.setattr(repository, "identity", lambda: "r")
    monkeypatch.setattr(repository, "snapshots", lambda: [older, newer])
    monkeypatch.setattr(repository, "text", lambda *_: a_manifest().written())
    monkeypatch.setattr(repository, "last_drill", lambda: None)
    return new


def test_a_new_journal_reads_the_last_backup_from_the_repository(journal: Any) -> None:  # noqa: ANN401
    scheduler.recall()
    known = journal.read()
    assert known["repositories"] == {"volume": "r"}
    assert known["backup"] | {"last_success_timestamp_seconds": 0} == {
        "snapshot": "0b",
        "target": "volume",
        "runs": 7,
        "artifacts": 3,
        "last_success_timestamp_seconds": 0,
        "duration_seconds": 42,
        "source_bytes": 5_000_000_000,
        "added_bytes": 7,
        "snapshots": 2,
    }
    line, wrong = backup_status.status_line(BackupSettings(), known, NOW, "prod")
    assert line.splitlines()[0] == "0b, 9 h ago, 5.0 GB in 42 s; restore test: none since the deployment;"
    assert wrong is None
    # An empty stack waits for a restore: no backup is due at once.
    assert scheduler.next_due("17 3 * * *", NOW, known["backup"].get("last_end_timestamp_seconds")) > NOW


def test_the_last_restore_test_is_stored_in_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    stored: dict[str, str] = {}

    def restic(*arguments: str, stdin: str | None = None, **_: object) -> str:
        if arguments[0] == "backup":
            stored["file"] = stdin or ""
        if arguments[0] == "snapshots":
            return json.dumps([{"id": "0d", "time": "2026-05-06T05:17:00Z"}] if stored else [])
        return stored["file"] if arguments[0] == "dump" else ""

    monkeypatch.setenv("DELETES", "1")
    monkeypatch.setattr(repository, "_restic", restic)
    assert repository.last_drill() is None
    ended = {"last_success_timestamp_seconds": NOW.timestamp(), "duration_seconds": 9, "source_bytes": 7_000}
    result = {"snapshot": "0b" * 32, "last_result": 1, **ended}
    repository.remember_drill(result)
    assert repository.last_drill() == result
    line, wrong = backup_status.status_line(BackupSettings(), {"drill": result}, NOW, "prod")
    assert "restore test: 0b0b0b0b, 0 h ago" in line
    assert wrong is None


def test_a_change_of_the_backup_target_clears_the_journal(journal: Any, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: ANN401
    journal.write("repositories", {"volume": "1d"})
    journal.write("scheduled", {"backup": 1.0})
    journal.write("backup", {"snapshot": "0c", "target": "volume"})
    monkeypatch.setenv("TARGET", "volume")
    scheduler._begin_anew_at_another_target()
    assert journal.read()["backup"]["snapshot"] == "0c"
    monkeypatch.setenv("TARGET", "/srv/backup")
    scheduler._begin_anew_at_another_target()
    assert journal.read() == {"repositories": {"volume": "1d"}}


def test_a_journal_with_a_backup_does_not_query_the_repository(journal: Any, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: ANN401
    journal.write("backup", {"snapshot": "0c"})
    monkeypatch.setattr(repository, "identity", lambda: pytest.fail("the repository was queried"))
    scheduler.recall()
    assert journal.read() == {"backup": {"snapshot": "0c"}}


@pytest.fixture
def staged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prepare a staging folder as it is after a backup of ten artifacts and seven runs."""
    monkeypatch.setenv("STACK", "prod")
    for module in (take, restoring):
        monkeypatch.setattr(module, "CURRENT", tmp_path)
    monkeypatch.setattr(restoring, "KEYS", tmp_path / "keys")
    manifests.write_index(tmp_path / "index.jsonl", [manifests.Entry(str(n), 1, 1, "s") for n in range(10)])
    monkeypatch.setattr(repository, "snapshots", lambda: [{"id": "0a", "tags": ["mlflow"]}])
    monkeypatch.setattr(repository, "text", lambda *_: a_manifest().written())


def refusal(*, used: bool) -> str:
    """Return the message of a backup that is refused: of the staged stack, without artifacts and, if unused, runs."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(database, "used", lambda: used)
        with pytest.raises(shell.Failure) as told:
            take._require_plausible(0)
    return str(told.value)


@pytest.mark.usefixtures("staged")
def test_an_empty_stack_with_a_backup_of_runs_is_a_problem(
    journal: Any,  # noqa: ANN401
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("PGOPTIONS", "")

    def known(*, used: bool) -> dict[str, Any]:
        monkeypatch.setattr(database, "used", lambda: used)
        capsys.readouterr()
        program.show_journal()
        found: dict[str, Any] = json.loads(capsys.readouterr().out)
        return found

    assert known(used=False) == {}
    journal.write("backup", entry(9, runs=7))
    assert backup_status.status_line(BackupSettings(), known(used=True), NOW, "prod")[1] is None
    wrong = backup_status.status_line(BackupSettings(), known(used=False), NOW, "prod")[1]
    assert wrong is not None
    assert wrong.startswith("the database of this stack is empty, but the newest backup has 7 runs\n  to restore them")
    # This problem comes before all others.
    failed = known(used=False) | {"drill": entry(9, last_result=0, error="the disk is full")}
    wrong = backup_status.status_line(BackupSettings(), failed, NOW, "prod")[1]
    assert wrong is not None
    assert wrong.startswith("the database of this stack is empty, but the newest backup has 7 runs\n")
    assert "the last restore test failed" in wrong
    # A backup that was refused for this reason is reported once only.
    journal.failed("backup", refusal(used=False))
    wrong = backup_status.status_line(BackupSettings(), known(used=False), NOW, "prod")[1]
    assert wrong is not None
    assert wrong.count("the database of this stack is empty") == 1


@pytest.mark.usefixtures("staged")
@pytest.mark.parametrize("left", [True, False], ids=["some are left", "all are lost"])
def test_a_bucket_that_lost_every_artifact_of_the_backup_is_a_problem(
    journal: Any,  # noqa: ANN401
    left: bool,  # noqa: FBT001
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("PGOPTIONS", "")
    monkeypatch.setattr(objects, "is_empty", lambda: not left)
    monkeypatch.setattr(database, "used", lambda: True)

    def wrong() -> str:
        capsys.readouterr()
        program.show_journal()
        known = json.loads(capsys.readouterr().out)
        return backup_status.status_line(BackupSettings(), known, NOW, "prod")[1] or ""

    journal.write("backup", entry(9, runs=7, artifacts=1))
    lost = "the object store of this stack is empty, but the newest backup has 1 artifact\n"
    assert wrong().startswith(lost) is not left
    assert ("type: make restore STACK=prod FROM=latest" in wrong()) is not left
    # A new host has lost both: a restore brings both back.
    monkeypatch.setattr(database, "used", lambda: False)
    assert wrong().startswith("the database of this stack is empty")
    assert lost not in wrong()
    # A backup that was refused for this reason is reported once only.
    monkeypatch.setattr(database, "used", lambda: True)
    journal.failed("backup", refusal(used=True))
    assert lost not in wrong()
    # Without artifacts in the backup, none can be lost.
    monkeypatch.setattr(objects, "is_empty", lambda: pytest.fail("the object store was asked"))
    journal.write("backup", entry(9, runs=7, artifacts=0))
    assert lost not in wrong()


@pytest.mark.parametrize(
    ("script", "known", "seconds"),
    [
        ("echo 1/run/artifacts/model.pkl; exec sleep 60", False, 30),
        ("exit 0", True, 30),
        ("exit 3", True, 30),
        ("exit 1", False, 30),
        ("exec sleep 60", False, 1),
    ],
    ids=["an artifact", "no artifact", "no bucket", "refused", "no answer"],
)
def test_a_bucket_counts_as_empty_only_if_that_is_certain(
    script: str,
    known: bool,  # noqa: FBT001
    seconds: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rclone = tmp_path / "rclone"
    rclone.write_text(f"#!/bin/sh\n{script}\n")
    rclone.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("BUCKET", "mlflow")
    monkeypatch.setattr(objects, "SEARCH_SECONDS", seconds)
    begun = time.monotonic()
    assert objects.is_empty() is known
    assert time.monotonic() - begun < 20


def test_the_journal_is_shown_when_the_database_is_unreachable(
    journal: Any,  # noqa: ANN401
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def silent() -> bool:
        raise shell.Failure("the database cannot be reached")

    monkeypatch.setenv("PGOPTIONS", "")
    journal.write("backup", {"runs": 7})
    monkeypatch.setattr(database, "used", silent)
    program.show_journal()
    assert json.loads(capsys.readouterr().out) == {"backup": {"runs": 7}}


@pytest.mark.parametrize("fails", [1, 124], ids=["an older version", "no answer"])
def test_the_journal_file_is_read_when_the_program_cannot_print_it(fails: int) -> None:
    class Behind:
        def run(self, _: str, command: list[str]) -> tuple[int, str]:
            return (
                (0, '{\n  "backup": {"snapshot": "0a"}\n}') if command[0] == "cat" else (fails, "KeyError: 'journal'")
            )

    stack: Any = SimpleNamespace(
        name="prod", daemon=Behind(), settings=SimpleNamespace(backup=BackupSettings(enabled=True))
    )
    assert backup_status.read_journal(stack) == {"backup": {"snapshot": "0a"}}


@pytest.mark.parametrize("what", ["no repository", "no backup", "no answer"])
def test_the_journal_stays_empty_without_a_readable_backup(
    journal: Any,  # noqa: ANN401
    monkeypatch: pytest.MonkeyPatch,
    what: str,
) -> None:
    def refused() -> str:
        raise shell.Failure("it does not answer")

    if what == "no backup":
        monkeypatch.setattr(repository, "snapshots", list)
    else:
        monkeypatch.setattr(repository, "identity", refused if what == "no answer" else lambda: None)
    scheduler.recall()
    assert journal.read() == {}


# --- when a backup is refused --------------------------------------------------------------------------------------


@pytest.mark.usefixtures("staged")
def test_a_new_staging_folder_does_not_hide_that_artifacts_are_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "used", lambda: True)
    index = tmp_path / "index.jsonl"
    index.unlink()
    with pytest.raises(shell.Failure, match="has 0 artifacts, but the last backup had 3"):
        take._require_plausible(0)
    # Deleted artifacts are in one more backup than in the bucket.
    monkeypatch.setattr(repository, "text", lambda *_: a_manifest(bucket_objects=0).written())
    take._require_plausible(0)
    monkeypatch.setattr(repository, "snapshots", list)
    take._require_plausible(0)


@pytest.mark.usefixtures("staged")
def test_artifacts_that_were_deleted_on_purpose_are_accepted_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "used", lambda: True)
    mirror = objects.Mirror(tmp_path / "artifacts", tmp_path / "aside")
    mirror.folder.mkdir()
    for number in range(10):
        (mirror.folder / str(number)).write_text("x")
    # The backup that accepts them: its list has what is in the mirror.
    (tmp_path / "index.jsonl").write_text("")
    take._require_plausible(1)
    manifests.write_index(tmp_path / "index.jsonl", manifests.indexed(mirror.folder, {}, {}))
    take._forget_deleted(mirror, [mirror.folder / str(number) for number in range(1, 10)])
    assert [path.name for path in mirror.folder.iterdir()] == ["0"]
    assert list(manifests.read_index(tmp_path / "index.jsonl")) == ["0"]
    take._require_plausible(1)


@pytest.mark.parametrize("empty", [True, False])
@pytest.mark.usefixtures("staged")
def test_the_plan_of_a_restore_says_how_many_artifacts_are_lost(
    empty: bool,  # noqa: FBT001
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for module, name in ((repository, "require"), (objects, "require_answer")):
        monkeypatch.setattr(module, name, lambda: None)
    monkeypatch.setattr(repository, "find", lambda _: {"id": "0a"})
    monkeypatch.setattr(database, "used", lambda: False)
    monkeypatch.setattr(objects, "is_empty", lambda: empty)
    restoring.plan("latest")
    assert json.loads(capsys.readouterr().out)["lost_artifacts"] == (3 if empty else 0)


@pytest.mark.usefixtures("staged")
def test_a_backup_is_refused_when_most_artifacts_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "used", lambda: True)
    take._require_plausible(5)
    with pytest.raises(shell.Failure, match="has 4 artifacts, but the last backup had 10") as told:
        take._require_plausible(4)
    assert "make restore STACK=prod FROM=latest" in str(told.value)
    assert "docker exec mlflow-prod-backup truncate -s 0 " in str(told.value)


@pytest.mark.usefixtures("staged")
def test_a_failed_restore_keeps_the_index_of_the_previous_backup(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*_: object, **__: object) -> None:
        raise shell.Failure("the target is gone")

    entry = {"id": "0a", "short_id": "0a", "tags": ["mlflow"], "time": "2026-05-05T03:17:00Z"}
    monkeypatch.setattr(database, "locked", lambda *_, **__: contextlib.nullcontext())
    monkeypatch.setattr(repository, "release", lambda: None)
    monkeypatch.setattr(repository, "find", lambda _: entry)
    monkeypatch.setattr(objects, "size", lambda: (0, 0))
    monkeypatch.setattr(restoring, "require_free", lambda *_: None)
    monkeypatch.setattr(repository, "restore", gone)
    with pytest.raises(shell.Failure, match="the target is gone"):
        restoring.restore("latest")
    assert "has 0 artifacts, but the last backup had 10" in refusal(used=True)


@pytest.mark.usefixtures("staged")
def test_an_empty_stack_is_not_backed_up_when_a_backup_has_runs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(database, "used", lambda: False)
    with pytest.raises(shell.Failure, match="the database of this stack is empty, but the newest backup has 7 runs"):
        take._require_plausible(10)
    monkeypatch.setattr(repository, "snapshots", list)
    take._require_plausible(10)


def pictured_as(letter: str) -> str:
    """Return a character as rclone lists it."""
    return "\u201b" + letter if letter in "\u201b\u240a" else chr(0x2400 + ord(letter)) if ord(letter) < 32 else letter


class Bucket:
    """A bucket, with an rclone that skips what a file system cannot hold and still reports success."""

    def __init__(self, mirror: Path, monkeypatch: pytest.MonkeyPatch, **held: str) -> None:
        self.held: dict[str, str] = held
        self.unreadable: set[str] = set()
        self.prefers_files = False
        self.fails = False
        self.mirror = objects.Mirror(mirror / "artifacts", mirror / "aside")
        self.mirror.folder.mkdir()
        monkeypatch.setenv("BUCKET", "mlflow")
        monkeypatch.setattr(objects, "run", self.run)
        monkeypatch.setattr(objects, "show", self.show)

    def run(self, *command: str) -> str:
        if command[1] == "lsjson":
            pictured = {name: "".join(map(pictured_as, name)) for name in self.held}
            return json.dumps([{"Path": pictured[name], "Size": len(text)} for name, text in self.held.items()])
        assert command[1] == "copyto", command
        name = objects.local(command[-2].removeprefix("store:mlflow/artifacts/"))
        if name in self.unreadable:
            raise shell.Failure("corrupted on transfer: sizes differ 3 vs 0")
        Path(command[-1]).write_text(self.held[name])
        return ""

    def show(self, *command: str) -> None:
        assert command[1] == "copy", command
        for name, text in self.held.items():
            path = self.mirror.folder / name
            # Of a file and a folder with the same name, rclone copies one and reports nothing.
            if not self.prefers_files and any(other.startswith(f"{name}/") for other in self.held):
                continue
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                if not path.is_dir() and name not in self.unreadable:
                    path.write_text(text)
            except OSError:
                continue
        if self.unreadable or self.fails:
            raise shell.Failure("rclone copy failed with exit code 1")

    def filled(self) -> list[str]:
        left: list[str] = self.mirror.fill(self.mirror.surveyed())
        return left

    def copied(self) -> dict[str, str]:
        return {name: self.mirror.place("".join(map(pictured_as, name))).read_text() for name in self.held}


ODD = {
    "a#b": "1",
    "a?b": "22",
    "a\u2028b\x85c": "333",
    "new\nline": "4444",
    "a picture of a line end \u240a": "55555",
    "e\u0301": "decomposed",
    "\u00e9": "composed",
    "report": "a file",
    "report/page1.txt": "below a file",
    "x" * 256: "too long",
    "deep/" + "y" * 300 + "/z": "too long in between",
}


@pytest.mark.parametrize("prefers_files", [False, True])
def test_every_artifact_is_in_the_mirror_once_whatever_its_name(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    prefers_files: bool,  # noqa: FBT001
) -> None:
    bucket = Bucket(tmp_path, monkeypatch, **ODD)
    bucket.prefers_files = prefers_files
    assert bucket.filled() == []
    assert bucket.copied() == ODD
    aside = {name: bucket.mirror.hashed(name) for name in ODD if bucket.mirror.hashed(name).is_file()}
    assert set(aside) >= {"report", "x" * 256, "deep/" + "y" * 300 + "/z"}
    entries = manifests.indexed(bucket.mirror.folder, {}, aside)
    assert sorted((entry.path, entry.size) for entry in entries) == sorted(
        (name, len(text.encode())) for name, text in ODD.items()
    )
    manifests.write_index(tmp_path / "index", entries)
    assert list(manifests.read_index(tmp_path / "index").values()) == entries
    assert manifests.damaged(bucket.mirror.file, entries) == []
    aside["report"].write_text("other")
    assert manifests.damaged(bucket.mirror.file, entries) == ["report"]


def test_unreadable_artifacts_are_listed_and_all_others_are_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = Bucket(tmp_path, monkeypatch, **ODD)
    bucket.unreadable = {"report", "a#b"}
    assert bucket.filled() == ["a#b", "report"]
    assert bucket.mirror.place("a?b").read_text() == "22"


def test_an_artifact_kept_aside_moves_back_once_its_name_fits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bucket = Bucket(tmp_path, monkeypatch, **ODD)
    bucket.filled()
    del bucket.held["report/page1.txt"]
    bucket.held["report"] = "A FILE"
    bucket.mirror.prune(bucket.mirror.surveyed().gone)
    assert bucket.filled() == []
    assert bucket.copied()["report"] == "A FILE"
    assert not bucket.mirror.hashed("report").exists()


def test_a_folder_is_copied_beside_a_file_of_the_same_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bucket = Bucket(tmp_path, monkeypatch, report="a file")
    bucket.filled()
    bucket.held["report/page1.txt"] = "below it"
    assert bucket.filled() == []
    assert bucket.copied() == {"report": "a file", "report/page1.txt": "below it"}
    assert bucket.mirror.surveyed().gone == []


@pytest.mark.parametrize(("before", "after"), [("a", "a/b"), ("a/b/c", "a"), ("a/b/c", "a/b")])
def test_a_file_may_become_a_folder_and_a_folder_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: str, after: str
) -> None:
    bucket = Bucket(tmp_path, monkeypatch, **{before: "old"})
    bucket.filled()
    bucket.held = {after: "new"}
    assert bucket.filled() == []
    assert bucket.copied() == {after: "new"}
    assert not bucket.mirror.aside.exists()


def test_one_unreadable_artifact_does_not_stop_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bucket = Bucket(tmp_path, monkeypatch, fine="1", lost="2")
    bucket.unreadable = {"lost"}
    assert bucket.filled() == ["lost"]
    assert bucket.mirror.place("fine").read_text() == "1"


def test_a_failed_copy_that_missed_nothing_counts_as_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bucket = Bucket(tmp_path, monkeypatch, **ODD)
    bucket.fails = True
    assert bucket.filled() == []
    assert bucket.copied() == ODD


def test_an_unreachable_object_store_fails_the_backup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bucket = Bucket(tmp_path, monkeypatch, **ODD)

    def fails(*_: str) -> None:
        raise shell.Failure("connection refused")

    monkeypatch.setattr(objects, "show", fails)
    bucket.unreadable = set(ODD)
    with pytest.raises(shell.Failure, match="connection refused"):
        bucket.filled()


def test_artifacts_added_or_deleted_during_the_copy_are_not_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = Bucket(tmp_path, monkeypatch, kept="1", gone="2")
    survey = bucket.mirror.surveyed()
    del bucket.held["gone"]
    bucket.held["new"] = "3"
    assert bucket.mirror.fill(survey) == []


def test_the_mirror_deletes_only_artifacts_missing_from_the_survey(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = Bucket(tmp_path, monkeypatch, kept="abc", changed="abcd", new="a" * 9, **{"half/kept": "abc"})
    folder = bucket.mirror.folder
    for name in ("kept", "changed", "gone/deep/one", "half/gone", "half/kept"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("abc")
    survey = bucket.mirror.surveyed()
    assert (len(survey.there), survey.missing_bytes) == (4, 13)
    # Added while the mirror was filled, after the survey of the bucket.
    (folder / "later").write_text("abc")
    bucket.mirror.prune(survey.gone)
    left = sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))
    assert left == ["changed", "half", "half/kept", "kept", "later"]


def test_a_long_list_of_names_is_cut_at_ten() -> None:
    assert shell.first(["a", "b"]) == "\n    a\n    b"
    assert shell.first([str(number) for number in range(12)]).endswith("\n    9\n    and 2 more")


def test_latest_skips_incomplete_backups(monkeypatch: pytest.MonkeyPatch) -> None:
    entries = [
        {"id": letter * 64, "short_id": letter * 8, "time": letter, "tags": ["mlflow", *tags]}
        for letter, tags in (("a", []), ("b", ["incomplete"]), ("c", ["safety"]))
    ]
    monkeypatch.setattr(repository, "snapshots", lambda: entries)
    assert repository.find("latest")["short_id"] == "a" * 8
    assert repository.find("b" * 8)["short_id"] == "b" * 8
    with pytest.raises(shell.Failure, match=r"b{8} \(incomplete\), c{8} \(before a restore or an import\)"):
        repository.find("d" * 8)


def test_the_restored_size_of_older_backups_is_estimated() -> None:
    old = json.loads(a_manifest(dump_bytes=10).written())
    del old["database_bytes"]
    assert manifests.Manifest.read(json.dumps(old)).restored_bytes == 40
    assert a_manifest(dump_bytes=10, database_bytes=35).restored_bytes == 55


def test_progress_is_printed_every_ten_seconds(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = [0.0]
    monkeypatch.setattr(shell.time, "monotonic", lambda: clock[0])
    progress = shell.Progress("of new artifacts read")
    for clock[0] in (1.0, 11.0, 12.0, 22.0):
        progress.add(500_000_000)
    assert capsys.readouterr().out == "1.0 GB of new artifacts read\n2.0 GB of new artifacts read\n"


def test_a_program_killed_by_a_signal_is_reported_as_killed() -> None:
    with pytest.raises(shell.Failure, match="was killed by signal 9; perhaps memory ran out"):
        shell.run("sh", "-c", "kill -9 $$")


def test_a_tables_name_is_quoted() -> None:
    assert database._quoted('a"b') == '"a""b"'


# --- what `make status` reports ------------------------------------------------------------------------------------


def entry(hours_ago: float, **more: object) -> dict[str, Any]:
    return {
        "last_success_timestamp_seconds": NOW.timestamp() - hours_ago * 3600,
        "last_result": 1,
        "snapshot": "0123456789abcdef",
        "source_bytes": 5e9,
        "duration_seconds": 42.1,
        **more,
    }


def test_the_status_shows_age_size_and_duration_of_a_recent_backup() -> None:
    line, wrong = backup_status.status_line(BackupSettings(), {"backup": entry(9)}, NOW, "prod")
    assert line.splitlines()[0] == "01234567, 9 h ago, 5.0 GB in 42 s; restore test: none since the deployment;"
    assert wrong is None


def test_a_backup_on_the_same_disk_as_the_data_is_warned_about() -> None:
    assert "same disk as the data" in backup_status.status_line(BackupSettings(), {}, NOW, "prod")[0]
    folder = BackupSettings.model_validate({"target": "/srv/backup"})
    assert "same disk as the data" not in backup_status.status_line(folder, {}, NOW, "prod")[0]
    # A folder may be on the same disk, too.
    assert (
        "same disk as the data"
        in backup_status.status_line(folder, {"backup": entry(9, on_one_disk=True)}, NOW, "prod")[0]
    )


@pytest.mark.parametrize(("hours", "wrong"), [(32, False), (33, True)], ids=["one run missed", "two runs missed"])
def test_a_backup_that_is_too_old_is_a_problem(hours: float, wrong: bool) -> None:  # noqa: FBT001
    # At noon, with a schedule of 03:17 each day: the last two times were 8.7 and 32.7 hours ago.
    assert bool(backup_status.status_line(BackupSettings(), {"backup": entry(hours)}, NOW, "prod")[1]) is wrong


@pytest.mark.parametrize(("hours", "wrong"), [(32, False), (33, True)])
def test_a_first_backup_that_is_overdue_is_a_problem(hours: float, wrong: bool) -> None:  # noqa: FBT001
    known = {"scheduled": {"backup": NOW.timestamp() - hours * 3600}}
    assert bool(backup_status.status_line(BackupSettings(), known, NOW, "prod")[1]) is wrong


def test_a_missed_first_backup_is_due_at_once_and_only_once() -> None:
    # Scheduled at 02:00, due at 03:17, and now it is 12:00.
    known = {"scheduled": {"backup": NOW.timestamp() - 10 * 3600}}
    assert scheduler.next_due("17 3 * * *", NOW, scheduler._counted_from("backup", known, {})) == NOW
    # Not again and again when it ends without recording a result.
    attempted = {"backup": NOW.timestamp() - 60}
    assert scheduler.next_due("17 3 * * *", NOW, scheduler._counted_from("backup", known, attempted)) > NOW
    assert scheduler._counted_from("backup", {}, {}) is None


def test_time_during_which_the_stack_was_down_does_not_count_as_overdue() -> None:
    known = {"backup": entry(73), "scheduled": {"backup": NOW.timestamp() - 3600}}
    line, wrong = backup_status.status_line(BackupSettings(), known, NOW, "prod")
    assert line.startswith("01234567, 3 d ago")
    assert wrong is None


@pytest.mark.parametrize("kind", ["backup", "drill"])
def test_a_failed_backup_or_restore_test_is_a_problem_with_its_reason(kind: str) -> None:
    ended = NOW.timestamp() - 3 * 3600
    known = {kind: entry(9, last_result=0, error="the disk is full", last_end_timestamp_seconds=ended)}
    wrong = backup_status.status_line(BackupSettings(), known, NOW, "prod")[1]
    assert wrong == (
        f"the last {KINDS[kind]} failed, 3 h ago: the disk is full\n  fix the cause, then type: make {kind} STACK=prod"
    )


# --- when a restore is refused -------------------------------------------------------------------------------------


class AStack:
    name = "prod"
    path = Path("Pulumi.prod.yaml")


def a_plan(**more: object) -> dict[str, Any]:
    plan = {"stack": "prod", "schema_revision": "abc", "mlflow": "3.18.0", "other_keys": [], "encrypted_rows": 0}
    return plan | more


@pytest.mark.parametrize(
    ("plan", "knows", "words"),
    [
        (a_plan(stack="dev"), True, "this is a backup of dev, not of prod"),
        (a_plan(), False, "is newer than the MLflow of prod"),
    ],
    ids=["of another stack", "of a newer MLflow"],
)
def test_a_restore_of_an_incompatible_backup_is_refused(
    plan: dict[str, Any],
    knows: bool,  # noqa: FBT001
    words: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(restore, "supports_revision", lambda *_: knows)
    stack: Any = AStack()
    with pytest.raises(StopError, match=words):
        restore._require_restorable(stack, plan)


@pytest.mark.parametrize("other", ["crypto-kek-passphrase", "object-store-key"])
def test_a_backup_with_other_data_keys_is_encrypted_with_those_of_the_stack(
    other: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a backup from before a rotation could not be restored. Artifacts are not encrypted in a backup."""
    done: list[object] = []
    plan = a_plan(id="0123", other_keys=[other], used=False, summary="1 run")
    monkeypatch.setenv("FROM", "0123")
    for name, replaced in {
        "require_container": lambda _: None,
        "restore_plan": lambda *_: plan,
        "_describe": lambda _: None,
        "supports_revision": lambda *_: True,
        "_replace_data": lambda *_: done.append("replaced"),
        "_start": lambda _: done.append("started"),
        "data_key": lambda *_: "from-the-backup",
        "servers": lambda _: SimpleNamespace(deployed=["mlflow-prod-server"], secret=lambda _: b"of-the-stack"),
    }.items():
        monkeypatch.setattr(restore, name, replaced)

    def encrypt(_: object, __: object, old: object, new: object) -> int:
        done.append((old, new))
        return 0

    monkeypatch.setattr("preconditions.host.is_running", lambda *_: False)
    monkeypatch.setattr("operations.data.data_keys.encrypt_rows", encrypt)
    route = SimpleNamespace(url="https://m.example.com")
    path = Path("Pulumi.prod.yaml")
    daemon = SimpleNamespace(volumes=lambda: ["mlflow-prod-server-secrets"], inspect=lambda _: None)
    stack: Any = SimpleNamespace(name="prod", path=path, daemon=daemon, settings=SimpleNamespace(route=route))
    restore.restore(stack)
    encrypted = ({"cryptoKekPassphrase": "from-the-backup"}, {"cryptoKekPassphrase": "of-the-stack"})
    assert done == ["replaced", *([encrypted] if other == "crypto-kek-passphrase" else []), "started"]


# --- during a restore ----------------------------------------------------------------------------------------------


class ADaemon:
    """Reports whether a restore runs, and records what is done to the server."""

    def __init__(self, *, at_work: bool, replicas: int = 1) -> None:
        self.at_work = at_work
        self.replicas = replicas
        self.done: list[str] = []

    def inspect(self, name: str) -> dict[str, Any] | None:
        is_restore = name == names.docker_name("prod", names.RESTORE)
        if not is_restore and name.removeprefix("mlflow-prod-") in preconditions.OPERATIONS:
            return None
        return {"State": {"Running": self.at_work}, "Image": "sha256:0"} if self.at_work or not is_restore else None

    def services(self, stack: str, *, stopped: bool) -> dict[str, str]:
        assert stopped, "a server that is stopped must not start during a restore either"
        deployed = ("postgres", *reversed(names.replicas(self.replicas)))
        return {name: names.docker_name(stack, name) for name in deployed}

    def volumes(self) -> list[str]:
        return ["mlflow-prod-server-secrets"]

    def state(self, _: str) -> Any:  # noqa: ANN401
        return SimpleNamespace(running=True, status="running")

    def stop(self, name: str, *, for_good: bool) -> None:
        assert not for_good
        self.done.append(f"stop {name}")

    def resume(self, name: str) -> None:
        self.done.append(f"resume {name}")


@pytest.fixture
def restorable(monkeypatch: pytest.MonkeyPatch) -> Any:  # noqa: ANN401 - has the parts of a stack that a restore uses
    """Return a stack that is in use and has a backup."""
    stack: Any = AStack()
    stack.daemon = ADaemon(at_work=False)
    plan = a_plan(id="0123456789", taken_at="2026-05-06T03:17:00", summary="7 runs", used=True, since="3 runs")
    monkeypatch.setenv("FROM", "latest")
    monkeypatch.setenv("CONFIRM", "prod")
    for module in (backup, restore):
        monkeypatch.setattr(module, "require_container", lambda _: None)
    monkeypatch.setattr(backup, "_run_and_capture", lambda *_: json.dumps(plan))
    monkeypatch.setattr(restore, "supports_revision", lambda *_: True)
    return stack


def fails(*_: object) -> int:
    raise StopError("the safety of prod failed")


def test_a_second_restore_is_refused_while_one_runs(restorable: Any) -> None:  # noqa: ANN401
    restorable.daemon.at_work = True
    with pytest.raises(StopError, match="a restore of prod is running; nothing was changed") as told:
        restore.restore(restorable)
    assert "docker logs -f mlflow-prod-restore" in str(told.value)
    assert restorable.daemon.done == []


@pytest.mark.parametrize(
    ("since", "words"),
    [("3 runs", "all later changes: 3 runs"), ("", "changes: none"), (None, "could not be counted")],
)
def test_a_dry_run_of_a_restore_reports_what_would_be_lost(
    restorable: Any,  # noqa: ANN401
    since: str | None,
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    plan = backup.restore_plan(restorable, "latest") | {"since": since}
    monkeypatch.setattr(restore, "restore_plan", lambda *_: plan)
    monkeypatch.setenv("DRY_RUN", "1")
    restore.restore(restorable)
    assert words in capsys.readouterr().err
    assert restorable.daemon.done == []


def test_the_server_stays_stopped_while_a_detached_restore_runs(
    restorable: Any,  # noqa: ANN401
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def cut_off(*_: object) -> int:
        restorable.daemon.at_work = True
        raise ConnectionError

    monkeypatch.setattr(restore, "_back_up_current_data", lambda _: None)
    monkeypatch.setattr(restore, "_run_restorer", cut_off)
    with pytest.raises(ConnectionError):
        restore.restore(restorable)
    assert restorable.daemon.done == ["stop mlflow-prod-server"]


def test_a_restore_stops_every_replica_and_starts_it_again(
    restorable: Any,  # noqa: ANN401
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    restorable.daemon = ADaemon(at_work=False, replicas=2)
    monkeypatch.setattr(restore, "_back_up_current_data", lambda _: None)
    monkeypatch.setattr(restore, "_run_restorer", lambda *_: 1)
    with pytest.raises(StopError, match="did not complete"):
        restore.restore(restorable)
    both = ["mlflow-prod-server", "mlflow-prod-server-2"]
    assert sorted(restorable.daemon.done[:2]) == [f"stop {name}" for name in both]
    assert sorted(restorable.daemon.done[2:]) == [f"resume {name}" for name in both]


def test_the_server_restarts_after_an_interrupted_restore(
    restorable: Any,  # noqa: ANN401
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupted(_: str, *, for_good: bool) -> None:
        assert not for_good
        raise KeyboardInterrupt

    monkeypatch.setattr(restore, "_back_up_current_data", lambda _: None)
    monkeypatch.setattr(restorable.daemon, "stop", interrupted)
    with pytest.raises(KeyboardInterrupt):
        restore.restore(restorable)
    assert restorable.daemon.done == ["resume mlflow-prod-server"]


@pytest.mark.parametrize("variable", ["DRY_RUN", "SAFETY"])
def test_a_flag_that_is_neither_0_nor_1_is_refused_by_restore(
    restorable: Any,  # noqa: ANN401
    variable: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(variable, "yes")
    with pytest.raises(StopError, match=f"{variable}=yes: write {variable}=1 or {variable}=0; nothing was changed"):
        restore.restore(restorable)
    assert restorable.daemon.done == []


def test_the_command_to_continue_repeats_the_given_variables(restorable: Any, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: ANN401
    monkeypatch.delenv("CONFIRM")
    monkeypatch.setenv("SAFETY", "0")
    monkeypatch.setattr(console, "interactive", lambda: False)
    with pytest.raises(StopError, match="type: make restore FROM=01234567 SAFETY=0 STACK=prod CONFIRM=prod"):
        restore.restore(restorable)
    monkeypatch.setenv("OLDER_THAN", "365d")
    monkeypatch.setattr(gc, "require_containers", lambda _: None)
    with pytest.raises(StopError, match="type: make gc OLDER_THAN=365d STACK=prod CONFIRM=prod"):
        gc.gc(restorable)


def test_garbage_collection_counts_deletions_by_kind() -> None:
    gone = "has been permanently deleted.\n"
    printed = f"a warning\nRun with ID 0a1b {gone}Run with ID 2c3d {gone}Logged model with ID m-1 {gone}"
    assert gc.count_deleted(printed) == "2 runs, 1 logged model"
    assert gc.count_deleted("a warning of a Run with ID 0a1b\n") == ""


def test_two_characters_are_too_few_to_select_a_backup(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = {"id": "0123456789", "short_id": "01234567", "time": "2026-05-05T03:17:00Z", "tags": ["mlflow"]}
    monkeypatch.setattr(repository, "snapshots", lambda: [entry])
    assert repository.find("012345678") == entry
    with pytest.raises(shell.Failure, match="FROM=01: no backup matches; newest backups: 01234567"):
        repository.find("01")


def test_latest_skips_backups_taken_before_a_restore(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = [
        {"id": name * 10, "short_id": name * 8, "time": f"2026-05-0{day}T03:17:00Z", "tags": ["mlflow", *tags]}
        for day, (name, tags) in enumerate((("a", []), ("b", ["safety"])), start=1)
    ]
    monkeypatch.setattr(repository, "snapshots", lambda: taken)
    assert repository.find("latest")["id"] == "a" * 10
    del taken[0]
    with pytest.raises(
        shell.Failure,
        match=r"FROM=latest: no backup matches; newest backups: bbbbbbbb \(before a restore or an import\)",
    ):
        repository.find("latest")
    assert repository.find("bbbbbbbb")["id"] == "b" * 10


def test_a_failed_deployment_after_a_restore_says_that_data_is_restored(
    restorable: Any,  # noqa: ANN401
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refused(_: object) -> None:
        raise StopError("deploy prod?\n  without a terminal, approve with YES=1")

    monkeypatch.setattr(restorable.daemon, "inspect", lambda _: None)
    monkeypatch.setattr(deploy, "up", refused)
    with pytest.raises(
        StopError, match=r"the backup is restored.*until this succeeds: make up STACK=prod\ndeploy prod\?"
    ):
        restore._start(restorable)


def test_safety_0_restores_when_the_backup_before_a_restore_fails(
    restorable: Any,  # noqa: ANN401
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(restore, "in_container", fails)
    monkeypatch.setattr(restore, "_run_restorer", lambda *_: 1)
    with pytest.raises(StopError, match="repeat the command with SAFETY=0"):
        restore.restore(restorable)
    assert restorable.daemon.done == []
    monkeypatch.setenv("SAFETY", "0")
    again = "type: make restore FROM=01234567 SAFETY=0 STACK=prod CONFIRM=prod"
    with pytest.raises(StopError, match=f"(?s)did not complete.*{again}"):
        restore.restore(restorable)
    assert restorable.daemon.done == ["stop mlflow-prod-server", "resume mlflow-prod-server"]


def test_a_failed_revision_lookup_is_not_reported_as_a_newer_schema() -> None:
    stack: Any = AStack()
    stack.daemon = ADaemon(at_work=False)

    def says(words: str) -> Callable[..., int]:
        def once(_name: str, _body: object, tell: Callable[[str], None]) -> int:
            tell(words)
            return 1

        return once

    stack.daemon.once = says("Can't locate revision identified by 'abc'")
    assert not restore.supports_revision(stack, "abc")
    stack.daemon.once = says("exec: python: not found")
    with pytest.raises(StopError, match=r"(?s)could not check .*; nothing was.*python: not found\n.*doctor STACK="):
        restore.supports_revision(stack, "abc")


def test_the_newest_revision_is_known_without_importing_mlflow(tmp_path: Path) -> None:
    newest = tmp_path / "schema-revision"
    newest.write_text("abc\n")
    # Isolated from the packages of this environment, so that an import would fail.
    without_packages = [sys.executable, "-I", "-S", "-c", restore.CHECK_REVISION_SCRIPT]
    assert subprocess.run([*without_packages, "abc", newest], check=False).returncode == 0
    for revision, file in (("another", newest), ("abc", tmp_path / "an image without the file")):
        done = subprocess.run([*without_packages, revision, file], capture_output=True, text=True, check=False)
        assert "No module named 'alembic'" in done.stderr


class WithoutServer:
    """A host from which the container of the server was pruned, and perhaps its image as well."""

    def __init__(self, *images: str) -> None:
        self.images = images

    def services(self, *_: object, **__: object) -> dict[str, str]:
        return {}

    def volumes(self) -> list[str]:
        return ["mlflow-prod-server-secrets"]

    def once(self, _name: str, body: dict[str, Any], _tell: object) -> int:
        if body["Image"] not in self.images:
            raise ImageNotFound(body["Image"])
        return 0


def without_server(*images: str) -> Any:  # noqa: ANN401 - has the parts of a stack that a restore uses
    stack: Any = AStack()
    stack.daemon = WithoutServer(*images)
    stack.settings = SimpleNamespace(on_swarm=False, images=SimpleNamespace(server="localhost/mlflow-server:1"))
    return stack


def test_a_stack_whose_server_was_pruned_can_be_restored() -> None:
    assert restore.supports_revision(without_server("localhost/mlflow-server:1"), "abc")


def test_a_restore_without_the_image_of_the_server_is_refused_with_the_command_to_build_it() -> None:
    with pytest.raises(
        StopError, match=r"the image localhost/mlflow-server:1 .* is not on the host; nothing.*\n.*make up"
    ):
        restore.supports_revision(without_server(), "abc")


def test_a_restore_without_the_passwords_of_the_server_is_refused_before_any_change() -> None:
    stack = without_server("localhost/mlflow-server:1")
    stack.daemon.volumes = list
    with pytest.raises(
        StopError, match=r"the passwords of the server of prod is missing; nothing was changed\n.*make up"
    ):
        restore._require_restorable(stack, a_plan())


def test_a_restore_that_needs_the_data_keys_of_a_pruned_server_is_refused_before_any_change() -> None:
    stack = without_server("localhost/mlflow-server:1")
    restore._require_restorable(stack, a_plan(other_keys=["object-store-key"]))
    with pytest.raises(StopError, match=r"prod has no server with its own ones; nothing was changed\n.*make up"):
        restore._require_restorable(stack, a_plan(other_keys=["crypto-kek-passphrase"]))


# --- a folder of the host as backup target -------------------------------------------------------------------------


@pytest.mark.parametrize(("host", "told"), [("unix:///var/run/docker.sock", True), ("ssh://me@far", False)])
def test_a_missing_backup_folder_is_reported_with_the_command_to_create_it(
    host: str,
    told: bool,  # noqa: FBT001
    tmp_path: Path,
) -> None:
    daemon: Any = SimpleNamespace(host=host)

    def problems(folder: Path) -> list[str]:
        settings: Any = SimpleNamespace(backup=BackupSettings(enabled=True, target=str(folder)))
        return checks._missing_backup_folder(daemon, settings)

    missing = tmp_path / "missing"
    words = (
        f"mlflow:backup.target: the folder {missing} does not exist on this host\n"
        f"    type: install -d -o 999 -g 999 -m 0700 {missing}"
    )
    assert problems(missing) == ([words] if told else [])
    assert problems(tmp_path) == []


@pytest.mark.parametrize(
    ("device", "words"),
    [
        (None, "Its backups are kept in mlflow-prod-backup-repository. To delete them: docker volume rm"),
        ("/srv/backup", "Its backups are kept in /srv/backup. To delete them: docker volume rm"),
    ],
)
def test_deleting_a_stack_prints_where_its_backups_are(
    device: str | None, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    stack: Any = AStack()
    options = {"device": device} if device else None
    api = SimpleNamespace(inspect_volume=lambda _: {"Options": options})
    stack.daemon = SimpleNamespace(volumes=lambda: {"mlflow-prod-backup-repository"}, api=api)
    report_kept_backups(stack)
    said = capsys.readouterr().err
    assert said.startswith(words)
    assert ("&& rm -r /srv/backup" in said) is bool(device)
