"""The gateway's own certificate authority, and the certificate under which its TLS port answers.

The authority can vouch for this machine's own names only: a stolen key is good for little.
"""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import os
from dataclasses import dataclass
from pathlib import Path

import certifi
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fal_notebook import private_file

AUTHORITY_LIFE = datetime.timedelta(days=3650)
SERVER_LIFE = datetime.timedelta(days=365)
# What ends sooner than this is made anew.
RENEW_BEFORE = datetime.timedelta(days=30)

_NAMES = [
    x509.DNSName("localhost"),
    x509.IPAddress(ipaddress.ip_address("127.0.0.1")),
    x509.IPAddress(ipaddress.ip_address("::1")),
]
_ALLOWED = [
    x509.DNSName("localhost"),
    x509.IPAddress(ipaddress.ip_network("127.0.0.0/8")),
    x509.IPAddress(ipaddress.ip_network("::1/128")),
]


@dataclass(frozen=True)
class Identity:
    """A certificate and its private key."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    def lasts(self, now: datetime.datetime) -> bool:
        """Say whether it is not near its end."""
        return now + RENEW_BEFORE < self.certificate.not_valid_after_utc

    def to_pem(self) -> bytes:
        """Return key and certificate as one text."""
        key = self.key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        return key + _pem(self.certificate)


class Certificates:
    """What lies in one folder, each file 0600 and written whole.

    Attributes
    ----------
    server : Path
        Key and certificate of the TLS port.
    ca : Path
        The certificate to trust.
    bundle : Path
        The same beside those that are trusted anyway: ``SSL_CERT_FILE`` replaces these.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._authority = folder / "authority.pem"
        self.server = folder / "server.pem"
        self.ca = folder / "ca.pem"
        self.bundle = folder / "bundle.pem"

    def ensure(self, now: datetime.datetime) -> None:
        """Make what is missing, unreadable or near its end."""
        authority = _read(self._authority)
        if authority is None or not authority.lasts(now):
            authority = _new_authority(now)
            private_file.write(self._authority, authority.to_pem())
        server = _read(self.server)
        if server is None or not server.lasts(now) or not _issued(authority, server):
            private_file.write(self.server, _new_server(authority, now).to_pem())
        private_file.write(self.ca, _pem(authority.certificate))
        private_file.write(self.bundle, self._trusted() + b"\n" + _pem(authority.certificate))

    def _trusted(self) -> bytes:
        """Return what is trusted already, an organisation's own authority among it."""
        configured = Path(os.environ.get("SSL_CERT_FILE", ""))
        own = configured == self.bundle or not configured.is_file()
        return Path(certifi.where()).read_bytes() if own else configured.read_bytes()


def _read(path: Path) -> Identity | None:
    """Return what a file holds, None when it is not there or of no use."""
    with contextlib.suppress(OSError, ValueError):
        data = path.read_bytes()
        key = serialization.load_pem_private_key(data, None)
        if isinstance(key, ec.EllipticCurvePrivateKey):
            return Identity(key, x509.load_pem_x509_certificate(data))
    return None


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _issued(authority: Identity, server: Identity) -> bool:
    try:
        server.certificate.verify_directly_issued_by(authority.certificate)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _new_authority(now: datetime.datetime) -> Identity:
    key = ec.generate_private_key(ec.SECP256R1())
    name = _name(f"fal_notebook on {os.uname().nodename}"[:64])
    constraints = x509.NameConstraints(permitted_subtrees=_ALLOWED, excluded_subtrees=None)
    builder = (
        _builder(name, key, now, AUTHORITY_LIFE)
        .issuer_name(name)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(certificates=True), critical=True)
        .add_extension(constraints, critical=True)
    )
    return Identity(key, builder.sign(key, hashes.SHA256()))


def _new_server(authority: Identity, now: datetime.datetime) -> Identity:
    key = ec.generate_private_key(ec.SECP256R1())
    issuer = authority.certificate
    signed_by = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.key.public_key())
    life = min(SERVER_LIFE, issuer.not_valid_after_utc - now)
    builder = (
        _builder(_name("localhost"), key, now, life)
        .issuer_name(issuer.subject)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName(_NAMES), critical=False)
        .add_extension(signed_by, critical=False)
    )
    return Identity(key, builder.sign(authority.key, hashes.SHA256()))


def _builder(
    name: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    now: datetime.datetime,
    life: datetime.timedelta,
) -> x509.CertificateBuilder:
    """Return what every certificate has; it begins an hour ago, for clocks are set back."""
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + life)
        .add_extension(identifier, critical=False)
    )


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _usage(certificates: bool) -> x509.KeyUsage:
    """Return what a key is for: signing certificates, or handshakes."""
    return x509.KeyUsage(
        digital_signature=not certificates,
        key_cert_sign=certificates,
        crl_sign=certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
