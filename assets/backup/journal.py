"""The results of the last backup and the last restore test: stored beside the mirror, and exported to Prometheus."""

import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from croniter import croniter
from prometheus_client import Metric, ProcessCollector, start_http_server
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector, CollectorRegistry
from shell import Failure

PORT = 9110
GAUGES = {
    "last_success_timestamp_seconds": "Unix time at which the last successful run ended.",
    "last_end_timestamp_seconds": "Unix time at which the last run ended.",
    "last_result": "1 if the last run succeeded, 0 if it failed.",
    "duration_seconds": "Duration of the last successful run in seconds.",
    "source_bytes": "Bytes of artifacts and database dump in the last successful run.",
    "added_bytes": "Bytes that the last successful run added to the repository.",
    "repository_bytes": "Size of the repository in bytes.",
    "snapshots": "Number of backups in the repository.",
}
KINDS = ("backup", "drill")


class Journal:
    """The results of the last runs, in one JSON file."""

    def __init__(self, path: Path) -> None:
        """Use the file `path`."""
        self.path = path

    def read(self) -> dict[str, Any]:
        """Return all sections; empty if the file does not exist yet or is truncated."""
        try:
            found: dict[str, Any] = json.loads(self.path.read_text())
        except (OSError, ValueError):
            return {}
        return found

    def write(self, section: str, values: dict[str, Any]) -> None:
        """Add `values` to one section."""
        known = self.read()
        known[section] = known.get(section, {}) | values
        self._store(known)

    def _store(self, known: dict[str, Any]) -> None:
        part = self.path.with_suffix(".part")
        part.write_text(json.dumps(known, indent=2))
        part.rename(self.path)

    def forget(self) -> None:
        """Delete the last result of each kind and when each was enabled; keep the known repositories."""
        known = self.read()
        self._store({section: known[section] for section in known if section not in (*KINDS, "scheduled")})

    def failed(self, kind: str, words: str) -> None:
        """Record a failure. If the disk is too full for that, only Docker's log has it."""
        with suppress(OSError):
            self.write(kind, {"last_end_timestamp_seconds": time.time(), "last_result": 0, "error": words})

    def excuse(self, kind: str) -> None:
        """Delete the failure of the last run. The last success stays, with its age."""
        known = self.read()
        if known.get(kind, {}).get("last_result") != 0:
            return
        for name in ("last_result", "error"):
            known[kind].pop(name, None)
        with suppress(OSError):
            self._store(known)

    @contextmanager
    def recorded(self, kind: str) -> Iterator[dict[str, Any]]:
        """Record how the block ends, with the values that it puts into the dictionary."""
        started = time.time()
        result: dict[str, Any] = {}
        try:
            yield result
        except BaseException as error:
            words = str(error) if isinstance(error, Failure) else repr(error)
            self.failed(kind, words)
            raise
        now = time.time()
        self.write(
            kind,
            {
                "last_end_timestamp_seconds": now,
                "last_success_timestamp_seconds": now,
                "duration_seconds": now - started,
                "last_result": 1,
                "error": "",
                **result,
            },
        )


class _Collected(Collector):
    def __init__(self, journal: Journal, schedules: Mapping[str, str]) -> None:
        self._journal = journal
        self._schedules = schedules
        self._begun = time.time()

    def collect(self) -> Iterator[Metric]:
        known = self._journal.read()
        for kind, schedule in self._schedules.items():
            # Counted from the last success or, if later, from when it was enabled: before the first run, and on a stack
            # that was down and still knows its older backups.
            success = known.get(kind, {}).get("last_success_timestamp_seconds", 0)
            since = max(success, known.get("scheduled", {}).get(kind, 0)) or self._begun
            due = croniter(schedule, datetime.fromtimestamp(since, UTC)).get_next(float)
            words = "Unix time at which the next run is due by the schedule, after the last successful one."
            yield GaugeMetricFamily(f"mlflow_{kind}_due_timestamp_seconds", words, value=due)
        for kind in KINDS:
            for name, words in GAUGES.items():
                if name in known.get(kind, {}):
                    yield GaugeMetricFamily(f"mlflow_{kind}_{name}", words, value=known[kind][name])


def serve(journal: Journal, schedules: Mapping[str, str]) -> None:
    """Serve the metrics to Prometheus, in a separate thread. `schedules` are cron expressions by kind, in UTC."""
    now = time.time()
    # On a full disk this is not stored: the time then counts from this start.
    with suppress(OSError):
        journal.write("scheduled", dict.fromkeys(schedules, now) | journal.read().get("scheduled", {}))
    registry = CollectorRegistry()
    registry.register(_Collected(journal, schedules))
    ProcessCollector(registry=registry)
    start_http_server(PORT, registry=registry, certfile=os.environ.get("CERTIFICATE"), keyfile=os.environ.get("KEY"))
