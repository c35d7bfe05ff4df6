"""The times in the stack file: when the services' certificates were issued, and since when the secrets age."""

import os
from datetime import UTC, datetime

from docker.errors import APIError

from operations.common.console import StopError, progress
from operations.common.stack import Stack
from operations.engine.engine import Engine
from operations.host.servers import servers
from settings.names import INTERNAL_CERTIFICATE_FILE
from settings.secrets import COMPLETES, NEXT_KEYS, interrupted_message
from settings.stack import NAMESPACE
from settings.tls import LIFETIME

ISSUED = "mlflow:tls.issued"
SINCE = "mlflow:rotation.since"
DONE = "mlflow:rotation.done"


def renew_certificates(engine: Engine) -> None:
    """Have the certificates issued by the next deployment if there are none yet, or if they end within 30 days.

    If another checkout has deployed newer ones, and its stack file was not committed, write their date instead: the
    certificates follow from it, so they stay as they are.
    """
    now, tls = _now(), engine.stack.settings.tls
    if not tls.is_due(now):
        return
    deployed = deployed_since(engine.stack)
    # A date in the future comes from a wrong clock.
    if deployed and deployed <= now and not tls.model_copy(update={"issued": deployed}).is_due(now):
        engine.call("config", "set", "--path", ISSUED, deployed.isoformat())
        progress(f"{engine.stack.path.name} now has the date of the deployed certificates: {deployed:%Y-%m-%d}")
        return
    engine.call("config", "set", "--path", ISSUED, now.isoformat())
    progress(f"the certificates of the services are issued today, and valid until {now + LIFETIME:%Y-%m-%d}")


def deployed_since(stack: Stack) -> datetime | None:
    """Return when the certificate of the deployed server was issued; None if there is none that can be read."""
    # Imported late: it takes a tenth of a second.
    from cryptography import x509  # noqa: PLC0415

    deployed = servers(stack)
    try:
        found = deployed.secret(INTERNAL_CERTIFICATE_FILE) if deployed.deployed else None
        return x509.load_pem_x509_certificate(found).not_valid_after_utc - LIFETIME if found else None
    except (ValueError, APIError):
        # The deployment replaces it.
        return None


def start_counting(engine: Engine) -> None:
    """Write since when the secrets age, if they may become too old and nothing says since when.

    Before the deployment, because the alert depends on it: the next plan must be empty.
    """
    rotation = engine.stack.settings.rotation
    if rotation.after_days:
        count_from_now(engine)


def count_from_now(engine: Engine) -> None:
    """Write that the secrets have had their values since now, unless the stack file says since when."""
    if engine.stack.settings.rotation.since is None:
        engine.call("config", "set", "--path", SINCE, _now().isoformat())


def note_value(engine: Engine, key: str) -> None:
    """Write that a secret has got its value now."""
    # The name of a secret makes Pulumi ask for --secret.
    engine.call("config", "set", "--plaintext", "--path", f"{DONE}.{key}", _now().isoformat())


def issue_certificates(engine: Engine) -> None:
    """Have the certificates issued by the next deployment."""
    engine.call("config", "set", "--path", ISSUED, _now().isoformat())


def require_no_interrupted_rotation(stack: Stack) -> None:
    """Raise `StopError` if `make rotate` was interrupted while it encrypted the data with new data keys.

    `make rotate` itself may deploy then, to complete.
    """
    if os.environ.get(COMPLETES):
        return
    if found := sorted(key for key in NEXT_KEYS.values() if f"{NAMESPACE}:{key}" in stack.values):
        raise StopError(interrupted_message(found, stack.name))


def _now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)
