"""The settings of the rotation of secrets: how old a secret may become, and when each got its value."""

from collections.abc import Collection
from datetime import datetime, timedelta

from pydantic import Field

from settings.base import Settings
from settings.tls import Moment


class RotationSettings(Settings):
    """The settings under `mlflow:rotation`."""

    after_days: int | None = Field(
        default=None,
        ge=1,
        le=3650,
        description="The age of a secret, in days, from which `make status` and an alert ask for `make rotate`. "
        "Without it, secrets may have any age.",
    )
    since: Moment | None = Field(
        default=None,
        description="Written by `make up`: when the first secrets were generated. A secret without an entry in `done` "
        "has its value since then.",
    )
    done: dict[str, Moment] = Field(
        default={}, description="Written by `make rotate`: when each secret got its value, by key."
    )

    def value_since(self, key: str) -> datetime | None:
        """Return when a secret got its value; None if that is unknown."""
        return self.done.get(key, self.since)

    def oldest(self, keys: Collection[str]) -> tuple[str, datetime] | None:
        """Return the key with the oldest value, and when it got it; None if no age is known."""
        known = {key: since for key in keys if (since := self.value_since(key))}
        return min(known.items(), key=lambda found: (found[1], found[0]), default=None)

    def due(self, keys: Collection[str]) -> datetime | None:
        """Return when the first of the secrets is too old; None without `after_days`, or if no age is known."""
        oldest = self.oldest(keys)
        return oldest[1] + timedelta(days=self.after_days) if oldest and self.after_days else None
