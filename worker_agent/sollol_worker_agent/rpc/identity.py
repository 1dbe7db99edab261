"""A key pair and a certificate for one group's tunnel, made when the group is formed and gone with it.

No authority signs it: each side is told the other's certificate through Redis and accepts exactly that one.
"""

from __future__ import annotations

import datetime
from dataclasses import dataclass, field

# Clocks of two machines may differ, and a group may live for weeks.
_BEFORE, _AFTER = datetime.timedelta(days=2), datetime.timedelta(days=365)


@dataclass(frozen=True, slots=True)
class Identity:
    """One side of a tunnel. `certificate` (PEM) may be shown to anyone, `key` (PEM) to nobody."""

    certificate: str
    key: str = field(repr=False)


def new_identity(name: str) -> Identity:
    """Make one; `name` only tells a reader of the certificate whose it is."""
    # Here, since it takes 50 ms that only groups need.
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:64])])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BEFORE)
        .not_valid_after(now + _AFTER)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    return Identity(
        certificate.public_bytes(serialization.Encoding.PEM).decode(),
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ).decode(),
    )
