"""Imports an old MLflow into a stack. Runs in the image of the backup, beside that program's modules.

usage: importer.py VERB..., with the verbs below, one after another

Environment: that of the backup container, with the role of the server; FILES, the folder of this program, with
source.json (access to the old Postgres; {} for an SQLite file), keys.json, moves.json and
locations.sql; WORK, a folder on disk; STARTED, the time of the import as part of a name.
A verb that returns something prints it as its last line, as JSON.
"""

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import copying
import database
import loading
import psycopg2
from inspecting import inspected, own_now
from shell import Failure
from source import WORK

VERBS: dict[str, Callable[[], Any]] = {
    "inspect": inspected,
    "survey": copying.survey,
    "remember": copying.remember,
    "copy": copying.copy,
    "copy-again": lambda: copying.copy(again=True),
    "compare": lambda: {**copying.compare(), "encrypted": loading.encrypted()},
    "dump": loading.dump,
    "assemble": loading.assemble,
    "load": loading.load,
    "recover": loading.recover,
    "finish": loading.finish,
    "late": loading.late,
    "own": own_now,
    "wait": loading.wait,
    "clean": lambda: shutil.rmtree(WORK, ignore_errors=True),
}
PUBLIC = Path("/etc/ssl/certs/ca-certificates.crt")
"""The public authorities."""


def trust_both() -> None:
    """Let rclone trust the public authorities besides the stack's own: it reads one file."""
    own = os.environ.get("RCLONE_CA_CERT")
    if own and PUBLIC.exists():
        both = Path(os.environ["HOME"]) / "authorities.pem"
        both.write_text(Path(own).read_text() + PUBLIC.read_text())
        os.environ["RCLONE_CA_CERT"] = str(both)


def main(verbs: list[str]) -> int:
    """Run verbs until one fails. Return the exit code: 0 success, 1 failure."""
    os.umask(0o077)
    try:
        for folder in (WORK, Path(os.environ["TMPDIR"])):
            folder.mkdir(parents=True, exist_ok=True)
        database.use_pgpass()
        trust_both()
        for verb in verbs:
            if (found := VERBS[verb]()) is not None:
                print(json.dumps(found), flush=True)
    except Failure as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 1
    except (psycopg2.Error, OSError) as error:
        print(f"error: {type(error).__name__}: {str(error).strip()}", file=sys.stderr, flush=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
