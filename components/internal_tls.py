"""TLS between the services of the stack: its own certificate authority, and a certificate for each service."""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Self

import pulumi

from components.certificates import CertificateAuthority
from runtime.credentials import Credential
from runtime.workload import SECRETS
from settings import names
from settings.tls import LIFETIME, TlsSettings

CERTIFICATE_FILE, KEY_FILE = names.INTERNAL_CERTIFICATE_FILE, "internal-key.pem"
"""Secret files of a service: its certificate and its key."""
AUTHORITY, CERTIFICATE, KEY = (f"{SECRETS}/{file}" for file in (names.AUTHORITY_FILE, CERTIFICATE_FILE, KEY_FILE))
"""The paths of the files in a container: the authority that a client trusts, and the pair of a service."""
LOOPBACK = ("localhost", "127.0.0.1")
"""The names under which a health check in the container reaches its service."""


class Authority(pulumi.ComponentResource):
    """The certificate authority of the stack. Creates the secret from which all its keys are derived.

    Derived, so that every plan has the same certificates, and no key is in the state: docs/adr/0023-internal-tls.md.
    """

    secret: Credential
    derived: pulumi.Output[CertificateAuthority]
    """The authority. Secret."""

    def __init__(self, name: str, *, opts: pulumi.ResourceOptions | None = None) -> None:
        """Create the secret."""
        super().__init__("mlflow:components:Authority", name, None, opts)
        stack = pulumi.get_stack()
        self.secret = Credential("internal-authority", "internalAuthority", parent=self)
        self.derived = self.secret.value.apply(lambda value: CertificateAuthority.derived(stack, value))
        self.register_outputs({"certificate": self.certificate})

    @property
    def certificate(self) -> pulumi.Output[str]:
        """The certificate that clients trust, in PEM. It is public, although it is derived from a secret."""
        return pulumi.Output.unsecret(self.derived.apply(lambda authority: authority.certificate))


@dataclass(frozen=True, kw_only=True)
class InternalTls:
    """How the services reach each other: by TLS, or, without an authority, by plaintext."""

    issued: datetime
    _authority: Authority | None = None

    @classmethod
    def of(cls, settings: TlsSettings) -> Self:
        """Return TLS with the authority of the stack, or plaintext. Warns of certificates that end soon."""
        now, stack = datetime.now(UTC), pulumi.get_stack()
        issued = settings.issued_at(now)
        if not settings.internal:
            return cls(issued=issued)
        if settings.is_due(now) and settings.issued:
            pulumi.log.warn(
                f"mlflow:tls.issued: the certificates of the services end on {issued + LIFETIME:%Y-%m-%d}; to renew "
                f"them, type: {names.make_command('up', stack)}"
            )
        return cls(issued=issued, _authority=Authority("authority"))

    def __bool__(self) -> bool:
        """Whether the services speak TLS."""
        return self._authority is not None

    @property
    def credentials(self) -> list[Credential]:
        """The secret of the authority."""
        return [self._authority.secret] if self._authority else []

    @property
    def scheme(self) -> str:
        """The scheme of the services' URLs."""
        return "https" if self else "http"

    @property
    def authority(self) -> pulumi.Output[str] | None:
        """The certificate that clients trust, in PEM; None without TLS."""
        return self._authority.certificate if self._authority else None

    @property
    def trust(self) -> dict[str, pulumi.Output[str]]:
        """The secret files of a client: file name to content."""
        return {names.AUTHORITY_FILE: self.authority} if self.authority else {}

    def identity(self, service: str, *others: str) -> dict[str, pulumi.Output[str]]:
        """Return the secret files of a service, with those of a client: its certificate for all its names, its key."""
        if self._authority is None:
            return {}
        stack = pulumi.get_stack()
        hosts = [*(names.docker_name(stack, name) for name in (service, *others)), *LOOPBACK]
        pair = self._authority.derived.apply(lambda authority: authority.issue(hosts, self.issued, LIFETIME))
        return {
            **self.trust,
            CERTIFICATE_FILE: pair.apply(lambda made: made[0]),
            KEY_FILE: pair.apply(lambda made: made[1]),
        }

    def libpq(self) -> dict[str, str]:
        """Return libpq's environment variables, by which every connection verifies the database's certificate."""
        return {"PGSSLMODE": "verify-full", "PGSSLROOTCERT": AUTHORITY} if self else {}

    def web_config(self) -> dict[str, Any]:
        """Return the file of Prometheus, Alertmanager and the exporters that makes them serve TLS only."""
        return {"tls_server_config": {"cert_file": CERTIFICATE, "key_file": KEY}}
