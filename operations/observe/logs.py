"""`make logs`."""

import difflib
import os
import re

from operations.common.console import StopError, output
from operations.common.stack import Stack
from operations.observe.status import inspect, require_containers, services
from runtime.cluster import Cluster
from settings import names
from settings.server import READINESS_PATH


def logs(stack: Stack) -> None:
    """Print the last log lines of every service, or more of one, `SERVICE=`."""
    require_containers(stack)
    if chosen := os.environ.get("SERVICE"):
        output(_log(stack, chosen, lines=2000))
        return
    for service in services(stack):
        output(f"==> {names.docker_name(stack.name, service)}")
        try:
            # On an idle server the last lines would be its own health checks only.
            told = [line for line in _log(stack, service, lines=1000).splitlines() if not _is_health_check(line)]
            output("\n".join(told[-30:]))
        except StopError as error:
            output(str(error))


def _log(stack: Stack, service: str, *, lines: int) -> str:
    name = names.docker_name(stack.name, service)
    if service == names.SERVER and (cluster := Cluster(stack.daemon)).inspect(name):
        return cluster.logs(name, lines)
    if inspect(stack, service) is not None:
        return stack.daemon.logs(name, lines=lines)
    known = services(stack)
    if service in known:
        raise StopError(f"{name} is missing; type: make up STACK={stack.name}")
    close = difflib.get_close_matches(service, known, n=1)
    hint = f"did you mean SERVICE={close[0]}? If not, " if close else ""
    raise StopError(f"there is no container {name}; {hint}set SERVICE to a job or one of: {', '.join(known)}")


def _is_health_check(line: str) -> bool:
    """Return whether a log line is a successful health check of the server, by Docker or by a proxy."""
    # With MLflow's own users the health check has no credentials and expects 401.
    return READINESS_PATH in line and re.search(r"\b(200|401)\b", line) is not None
