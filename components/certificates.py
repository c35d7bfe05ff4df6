"""Certificates that are derived from a secret, so that every plan creates the same ones and the state has none."""

import hashlib
import hmac
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

BEGIN, END = datetime(2020, 1, 1, tzinfo=UTC), datetime(2120, 1, 1, tzinfo=UTC)
"""Validity of a certificate that signs itself. Fixed, so that every plan creates the same certificate."""
ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
"""Order of the curve P-256 (SEC 2, section 2.4.2)."""
CLOCK_SKEW = timedelta(days=1)
"""How far the clock of a client may be behind."""


def self_signed(hostname: str, secret: str) -> tuple[str, str]:
    """Return a certificate for `hostname` and its key, in PEM, derived from `secret` alone.

    It is for a first try: it names the server's host name, so that a client can trust it, and is not renewed. The key
    is P-256, which every browser supports; the signature is deterministic (RFC 6979).
    """
    # Imported here because the import takes a tenth of a preview.
    from cryptography import x509  # noqa: PLC0415
    from cryptography.x509.oid import ExtendedKeyUsageOID  # noqa: PLC0415

    key = _private_key(_slow(secret, b"traefik certificate"))
    name = _name(hostname)
    builder = (
        _builder(name, name, key, hostname, (BEGIN, END))
        # A certificate authority for itself only: a client that trusts it trusts no other certificate through it.
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(hostname)]), critical=False)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
    )
    return _signed(builder, key), _pem(key)


@dataclass(frozen=True)
class CertificateAuthority:
    """A certificate authority that is derived from `secret` alone, and issues certificates for the services of `stack`.

    The keys are P-256: with Ed25519, libpq cannot bind its authentication to the connection.
    """

    stack: str
    seed: bytes

    @classmethod
    def derived(cls, stack: str, secret: str) -> "CertificateAuthority":
        """Return the authority of a secret."""
        return cls(stack, _slow(secret, b"internal authority"))

    @property
    def certificate(self) -> str:
        """The certificate that clients trust, in PEM."""
        from cryptography import x509  # noqa: PLC0415 - as above

        name, key = self._name, self._key
        usage = _usage(key_cert_sign=True, crl_sign=True)
        identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
        builder = (
            _builder(name, name, key, "authority", (BEGIN, END))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(usage, critical=True)
            .add_extension(identifier, critical=False)
        )
        return _signed(builder, key)

    def issue(self, hosts: Sequence[str], issued: datetime, lifetime: timedelta) -> tuple[str, str]:
        """Return a certificate for the host names and IP addresses `hosts`, and its key, in PEM.

        The key is another one for each first host and each time of issue.
        """
        from cryptography import x509  # noqa: PLC0415 - as above
        from cryptography.x509.oid import ExtendedKeyUsageOID  # noqa: PLC0415

        what = f"{hosts[0]} {issued.isoformat()}"
        key = _private_key(hmac.digest(self.seed, what.encode(), "sha512"))
        ours = x509.SubjectKeyIdentifier.from_public_key(self._key.public_key())
        identifier = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(ours)
        builder = (
            _builder(_name(hosts[0]), self._name, key, what, (issued - CLOCK_SKEW, issued + lifetime))
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(digital_signature=True), critical=True)
            .add_extension(x509.SubjectAlternativeName([*map(_general_name, hosts)]), critical=False)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(identifier, critical=False)
        )
        return _signed(builder, self._key), _pem(key)

    @property
    def _key(self) -> "EllipticCurvePrivateKey":
        return _private_key(hmac.digest(self.seed, b"authority", "sha512"))

    @property
    def _name(self) -> "x509.Name":
        return _name(f"mlflow-{self.stack} internal authority")


def _slow(secret: str, purpose: bytes) -> bytes:
    """Return 64 bytes for `purpose`, by a slow function.

    The public key is visible to every client, and a secret that a person chose could be guessed from it.
    """
    return hashlib.scrypt(secret.encode(), salt=purpose, n=2**14, r=8, p=1, dklen=64)


def _private_key(seed: bytes) -> "EllipticCurvePrivateKey":
    """Return the key of a seed. It has twice the length of the order, so that the remainder is close to uniform."""
    from cryptography.hazmat.primitives.asymmetric import ec  # noqa: PLC0415 - as above

    return ec.derive_private_key(int.from_bytes(seed, "big") % (ORDER - 1) + 1, ec.SECP256R1())


def _name(common_name: str) -> "x509.Name":
    from cryptography import x509  # noqa: PLC0415 - as above

    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, common_name[:64])])


def _general_name(host: str) -> "x509.GeneralName":
    from cryptography import x509  # noqa: PLC0415 - as above

    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _usage(*, digital_signature: bool = False, key_cert_sign: bool = False, crl_sign: bool = False) -> "x509.KeyUsage":
    from cryptography import x509  # noqa: PLC0415 - as above

    return x509.KeyUsage(
        digital_signature=digital_signature,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _builder(
    subject: "x509.Name",
    issuer: "x509.Name",
    key: "EllipticCurvePrivateKey",
    what: str,
    validity: tuple[datetime, datetime],
) -> "x509.CertificateBuilder":
    """Return a certificate without extensions. Its serial number is derived from `what`."""
    from cryptography import x509  # noqa: PLC0415 - as above

    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(int.from_bytes(hashlib.sha256(what.encode()).digest()[:8], "big") | 1)
        .not_valid_before(validity[0])
        .not_valid_after(validity[1])
    )


def _signed(builder: "x509.CertificateBuilder", key: "EllipticCurvePrivateKey") -> str:
    from cryptography.hazmat.primitives import hashes, serialization  # noqa: PLC0415 - as above

    certificate = builder.sign(key, hashes.SHA256(), ecdsa_deterministic=True)
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def _pem(key: "EllipticCurvePrivateKey") -> str:
    from cryptography.hazmat.primitives import serialization  # noqa: PLC0415 - as above

    private = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, *private).decode()
