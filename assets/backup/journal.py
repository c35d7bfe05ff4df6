"""What became of the last backup and the last drill: kept beside the mirror, and told to Prometheus."""

import json
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
    "last_success_timestamp_seconds": "When the last one that succeeded ended.",
    "last_end_timestamp_seconds": "When the last one ended.",
    "last_result": "1 where the last one succeeded, 0 where it failed.",
    "duration_seconds": "How long the last one that succeeded took.",
    "source_bytes": "Bytes of artifacts and database dump in the last one that succeeded.",
    "added_bytes": "Bytes that the last one that succeeded added to the repository.",
    "repository_bytes": "Size of the repository.",
    "snapshots": "Backups in the repository.",
}
KINDS = ("backup", "drill")


class Journal:
    """The record, in one file."""

    def __init__(self, path: Path) -> None:
        """Keep it in `path`."""
        self.path = path

    def read(self) -> dict[str, Any]:
        """Return everything that is known; nothing at first, or where the file was cut off."""
        try:
            found: dict[str, Any] = json.loads(self.path.read_text())
        except (OSError, ValueError):
            return {}
        return found

    def write(self, section: str, values: dict[str, Any]) -> None:
        """Add to one section."""
        known = self.read()
        known[section] = known.get(section, {}) | values
        self._store(known)

    def _store(self, known: dict[str, Any]) -> None:
        part = self.path.with_suffix(".part")
        part.write_text(json.dumps(known, indent=2))
        part.rename(self.path)

    def forget(self) -> None:
        """Forget the last of each kind, and since when each is wanted; not which repositories there are."""
        known = self.read()
        self._store({section: known[section] for section in known if section not in (*KINDS, "scheduled")})

    def failed(self, kind: str, words: str) -> None:
        """Record a failure. Where the disk is too full for that, what Docker logged has to do."""
        with suppress(OSError):
            self.write(kind, {"last_end_timestamp_seconds": time.time(), "last_result": 0, "error": words})

    def excuse(self, kind: str) -> None:
        """Forget that the last one failed. The one before it is as old as it is, and is told to be."""
        known = self.read()
        if known.get(kind, {}).get("last_result") != 0:
            return
        for name in ("last_result", "error"):
            known[kind].pop(name, None)
        with suppress(OSError):
            self._store(known)

    @contextmanager
    def recorded(self, kind: str) -> Iterator[dict[str, Any]]:
        """Record how the block ends, with whatever it puts into the dictionary that it is handed."""
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
            # Before the first one it is due as of the day on which somebody wanted it; so it is again on a stack that
            # was down, and knows of older ones.
            success = known.get(kind, {}).get("last_success_timestamp_seconds", 0)
            since = max(success, known.get("scheduled", {}).get(kind, 0)) or self._begun
            due = croniter(schedule, datetime.fromtimestamp(since, UTC)).get_next(float)
            words = "When one is due: by the schedule, after the last one that succeeded."
            yield GaugeMetricFamily(f"mlflow_{kind}_due_timestamp_seconds", words, value=due)
        for kind in KINDS:
            for name, words in GAUGES.items():
                if name in known.get(kind, {}):
                    yield GaugeMetricFamily(f"mlflow_{kind}_{name}", words, value=known[kind][name])


def serve(journal: Journal, schedules: Mapping[str, str]) -> None:
    """Answer Prometheus, in a thread of its own. `schedules` are cron expressions by kind, in UTC."""
    now = time.time()
    # On a full disk it is not kept, and counts from this start.
    with suppress(OSError):
        journal.write("scheduled", dict.fromkeys(schedules, now) | journal.read().get("scheduled", {}))
    registry = CollectorRegistry()
    registry.register(_Collected(journal, schedules))
    ProcessCollector(registry=registry)
    start_http_server(PORT, registry=registry)
