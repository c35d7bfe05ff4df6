"""Where the old artifacts are, what becomes of their locations, and the SQL that rewrites them.

A prefix of the locations in the old database names a place: a bucket, a folder, or the old server itself
(`mlflow-artifacts:`). Files of the old server's main place go to the top of the stack's artifacts, those of others into
`imported/`. Every location becomes `mlflow-artifacts:/...`, which the new server serves.
"""

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from operations.common.console import StopError

SERVED = re.compile(r"mlflow-artifacts:(//[^/]*)?/?")
FOLDER = re.compile(r"(file:(//(localhost)?)?)?(/.*|\.{1,2}/.*|[\w.-][^:]*)")
KEEP = "keep"
"""In MAP=: locations with this prefix stay as they are."""
EXPERIMENTS = "experiments.artifact_location"
"""The column with the places of artifacts of runs that are still to come."""
FILE_STORE = ("+ /*/*/artifacts/**", "+ /*/models/*/artifacts/**", "+ /*/traces/*/artifacts/**", "- *")
"""Rclone's filter for the artifacts in a file store, which has runs and metrics as files beside them."""
LOCATIONS = (
    ("experiments", "artifact_location", ""),
    ("runs", "artifact_uri", ""),
    ("model_versions", "source", ""),
    ("model_versions", "storage_location", ""),
    ("logged_models", "artifact_location", ""),
    ("trace_tags", "value", "key = 'mlflow.artifactLocation'"),
)
"""As in assets/import/prefixes.py."""


@dataclass(frozen=True)
class Mapped:
    """A prefix of the old locations, where its files are, and the folder below the stack's artifacts they go to."""

    prefix: str
    rows: Mapping[str, int]
    """Number of rows by column."""
    place: str | None
    """`bucket/folder` of the old object store, or an absolute folder of the Docker host. None: there are no files to
    copy, because the prefix is kept, or because only experiments without anything in them have it."""
    target: str = ""
    kept: bool = False
    """Whether MAP= keeps the prefix."""

    @property
    def new(self) -> str:
        """The new prefix."""
        return self.prefix if self.kept else f"mlflow-artifacts:/{self.target}"


@dataclass(frozen=True)
class Places:
    """What tells the place of a prefix."""

    main: str
    """The old server's artifact root, as its settings name it; empty if unknown."""
    destination: str
    """Where the old server stored what it served itself; empty if unknown."""
    given: Mapping[str, str]
    """MAP=: places by prefix."""
    on_host: Callable[[str], str]
    """Returns the path on the Docker host of a path on the old server."""
    exists: Callable[[str], bool] = lambda _: True
    """Returns whether a folder exists on the Docker host."""
    asked: frozenset[str] = frozenset()
    """The prefixes that MAP= names. Each must occur."""

    def of(self, prefix: str) -> str | None:
        """Return the place of a prefix; None if MAP= keeps it. Raises `ValueError` with the reason if it is unknown."""
        for start, place in sorted(self.given.items(), key=lambda entry: -len(entry[0])):
            if is_below(prefix, start):
                if place == KEEP:
                    return None
                return joined(self._place(place), plain(prefix).removeprefix(plain(start)))
        if match := SERVED.match(prefix):
            if not self.destination:
                raise ValueError(
                    "the old server stored these files itself; set MLFLOW_ARTIFACTS_DESTINATION, or ARTIFACTS=<place>"
                )
            return joined(self._place(self.destination), prefix[match.end() :])
        return self._place(prefix)

    def _place(self, location: str) -> str:
        if location.startswith("s3://"):
            parts = urlsplit(location)
            return joined(parts.netloc, parts.path)
        if FOLDER.fullmatch(location):
            return self.on_host(unquote(plain(location))).rstrip("/")
        scheme = location.partition(":")[0]
        raise ValueError(f"{scheme}: cannot be read from here; copy the files to an S3 or a folder first")


def plain(location: str) -> str:
    """Return a location without the scheme of a file, which some versions of MLflow write and others do not."""
    return re.sub(r"^file:(//(localhost)?)?(?=/)", "", location)


def is_below(prefix: str, start: str) -> bool:
    """Return whether a prefix is `start`, or below it."""
    return plain(prefix) == plain(start) or plain(prefix).startswith(plain(start).rstrip("/") + "/")


def joined(place: str, rest: str) -> str:
    """Return a folder below a place."""
    return "/".join(part for part in (place.rstrip("/"), rest.strip("/")) if part)


def parsed_map(text: str) -> dict[str, str]:
    """Return MAP= as places by prefix; raise `StopError` if it is not `prefix=place[,prefix=place]`."""
    found = {}
    for entry in filter(None, (part.strip() for part in text.split(","))):
        prefix, equals, place = entry.rpartition("=")
        if not equals or not prefix or not re.match(rf"({KEEP}$|s3://|~|/|\./|\.\./)", place):
            raise StopError(
                f"MAP={text}: must be prefix=place, such as /mlruns=/home/me/mlruns or /mlruns=s3://bucket/folder, or "
                f"prefix={KEEP} (got {entry})"
            )
        found[prefix.rstrip("/")] = place
    return found


