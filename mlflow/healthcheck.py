"""Succeeds when the server answers a question that needs its database; `/health` asks nobody.

Talks raw HTTP over a socket and imports nothing else: it runs every few seconds for as long as the server does.
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
EXPECTED = "401" if os.environ.get("MLFLOW_AUTH_CONFIG_PATH") else "200"


def main() -> int:
    """Return the exit code: 0 for the answer that the database gave, 1 for anything else, a refused connection, too."""
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
    return 0


if __name__ == "__main__":
    sys.exit(main())
