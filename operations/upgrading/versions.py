"""Newer tags of an image: those of the same form with a greater version."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

FIRST_YEAR = 2000
"""A first number from here on is the year of a date (`RELEASE.2026-09-16T00-00-00Z`), not a major version."""


@dataclass(frozen=True)
class Newer:
    """The newest tags beside a tag. None: there is none."""

    same_major: str | None
    """The newest tag of the same major version, or of any date."""
    next_major: str | None
    """The newest tag of a newer major version."""


def newer(tag: str, tags: Iterable[str]) -> Newer:
    """Return the newest among `tags` that are newer than `tag` and have its form.

    The form is the text between the numbers, so `v3.8.0-rc.1` and `18.7-alpine` are no versions of `v3.7.15` and
    `18.6`. A tag without a number has no newer one.
    """
    form, now = _parsed(tag)
    found = {numbers: other for other in tags for found_form, numbers in [_parsed(other)] if found_form == form}
    greater = [numbers for numbers in found if numbers > now]
    if not now or not greater:
        return Newer(None, None)
    dated = now[0] >= FIRST_YEAR
    same = [numbers for numbers in greater if dated or numbers[0] == now[0]]
    other = [numbers for numbers in greater if not dated and numbers[0] > now[0]]
    return Newer(found[max(same)] if same else None, found[max(other)] if other else None)


def _parsed(tag: str) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Return the text between the numbers of a tag, and the numbers."""
    parts = re.split(r"(\d+)", tag)
    return tuple(parts[::2]), tuple(map(int, parts[1::2]))
