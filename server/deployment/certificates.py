"""A private certificate authority, which issues one server's certificate for its sites.

X.509 as in RFC 5280; names and addresses go into subjectAltName, the only place that current
clients check (RFC 9525).
"""

import datetime
import ipaddress
import os
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fgvc_core.errors import ConfigurationError, PeerError

CA_DAYS = 3650
SERVER_DAYS = 397
"""Longest lifetime of a server certificate that common clients accept, in days."""
WARN_DAYS = 30
BACKDATED = datetime.timedelta(minutes=10)
"""A new certificate must be valid on a machine whose clock is a little slow."""


def make_authority(folder: Path, name: str) -> None:
    """Create ``ca.pem`` and ``ca.key`` (mode 0600) in a folder."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    usage = x509.KeyUsage(
        digital_signature=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=True,
        crl_sign=True,
        encipher_only=False,
        decipher_only=False,
    )
    certificate = (
        _builder(subject, subject, key.public_key(), _now(), CA_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, SHA256())
    )
    _write_key(key, folder / "ca.key")
    (folder / "ca.pem").write_bytes(certificate.public_bytes(Encoding.PEM))


def issue(
    folder: Path,
    name: str,
    hosts: list[str],
    *,
    days: int = SERVER_DAYS,
    starts: datetime.datetime | None = None,
) -> None:
    """Issue ``NAME.pem`` and ``NAME.key`` for a server, signed by the folder's authority.

    Args:
        folder: Holds ``ca.pem`` and ``ca.key``.
        name: Of the files.
        hosts: DNS names and IP addresses of the server.
        days: How long it is valid.
        starts: When it becomes valid; by default now.
    """
    authority = read_certificate(folder / "ca.pem")
    authority_key = load_pem_private_key((folder / "ca.key").read_bytes(), None)
    assert isinstance(authority_key, ec.EllipticCurvePrivateKey)
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, hosts[0][:64])])
    certificate = (
        _builder(subject, authority.subject, key.public_key(), starts or _now(), days)
        .add_extension(x509.SubjectAlternativeName([_general(h) for h in hosts]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()),
            critical=False,
        )
        .sign(authority_key, SHA256())
    )
    # The key first, so a reader that finds a new certificate finds its key, too.
    _write_key(key, folder / f"{name}.key")
    _replace(folder / f"{name}.pem", certificate.public_bytes(Encoding.PEM), 0o644)


def read_certificate(path: Path) -> x509.Certificate:
    """Read a certificate.

    Raises:
        ConfigurationError: if it is missing or damaged.
    """
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            f"The certificate '{path}' cannot be read: {error}.",
            remedy="Restore it from the backup, or renew it: "
            f"fieldmark server renew {path.parent}.",
        ) from None


def check_dates(path: Path, now: datetime.datetime | None = None) -> int:
    """Days until a certificate expires.

    Raises:
        PeerError: if it is not valid today.
    """
    certificate, now = read_certificate(path), now or _now()
    first, last = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if now < first:
        raise PeerError(
            f"The certificate '{path}' is valid from {first:%Y-%m-%d %H:%M} UTC only.",
            why="No site would trust it before.",
            remedy=f"Set this machine's clock, or renew it: fieldmark server renew {path.parent}.",
        )
    if now > last:
        raise PeerError(
            f"The certificate '{path}' expired on {last:%Y-%m-%d %H:%M} UTC.",
            why="No site trusts it any more.",
            remedy=f"Renew it: fieldmark server renew {path.parent}. Kits stay as they are.",
        )
    return (last - now).days


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    starts: datetime.datetime,
    days: int,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(starts - BACKDATED)
        .not_valid_after(starts + datetime.timedelta(days=days))
    )


def _general(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


def _write_key(key: ec.EllipticCurvePrivateKey, path: Path) -> None:
    data = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    _replace(path, data, 0o600)


def _replace(path: Path, data: bytes, mode: int) -> None:
    aside = path.with_name(path.name + ".part")
    aside.unlink(missing_ok=True)
    descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, path)
