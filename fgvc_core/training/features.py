"""Cache on disk of a frozen backbone's features, computed once per picture.

A store belongs to one extractor: its folder's name is the digest of the frozen weights and the
preprocessing. Every writer adds whole files under unique names (written to a temporary file, then
renamed), each with its pictures' content digests, their features, and a checksum over both. Two
processes can add at once: at worst a picture is in two files, with features that are equal up to
rounding (1e-5 was seen between batches of 7 and 32; none between 16 and 32).

A picture that cannot be read has NaN features, so that it is not tried again for each message; a
caller that does not allow for that gets an error. Faults of the machine
(``fgvc_core/data/passing.py``) are raised and not cached.
"""

import zlib
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from fgvc_core.data.files import first_few
from fgvc_core.data.table import ExampleTable
from fgvc_core.errors import DataError
from fgvc_core.files import FULL, private_folder, replacing

if TYPE_CHECKING:
    from fgvc_core.models.classifier import FineGrainedClassifier

DIGEST_BYTES = 32

FORMAT = "v3"
"""Changed whenever the files' format, or how pictures are read, changes: older ones are ignored."""


class FeatureStore:
    """Cached features of one extractor.

    Args:
        cache: The cache's root folder.
        extractor: Digest of frozen weights and preprocessing.
    """

    def __init__(self, cache: Path, extractor: bytes) -> None:
        self.folder = cache / "features" / f"{FORMAT}-{extractor.hex()[:40]}"
        self._known: dict[bytes, NDArray[np.float32]] = {}
        self._read: set[str] = set()

    def missing(self, keys: list[bytes]) -> list[int]:
        """Positions of the keys whose features are not on disk."""
        self._refresh()
        return [i for i, key in enumerate(keys) if key not in self._known]

    def get(self, keys: list[bytes]) -> NDArray[np.float32]:
        """float32 (N, D) for known keys.

        Raises:
            KeyError: if a key is unknown.
        """
        return np.stack([self._known[key] for key in keys])

    def add(self, keys: list[bytes], features_ND: NDArray[np.float32]) -> None:
        """Add features, atomically and durably.

        Raises:
            DataError: if the cache's disk is full.
            OSError: if they cannot be written for another reason.
        """
        private_folder(self.folder)
        held: dict[str, NDArray[Any]] = {
            "keys": np.frombuffer(b"".join(keys), dtype=np.uint8).reshape(-1, DIGEST_BYTES).copy(),
            "features": np.ascontiguousarray(features_ND, dtype=np.float32),
        }
        held["sum"] = _sum(held)
        save_shard(self.folder, held, self._no_room)

    def _no_room(self, what: str) -> DataError:
        return DataError(
            f"The cache '{self.folder}' cannot keep features: {what}.",
            why="They are kept so that none is computed twice.",
            remedy="Free space there, or put the cache on another disk.",
        )

    def _refresh(self) -> None:
        if not self.folder.is_dir():
            return
        for path in sorted(self.folder.glob("*.safetensors")):
            if path.name in self._read:
                continue
            try:
                held = load_file(path)
                keys, features_ND = held["keys"], held["features"]
                if held["sum"] != _sum(held):
                    raise ValueError("its bytes are not those that were written")
            except (SafetensorError, KeyError, OSError, ValueError) as error:
                raise DataError(
                    f"The cached features in '{path}' cannot be read: {error}.",
                    why="A damaged file would silently change what the model learns.",
                    remedy="Delete that file; its features will be computed again.",
                ) from None
            self._known.update((keys[i].tobytes(), features_ND[i]) for i in range(len(keys)))
            self._read.add(path.name)


def save_shard(
    folder: Path, held: dict[str, NDArray[Any]], no_room: Callable[[str], DataError]
) -> None:
    """Write a file of a store under a new name, atomically and durably.

    Args:
        folder: The store's.
        held: What the file holds.
        no_room: Makes the error for a full disk from what the system says.

    Raises:
        DataError: if the disk is full.
        OSError: if the file cannot be written for another reason.
    """
    path = folder / f"{uuid4().hex}.safetensors"
    try:
        with replacing(path, private=True, durable=True) as aside:
            save_file(held, aside)
    except (SafetensorError, OSError) as error:
        # safetensors' own error has no errno, only a text.
        if isinstance(error, OSError) and error.errno not in FULL:
            raise
        raise no_room(str(error)) from None


