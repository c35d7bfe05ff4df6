"""The wording of errors in settings."""

import difflib
import re
from typing import Any, get_args

from pydantic_core import ErrorDetails

from settings.secrets import (
    SECRET_KEYS,
)
from settings.stack import NAMESPACE, StackConfig

SUSPICIOUS = re.compile("passw|secret|token|key|credential", re.IGNORECASE)


class InvalidSettingsError(ValueError):
    """The settings cannot be deployed. `problems` has one line for each reason."""

    def __init__(self, problems: list[str]) -> None:
        """Store `problems`, each a line `mlflow:path.to.key: reason`."""
        super().__init__("the settings of this stack are not valid\n" + "\n".join(f"  {line}" for line in problems))
        self.problems = problems


def in_words(error: ErrorDetails, hidden: list[str]) -> str:
    """Return the message for one invalid value: its path, the rule, and the value unless it may be a secret."""
    path = [str(part) for part in error["loc"]]
    context: dict[str, Any] = error.get("ctx", {})
    where = f"{NAMESPACE}:" + ".".join(path)
    kind = error["type"]
    if kind == "extra_forbidden":
        return f"{where}: no such setting{_nearest(path)}"
    if kind == "missing":
        return f"{where}: is required"
    rule = {
        "greater_than_equal": "must be at least {ge}",
        "less_than_equal": "must be at most {le}",
        "literal_error": "must be one of {expected}",
        "value_error": "{error}",
    }.get(kind, _type_rule(kind)).format(**context)
    secret = path[0] in hidden or any(SUSPICIOUS.search(part) for part in path)
    return f"{where}: {rule}" + ("" if secret else f", got {error['input']!r}")


def _type_rule(kind: str) -> str:
    """Return the rule for a value of the wrong type."""
    for prefix, words in (
        ("int", "must be a whole number"),
        ("float", "must be a number"),
        ("bool", "must be true or false"),
        ("string", "must be a string"),
        ("tuple", "must be a list"),
        ("datetime", "must be a time with its time zone, such as 2026-11-29T09:00:00Z"),
        ("timezone", "must be a time with its time zone, such as 2026-11-29T09:00:00Z"),
        ("model", "must be a section of settings (key: value)"),
        ("dict", "must be a section of settings (key: value)"),
    ):
        if kind.startswith(prefix):
            return words
    return f"is not valid ({kind})"


def _nearest(path: list[str]) -> str:
    """Return a hint for an unknown key: a section that has this key, or the most similar key, or all known keys."""
    model: Any = StackConfig
    for part in path[:-1]:
        model = _sections(model)[part]
    known = [str(field.alias) for field in model.model_fields.values()]
    if len(path) == 1:
        known += SECRET_KEYS
    elsewhere = [
        f"{NAMESPACE}:{name}.{path[-1]}"
        for name, section in _sections(StackConfig).items()
        if any(field.alias == path[-1] for field in section.model_fields.values())
    ]
    if close := elsewhere or difflib.get_close_matches(path[-1], known, n=1):
        return f"; did you mean {' or '.join(close)}?"
    if len(path) == 1:
        # Without the secrets, of which there are three times as many, and which are rarely written by hand.
        known = [key for key in known if key not in SECRET_KEYS]
        return f"; known keys: {', '.join(sorted(known))}; secrets: docs/operations/rotate.md#rotate-a-secret"
    return f"; known keys: {', '.join(sorted(known))}"


def _sections(model: Any) -> dict[str, Any]:  # noqa: ANN401 - a class of pydantic's
    """Return the sections of `model` by key. The type of an optional section is a union with None."""
    kinds = {
        str(field.alias): next(
            (kind for kind in get_args(field.annotation) if hasattr(kind, "model_fields")), field.annotation
        )
        for field in model.model_fields.values()
    }
    return {name: kind for name, kind in kinds.items() if hasattr(kind, "model_fields")}
