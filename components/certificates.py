"""The self-signed certificate for a first try. It names the server's host name, so that a client can trust it."""

import hashlib
from datetime import UTC, datetime

BEGIN, END = datetime(2020, 1, 1, tzinfo=UTC), datetime(2120, 1, 1, tzinfo=UTC)
"""Validity. Fixed, so that every plan creates the same certificate. A certificate for a trial is not renewed."""


def self_signed(hostname: str, secret: str) -> tuple[str, str]:
    """Return a certificate for `hostname` and its key, in PEM, derived from `secret` alone.

    The key is P-256, which every browser supports; the signature is deterministic (RFC 6979).
    """
    # Imported here because the import takes a tenth of a preview.
    from cryptography import x509  # noqa: PLC0415
    from cryptography.hazmat.primitives import hashes, serialization  # noqa: PLC0415
    from cryptography.hazmat.primitives.asymmetric import ec  # noqa: PLC0415
    from cryptography.x509.oid import ExtendedKeyUsageOID  # noqa: PLC0415

    order = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
    # A slow function: the public key is visible to every client, and a secret that a person chose could be guessed from
    # it. The seed has twice the length of the order, so that the remainder is close to uniform.
    seed = hashlib.scrypt(secret.encode(), salt=b"traefik certificate", n=2**14, r=8, p=1, dklen=64)
    key = ec.derive_private_key(int.from_bytes(seed, "big") % (order - 1) + 1, ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, hostname[:64])])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(int.from_bytes(hashlib.sha256(hostname.encode()).digest()[:8], "big") | 1)
        .not_valid_before(BEGIN)
        .not_valid_after(END)
        # A certificate authority for itself only: a client that trusts it trusts no other certificate through it.
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(hostname)]), critical=False)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .sign(key, hashes.SHA256(), ecdsa_deterministic=True)
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return certificate.public_bytes(serialization.Encoding.PEM).decode(), private.decode()
