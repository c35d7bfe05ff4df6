"""Succeeds if the server answers a request that needs its database; `/health` does not use the database.

On a cluster, Swarm stops a task that is not healthy. There, a server that was ready once only has to answer `/health`:
otherwise each interruption of the database would end all servers, with their uploads.

It sends HTTP over a socket and imports little else, because each run takes CPU time from the server. With
`mlflow:tls.internal` it verifies the server's certificate, as Traefik does.

It prints how many processes the kernel has killed because memory ran out; Docker shows that with the result. It fails
if a process was killed since the last check: after three failures in a row the server is unhealthy, although another
worker answers.
"""

import os
import socket
import sys

PORT = 5000
READINESS, LIVENESS = "/api/2.0/mlflow/experiments/search?max_results=1", "/health"
REQUEST = (
    "GET {path} HTTP/1.0\r\n"
    f"Host: 127.0.0.1:{PORT}\r\nUser-Agent: healthcheck\r\n"
    # A user that does not exist. With `mlflow:authentication: mlflow`, MLflow looks it up in the database: HTTP 401.
    "Authorization: Basic aGVhbHRoY2hlY2s6aGVhbHRoY2hlY2s=\r\n\r\n"
)
OOM_FILES = ("/sys/fs/cgroup/memory.events", "/sys/fs/cgroup/memory/memory.oom_control")
"""Files with the OOM kills of this container, in version 2 and 1 of Linux control groups."""
OBSERVES = "HEALTHCHECK_OBSERVES"
"""Environment variable of a run that is not Docker's. The one failure after a kill must remain for Docker's."""
LAST = "/run/mlflow/oom-kills"
"""File with the number of OOM kills at the last check."""
WAS_READY = "/run/mlflow/was-ready"
"""Exists once the server was ready, if it is a task of a cluster."""
AUTHORITY = os.environ.get("AUTHORITY")
"""The authority of the server's certificate, if it speaks TLS."""
EXPECTED = "401" if os.environ.get("MLFLOW_AUTH_CONFIG_PATH") else "200"


def oom_kills() -> int:
    """Return how many processes of this container the kernel has killed since its start; 0 if that is unknown."""
    for path in OOM_FILES:
        try:
            with open(path) as file:  # noqa: PTH123 - pathlib would be another import
                counts = dict(line.split() for line in file)
        except (OSError, ValueError):
            continue
        return int(counts.get("oom_kill", 0))
    return 0


def killed_since() -> bool:
    """Print the number of killed processes, if any; return whether it has increased since the last check."""
    kills = oom_kills()
    try:
        with open(LAST) as file:  # noqa: PTH123
            last = int(file.read())
    except (OSError, ValueError):
        last = 0
    observes = bool(os.environ.get(OBSERVES))
    if kills != last and not observes:
        with open(LAST, "w") as file:  # noqa: PTH123
            file.write(str(kills))
    if kills:
        sys.stdout.write(f"processes killed because memory ran out: {kills}; raise mlflow:server.memoryMb\n")
    return kills > last and not observes


def connect() -> socket.socket:
    """Return a connection to the server; raise `OSError` if there is none, or its certificate is not valid."""
    plain = socket.create_connection(("127.0.0.1", PORT), timeout=4)
    if AUTHORITY is None:
        return plain
    # Imported here because it takes longer than the rest of this program.
    import ssl  # noqa: PLC0415

    try:
        return ssl.create_default_context(cafile=AUTHORITY).wrap_socket(plain, server_hostname="localhost")
    except OSError:
        plain.close()
        raise


def main() -> int:
    """Return the exit code: 0 if the server answered from the database, 1 if not, or if a worker was just killed."""
    task = bool(os.environ.get("HEALTHCHECK_LIVENESS"))
    alive = task and os.path.exists(WAS_READY)  # noqa: PTH110 - as above
    path, expected = (LIVENESS, "200") if alive else (READINESS, EXPECTED)
    try:
        with connect() as connection:
            connection.sendall(REQUEST.format(path=path).encode())
            status = connection.recv(64).decode("latin-1").split(" ")[1:2]
    except OSError as error:
        sys.stderr.write(f"no answer on port {PORT}: {error}\n")
        return 1
    if status != [expected]:
        what = "/health" if alive else "a request that needs the database"
        sys.stderr.write(f"{what} returned HTTP {''.join(status)}, expected {expected}\n")
        return 1
    if task and not alive:
        open(WAS_READY, "w").close()  # noqa: PTH123
    return int(killed_since())


if __name__ == "__main__":
    sys.exit(main())