@lru_cache(maxsize=2)
def open_store(cache: Path, extractor: bytes) -> FeatureStore:
    """Open a store once per process, because all sites of a simulation read the same one."""
    return FeatureStore(cache, extractor)


def _sum(held: dict[str, NDArray[Any]]) -> NDArray[np.uint32]:
    """uint32 (1,), a checksum over digests and features."""
    total = zlib.crc32(held["features"].tobytes(), zlib.crc32(held["keys"].tobytes()))
    return np.array([total], dtype=np.uint32)


@torch.inference_mode()
def ensure_features(
    model: "FineGrainedClassifier",
    table: ExampleTable,
    store: FeatureStore,
    batch_size: int = 32,
    tell: Callable[[int], None] | None = None,
    *,
    tolerant: bool = False,
) -> None:
    """Compute and store the missing features of a table.

    Args:
        model: A model with a frozen backbone.
        table: The pictures.
        store: The store for the features.
        batch_size: Pictures per batch; only one batch is in memory.
        tell: Called with the number of pictures after each batch.
        tolerant: Store NaN for an unreadable picture instead of raising.

    Raises:
        DataError: if a picture is missing or damaged.
        PassingFault: if memory, file descriptors or the disk failed.
    """
    from fgvc_core.data.pictures import PictureBank

    keys = [table.view_key(i) for i in range(len(table))]
    todo = store.missing(keys)
    spec = model.input
    device = next(model.parameters()).device
    model.eval()
    for start in range(0, len(todo), batch_size):
        positions = todo[start : start + batch_size]
        bank = PictureBank(
            table.take(positions), spec.size, spec.crop, spec.interpolation, tolerant=tolerant
        )
        # Short batches are padded with their last picture: another batch size selects other
        # kernels, which would change the last bits of a picture's features.
        full = np.minimum(np.arange(batch_size), len(positions) - 1)
        images_NCHW = bank.batch(full)
        features_BD = model.embed(model.normalise(images_NCHW.to(device)))
        features_ND = features_BD[: len(positions)].float().cpu().numpy()
        features_ND[list(bank.faults)] = np.nan
        store.add([keys[i] for i in positions], features_ND)
        if tell is not None:
            tell(len(positions))


def read_features(
    model: "FineGrainedClassifier",
    table: ExampleTable,
    store: FeatureStore,
    tell: Callable[[int, int], None] | None = None,
) -> torch.Tensor:
    """float32 (N, D): features of all rows; computes what is missing.

    Args:
        model: A model with a frozen backbone.
        table: N pictures.
        store: The store for the features.
        tell: Called with (missing features computed, missing features in all).
    """
    keys = [table.view_key(i) for i in range(len(table))]
    if todo := store.missing(keys):
        done = 0

        def count(more: int) -> None:
            nonlocal done
            done += more
            if tell is not None:
                tell(done, len(todo))

        ensure_features(model, table, store, tell=count)
        store.missing(keys)
    if not keys:
        return torch.zeros((0, model.feature_dim))
    features_ND = store.get(keys)
    unread = np.flatnonzero(np.isnan(features_ND).all(axis=1))
    if len(unread):
        raise DataError(
            f"{len(unread)} of {len(table)} pictures cannot be read: "
            f"{first_few([table.ids[i] for i in unread])}.",
            why="They are cut short, damaged, too large, or no pictures.",
            remedy="Copy them again or remove them; 'fieldmark data check' lists all such files.",
        )
    return torch.from_numpy(features_ND)


def readable_features(
    model: "FineGrainedClassifier", table: ExampleTable, store: FeatureStore
) -> tuple[torch.Tensor, list[int]]:
    """float32 (N, D), and the positions of unreadable pictures, whose rows are NaN."""
    ensure_features(model, table, store, tolerant=True)
    keys = [table.view_key(i) for i in range(len(table))]
    store.missing(keys)
    if not keys:
        return torch.zeros((0, model.feature_dim)), []
    features_ND = store.get(keys)
    unread: list[int] = np.flatnonzero(np.isnan(features_ND).all(axis=1)).tolist()
    return torch.from_numpy(features_ND), unread
