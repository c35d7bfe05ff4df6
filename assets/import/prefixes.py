"""The locations of artifacts that a database of MLflow remembers, grouped by their prefix.

MLflow stores the full location of the artifacts of every experiment, run, model and trace. Almost all of them begin
with the location of an experiment, and almost all of those are `<prefix>/<id of the experiment>`.
"""

import re
from collections import Counter
from collections.abc import Iterable
from typing import Any

LOCATIONS = (
    ("experiments", "artifact_location", ""),
    ("runs", "artifact_uri", ""),
    ("model_versions", "source", ""),
    ("model_versions", "storage_location", ""),
    ("logged_models", "artifact_location", ""),
    ("trace_tags", "value", "key = 'mlflow.artifactLocation'"),
)
"""Table, column and condition of every location in the database: MLflow 1.30 to 3.18. The sources of datasets are not
among them: they tell where data came from, and the server does not read them."""
OTHERS = ("runs:", "models:")
"""Schemes that point to a run or a model, not to a place."""
TAIL = re.compile(r"/[0-9a-f]{32}/artifacts(/.*)?$|/(models|traces)/[\w-]+/artifacts(/.*)?$")
"""What follows the location of an experiment: a run, a logged model or a trace."""


def covers(prefix: str, location: str) -> bool:
    """Return whether a location is `prefix`, or below it."""
    return location == prefix or location.startswith(prefix.rstrip("/") + "/")


def of_experiment(location: str, number: str) -> str:
    """Return the prefix of an experiment's location: without the id at its end, if it is there."""
    return location.rstrip("/").removesuffix(f"/{number}")


def of_other(location: str) -> str:
    """Return the prefix of a location that is below no known prefix."""
    return re.sub(r"/\d+$", "", TAIL.sub("", location.rstrip("/")))


class Prefixes:
    """Counts locations by prefix."""

    def __init__(self) -> None:
        """Start without any."""
        self.rows: dict[str, Counter[str]] = {}
        self._known: list[str] = []

    def add_experiments(self, rows: Iterable[tuple[Any, str | None]]) -> None:
        """Count the locations of experiments: their ids and locations. First, because they have the prefixes."""
        for number, location in rows:
            if location:
                self._count(of_experiment(location, str(number)), "experiments.artifact_location")
        self._sort()

    def add(self, column: str, locations: Iterable[str | None]) -> None:
        """Count the locations in another column."""
        for location in locations:
            if not location or location.startswith(OTHERS):
                continue
            known = next((prefix for prefix in self._known if covers(prefix, location)), None)
            self._count(known if known is not None else of_other(location), column)
            if known is None:
                self._sort()

    def _count(self, prefix: str, column: str) -> None:
        self.rows.setdefault(prefix, Counter())[column] += 1

    def _sort(self) -> None:
        """Put the longest first, so that a location is counted below the nearest prefix."""
        self._known = sorted(self.rows, key=len, reverse=True)
