"""A parcel: many tensors in one byte string, since Flower charges requests per object.

Flower's SuperLink moves each array as separate objects, with one request each at every hop: a small
model of seventy tensors took six hundred requests per site and round. A parcel is one object (and
one more for each further 5 MB). It needs no trust: the signed body lists the digest of every
tensor, and a modified parcel opens to other tensors.

Layout: 16 random bytes, then, encrypted with AES-128 in counter mode with these bytes as key:
length of the head in 8 bytes (little-endian), the head (JSON: a list of [name, dtype, shape,
bytes]), and the tensors' bytes in that order.

The encryption hides nothing, since its key is sent along; it makes the bytes of every parcel
unique. The SuperLink identifies an object by its digest. An attacker who could compute the digest
of what another party will send (the first model, or one that is sent again) could register it first
with false children, and the SuperLink would refuse the rightful sender.
"""

import json
import os
from collections.abc import Collection, Mapping

from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext
from cryptography.hazmat.primitives.ciphers.algorithms import AES128
from cryptography.hazmat.primitives.ciphers.modes import CTR

from fgvc_core.errors import PeerError
from fgvc_core.wire.arrays import PackedTensor

MAX_TENSORS = 100_000
MAX_HEAD_BYTES = 20_000_000
_PREFIX, _SALT = 8, 16


def make_parcel(tensors: Mapping[str, PackedTensor]) -> bytes:
    """Pack tensors into one byte string, sorted by name; no two parcels are equal."""
    ordered = sorted(tensors.items())
    listed = [[name, t.dtype, list(t.shape), len(t.data)] for name, t in ordered]
    head = json.dumps(listed, separators=(",", ":")).encode()
    prefix = len(head).to_bytes(_PREFIX, "little")
    return _encrypted([prefix, head, *(tensor.data for _, tensor in ordered)])


def _encrypted(parts: list[bytes]) -> bytes:
    salt = os.urandom(_SALT)
    cipher = _cipher(salt)
    return b"".join([salt, *map(cipher.update, parts)])


def _cipher(salt: bytes) -> CipherContext:
    """Cipher that encrypts and, since it is in counter mode, also decrypts."""
    return Cipher(AES128(salt), CTR(bytes(16))).encryptor()


def open_parcel(data: bytes) -> dict[str, PackedTensor]:
    """The tensors of an untrusted parcel; their digests are not verified yet.

    Raises:
        PeerError: if it does not match its head.
    """
    try:
        cipher, view = _cipher(data[:_SALT]), memoryview(data)[_SALT:]
        length = int.from_bytes(cipher.update(view[:_PREFIX]), "little")
        if len(view) < _PREFIX or length > min(MAX_HEAD_BYTES, len(view) - _PREFIX):
            raise ValueError("its head is longer than it")
        listed = json.loads(cipher.update(view[_PREFIX : _PREFIX + length]))
        if not isinstance(listed, list) or len(listed) > MAX_TENSORS:
            raise ValueError("its head is no list of tensors")
        at, found = _PREFIX + length, {}
        for name, dtype, shape, nbytes in listed:
            texts = isinstance(name, str) and isinstance(dtype, str)
            numbers = all(type(n) is int and n >= 0 for n in (*shape, nbytes))
            if not texts or not numbers or name in found:
                raise ValueError("its head lists what cannot be")
            found[name] = PackedTensor(dtype, tuple(shape), cipher.update(view[at : at + nbytes]))
            at += nbytes
        if at != len(view):
            raise ValueError("its length is not what its head says")
    except (ValueError, TypeError, RecursionError) as error:
        raise PeerError(f"A parcel of tensors cannot be opened: {error}.") from None
    return found


def check_named_once(body: bytes, chunks: Collection[str]) -> None:
    """Refuse an array that repeats a chunk.

    Chunks are sent once but joined as often as they are named: 5 MB could expand to gigabytes. The
    chunks of a parcel are all different.

    Args:
        body: Untrusted JSON of an array; ``arraychunk_ids`` lists the chunks to join.
        chunks: Ids of the chunks that were sent for it.

    Raises:
        ValueError: if more chunks are joined than were sent.
        KeyError: if it does not list chunks.
    """
    if len(json.loads(body)["arraychunk_ids"]) > len(set(chunks)):
        raise ValueError("an array names a chunk more than once")
