"""Examples as maps in front of the first trained stage, computed once per picture and view.

With ``model.train`` a stage, a round costs what the trained stages cost. Mirror images, across and
down, are views of their own, each exact: training on them is training the whole network on the
same draws, up to the rounding of float16 (a relative 5e-4 of each value). With
``augment.mirror_maps`` the map itself is mirrored instead. Other random views (rotation, zoom,
color, components) are drawn once, ``augment.cached_views`` of each picture, and every step takes
one of them. Views follow from the picture's content and the settings alone, so that equal pictures
have equal views, and no unit's views depend on another unit.
"""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from fgvc_core.data.files import first_few
from fgvc_core.data.settings import AugmentSettings
from fgvc_core.data.table import ExampleTable
from fgvc_core.data.transforms import Augment
from fgvc_core.errors import DataError
from fgvc_core.models.pooling import PartPooling
from fgvc_core.models.prefix import FrozenPrefix
from fgvc_core.training.examples import NOTHING_KNOWN, Examples, Lesson
from fgvc_core.training.map_store import MapStore, check_room, open_maps
from fgvc_core.training.map_views import MIRRORED, PLAIN, MapView, varies, views_of

if TYPE_CHECKING:
    from fgvc_core.losses.base import ClassKnowledge
    from fgvc_core.models.classifier import FineGrainedClassifier

BATCH = 32
"""Pictures that go through the prefix at once."""


class Maps(Protocol):
    """Maps of N pictures in several views."""

    def get(self, positions: NDArray[np.int64], view: MapView) -> torch.Tensor:
        """float32 (B, *shape) on the CPU, a copy: maps at B positions, in one view."""
        ...

    def take(self, positions: NDArray[np.int64]) -> "Maps":
        """The maps of the pictures at these positions, in their order."""
        ...


class HeldMaps:
    """Maps of one view in memory, which serve as those of every view.

    Args:
        maps: (N, *shape).
    """

    def __init__(self, maps: torch.Tensor) -> None:
        self._maps = maps

    def get(self, positions: NDArray[np.int64], view: MapView) -> torch.Tensor:
        """See :class:`Maps`."""
        return self._maps[torch.from_numpy(positions)].float()

    def take(self, positions: NDArray[np.int64]) -> "HeldMaps":
        """See :class:`Maps`."""
        return HeldMaps(self._maps[torch.from_numpy(positions)])


