"""Succeeds when the server answers a question that needs its database; `/health` asks nobody.

Talks raw HTTP over a socket and imports nothing else: it runs every few seconds for as long as the server does.

Says how many processes the kernel has killed for want of memory, which Docker shows beside its answer. Fails where one
was killed since it was last asked: three times in a row, and the server is unhealthy, though another worker answers.
"""

import os
import socket
import sys

PORT = 5000
REQUEST = (
    "GET /api/2.0/mlflow/experiments/search?max_results=1 HTTP/1.0\r\n"
    f"Host: 127.0.0.1:{PORT}\r\nUser-Agent: healthcheck\r\n"
    # Nobody's name and password. Where MLflow has users of its own it looks them up in the database, and refuses.
    "Authorization: Basic aGVhbHRoY2hlY2s6aGVhbHRoY2hlY2s=\r\n\r\n"
)
OOM_FILES = ("/sys/fs/cgroup/memory.events", "/sys/fs/cgroup/memory/memory.oom_control")
"""Of this container, by version 2 and 1 of Linux' control groups."""
LAST = "/run/mlflow/oom-kills"
"""How many there were when it was last asked."""
EXPECTED = "401" if os.environ.get("MLFLOW_AUTH_CONFIG_PATH") else "200"


def oom_kills() -> int:
    """Return how many processes of this container the kernel has killed since it started; 0 where it does not tell."""
    for path in OOM_FILES:
        try:
            with open(path) as file:  # noqa: PTH123 - pathlib would be another import
                counts = dict(line.split() for line in file)
        except (OSError, ValueError):
            continue
        return int(counts.get("oom_kill", 0))
    return 0


def killed_since() -> bool:
    """Say how many were killed, if any; return whether one was since this was last asked."""
    kills = oom_kills()
    try:
        with open(LAST) as file:  # noqa: PTH123
            last = int(file.read())
    except (OSError, ValueError):
        last = 0
    if kills != last:
        with open(LAST, "w") as file:  # noqa: PTH123
            file.write(str(kills))
    if kills:
        sys.stdout.write(f"processes killed for want of memory: {kills}; raise mlflow:server.memoryMb\n")
    return kills > last


def main() -> int:
    """Return the exit code: 0 for the answer that the database gave, 1 for anything else, or a worker just killed."""
    try:
        with socket.create_connection(("127.0.0.1", PORT), timeout=4) as connection:
            connection.sendall(REQUEST.encode())
            status = connection.recv(64).decode("latin-1").split(" ")[1:2]
    except OSError as error:
        sys.stderr.write(f"no answer on port {PORT}: {error}\n")
        return 1
    if status != [EXPECTED]:
        sys.stderr.write(f"the database was asked through the API, and the answer was HTTP {status}\n")
        return 1
    return int(killed_since())


if __name__ == "__main__":
    sys.exit(main())
