"""A run's certificates: an authority of its own, and a certificate for each shard."""

from __future__ import annotations

import datetime
from typing import TYPE_CHECKING

from cirrus.errors import ConfigError
from cirrus.paramserver.tls import shard_name
from cirrus.run_folder import Certificates

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec

#: No run lasts longer; a clock may be wrong by a day.
VALID_DAYS = 365
CLOCK_ERROR_DAYS = 1


def make_certificates(n_shards: int) -> Certificates:
    """Make an authority and one certificate a shard; the authority's key is forgotten.

    Keys are of the curve P-256; it takes about a millisecond a shard.

    Raises:
        ConfigError: The library that makes certificates is not installed.
    """
    try:
        import cryptography  # noqa: F401 (whether it is there)
    except ImportError as error:
        raise ConfigError("tls", "needs the library cryptography: pip install 'cirrus-ml[tls]'") from error
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509 import BasicConstraints, KeyUsage

    key = ec.generate_private_key(ec.SECP256R1())
    name = _name("Cirrus run")
    signs = KeyUsage(
        digital_signature=False, content_commitment=False, key_encipherment=False, data_encipherment=False,
        key_agreement=False, key_cert_sign=True, crl_sign=True, encipher_only=False, decipher_only=False,
    )  # fmt: skip
    authority = (
        _builder(name, name, key.public_key())
        .add_extension(BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(signs, critical=True)
        .sign(key, hashes.SHA256())
    )
    shards = tuple(_shard_certificate(shard, authority, key) for shard in range(n_shards))
    return Certificates(authority=_pem(authority), shards=shards)


def _shard_certificate(shard: int, authority: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> bytes:
    """Return a shard's certificate and its key, as PEM."""
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509 import BasicConstraints, DNSName, SubjectAlternativeName

    own = ec.generate_private_key(ec.SECP256R1())
    certificate = (
        _builder(_name(shard_name(shard)), authority.subject, own.public_key())
        .add_extension(BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(SubjectAlternativeName([DNSName(shard_name(shard))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    secret = own.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return _pem(certificate) + secret


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey
) -> x509.CertificateBuilder:
    from cryptography import x509

    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=CLOCK_ERROR_DAYS))
        .not_valid_after(now + datetime.timedelta(days=VALID_DAYS))
    )


def _name(text: str) -> x509.Name:
    from cryptography import x509

    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)])


def _pem(certificate: x509.Certificate) -> bytes:
    from cryptography.hazmat.primitives import serialization

    return certificate.public_bytes(serialization.Encoding.PEM)
