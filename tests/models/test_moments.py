"""Test which date the certificates of the services get before a deployment."""

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from components.certificates import CertificateAuthority
from operations.engine import moments
from settings.tls import LIFETIME, TlsSettings

NOW = datetime(2026, 12, 1, 12, tzinfo=UTC)


def renewed(monkeypatch: pytest.MonkeyPatch, *, written: datetime | None, deployed: datetime | None) -> datetime | None:
    """Return the date that is written for a stack file with `written` and a server with a certificate of `deployed`."""
    called: list[tuple[str, ...]] = []
    tls = TlsSettings.model_validate({"internal": True, **({"issued": written} if written else {})})
    certificate = (
        CertificateAuthority.derived("prod", "0" * 32).issue(["server"], deployed, LIFETIME)[0].encode()
        if deployed
        else None
    )
    server = SimpleNamespace(deployed=["mlflow-prod-server"], secret=lambda _: certificate)
    monkeypatch.setattr(moments, "servers", lambda _: server)
    monkeypatch.setattr(moments, "_now", lambda: NOW)
    stack = SimpleNamespace(settings=SimpleNamespace(tls=tls), path=SimpleNamespace(name="Pulumi.prod.yaml"))
    engine: Any = SimpleNamespace(stack=stack, call=lambda *words: called.append(words))
    moments.renew_certificates(engine)
    assert [words[:-1] for words in called] in ([], [("config", "set", "--path", moments.ISSUED)])
    return datetime.fromisoformat(called[0][-1]) if called else None


def test_certificates_are_issued_for_a_new_stack_and_before_they_end(monkeypatch: pytest.MonkeyPatch) -> None:
    old = NOW - LIFETIME + timedelta(days=20)
    assert renewed(monkeypatch, written=None, deployed=None) == NOW
    assert renewed(monkeypatch, written=old, deployed=old) == NOW
    assert renewed(monkeypatch, written=None, deployed=old) == NOW
    in_the_future = NOW + timedelta(days=3)
    assert renewed(monkeypatch, written=None, deployed=in_the_future) == NOW


def test_certificates_that_do_not_end_soon_keep_their_date(monkeypatch: pytest.MonkeyPatch) -> None:
    assert renewed(monkeypatch, written=NOW - timedelta(days=100), deployed=None) is None


@pytest.mark.parametrize("written", [None, NOW - LIFETIME], ids=["not committed", "renewed elsewhere"])
def test_the_date_of_certificates_that_another_checkout_deployed_is_taken_over(
    monkeypatch: pytest.MonkeyPatch, written: datetime | None
) -> None:
    deployed = NOW - timedelta(days=3)
    assert renewed(monkeypatch, written=written, deployed=deployed) == deployed