class MapCache:
    """What makes and keeps the maps of a recipe's model.

    Args:
        model: Its prefix is frozen; one thread at a time uses it.
        prefix: The model's cut.
        digest: Digest of the prefix and the preprocessing.
        augment: ``[augment]``.
        folder: The cache's root folder.
        dtype: float16 or float32.
    """

    def __init__(
        self,
        model: "FineGrainedClassifier",
        prefix: FrozenPrefix,
        digest: bytes,
        augment: AugmentSettings,
        folder: Path,
        dtype: str = "float16",
    ) -> None:
        self._model = model
        self._prefix = prefix
        self._digest = digest
        self._settings = augment
        self._vary = Augment(augment)
        self._folder = folder
        self._dtype = dtype

    def store(self, view: MapView) -> MapStore:
        """The store of a view's maps."""
        digest = hashlib.sha256(self._digest + f"{view.name} {self._dtype}".encode())
        if view.number:
            # How many views there are changes none of them.
            digest.update(self._settings.model_dump_json(exclude={"cached_views"}).encode())
        return open_maps(self._folder, digest.digest(), self._dtype)

    @torch.inference_mode()
    def ensure(
        self,
        table: ExampleTable,
        views: Sequence[MapView],
        *,
        tolerant: bool = False,
        tell: Callable[[int], None] | None = None,
    ) -> None:
        """Compute and store the missing maps of a table; each picture is decoded once.

        Args:
            table: The pictures.
            views: The views.
            tolerant: Store NaN for an unreadable picture instead of raising.
            tell: Called with the number of pictures after each batch.

        Raises:
            DataError: if a picture is missing or damaged, or the maps would not fit on the disk.
            PassingFault: if memory, file descriptors or the disk failed.
        """
        keys = [table.view_key(i) for i in range(len(table))]
        wanted = [(view, self.store(view)) for view in views]
        missing = {view: set(store.missing(keys)) for view, store in wanted}
        nbytes = int(np.prod(self._prefix.shape)) * np.dtype(self._dtype).itemsize
        check_room(self._folder, nbytes * sum(len(todo) for todo in missing.values()))
        todo = sorted(set().union(*missing.values()))
        mode = self._model.training
        # The first step of a round may be what asks for them, in the middle of training.
        self._model.eval()
        try:
            for start in range(0, len(todo), BATCH):
                positions = todo[start : start + BATCH]
                self._add(table.take(positions), positions, keys, missing, wanted, tolerant)
                if tell is not None:
                    tell(len(positions))
        finally:
            self._model.train(mode)

    def _add(
        self,
        table: ExampleTable,
        positions: list[int],
        keys: list[bytes],
        missing: dict[MapView, set[int]],
        wanted: list[tuple[MapView, MapStore]],
        tolerant: bool,
    ) -> None:
        """Compute and store the missing maps of one batch, whose table and positions are given."""
        from fgvc_core.data.pictures import PictureBank

        spec, device = self._model.input, next(self._model.parameters()).device
        bank = PictureBank(table, spec.size, spec.crop, spec.interpolation, tolerant=tolerant)
        # Short batches are padded: another batch size would change the last bits.
        full = np.minimum(np.arange(BATCH), len(positions) - 1)
        images_NCHW = bank.batch(full)
        for view, store in wanted:
            at = [n for n, position in enumerate(positions) if position in missing[view]]
            if not at:
                continue
            viewed_NCHW = self._viewed(images_NCHW, view, [keys[positions[n]] for n in full])
            maps = self._prefix.map(self._model.normalise(viewed_NCHW.to(device)))
            maps_B = maps.float().cpu().numpy()
            maps_B[list(bank.faults)] = np.nan
            store.add([keys[positions[n]] for n in at], maps_B[at])

    def _viewed(self, images_NCHW: torch.Tensor, view: MapView, keys: list[bytes]) -> torch.Tensor:
        if not view.number:
            return images_NCHW.flip(view.axes) if view.axes else images_NCHW
        shown = []
        for image_CHW, key in zip(images_NCHW, keys, strict=True):
            digest = hashlib.sha256(key + view.name.encode()).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
            shown.append(self._vary(image_CHW[None], generator))
        return torch.cat(shown)


class CachedMaps:
    """Maps of a table's pictures on disk; what is missing is computed when it is first asked for.

    Args:
        cache: Makes and keeps them.
        table: The pictures, N of them.
        tolerant: Unreadable pictures have maps of NaN instead of raising.
    """

    def __init__(self, cache: MapCache, table: ExampleTable, *, tolerant: bool = False) -> None:
        self._cache = cache
        self._table = table
        self._tolerant = tolerant
        self._keys: list[bytes] | None = None
        self._ready: dict[MapView, MapStore] = {}

    def get(self, positions: NDArray[np.int64], view: MapView) -> torch.Tensor:
        """See :class:`Maps`."""
        keys, store = self._with(view)
        return torch.from_numpy(store.get([keys[i] for i in positions.tolist()])).float()

    def take(self, positions: NDArray[np.int64]) -> "CachedMaps":
        """See :class:`Maps`."""
        part = CachedMaps(self._cache, self._table.take(positions), tolerant=self._tolerant)
        part._ready = dict(self._ready)
        return part

    def unreadable(self) -> list[int]:
        """Positions of pictures that cannot be read."""
        keys, store = self._with(PLAIN)
        return store.unreadable(keys)

    def _with(self, view: MapView) -> tuple[list[bytes], MapStore]:
        """All keys, and the store that has their maps in a view."""
        if self._keys is None:
            self._keys = [self._table.view_key(i) for i in range(len(self._table))]
        if view in self._ready:
            return self._keys, self._ready[view]
        self._cache.ensure(self._table, [view], tolerant=self._tolerant)
        store = self._cache.store(view)
        store.missing(self._keys)
        unread = [] if self._tolerant else store.unreadable(self._keys)
        if unread:
            raise DataError(
                f"{len(unread)} of {len(self._keys)} pictures cannot be read: "
                f"{first_few([self._table.ids[i] for i in unread])}.",
                why="They are cut short, damaged, too large, or no pictures.",
                remedy="Copy them again or remove them; 'fieldmark data check' lists all such "
                "files.",
            )
        self._ready[view] = store
        return self._keys, store


