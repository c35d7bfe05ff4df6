"""Formats log lines as JSON, one object per line, for log collectors. Used with `mlflow:server.logFormat: json`."""

import json
import logging
import os
from datetime import UTC, datetime

REQUEST = ("client", "method", "path", "http_version", "status")
"""Arguments of uvicorn's access log, in order (uvicorn.logging.AccessFormatter)."""


class AtLeast(logging.Filter):
    """Passes records of level MLFLOW_LOGGING_LEVEL and above; default INFO."""

    def __init__(self):
        """Read the level from the environment."""
        super().__init__()
        self.level = logging.getLevelNamesMapping().get(os.environ.get("MLFLOW_LOGGING_LEVEL", "INFO"), logging.INFO)

    def filter(self, record):
        """Return whether to log a record."""
        return record.levelno >= self.level


class JsonLines(logging.Formatter):
    """Writes time (UTC), level, logger and message; for a request also its parts, for an error its traceback."""

    def format(self, record):
        """Return a record as one line. A line break in the message is escaped."""
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
