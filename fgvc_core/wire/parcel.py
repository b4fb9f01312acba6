"""Many tensors as one run of bytes, for a carrier that charges by the piece.

Flower's SuperLink moves each array as objects of its own, a request each at every hop: a small
model of seventy tensors cost six hundred requests a site and round. A parcel is one object
(and one more for each further 5 MB). It adds no trust and needs none: the signed body lists
the digest of every tensor, and a parcel that was changed opens to other tensors.

Layout: 8 bytes length of the head (little-endian), the head (JSON: a list of [name, dtype,
shape, bytes]), then the tensors' bytes in that order.
"""

import json
from collections.abc import Mapping

from fgvc_core.errors import PeerError
from fgvc_core.wire.arrays import PackedTensor

MAX_TENSORS = 100_000
MAX_HEAD_BYTES = 20_000_000
_PREFIX = 8


def make_parcel(tensors: Mapping[str, PackedTensor]) -> bytes:
    """Pack tensors into one run of bytes, in order of names."""
    ordered = sorted(tensors.items())
    listed = [[name, t.dtype, list(t.shape), len(t.data)] for name, t in ordered]
    head = json.dumps(listed, separators=(",", ":")).encode()
    prefix = len(head).to_bytes(_PREFIX, "little")
    return b"".join([prefix, head, *(tensor.data for _, tensor in ordered)])


def open_parcel(data: bytes) -> dict[str, PackedTensor]:
    """The tensors of a parcel that a stranger sent, not checked yet.

    Raises:
        PeerError: if it is not exactly what its head says.
    """
    try:
        length = int.from_bytes(data[:_PREFIX], "little")
        if len(data) < _PREFIX or length > min(MAX_HEAD_BYTES, len(data) - _PREFIX):
            raise ValueError("its head is longer than it")
        listed = json.loads(data[_PREFIX : _PREFIX + length])
        if not isinstance(listed, list) or len(listed) > MAX_TENSORS:
            raise ValueError("its head is no list of tensors")
        at, found = _PREFIX + length, {}
        for name, dtype, shape, nbytes in listed:
            texts = isinstance(name, str) and isinstance(dtype, str)
            numbers = all(type(n) is int and n >= 0 for n in (*shape, nbytes))
            if not texts or not numbers or name in found:
                raise ValueError("its head lists what cannot be")
            found[name] = PackedTensor(dtype, tuple(shape), data[at : at + nbytes])
            at += nbytes
        if at != len(data):
            raise ValueError("its length is not what its head says")
    except (ValueError, TypeError, RecursionError) as error:
        raise PeerError(f"A parcel of tensors cannot be opened: {error}.") from None
    return found