class MapExamples(Examples):
    """Maps in front of the first trained stage, processed by that stage and what follows.

    Args:
        maps: The pictures' maps.
        prefix: The cut of the model that processes them.
        labels_N: int64 (N,).
        augment: ``[augment]``: which views a step chooses from.
        known: Public knowledge about the classes.
    """

    def __init__(
        self,
        maps: Maps,
        prefix: FrozenPrefix,
        labels_N: NDArray[np.int64],
        augment: AugmentSettings,
        known: "ClassKnowledge" = NOTHING_KNOWN,
    ) -> None:
        self.maps = maps
        self.prefix = prefix
        self.labels_N = torch.from_numpy(np.array(labels_N, dtype=np.int64))
        self.known = known
        self._settings = augment
        self._views = views_of(augment)
        self._vary = Augment(augment)

    def __len__(self) -> int:
        return len(self.labels_N)

    def take(self, positions: NDArray[np.int64]) -> "MapExamples":
        """Examples at the given positions, in their order."""
        return self.relabelled(self.labels_N.numpy()[positions], self.maps.take(positions))

    def relabelled(self, labels_N: NDArray[np.int64], maps: Maps | None = None) -> "MapExamples":
        """The same examples with other labels."""
        maps = self.maps if maps is None else maps
        return MapExamples(maps, self.prefix, labels_N, self._settings, self.known)

    def features(
        self,
        model: "FineGrainedClassifier",
        positions: torch.Tensor,
        generator: torch.Generator | None,
    ) -> torch.Tensor:
        """See :class:`Examples`."""
        if generator is not None:
            return model.pooled(self.prefix.rest(self._drawn(model, positions, generator)))
        at = positions.numpy()
        vectors_ND = model.pooled(self.prefix.rest(_to(model, self.maps.get(at, PLAIN))))
        if not model.mirrored or model.training:
            return vectors_ND
        mirrored_ND = model.pooled(self.prefix.rest(_to(model, self.maps.get(at, MIRRORED))))
        return (vectors_ND + mirrored_ND) / 2

    def lesson(
        self, model: "FineGrainedClassifier", positions: torch.Tensor, generator: torch.Generator
    ) -> Lesson:
        """See :class:`Examples`."""
        map_NCHW = self.prefix.rest(self._drawn(model, positions, generator))
        pooling, targets = model.pooling, self.labels_N[positions]
        if not isinstance(pooling, PartPooling) or not pooling.find.weight.requires_grad:
            return Lesson(model.pooled(map_NCHW), targets)
        vectors_ND, parts_NKHW = pooling.with_maps(map_NCHW)
        return Lesson(model.scaling(vectors_ND), targets, parts_NKHW)

    def _drawn(
        self, model: "FineGrainedClassifier", positions: torch.Tensor, generator: torch.Generator
    ) -> torch.Tensor:
        """Maps of random views, one a position."""
        count, at = len(positions), positions.numpy()
        if self._settings.mirror_maps and not varies(self._settings):
            maps_NCHW = self.maps.get(at, PLAIN)
            for axis, chosen_N in zip((-1, -2), self._vary.flips(count, generator), strict=True):
                chosen_N111 = chosen_N.view(-1, 1, 1, 1)
                maps_NCHW = torch.where(chosen_N111, maps_NCHW.flip(axis), maps_NCHW)
            return _to(model, maps_NCHW)
        if varies(self._settings):
            which_N = torch.randint(len(self._views), (count,), generator=generator).numpy()
        else:
            across_N, down_N = self._vary.flips(count, generator)
            steps = 1 + self._settings.flip
            which_N = (across_N.long() + steps * down_N.long()).numpy()
        drawn: torch.Tensor | None = None
        for number, view in enumerate(self._views):
            here = np.flatnonzero(which_N == number)
            if not len(here):
                continue
            maps = self.maps.get(at[here], view)
            if drawn is None:
                drawn = maps.new_empty((count, *maps.shape[1:]))
            drawn[torch.from_numpy(here)] = maps
        if drawn is None:
            drawn = torch.zeros(0, *self.prefix.shape)
        return _to(model, drawn)


def _to(model: "FineGrainedClassifier", maps: torch.Tensor) -> torch.Tensor:
    maps = maps.to(next(model.parameters()).device, non_blocking=True)
    if maps.ndim != 4:
        return maps
    return maps.contiguous(memory_format=torch.channels_last)
