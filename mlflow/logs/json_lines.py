"""Log lines as JSON, one object a line, for whoever collects them. Used with `mlflow:server.logFormat: json`."""

import json
import logging
import os
from datetime import UTC, datetime

REQUEST = ("client", "method", "path", "http_version", "status")
"""What uvicorn hands to its access log, in its order (uvicorn.logging.AccessFormatter)."""


class AtLeast(logging.Filter):
    """Lets through what is as bad as MLFLOW_LOGGING_LEVEL, INFO without one."""

    def __init__(self):
        """Read the level."""
        super().__init__()
        self.level = logging.getLevelNamesMapping().get(os.environ.get("MLFLOW_LOGGING_LEVEL", "INFO"), logging.INFO)

    def filter(self, record):
        """Whether a record is told."""
        return record.levelno >= self.level


class JsonLines(logging.Formatter):
    """Writes time (UTC), level, logger and message; of a request its parts, of an error its traceback."""

    def format(self, record):
        """Return one line; what is in a message cannot begin another."""
        entry = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.name == "uvicorn.access" and isinstance(record.args, tuple) and len(record.args) == len(REQUEST):
            entry |= dict(zip(REQUEST, record.args, strict=True))
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, ensure_ascii=False, default=str)
