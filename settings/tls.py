"""The settings of TLS between the services of the stack."""

from datetime import datetime, timedelta
from typing import Annotated

from pydantic import AwareDatetime, Field, PlainSerializer

from settings.base import Settings

LIFETIME = timedelta(days=397)
"""Validity of a certificate of a service: a year, and a month to renew it."""
RENEW_BEFORE = timedelta(days=30)
"""How long before its end `make up` renews a certificate."""

Moment = Annotated[AwareDatetime, PlainSerializer(lambda value: value.isoformat())]


class TlsSettings(Settings):
    """The settings under `mlflow:tls`."""

    internal: bool = Field(
        default=False,
        description="Whether the services of the stack speak only TLS to each other, with certificates of an authority "
        "that belongs to the stack. They refuse plaintext. Needs Traefik, and no `mlflow:server.port`.",
    )
    issued: Moment | None = Field(
        default=None,
        description="When the certificates of the services were issued, such as `2026-11-29T09:00:00Z`. They are valid "
        "for 397 days. `make up` writes it, and renews it 30 days before the end. Without it, they are issued on "
        "January 1 of each year.",
    )

    def issued_at(self, now: datetime) -> datetime:
        """Return when the certificates were issued; January 1 of this year if `issued` is not set."""
        return self.issued or now.replace(month=1, day=1, hour=0, minute=0, second=0, microsecond=0)

    def is_due(self, now: datetime) -> bool:
        """Return whether `make up` has to issue certificates: for the first time, or 30 days before their end."""
        return self.internal and (self.issued is None or now >= self.issued + LIFETIME - RENEW_BEFORE)