def mapped(prefixes: Mapping[str, Mapping[str, int]], places: Places) -> list[Mapped]:
    """Return what becomes of each prefix; raise `StopError` that names every prefix whose place is unknown."""
    known: dict[str, str | None] = {}
    empty: set[str] = set()
    problems = [
        f"MAP={start}=...: no location begins so; the prefixes are: {', '.join(sorted(prefixes))}"
        for start in sorted(places.asked)
        if not any(is_below(prefix, start) for prefix in prefixes)
    ]
    for prefix, rows in prefixes.items():
        try:
            known[prefix] = places.of(prefix)
            if (place := known[prefix]) and place.startswith("/") and not places.exists(place):
                raise ValueError(f"there is no folder {place} on the Docker host")  # noqa: TRY301 - handled as others
        except ValueError as error:
            if set(rows) == {EXPERIMENTS}:
                # No run, model or trace is there, so there is nothing to copy.
                known[prefix] = None
                empty.add(prefix)
                continue
            which = ", ".join(f"{number} {column}" for column, number in sorted(rows.items()))
            problems.append(f"{prefix} ({which}): {error}")
    if problems:
        raise StopError(
            "it is unknown where these artifacts are:\n  "
            + "\n  ".join(problems)
            + f"\n  say where the files are: MAP=<prefix>=<place>, or keep the locations: MAP=<prefix>={KEEP}"
        )
    main = _main(known, prefixes, places)
    targets: dict[str, str] = {}
    for place in sorted({place for place in known.values() if place is not None}, key=len):
        above = next((top for top in targets if place == top or place.startswith(top + "/")), None)
        if above is not None:
            targets[place] = joined(targets[above], place.removeprefix(above))
        elif place == main:
            targets[place] = ""
        else:
            targets[place] = _target(place, targets.values())
    for prefix in sorted(empty):
        served = SERVED.match(prefix)
        targets[prefix] = prefix[served.end() :] if served else _target(plain(prefix), targets.values())
    return [
        Mapped(
            prefix,
            prefixes[prefix],
            place,
            targets.get(prefix if prefix in empty else place or "", ""),
            kept=place is None and prefix not in empty,
        )
        for prefix, place in known.items()
    ]


def _target(place: str, taken: Iterable[str]) -> str:
    """Return the folder of a place below `imported`. A hash is before its name if it would be that of another place."""
    name = re.sub(r"[^\w./-]", "-", place)
    target = joined("imported", name)
    others = [other for other in taken if other]
    if any(f"{target}/".startswith(f"{other}/") or f"{other}/".startswith(f"{target}/") for other in others):
        return joined(f"imported/{hashlib.sha256(place.encode()).hexdigest()[:8]}", name)
    return target


def _main(known: Mapping[str, str | None], prefixes: Mapping[str, Mapping[str, int]], places: Places) -> str | None:
    """Return the place that goes to the top: the one in the old settings, or else the one with most rows."""
    for named in (places.destination, places.main):
        if named and not SERVED.match(named):
            try:
                return places.of(named)
            except ValueError:
                continue
    counted = sorted((sum(rows.values()), known[prefix] or "") for prefix, rows in prefixes.items() if known[prefix])
    return counted[-1][1] if counted else None


def moves(found: Sequence[Mapped], *, file_store: str = "") -> list[dict[str, object]]:
    """Return the folders to copy, each file once, as assets/import/copying.py expects them."""
    wanted = {entry.place: entry.target for entry in found if entry.place is not None}
    tops = {place for place in wanted if not any(place.startswith(f"{other}/") for other in wanted)}
    copied: list[dict[str, object]] = []
    for place in sorted(tops):
        inside = file_store and place == file_store
        copied.append({"source": place, "target": wanted[place], "filters": list(FILE_STORE if inside else ())})
        if inside:
            # A deleted experiment of a file store lies there. Its location has not changed.
            copied.append({"source": f"{place}/.trash", "target": wanted[place], "filters": list(FILE_STORE)})
    return copied


def rewriting(found: Iterable[Mapped], existing: Mapping[str, Iterable[str]]) -> str:
    """Return the SQL, for Postgres and SQLite, that rewrites the locations in the columns that exist, by table."""
    # The longest first, so that a location gets what belongs to its nearest prefix.
    changed = [entry for entry in found if entry.new.rstrip("/") != entry.prefix.rstrip("/")]
    changed.sort(key=lambda entry: -len(entry.prefix))
    if not changed:
        return ""
    statements = []
    for table, column, condition in LOCATIONS:
        if column not in existing.get(table, ()):
            continue
        cases = "\n".join(_case(column, entry) for entry in changed)
        # `value` is a word of SQL.
        where = f" WHERE {condition}" if condition else ""
        statements.append(f"UPDATE {table} SET {column} = CASE\n{cases}\n    ELSE {column} END{where};\n")  # noqa: S608 - literals are quoted
    return "".join(statements)


def _case(column: str, entry: Mapped) -> str:
    old = entry.prefix.rstrip("/")
    new = entry.new.rstrip("/")
    # The location itself must not end as `mlflow-artifacts:`.
    whole = new if entry.target else "mlflow-artifacts:/"
    begin = f"substr({column}, 1, {len(old) + 1}) = {_literal(old + '/')}"
    return (
        f"    WHEN {column} = {_literal(old)} THEN {_literal(whole)}\n"
        f"    WHEN {begin} THEN {_literal(new)} || substr({column}, {len(old) + 1})"
    )


def _literal(text: str) -> str:
    """Return a string of SQL. Neither Postgres nor SQLite reads a backslash in it."""
    return "'" + text.replace("'", "''") + "'"
