"""Pairwise masks: X25519, HKDF-SHA256 and AES-256-CTR, all from ``cryptography``.

Two sites derive the same seed from their fresh keys and the view (RFC 7748, RFC 5869). One adds
the seed's stream of words (AES-256 in counter mode from block 0, NIST SP 800-38A) and the other
subtracts it, so that both vanish in the sum. The view is the salt, so that another view has other
masks.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from numpy.typing import NDArray

from fgvc_core.errors import PeerError

KEY_BYTES = 32
_PRIME = 2**255 - 19
_CHUNK = 1 << 18
"""Words of a stream that are made and added at once; so few stay in the processor's cache."""
_BLOCK = 16
"""Bytes of a block of AES."""


def new_secret() -> bytes:
    """32 bytes from the operating system: a private X25519 key, or a key of noise."""
    return X25519PrivateKey.generate().private_bytes_raw()


def public_key(secret: bytes) -> str:
    """The public X25519 key of a private one, 64 hexadecimal digits."""
    return X25519PrivateKey.from_private_bytes(secret).public_key().public_bytes_raw().hex()


def is_canonical(key: str) -> bool:
    """Whether a public key is the one encoding of its point: below 2**255 - 19, in lowercase.

    X25519 accepts several encodings of a point, so that unequal texts could be one key.
    """
    try:
        raw = bytes.fromhex(key)
    except ValueError:
        return False
    return len(raw) == KEY_BYTES and raw.hex() == key and int.from_bytes(raw, "little") < _PRIME


def is_small_order(key: str) -> bool:
    """Whether a public key in its one encoding is a point whose shared secrets are all zero."""
    try:
        X25519PrivateKey.generate().exchange(X25519PublicKey.from_public_bytes(bytes.fromhex(key)))
    except ValueError:
        return True
    return False


def pair_seed(secret: bytes, own: str, key: str, other: str, view: bytes) -> bytes:
    """The 32-byte seed that two sites share in one view; the same at both.

    Args:
        secret: Own private X25519 key.
        own: Own name.
        key: The other site's public key, 64 hexadecimal digits.
        other: The other site's name.
        view: Digest of the view.

    Raises:
        PeerError: if the shared secret is zero (a point of small order); names the other site.
    """
    try:
        shared = X25519PrivateKey.from_private_bytes(secret).exchange(
            X25519PublicKey.from_public_bytes(bytes.fromhex(key))
        )
    except ValueError:
        shared = bytes(KEY_BYTES)
    if not any(shared):
        raise PeerError(
            f"The key of site '{other}' is a point of small order.",
            why="Its masks would be known to everybody.",
            remedy="Leave that site out.",
        )
    return _derived(shared, view, b"fieldmark mask v1" + _names(own, other))


def noise_seed(secret: bytes, view: bytes) -> bytes:
    """The 32-byte seed of a site's noise in one view, from the key of noise kept with its value.

    Noise is thus a function of what is stored and of the view: the same when the same view is
    answered again, independent for another.
    """
    return _derived(secret, view, b"fieldmark noise v1")


def add_masks(
    words: NDArray[Any], own: str, seeds: Mapping[str, bytes], *, sign: int = 1
) -> NDArray[Any]:
    """Add the streams of all seeds in place, with plus where ``own`` sorts after the other site.

    Args:
        words: uint32 or uint64 (N,); arithmetic is modulo 2**32 or 2**64.
        own: Own name.
        seeds: Other site -> the shared seed.
        sign: -1 subtracts them again.

    Returns:
        ``words``.
    """
    size = words.itemsize * min(len(words), _CHUNK)
    # One buffer for all pieces, because allocating each costs as much as the cipher.
    zeros, buffer = memoryview(bytes(size)), bytearray(size + _BLOCK - 1)
    masks = np.frombuffer(buffer, words.dtype.newbyteorder("<"), size // words.itemsize)
    for other, seed in seeds.items():
        stream, plus = Stream(seed), (own > other) == (sign > 0)
        combine = np.add if plus else np.subtract
        for start in range(0, len(words), _CHUNK):
            piece = words[start : start + _CHUNK]
            stream.fill(buffer, zeros[: piece.nbytes])
            combine(piece, masks[: len(piece)], out=piece)
    return words


class Stream:
    """The words of a seed: AES-256-CTR from block 0, little-endian.

    Args:
        seed: 32 bytes.
    """

    def __init__(self, seed: bytes) -> None:
        cipher = Cipher(algorithms.AES(seed), modes.CTR(bytes(16)))
        self._encryptor = cipher.encryptor()

    def words(self, count: int, kind: type[Any]) -> NDArray[Any]:
        """(count,) next words of an unsigned dtype."""
        dtype = np.dtype(kind).newbyteorder("<")
        data = self._encryptor.update(bytes(dtype.itemsize * count))
        return np.frombuffer(data, dtype=dtype).astype(kind, copy=False)

    def fill(self, buffer: bytearray, zeros: memoryview) -> None:
        """Write the next ``len(zeros)`` bytes to the start of a buffer.

        Args:
            buffer: At least ``_BLOCK - 1`` bytes longer than ``zeros``.
            zeros: As many zero bytes.
        """
        self._encryptor.update_into(zeros, buffer)


def _names(one: str, other: str) -> bytes:
    """Both names in order, each with its length: 'x', 'xx' and 'xx', 'x' differ from 'xxx'."""
    texts = [name.encode() for name in sorted((one, other))]
    return b"".join(len(text).to_bytes(8, "big") + text for text in texts)


def _derived(secret: bytes, salt: bytes, info: bytes) -> bytes:
    return HKDF(SHA256(), KEY_BYTES, salt, info).derive(secret)
