"""Cache on disk of the maps in front of a model's first trained stage.

Like the cache of features (:mod:`fgvc_core.training.features`), it is keyed by the pictures'
contents, and every writer adds whole files under unique names. Maps are a thousand times as large
as features: they are float16, files are mapped into memory, and each map has its own checksum,
which is verified when the map is read. A process that starts thus reads only the keys.

A picture that cannot be read has a map of NaN.
"""

import json
import shutil
import zlib
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fgvc_core.errors import DataError
from fgvc_core.files import private_folder
from fgvc_core.training.features import DIGEST_BYTES, FORMAT, save_shard

_LARGEST = 1 << 20
"""Most bytes of a file's header; a file of 32 maps has about 300."""

Floats = NDArray[np.floating[Any]]


class MapStore:
    """Cached maps of one view of pictures, by one frozen prefix.

    Args:
        cache: The cache's root folder.
        digest: Digest of the prefix, the preprocessing and the view.
        dtype: float16, or float32 for twice the room.
    """

    def __init__(self, cache: Path, digest: bytes, dtype: str = "float16") -> None:
        self.folder = cache / "features" / f"{FORMAT}-{digest.hex()[:40]}"
        self._dtype = np.dtype(dtype)
        self._known: dict[bytes, tuple[Path, NDArray[Any], int]] = {}
        self._read: set[str] = set()

    def missing(self, keys: list[bytes]) -> list[int]:
        """Positions of the keys whose maps are not on disk.

        Raises:
            DataError: if a file of the cache is damaged.
        """
        self._refresh()
        return [i for i, key in enumerate(keys) if key not in self._known]

    def get(self, keys: list[bytes]) -> NDArray[Any]:
        """Copies of the maps of known keys, (N, *shape).

        Raises:
            KeyError: if a key is unknown.
            DataError: if a map is not the one that was written.
        """
        rows = []
        for key in keys:
            path, map_, total = self._known[key]
            if _sum(key, map_) != total:
                raise _damaged(path, "its bytes are not those that were written")
            rows.append(map_)
        return np.stack(rows)

    def unreadable(self, keys: list[bytes]) -> list[int]:
        """Positions of the known keys whose pictures could not be read."""
        return [
            i
            for i, key in enumerate(keys)
            if np.isnan(self._known[key][1].flat[0]) and np.isnan(self._known[key][1]).all()
        ]

    def add(self, keys: list[bytes], maps: Floats) -> None:
        """Add maps, atomically and durably; values beyond the type's range are its largest.

        Args:
            keys: N digests of 32 bytes.
            maps: (N, *shape).

        Raises:
            DataError: if the cache's disk is full.
            OSError: if they cannot be written for another reason.
        """
        private_folder(self.folder)
        most = np.finfo(self._dtype).max
        held = np.ascontiguousarray(np.clip(maps, -most, most), dtype=self._dtype)
        values: dict[str, NDArray[Any]] = {
            "keys": np.frombuffer(b"".join(keys), dtype=np.uint8).reshape(-1, DIGEST_BYTES).copy(),
            "maps": held,
            "sums": np.array([_sum(key, held[i]) for i, key in enumerate(keys)], dtype=np.uint32),
        }
        save_shard(self.folder, values, lambda what: no_room(self.folder, held.nbytes, what))

    def _refresh(self) -> None:
        if not self.folder.is_dir():
            return
        for path in sorted(self.folder.glob("*.safetensors")):
            if path.name in self._read:
                continue
            try:
                found = _mapped(path)
                keys, maps, sums = found["keys"], found["maps"], found["sums"]
                if maps.dtype != self._dtype or not len(keys) == len(maps) == len(sums):
                    raise ValueError("it does not hold what such a file holds")
            except (KeyError, OSError, ValueError, TypeError) as error:
                raise _damaged(path, str(error)) from None
            for i in range(len(keys)):
                self._known[keys[i].tobytes()] = (path, maps[i], int(sums[i]))
            self._read.add(path.name)


@lru_cache(maxsize=128)
def open_maps(cache: Path, digest: bytes, dtype: str) -> MapStore:
    """Open a store once per process, because all sites of a simulation read the same one."""
    return MapStore(cache, digest, dtype)


def check_room(cache: Path, nbytes: int) -> None:
    """Refuse work whose maps would not fit on the cache's disk, before any of it is done.

    Raises:
        DataError: with both sizes.
    """
    at = cache
    while not at.exists():
        at = at.parent
    free = shutil.disk_usage(at).free
    if nbytes > free:
        raise no_room(cache, nbytes, f"{free / 1e6:,.0f} MB are free")


def no_room(folder: Path, nbytes: int, what: str) -> DataError:
    """Error for maps that do not fit on a disk."""
    return DataError(
        f"The cache '{folder}' has no room for {nbytes / 1e6:,.0f} MB of maps: {what}.",
        why="They are kept so that the stages which do not train are computed once a picture.",
        remedy="Free space there, put the cache on another disk, or set augment.cached_views = 0, "
        "which keeps none.",
    )


def _mapped(path: Path) -> dict[str, NDArray[Any]]:
    """Arrays of a safetensors file, mapped into memory.

    The format is a length (8 bytes, little-endian), a JSON header with dtype, shape and byte
    offsets of each tensor, and the tensors
    (https://huggingface.co/docs/safetensors/index#format).
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 0 < length <= _LARGEST:
            raise ValueError("its header is too long")
        header = json.loads(file.read(length))
    types = {"U8": np.uint8, "U32": np.uint32, "F16": np.float16, "F32": np.float32}
    # One mapping a file, because the system allows a process about 65,000.
    bytes_ = np.asarray(np.memmap(path, np.uint8, "r"))[8 + length :]
    found: dict[str, NDArray[Any]] = {}
    for name in ("keys", "maps", "sums"):
        about = header[name]
        start, stop = about["data_offsets"]
        shape, dtype = tuple(about["shape"]), np.dtype(types[about["dtype"]])
        found[name] = bytes_[start:stop].view(dtype).reshape(shape)
    return found


def _sum(key: bytes, map_: NDArray[Any]) -> int:
    """Checksum of a key and its map."""
    return zlib.crc32(map_.tobytes(), zlib.crc32(key))


def _damaged(path: Path, what: str) -> DataError:
    return DataError(
        f"The cached maps in '{path}' cannot be read: {what}.",
        why="A damaged file would silently change what the model learns.",
        remedy="Delete that file; its maps will be computed again.",
    )
