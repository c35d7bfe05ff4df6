"""Brings an SQLite database or a file store into the form that `loading.py` loads. Runs in the image of MLflow.

usage: from_sqlite.py prepare|dump|compare|late

`prepare` copies the database, or lets MLflow convert the file store, and migrates the copy to this MLflow's schema.
`dump` rewrites the locations in the copy, and writes its rows as SQL for Postgres. `compare` compares every row after
the load. `late` prints how many rows more the SQLite file has than at `prepare`.

With ONLY_USERS=1, the file is the one in which MLflow's own authentication keeps its users (`basic_auth.db`).

Environment: SOURCE (the SQLite file, or the folder of the file store), WORK (a folder for the copy), FILES (the folder
of this program), MLFLOW_BACKEND_STORE_URI and libpq's variables for the stack's own database.
"""

import hashlib
import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg2
import psycopg2.extras
from tables import USERS, columns, leaves_users_out, quoted

WORK = Path(os.environ["WORK"])
FILES = Path(os.environ["FILES"])
SOURCE = Path(os.environ["SOURCE"])
COPY, LATER = WORK / "source.db", WORK / "later.db"
ONLY_USERS = bool(os.environ.get("ONLY_USERS"))
REQUIRED = {"users"} if ONLY_USERS else {"alembic_version", "experiments", "runs", "metrics", "params", "tags"}
"""Tables that the database must have."""
ROWS, DUMP = WORK / "sqlite.json", WORK / "source.rows"
ATTEMPTS = 5
"""How often the copy of a file that changes meanwhile is tried."""
BESIDE = ("-wal", "-journal")
"""Files beside an SQLite database that belong to it. `-shm` is only an index of the first."""
TRASH = ".trash"
"""Folder of a file store with the deleted experiments."""
PARTS = ("metrics", "params", "tags")
"""Folders of a run in a file store, and the tables of what they hold."""
RUN = re.compile("[0-9a-f]{32}")
ESCAPES = str.maketrans({"\\": r"\\", "\t": r"\t", "\n": r"\n", "\r": r"\r", "\x00": None})
"""Of Postgres' COPY. A text in Postgres cannot have the character 0."""


class Refused(Exception):  # noqa: N818 - the operator reads its message only
    """What is wrong with the old database, and what to do."""


def prepare() -> None:
    """Make the copy and migrate it; raise `Refused` if that is not possible. Reads the old files, writes none."""
    WORK.mkdir(parents=True, exist_ok=True)
    for left in WORK.iterdir():
        # Of an earlier import; but not the copy of the users, which has a folder of its own here.
        if not left.is_dir():
            left.unlink()
        elif left.name != "users":
            shutil.rmtree(left)
    if SOURCE.is_dir():
        _convert()
    else:
        _copy()
    _migrate()


