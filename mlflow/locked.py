"""Runs a command under the exclusive lock: no backup, restore test or restore runs at the same time.

usage: locked.py NAME COMMAND [ARGUMENT]...

The lock belongs to a Postgres session, so it ends with this process in any case.
"""

import os
import subprocess
import sys
import time

import psycopg2

LOCK = 0x6D6C_666C_6F77
"""The exclusive lock: `mlflow` in ASCII. assets/backup/database.py has the same number."""
WAIT_SECONDS = 600
POLL_SECONDS = 2
HOLDER = (
    "SELECT coalesce(string_agg(application_name, ', '), 'a process') FROM pg_locks JOIN pg_stat_activity USING (pid) "
    "WHERE locktype = 'advisory' AND granted AND classid = %s AND objid = %s"
)


def main(name: str, command: list[str]) -> int:
    """Run `command`. Return its exit code, or 75 if the lock was not free within `WAIT_SECONDS`."""
    uri = os.environ["MLFLOW_BACKEND_STORE_URI"].replace("postgresql+psycopg2:", "postgresql:")
    session = psycopg2.connect(uri, application_name=name)
    session.autocommit = True
    cursor = session.cursor()
    deadline = time.monotonic() + WAIT_SECONDS
    while True:
        cursor.execute("SELECT pg_try_advisory_lock(%s)", (LOCK,))
        if cursor.fetchone()[0]:
            return subprocess.run(command, check=False).returncode
        cursor.execute(HOLDER, (LOCK >> 32, LOCK & 0xFFFF_FFFF))
        holder = cursor.fetchone()[0]
        if time.monotonic() > deadline:
            print(f"{name}: cannot run while {holder} is still running; try again when it has ended", file=sys.stderr)
            return os.EX_TEMPFAIL
        print(f"{name}: waiting for {holder}, which is running", file=sys.stderr)
        time.sleep(POLL_SECONDS)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
