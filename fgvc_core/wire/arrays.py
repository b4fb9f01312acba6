"""Tensors as bytes: packing, strict unpacking, digests, and work on all cores.

The bytes are NumPy's ``.npy`` format, version 1.0, C order, little-endian
(https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html), which Flower's own
``Array`` carries too. Received data are never unpickled: before memory is allocated, the header is
compared, byte for byte, with the only one that is possible for the expected dtype and shape.

>>> packed = pack(np.ones((2, 3), dtype=np.float32))
>>> unpack(packed, TensorSpec("float32", (2, 3)), "w").sum()
np.float32(6.0)

Large tensors are processed in pieces on all cores. Hashing and NumPy's loops release the GIL, so
threads suffice. Results are combined in order and do not depend on the number of cores.
"""

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from math import prod
from typing import Any, TypeVar

import numpy as np
from blake3 import blake3
from numpy.lib import format as npy
from numpy.typing import NDArray

from fgvc_core.cores import usable_cores
from fgvc_core.errors import PeerError

WORTH_THREADS = 4_000_000
"""Least number of bytes that is worth starting threads."""

PIECE = 1 << 20
"""Values in one piece of work."""

_taken: list[int] = []

_lock = threading.Lock()

Item = TypeVar("Item")

Result = TypeVar("Result")


def on_all_cores(
    function: Callable[[Item], Result], items: Sequence[Item], nbytes: int
) -> list[Result]:
    """``function`` of each item, in the order of the items.

    Args:
        function: Must be thread-safe.
        items: If sizes differ much, put the largest first: threads then end at about the same time.
        nbytes: Total size of the work; a small one runs in this thread.
    """
    cores = 1 if nbytes < WORTH_THREADS or len(items) < 2 else spare()
    if cores == 1:
        return [function(item) for item in items]
    # A new pool each time: its threads would not survive a fork.
    with ThreadPoolExecutor(min(cores, len(items))) as pool:
        return list(pool.map(function, items))


def pieces(sizes: Iterable[tuple[str, int]]) -> list[tuple[str, slice]]:
    """(name, slice) of every piece of the tensors, in order; ``sizes`` gives (name, values)."""
    return [
        (name, slice(start, min(start + PIECE, size)))
        for name, size in sizes
        for start in range(0, size, PIECE)
    ]


@contextmanager
def core_taken() -> Iterator[None]:
    """Reserve one core for the calling thread: meanwhile, work on all cores uses one less.

    More threads than cores compete for caches and the GIL: on two cores, three are slower than two.
    """
    with _lock:
        _taken.append(threading.get_ident())
    try:
        yield
    finally:
        with _lock:
            _taken.remove(threading.get_ident())


def spare() -> int:
    """Number of cores for work on large tensors now, at least one."""
    return max(available() - len(_taken), 1)


def available() -> int:
    """Number of cores that this process may use."""
    return len(usable_cores())


DTYPES = ("float32", "float16", "int8", "uint16", "uint32", "uint64")
"""The permitted dtypes; uint16 also carries the bits of bfloat16, which NumPy lacks, and uint32 and
uint64 the words of a masked sum."""

Array = NDArray[Any]


@dataclass(frozen=True)
class TensorSpec:
    """Expected dtype and shape of a tensor."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Number of values."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the values."""
        return self.size * np.dtype(self.dtype).itemsize

    @property
    def packed_bytes(self) -> int:
        """Bytes of the packed tensor, including its header."""
        return len(_header(self)) + self.nbytes


