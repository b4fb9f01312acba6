"""A recipe's model with loss, data and training, shared by sites, server and baselines."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from fgvc_core.data.labels import LeftOut
from fgvc_core.data.passing import is_passing
from fgvc_core.data.pictures import PictureBank
from fgvc_core.data.settings import AugmentSettings
from fgvc_core.data.table import ExampleTable
from fgvc_core.data.transforms import Augment, Mixing
from fgvc_core.losses.base import build_loss
from fgvc_core.losses.settings import LossSettings
from fgvc_core.models.build import build_classifier
from fgvc_core.models.prefix import FrozenPrefix, NoCut, no_places
from fgvc_core.models.settings import ModelSettings
from fgvc_core.models.trainable import (
    frozen_digest,
    get_tensors,
    is_frozen_backbone,
    prefix_digest,
    set_tensors,
    travelling_names,
)
from fgvc_core.seeds import derive_seed
from fgvc_core.training.examples import (
    Evaluation,
    Examples,
    FeatureExamples,
    PictureExamples,
    evaluate,
    knowledge_of,
)
from fgvc_core.training.features import (
    FeatureStore,
    ensure_features,
    open_store,
    read_features,
    readable_features,
)
from fgvc_core.training.loop import Stretch, TrainingResult, train_passes
from fgvc_core.training.map_views import scored_views, views_of, why_no_maps
from fgvc_core.training.maps import CachedMaps, MapCache, MapExamples
from fgvc_core.training.settings import TrainSettings

UNREADABLE = "that cannot be read as pictures"
"""Reason for leaving out a picture."""


class Learner:
    """One model that can be loaded, trained and scored.

    Args:
        model: ``[model]``.
        loss: ``[loss]``.
        augment: ``[augment]``.
        train: ``[train]``.
        num_classes: K.
        image_size: Side of the input square, in pixels.
        seed: The recipe's seed; equal seeds give equal initial tensors on every machine.
        device: The device to compute on.
        maps: Type of the maps that are kept of pictures if a stage trains: float16, float32, or
            None to compute the whole network each time.

    Attributes:
        prefix: The frozen part whose maps are kept; None if none are.
        no_maps: Why none are, for people.
    """

    def __init__(
        self,
        model: ModelSettings,
        loss: LossSettings,
        augment: AugmentSettings,
        train: TrainSettings,
        *,
        num_classes: int,
        image_size: int,
        seed: int,
        device: torch.device | str = "cpu",
        maps: Literal["float16", "float32"] | None = "float16",
    ) -> None:
        self.settings = train
        self._norm_fixed_from = model.norm_fixed_from
        self.num_classes = num_classes
        self.seed = seed
        self.model = build_classifier(model, num_classes, image_size, derive_seed(seed, "model"))
        self.model.to(device)
        self.names = travelling_names(self.model)
        self.frozen_backbone = is_frozen_backbone(self.model)
        self.extractor = frozen_digest(self.model) if self.frozen_backbone else b""
        self.loss = build_loss(loss)
        self.augment = Augment(augment)
        self._mixing = (
            None
            if augment.mix == "none"
            else Mixing(augment.mix, augment.mix_alpha, augment.mix_share, num_classes)
        )
        self.views = augment
        self._scored = scored_views(model)
        self._map_type = maps
        self.no_maps = "not wanted here" if maps is None else why_no_maps(model, augment)
        self.prefix: FrozenPrefix | None = None
        if not self.no_maps:
            try:
                self.prefix = FrozenPrefix(self.model, model.train)
            except NoCut as cause:
                self.no_maps = str(cause)
            else:
                if augment.mirror_maps and not self.prefix.spatial:
                    raise no_places(model.train)
                self._prefix_digest = prefix_digest(self.model, model.train)

    def tensors(self) -> dict[str, NDArray[np.float32]]:
        """Copies of the traveling tensors, by name."""
        return get_tensors(self.model, self.names)

    def load(self, tensors: dict[str, NDArray[np.float32]]) -> None:
        """Set the traveling tensors; names and shapes must match exactly."""
        set_tensors(self.model, tensors, self.names)

    def prepare(self, table: ExampleTable, cache: Path, *, scored: bool = False) -> None:
        """Decode (or embed) every picture in advance, so that rounds only read.

        Args:
            table: The pictures.
            cache: Folder for decoded pictures, features and maps.
            scored: They are scored only, never trained on.

        Raises:
            DataError: if a picture is missing or damaged.
            ConfigurationError: if the loss needs class knowledge that is missing.
        """
        self.loss.informed(knowledge_of(table))
        if self.frozen_backbone:
            ensure_features(self.model, table, FeatureStore(cache, self.extractor))
        elif self.prefix is not None:
            views = () if scored else views_of(self.views)
            self._maps(cache).ensure(table, tuple(dict.fromkeys((*self._scored, *views))))
        else:
            self._bank(table, cache)

    def examples(
        self,
        table: ExampleTable,
        cache: Path,
        tell: Callable[[int, int], None] | None = None,
    ) -> Examples:
        """Labeled examples of a table: features of a frozen backbone, maps of a frozen prefix.

        Args:
            table: The pictures.
            cache: Folder for decoded pictures, maps and features.
            tell: Called with (done, total) while features of a frozen backbone are computed; maps
                and pictures are read when they are first asked for.
        """
        known = knowledge_of(table)
        if self.frozen_backbone:
            store = open_store(cache, self.extractor)
            features_ND = read_features(self.model, table, store, tell)
            return FeatureExamples(features_ND, table.labels_N, known)
        if self.prefix is not None:
            maps = CachedMaps(self._maps(cache), table)
            return MapExamples(maps, self.prefix, table.labels_N, self.views, known)
        return self.picture_examples(table, cache)

    def picture_examples(self, table: ExampleTable, cache: Path) -> PictureExamples:
        """Labeled examples of a table as pictures, which the whole network computes each time."""
        bank, known = self._bank(table, cache), knowledge_of(table)
        return PictureExamples(bank, table.labels_N, self.augment, known, self._mixing)

    def readable_examples(
        self, table: ExampleTable, cache: Path, left_out: LeftOut
    ) -> tuple[ExampleTable, PictureExamples | FeatureExamples | MapExamples]:
        """Rows with readable pictures, and the same rows as examples.

        Whether a row is included depends on its own file alone.

        Args:
            table: The examples, labeled or not.
            cache: Folder for decoded pictures and features.
            left_out: Records the unreadable pictures.

        Raises:
            PassingFault: if memory, file descriptors or the disk failed.
        """
        openable = []
        for position in range(len(table)):
            try:
                table.content_key(position)
            except Exception as error:
                if is_passing(error):
                    raise
                # Any cause counts: a link out of the tree, a pipe, a null byte in the name.
                left_out.add(UNREADABLE, table.ids[position])
            else:
                openable.append(position)
        table = table.take(openable)
        found: PictureExamples | FeatureExamples | MapExamples
        known = knowledge_of(table)
        if self.frozen_backbone:
            store = open_store(cache, self.extractor)
            features_ND, unread = readable_features(self.model, table, store)
            found = FeatureExamples(features_ND, table.labels_N, known)
        elif self.prefix is not None:
            maps = CachedMaps(self._maps(cache), table, tolerant=True)
            unread = maps.unreadable()
            found = MapExamples(maps, self.prefix, table.labels_N, self.views, known)
        else:
            bank = self._bank(table, cache, tolerant=True)
            unread = sorted(bank.faults)
            found = PictureExamples(bank, table.labels_N, self.augment, known, self._mixing)
        if not unread:
            return table, found
        for position in unread:
            left_out.add(UNREADABLE, table.ids[position])
        kept = np.setdiff1d(np.arange(len(table)), unread)
        return table.take(kept), found.take(kept)

    def train_round(
        self,
        examples: Examples,
        stretch: Stretch,
        purpose: str,
        proximal_mu: float = 0.0,
        correct: Callable[[], None] | None = None,
        settings: TrainSettings | None = None,
        shares_K: NDArray[np.float64] | None = None,
    ) -> TrainingResult:
        """Train in place; generators are derived from (seed, purpose, round).

        Args:
            examples: Training examples, at least one.
            stretch: The round's place in the run.
            purpose: Name of the trainer, for instance the site.
            proximal_mu: FedProx's weight; 0: none.
            correct: Called after each backward pass; may change the gradients.
            settings: Overrides the recipe's settings.
            shares_K: Shares of the classes over all sites; None: those of the examples.
        """
        if self.model.norm == "fixbn":
            begun = (stretch.round - 1) / stretch.rounds
            self.model.fixed_statistics = begun >= self._norm_fixed_from
        generator = torch.Generator()
        generator.manual_seed(derive_seed(self.seed, "order", purpose, stretch.round))
        with torch.random.fork_rng(devices=[]):
            # Dropout only draws from the global generator.
            self._seed(derive_seed(self.seed, "dropout", purpose, stretch.round))
            counts_K = torch.bincount(examples.labels_N, minlength=self.num_classes)
            common_K = None if shares_K is None else torch.from_numpy(shares_K)
            loss = self.loss.informed(examples.known).counted(counts_K, common_K)
            settings = settings or self.settings
            return train_passes(
                self.model,
                self._share(examples, settings, stretch, purpose),
                loss,
                settings,
                stretch,
                generator,
                proximal_mu,
                correct,
            )

    def _share(
        self, examples: Examples, settings: TrainSettings, stretch: Stretch, purpose: str
    ) -> Examples:
        """The examples of one round, where a pass is spread over several: a part of their order."""
        # Two at least: batch normalization has no variance of one example.
        parts = min(settings.pass_rounds, max(len(examples) // 2, 1))
        if parts == 1:
            return examples
        number, part = divmod(stretch.round - 1, parts)
        generator = torch.Generator()
        generator.manual_seed(derive_seed(self.seed, "pass", purpose, number))
        return examples.take(
            torch.randperm(len(examples), generator=generator)[part::parts].numpy()
        )

    def _seed(self, seed: int) -> None:
        # torch.manual_seed notes for every kind of device who called it, which takes as long as
        # two steps of a head.
        if next(self.model.parameters()).device.type == "cpu":
            torch.default_generator.manual_seed(seed)
        else:
            torch.manual_seed(seed)

    def evaluate(
        self, examples: Examples, batch_size: int, among_K: NDArray[np.bool_] | None = None
    ) -> tuple[Evaluation, NDArray[np.int64]]:
        """Confusion counts and predictions; see :func:`evaluate`."""
        return evaluate(self.model, examples, self.num_classes, batch_size, among_K)

    def pictures(self, table: ExampleTable, cache: Path) -> PictureBank:
        """A table's pictures as the model sees them, labeled or not."""
        return self._bank(table, cache)

    def _maps(self, cache: Path) -> MapCache:
        assert self.prefix is not None
        assert self._map_type is not None
        return MapCache(
            self.model, self.prefix, self._prefix_digest, self.views, cache, self._map_type
        )

    def _bank(self, table: ExampleTable, cache: Path, tolerant: bool = False) -> PictureBank:
        spec = self.model.input
        return PictureBank(
            table, spec.size, spec.crop, spec.interpolation, cache, tolerant=tolerant
        )
