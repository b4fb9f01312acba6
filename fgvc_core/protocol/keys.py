"""Keys of sites and coordinators: ECDSA over NIST P-256, in OpenSSH's format.

Flower's SuperNode accepts this format and curve for node authentication, so one key can serve a
site in every engine.
"""

import hashlib
import os
import re
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import (
    decode_dss_signature,
    encode_dss_signature,
)
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_ssh_private_key,
    load_ssh_public_key,
)

from fgvc_core.errors import ConfigurationError, PeerError

PrivateKey = ec.EllipticCurvePrivateKey
PublicKey = ec.EllipticCurvePublicKey

_SCALAR_BYTES = 32
SIGNATURE_BYTES = 2 * _SCALAR_BYTES
SHORT_DIGITS, FULL_DIGITS, _GROUP = 32, 64, 4
_MAKE_ONE = "Make one with: ssh-keygen -t ecdsa -b 256"


def new_key() -> PrivateKey:
    """A new private key from the operating system's generator."""
    return ec.generate_private_key(ec.SECP256R1())


def write_private(key: PrivateKey, path: Path) -> None:
    """Write a private key, readable by its owner only (mode 0600)."""
    data = key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)


def private_text(key: PrivateKey) -> str:
    """A private key as unencrypted text in OpenSSH's format; only for a start kit."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()).decode()


def read_private(path: Path) -> PrivateKey:
    """Read a private key.

    Raises:
        PeerError: if the file is missing or not an ECDSA key in OpenSSH's format.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise PeerError(
            f"The key '{path}' cannot be read: {error}.",
            why="Without it nothing can be signed.",
            remedy="Restore it from the backup, or make a new key and register it.",
        ) from None
    return parse_private(data, str(path))


def parse_private(data: bytes, path: str) -> PrivateKey:
    """A private key from the content of its file; see :func:`read_private`."""
    try:
        key = load_ssh_private_key(data, password=None)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise PeerError(
            f"The key '{path}' cannot be read: {error}.",
            why="Without it nothing can be signed.",
            remedy="Restore it from the backup, or make a new key and register it.",
        ) from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise PeerError(f"The key '{path}' is no ECDSA key.", remedy=_MAKE_ONE)
    if not isinstance(key.curve, ec.SECP256R1):
        raise PeerError(
            f"The key '{path}' is on curve {key.curve.name}; P-256 is expected.", remedy=_MAKE_ONE
        )
    return key


def public_text(key: PublicKey) -> str:
    """A public key as one line of text (OpenSSH's format)."""
    return key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()


def read_public(text: str) -> PublicKey:
    """Read a public key from its line of text.

    Raises:
        PeerError: if it is not an ECDSA key in OpenSSH's format.
    """
    try:
        key = load_ssh_public_key(text.encode())
    except (ValueError, UnsupportedAlgorithm, NotImplementedError) as error:
        # NotImplementedError: a point whose first byte says that it is compressed.
        raise PeerError(f"A public key cannot be read: {error}.") from None
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise PeerError("A public key is no ECDSA key.")
    if not isinstance(key.curve, ec.SECP256R1):
        raise PeerError(f"A public key is on curve {key.curve.name}; P-256 is expected.")
    return key


def fingerprint(key: PublicKey) -> str:
    """SHA-256 (hex) of the public key's DER encoding; names the key in files and registers."""
    der = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(der).hexdigest()


def short_fingerprint(key: PublicKey) -> str:
    """A key's fingerprint for people; see :func:`short_form`."""
    return short_form(fingerprint(key))


def short_form(digest: str) -> str:
    """The form in which fingerprints are shown: the first 128 bits, in eight groups.

    Making a key with the same 128 bits as another takes 2^128 attempts. Do not compare the text of
    public keys instead: all of them share their first 73 characters.

    Args:
        digest: A full fingerprint, 64 hexadecimal digits.

    >>> short_form("0123456789abcdef" * 4)
    '0123 4567 89ab cdef 0123 4567 89ab cdef'
    """
    return " ".join(digest[at : at + _GROUP] for at in range(0, SHORT_DIGITS, _GROUP))


def read_fingerprint(text: str) -> str:
    """The hexadecimal digits of a fingerprint that a person typed: the short form or all 64.

    Case, spaces, colons and hyphens are ignored.

    Raises:
        ConfigurationError: if it is neither.
    """
    digits = re.sub(r"[\s:-]", "", text).lower()
    if not re.fullmatch(rf"[0-9a-f]{{{SHORT_DIGITS}}}|[0-9a-f]{{{FULL_DIGITS}}}", digits):
        raise ConfigurationError(
            f"'{text[:100]}' is not a fingerprint.",
            why=f"A part of one is easily forged: {SHORT_DIGITS} or all {FULL_DIGITS} "
            "hexadecimal digits are compared.",
            remedy="Give all eight groups of four, for instance "
            "'0123 4567 89ab cdef 0123 4567 89ab cdef'.",
        )
    return digits


def has_fingerprint(key: PublicKey, text: str) -> bool:
    """Whether a fingerprint that a person typed is this key's.

    Raises:
        ConfigurationError: if the text is not a fingerprint.
    """
    return fingerprint(key).startswith(read_fingerprint(text))


def sign(key: PrivateKey, message: bytes) -> bytes:
    """An ECDSA signature with SHA-256: r and s, 32 bytes each.

    Its width is fixed (unlike DER), so a message's size is the same in every run.
    """
    r, s = decode_dss_signature(key.sign(message, ec.ECDSA(SHA256())))
    return r.to_bytes(_SCALAR_BYTES, "big") + s.to_bytes(_SCALAR_BYTES, "big")


def verify(key: PublicKey, message: bytes, signature: bytes) -> bool:
    """Whether the signature over the message is the key's."""
    if len(signature) != SIGNATURE_BYTES:
        return False
    r, s = (
        int.from_bytes(half, "big")
        for half in (signature[:_SCALAR_BYTES], signature[_SCALAR_BYTES:])
    )
    try:
        key.verify(encode_dss_signature(r, s), message, ec.ECDSA(SHA256()))
    except InvalidSignature:
        return False
    return True
