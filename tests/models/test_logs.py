"""Test the log of the server as JSON lines, as uvicorn configures it."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

LOGS = Path(__file__).parents[2] / "mlflow" / "logs"
CONFIGURED = f"import logging.config, yaml; logging.config.dictConfig(yaml.safe_load(open('{LOGS}/json.yaml')))\n"


def told(statements: str, **environment: str) -> dict[str, Any]:
    """Return the one line that a process logs."""
    done = subprocess.run(
        [sys.executable, "-c", CONFIGURED + statements],
        env={"PYTHONPATH": str(LOGS), "PYTHONDONTWRITEBYTECODE": "1", **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    (line,) = done.stderr.splitlines()
    found: dict[str, Any] = json.loads(line)
    return found


def test_a_request_is_logged_with_method_path_and_status() -> None:
    arguments = """'%s - "%s %s HTTP/%s" %d', "10.0.0.1:2", "GET", '/a?b="c"', "1.1", 200"""
    entry = told(f'logging.getLogger("uvicorn.access").info({arguments})')
    assert (entry["method"], entry["path"], entry["status"]) == ("GET", '/a?b="c"', 200)
    assert entry["level"] == "INFO"
    assert entry["time"].endswith("+00:00")


def test_an_error_is_one_line_with_its_traceback() -> None:
    entry = told(
        'try: raise ValueError("a\\nb")\nexcept ValueError: logging.getLogger("mlflow.x").exception("it\\nfailed")'
    )
    assert (entry["logger"], entry["message"]) == ("mlflow.x", "it\nfailed")
    assert "ValueError: a\nb" in entry["exception"]


def test_an_access_message_with_other_arguments_is_logged_unchanged() -> None:
    assert told('logging.getLogger("uvicorn.access").info("only %s", "this")')["message"] == "only this"


def test_the_log_level_follows_the_setting() -> None:
    both = 'logging.getLogger("mlflow.x").{}("less"); logging.getLogger("mlflow.x").{}("more")'
    assert told(both.format("info", "warning"), MLFLOW_LOGGING_LEVEL="WARNING")["message"] == "more"
    assert told(both.format("debug", "info"))["message"] == "more"
    other = 'logging.getLogger("botocore").debug("a secret"); logging.getLogger("mlflow.x").debug("seen")'
    assert told(other, MLFLOW_LOGGING_LEVEL="DEBUG")["message"] == "seen"
