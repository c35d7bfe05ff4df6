"""A self-signed certificate of the stack's own, for a first try: of the server's name, so that it can be trusted."""

import hashlib
from datetime import UTC, datetime

BEGIN, END = datetime(2020, 1, 1, tzinfo=UTC), datetime(2120, 1, 1, tzinfo=UTC)
"""Fixed, so that every plan makes the same certificate. Nobody renews one that is for a trial."""


def self_signed(hostname: str, secret: str) -> tuple[str, str]:
    """Return a certificate for `hostname` and its key, in PEM, made of `secret` alone.

    The key is P-256 (every browser takes it), the signature deterministic (RFC 6979).
    """
    # A tenth of a preview, for those who do not use this.
    from cryptography import x509  # noqa: PLC0415
    from cryptography.hazmat.primitives import hashes, serialization  # noqa: PLC0415
    from cryptography.hazmat.primitives.asymmetric import ec  # noqa: PLC0415
    from cryptography.x509.oid import ExtendedKeyUsageOID  # noqa: PLC0415

    order = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
    # A slow function: the public half is seen by everybody who connects, and a secret that a person chose could be
    # guessed. Twice the length of the order, so that the remainder is as good as even.
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
        # An authority of itself alone: a client that is given it trusts it, and nothing else by it.
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(hostname)]), critical=False)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .sign(key, hashes.SHA256(), ecdsa_deterministic=True)
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return certificate.public_bytes(serialization.Encoding.PEM).decode(), private.decode()
