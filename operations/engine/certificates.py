"""The time of issue of the services' certificates, which `make up` keeps in the stack file."""

from datetime import UTC, datetime

from operations.common.console import progress
from operations.engine.engine import Engine
from settings.tls import LIFETIME

KEY = "mlflow:tls.issued"


def renew_certificates(engine: Engine) -> None:
    """Have the certificates issued by the next deployment if there are none yet, or if they end within 30 days."""
    now = datetime.now(UTC).replace(microsecond=0)
    if not engine.stack.settings.tls.is_due(now):
        return
    engine.call("config", "set", "--path", KEY, now.isoformat())
    progress(f"the certificates of the services are issued today, and valid until {now + LIFETIME:%Y-%m-%d}")
