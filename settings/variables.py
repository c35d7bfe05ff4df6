"""Checks `mlflow:server.environment` against the list of MLflow's environment variables, `mlflow/variables.toml`."""

import difflib
import re
import tomllib
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

FILE = Path(__file__).parent.parent / "mlflow" / "variables.toml"
RESERVED = re.compile(
    r"(PYTHON|PG|AWS_|LD_|PROMETHEUS_)\w*|STACK|HOME|TMPDIR|PATH|HOSTNAME|METRICS_PORT|SECRETS|PRIVATE|METRICS"
)
"""Variables that are not MLflow's, but that the image sets or reads."""
SECRET_NAME = re.compile("passw|secret|token|key$|_key|credential", re.IGNORECASE)
SECRET_VALUE = re.compile(r"://[^/\s:@]+:[^@\s]+@")


@cache
def known() -> Mapping[str, Mapping[str, Any]]:
    """Return the list of MLflow's variables: for each its kind, the reason, and the setting that sets it."""
    return tomllib.loads(FILE.read_text())


def refused(environment: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Yield the variables in `mlflow:server.environment` that are refused, and why. Never repeats a value."""
    for name, value in environment.items():
        if reason := _reason(name, value):
            yield name, reason


def _reason(name: str, value: str) -> str | None:
    entry = known().get(name, {})
    kind = entry.get("kind")
    by_kind = {
        "ours": f"is set by the stack; set {entry.get('setting')} instead",
        "fixed": f"is set by this stack and cannot be changed: {entry.get('why')}",
        "client": f"has no effect on the server: {entry.get('why')} Set it where the client runs",
    }
    if kind in by_kind:
        return by_kind[kind]
    if kind == "secret" or SECRET_NAME.search(name) or SECRET_VALUE.search(value):
        return "is a secret, and `docker inspect` shows the server's environment to everybody on the host"
    if RESERVED.fullmatch(name):
        return "is set by this stack; it cannot be changed"
    if name.startswith("MLFLOW_") and kind is None:
        given = [other for other, found in known().items() if found["kind"] == "server"]
        close = difflib.get_close_matches(name, given, n=1)
        return "is not a variable of this MLflow version" + (f"; did you mean {close[0]}?" if close else "")
    return None
