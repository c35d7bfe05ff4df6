"""The output and the exit code of a command that runs in a container (`docker exec`)."""

import time
from collections.abc import Iterator
from contextlib import closing

import docker
from docker.errors import create_api_error_from_http_exception
from requests.exceptions import ConnectionError as NoConnection
from requests.exceptions import HTTPError
from urllib3.exceptions import HTTPError as CutOffError

EXIT_UNKNOWN = 124
"""Exit code, as `timeout` exits: the result is unknown."""
EXIT_SECONDS = 5


def exec_output(api: docker.APIClient, command: str) -> Iterator[bytes]:
    """Start an exec instance that was created in a container, and yield its output (stdout and stderr) as it comes.

    The library's `exec_start` upgrades the connection and then bypasses its own buffer: output that arrives together
    with the response headers is lost without an error (docker-py, issues 2042 and 3332). Without the upgrade, the
    daemon sends the same frames. Each begins with eight bytes; the last four are its length.
    """
    url = f"{api.base_url}/v{api.api_version}/exec/{command}/start"
    # No timeout: a command may print nothing for any length of time.
    with closing(api.post(url, json={"Detach": False, "Tty": False}, stream=True, timeout=None)) as answer:
        try:
            answer.raise_for_status()
            while head := answer.raw.read(8):
                yield answer.raw.read(int.from_bytes(head[4:], "big"))
        except HTTPError as error:
            raise create_api_error_from_http_exception(error) from error
        except CutOffError as error:
            raise NoConnection(error) from error


def exit_code(api: docker.APIClient, command: str) -> int:
    """Return the exit code of a command in a container, or 124 if it is unknown because the connection was lost."""
    deadline = time.monotonic() + EXIT_SECONDS
    # Docker closes the output a moment before it knows the exit code.
    while (found := api.exec_inspect(command))["Running"] and time.monotonic() < deadline:
        time.sleep(0.02)
    return EXIT_UNKNOWN if found["ExitCode"] is None else int(found["ExitCode"])