@dataclass(frozen=True)
class PackedTensor:
    """A tensor as sent: its claimed dtype and shape, and its bytes."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes

    def digest(self) -> str:
        """BLAKE3 (hex, 32 bytes) over dtype, shape and bytes.

        As hard to forge as SHA-256 and several times faster
        (https://github.com/BLAKE3-team/BLAKE3-specs).
        """
        hasher = blake3(f"{self.dtype}{list(self.shape)}\0".encode())
        return hasher.update(self.data).hexdigest()


def spec_of(array: Array) -> TensorSpec:
    """The spec of an array."""
    return TensorSpec(str(array.dtype), tuple(array.shape))


def pack(array: Array) -> PackedTensor:
    """A tensor as bytes.

    Args:
        array: Any shape; its dtype must be one of ``DTYPES``.
    """
    if str(array.dtype) not in DTYPES:
        raise TypeError(f"a tensor of {array.dtype} does not travel; one of {DTYPES} does")
    spec = spec_of(array)
    data = _header(spec) + np.ascontiguousarray(array).tobytes()
    return PackedTensor(spec.dtype, spec.shape, data)


def unpack(packed: PackedTensor, expected: TensorSpec, name: str) -> Array:
    """The values of an untrusted tensor, without copying them.

    Args:
        packed: The tensor received.
        expected: Its required dtype and shape.
        name: The tensor's name, for messages.

    Returns:
        A read-only view with the expected dtype and shape.

    Raises:
        PeerError: if dtype, shape, header or length differ from the expected ones.
    """
    if packed.dtype != expected.dtype or tuple(packed.shape) != expected.shape:
        raise PeerError(
            f"Tensor '{name}' is {packed.dtype}{list(packed.shape)}, "
            f"expected {expected.dtype}{list(expected.shape)}."
        )
    header = _header(expected)
    if len(packed.data) != len(header) + expected.nbytes:
        raise PeerError(
            f"Tensor '{name}' has {len(packed.data)} bytes, "
            f"expected {len(header) + expected.nbytes}."
        )
    if packed.data[: len(header)] != header:
        raise PeerError(f"Tensor '{name}' has a header that its dtype and shape cannot have.")
    values = np.frombuffer(packed.data, dtype=expected.dtype, offset=len(header))
    return values.reshape(expected.shape)


def pack_all(arrays: Mapping[str, Array]) -> dict[str, PackedTensor]:
    """All tensors packed, sorted by name."""
    return {name: pack(arrays[name]) for name in sorted(arrays)}


def unpack_all(
    packed: Mapping[str, PackedTensor], expected: Mapping[str, TensorSpec]
) -> dict[str, Array]:
    """Unpack exactly the expected tensors.

    Raises:
        PeerError: if a name is missing or unknown, or a tensor does not meet its spec.
    """
    missing = sorted(set(expected) - set(packed))
    unknown = sorted(set(packed) - set(expected))
    if missing or unknown:
        strange = [name[:80] for name in unknown[:3]]
        raise PeerError(
            f"The tensors do not match: {len(missing)} missing {missing[:3]}, "
            f"{len(unknown)} unknown {strange}."
        )
    return {name: unpack(packed[name], spec, name) for name, spec in expected.items()}


def digest_all(packed: Mapping[str, PackedTensor]) -> dict[str, str]:
    """Name -> digest (hex) of each tensor; large updates are hashed on all cores."""
    names = sorted(packed, key=lambda name: -len(packed[name].data))
    nbytes = sum(len(tensor.data) for tensor in packed.values())
    digests = on_all_cores(PackedTensor.digest, [packed[name] for name in names], nbytes)
    found = dict(zip(names, digests, strict=True))
    return {name: found[name] for name in packed}


def first_not_finite(arrays: Mapping[str, NDArray[np.float32]]) -> str | None:
    """Name of the first tensor with a NaN or an infinity, or None."""
    for name, array in arrays.items():
        # One pass without a temporary: a sum of squares is not finite if any value is not, or if
        # large finite values overflow, which the second test excludes.
        flat = array.reshape(-1)
        with np.errstate(invalid="ignore", over="ignore"):
            total = np.dot(flat, flat)
        if not np.isfinite(total) and not np.isfinite(array).all():
            return name
    return None


@lru_cache(maxsize=4096)
def _header(spec: TensorSpec) -> bytes:
    buffer = BytesIO()
    descr = npy.dtype_to_descr(np.dtype(spec.dtype).newbyteorder("<"))
    npy.write_array_header_1_0(
        buffer, {"descr": descr, "fortran_order": False, "shape": spec.shape}
    )
    return buffer.getvalue()