def _copy(copy: Path = COPY) -> None:
    """Copy the file and what belongs to it. SQLite would write beside a file that it only reads."""
    if SOURCE.open("rb").read(16) != b"SQLite format 3\x00":
        raise Refused(f"{SOURCE}: is not an SQLite database")
    parts = [SOURCE, *(SOURCE.with_name(SOURCE.name + end) for end in BESIDE)]
    for _ in range(ATTEMPTS):
        before = [_digest(part) for part in parts]
        for part in parts:
            target = copy.with_name(part.name.replace(SOURCE.name, copy.name))
            target.unlink(missing_ok=True)
            if part.exists():
                shutil.copyfile(part, target)
        if before == [_digest(part) for part in parts]:
            (WORK / "digests.json").write_text(json.dumps(before))
            break
    else:
        raise Refused(f"{SOURCE}: is being written to all the time; stop the old server, then try again")
    with sqlite3.connect(copy) as session:
        # Also takes in the changes of the file -wal.
        if (found := session.execute("PRAGMA integrity_check").fetchone()[0]) != "ok":
            raise Refused(f"{SOURCE}: is damaged: {found}")
        tables = {name for (name,) in session.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    if missing := REQUIRED - tables:
        what = "MLflow's users" if ONLY_USERS else "MLflow"
        raise Refused(f"{SOURCE}: is not a database of {what}: it has no table {', '.join(sorted(missing))}")


def late() -> None:
    """Print how many rows the file has got since it was copied, by table, as JSON. Not for a file store."""
    parts = [SOURCE, *(SOURCE.with_name(SOURCE.name + end) for end in BESIDE)]
    found: dict[str, int] = {}
    if json.loads((WORK / "digests.json").read_text()) != [_digest(part) for part in parts]:
        known = json.loads(ROWS.read_text())
        _copy(LATER)
        with sqlite3.connect(LATER) as session:
            for table in ("experiments", "runs", "metrics", "params", "tags", "model_versions"):
                count = session.execute(f"SELECT count(*) FROM {table}").fetchone()[0]  # noqa: S608 - a constant
                found |= {table: count - known[table][0]} if count != known[table][0] else {}
    print(json.dumps(found))


def _digest(path: Path) -> str | None:
    if not path.exists():
        return None
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _convert() -> None:
    """Let MLflow convert a file store into SQLite. It only reads the folder, which is mounted read-only."""
    if not any(SOURCE.glob("*/meta.yaml")):
        databases = [path.name for path in SOURCE.glob("*.db")]
        hint = f"; there is {databases[0]} in it: name that file" if databases else ""
        raise Refused(f"{SOURCE}: is not a file store of MLflow: no folder in it has a meta.yaml{hint}")
    (WORK / "revision").write_text("of a file store")
    _run("mlflow", "migrate-filestore", "--no-progress", f"--source={SOURCE}", f"--target=sqlite:///{COPY}")

    trash = [folder.name for folder in (SOURCE / TRASH).glob("*") if folder.is_dir()]
    with sqlite3.connect(COPY) as session:
        # MLflow believes the file of a deleted experiment, which says that it is active. The folder tells.
        marks = ", ".join("?" * len(trash))
        session.execute(f"UPDATE experiments SET lifecycle_stage = 'deleted' WHERE experiment_id IN ({marks})", trash)  # noqa: S608
        found = {table: session.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in ("runs", *PARTS)}  # noqa: S608
    wanted = _counted()
    if wrong := [
        f"{table}: {found[table]}, but {count} in the files" for table, count in wanted.items() if found[table] != count
    ]:
        raise Refused(f"MLflow did not convert everything: {'; '.join(wrong)}")


def _counted() -> dict[str, int]:
    """Count what the files of the runs hold: runs, and the lines and files of their metrics, parameters and tags."""
    found = dict.fromkeys(("runs", *PARTS), 0)
    for meta in (*SOURCE.glob("*/*/meta.yaml"), *SOURCE.glob(f"{TRASH}/*/*/meta.yaml")):
        run = meta.parent
        if not RUN.fullmatch(run.name):
            continue
        found["runs"] += 1
        for part in PARTS:
            files = [path for path in (run / part).rglob("*") if path.is_file()]
            # A point that was logged twice is one row.
            found[part] += (
                sum(len(set(path.read_text().splitlines())) for path in files) if part == "metrics" else len(files)
            )
    return found


SCHEMAS = (
    ("experiments", "alembic_version", "known-revisions", ("mlflow", "db", "upgrade", f"sqlite:///{COPY}")),
    (
        "users",
        "alembic_version_auth",
        "users-known-revisions",
        ("python", "-m", "mlflow.server.auth", "db", "upgrade", f"--url=sqlite:///{COPY}"),
    ),
)
"""For the runs and for MLflow's own users, which may be in the same file: a table, the table with the revision, the
file with the revisions that this MLflow knows, and the command that migrates."""


def _migrate() -> None:
    """Migrate the copy to the schema of this MLflow, if it knows the copy's."""
    with sqlite3.connect(COPY) as session:
        tables = {name for (name,) in session.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    for table, versions, file, command in SCHEMAS:
        if table not in tables:
            continue
        revision = None
        # Before version 3.6, the users have no revision.
        if versions in tables:
            with sqlite3.connect(COPY) as session:
                revision = session.execute(f"SELECT version_num FROM {versions}").fetchone()[0]  # noqa: S608
        if revision is not None and revision not in (Path(sys.prefix) / file).read_text().split():
            version = (Path(sys.prefix) / "version").read_text().strip()
            raise Refused(
                f"the old database has the schema {revision} ({versions}), which MLflow {version} of this stack does "
                "not know"
            )
        if table == "experiments" and not (WORK / "revision").exists():
            (WORK / "revision").write_text(str(revision))
        _run(*command)


def _run(*command: str) -> None:
    """Run a program of MLflow; raise `Refused` with its last lines if it fails."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=WORK)
    if done.returncode:
        last = "\n".join(f"    {line}" for line in (done.stderr or done.stdout).strip().splitlines()[-12:])
        raise Refused(f"{' '.join(command[:3])} failed with exit code {done.returncode}\n{last}")


def dump() -> None:
    """Rewrite the locations in the copy, and write its rows for Postgres' COPY, and their sums."""
    with sqlite3.connect(COPY) as session:
        if not ONLY_USERS:
            session.executescript((FILES / "locations.sql").read_text())
        tables = _tables(session)
        found = {}
        with DUMP.open("w") as file:
            for table, known in tables.items():
                names = ", ".join(quoted(name) for name, _ in known)
                file.write(f"COPY public.{quoted(table)} ({names}) FROM stdin;\n")
                found[table] = _write(session, table, known, file)
                file.write("\\.\n\n")
        sequences = list(_sequences(tables))
        with DUMP.open("a") as file:
            file.writelines(f"{statement}\n" for statement in sequences)
    ROWS.write_text(json.dumps(found))


def _tables(session: sqlite3.Connection) -> dict[str, list[tuple[str, str]]]:
    """Return the tables that both databases have, and the columns in the order of the copy, with Postgres' types."""
    with _ours() as ours, ours.cursor() as cursor:
        known = columns(cursor)
    existing = {name for (name,) in session.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    found = {}
    left_out = USERS if leaves_users_out() else set()
    # Before version 3.6, a file of users has a table with the name of the one that holds the revision of the runs.
    taken = USERS if ONLY_USERS else set(known) - left_out
    for table in sorted(existing & set(known) & taken):
        there = {name for (name,) in session.execute(f"SELECT name FROM pragma_table_info('{table}')")}  # noqa: S608
        found[table] = [(name, kind) for name, kind in known[table] if name in there]
    return found


def _ours() -> Any:  # noqa: ANN401 - psycopg2 has no types
    # As text: SQLite has no other type, and `null` is another value than none.
    for register in (psycopg2.extras.register_default_json, psycopg2.extras.register_default_jsonb):
        register(loads=lambda text: text, globally=True)
    return psycopg2.connect(os.environ["MLFLOW_BACKEND_STORE_URI"].replace("+psycopg2", ""), application_name="import")


def _write(session: sqlite3.Connection, table: str, known: list[tuple[str, str]], file: Any) -> tuple[int, int]:  # noqa: ANN401
    """Write the rows of a table; return their number and the sum over all rows."""
    count = total = 0
    kinds = [kind for _, kind in known]
    for row in session.execute(f"SELECT {', '.join(quoted(name) for name, _ in known)} FROM {quoted(table)}"):  # noqa: S608
        values = [_value(value, kind) for value, kind in zip(row, kinds, strict=True)]
        file.write("\t".join(map(_text, values)) + "\n")
        count += 1
        total += _sum(values)
    return count, total


def _value(value: Any, kind: str) -> Any:  # noqa: ANN401 - any value of SQLite
    """Return a value of SQLite, which has fewer types, as the value that Postgres returns."""
    if value is None:
        return None
    if kind == "boolean":
        return bool(value)
    if kind == "bytea":
        return bytes(value) if not isinstance(value, str) else value.encode()
    if kind in ("double precision", "real"):
        return float(value)
    if kind in ("integer", "bigint", "smallint"):
        return int(value)
    return (value.decode() if isinstance(value, bytes) else str(value)).replace("\x00", "")


def _text(value: Any) -> str:  # noqa: ANN401
    """Return a value in the text format of COPY."""
    if value is None:
        return r"\N"
    if isinstance(value, bool):
        return "t" if value else "f"
    if isinstance(value, bytes):
        return rf"\\x{value.hex()}"
    return repr(value) if isinstance(value, float) else str(value).translate(ESCAPES)


def _sum(values: list[Any]) -> int:
    """Return 60 bits of the MD5 of a row."""
    return int(hashlib.md5(repr(values).encode(), usedforsecurity=False).hexdigest()[:15], 16)


def _sequences(tables: dict[str, list[tuple[str, str]]]) -> Iterator[str]:
    """Yield the statements that let each sequence continue after the largest number in its column."""
    with _ours() as ours, ours.cursor() as cursor:
        for table, known in tables.items():
            for column, kind in known:
                if kind not in ("integer", "bigint", "smallint"):
                    continue
                cursor.execute("SELECT pg_get_serial_sequence(%s, %s)", (f"public.{quoted(table)}", column))
                if sequence := cursor.fetchone()[0]:
                    yield (
                        f"SELECT setval('{sequence}', greatest(1, (SELECT max({quoted(column)}) "  # noqa: S608
                        f"FROM public.{quoted(table)})));"
                    )


def compare() -> None:
    """Compare every row in the stack's database with those of the copy; raise `Refused` if any differs."""
    wanted = json.loads(ROWS.read_text())
    wrong, rows = [], 0
    with sqlite3.connect(COPY) as session:
        tables = _tables(session)
    with _ours() as ours:
        for table, known in tables.items():
            kinds = [kind for _, kind in known]
            with ours.cursor("import") as cursor:
                cursor.itersize = 10_000
                cursor.execute(f"SELECT {', '.join(quoted(name) for name, _ in known)} FROM public.{quoted(table)}")  # noqa: S608
                count = total = 0
                for row in cursor:
                    values = [_read(value, kind) for value, kind in zip(row, kinds, strict=True)]
                    count += 1
                    total += _sum(values)
            rows += count
            if [count, total] != wanted[table]:
                wrong.append(f"{table}: {count} rows, expected {wanted[table][0]}")
    if wrong:
        raise Refused("these tables differ after the copy: " + "; ".join(wrong))
    print(f"{len(tables)} tables with {rows} rows are equal", flush=True)


def _read(value: Any, kind: str) -> Any:  # noqa: ANN401
    """Return a value of psycopg2 as `_value` returns one of SQLite."""
    return _value(bytes(value) if isinstance(value, memoryview) else value, kind)


def main(command: str) -> int:
    """Run one command; return its exit code."""
    os.umask(0o077)
    try:
        {"prepare": prepare, "dump": dump, "compare": compare, "late": late}[command]()
    except Refused as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 1
    except (OSError, sqlite3.Error) as error:
        print(f"error: {SOURCE}: {error}", file=sys.stderr, flush=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
