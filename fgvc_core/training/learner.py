"""A recipe's model with everything around it: what sites, server and baselines share."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from fgvc_core.configuration import derive_seed
from fgvc_core.data.labels import LeftOut
from fgvc_core.data.passing import is_passing
from fgvc_core.data.pictures import PictureBank
from fgvc_core.data.settings import AugmentSettings
from fgvc_core.data.table import ExampleTable
from fgvc_core.data.transforms import Augment, Mixing
from fgvc_core.losses.base import build_loss
from fgvc_core.losses.settings import LossSettings
from fgvc_core.models.build import build_classifier
from fgvc_core.models.settings import ModelSettings
from fgvc_core.models.trainable import (
    frozen_digest,
    get_tensors,
    is_frozen_backbone,
    set_tensors,
    travelling_names,
)
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
from fgvc_core.training.settings import TrainSettings

UNREADABLE = "that cannot be read as pictures"
"""Why a picture is left out."""


class Learner:
    """One model that can be given tensors, trained, scored and asked for its tensors.

    Args:
        model: Which model.
        loss: What it minimises.
        augment: How training pictures are varied.
        train: How it is trained.
        num_classes: K.
        image_size: Side of the square it sees, in pixels.
        seed: The recipe's seed; equal seeds give equal initial tensors everywhere.
        device: Where it computes.
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

    def tensors(self) -> dict[str, NDArray[np.float32]]:
        """Copies of the tensors that travel, by name."""
        return get_tensors(self.model, self.names)

    def load(self, tensors: dict[str, NDArray[np.float32]]) -> None:
        """Take over tensors; exactly the travelling names and shapes."""
        set_tensors(self.model, tensors)

    def prepare(self, table: ExampleTable, cache: Path) -> None:
        """Decode (or embed) every picture once, so that rounds only read.

        Raises:
            DataError: if a picture is missing or damaged.
            ConfigurationError: if the loss needs to know more of the classes.
        """
        self.loss.informed(knowledge_of(table))
        if self.frozen_backbone:
            ensure_features(self.model, table, FeatureStore(cache, self.extractor))
        else:
            self._bank(table, cache)

    def examples(self, table: ExampleTable, cache: Path) -> Examples:
        """A table's labelled examples, as features where the backbone is frozen."""
        known = knowledge_of(table)
        if self.frozen_backbone:
            store = open_store(cache, self.extractor)
            return FeatureExamples(read_features(self.model, table, store), table.labels_N, known)
        return PictureExamples(
            self._bank(table, cache), table.labels_N, self.augment, known, self._mixing
        )

    def readable_examples(
        self, table: ExampleTable, cache: Path, left_out: LeftOut
    ) -> tuple[ExampleTable, PictureExamples | FeatureExamples]:
        """The rows whose pictures can be read, and the same as examples.

        Whether a row is among them follows from its own file alone.

        Args:
            table: The examples, labelled or not.
            cache: Folder for decoded pictures and features.
            left_out: Gets the names of the pictures that cannot be read.

        Raises:
            PassingFault: if the machine lacks memory, file descriptors or its disk.
        """
        openable = []
        for position in range(len(table)):
            try:
                table.content_key(position)
            except Exception as error:
                if is_passing(error):
                    raise
                # A link out of the tree, a pipe, a name with a null byte: whatever it is.
                left_out.add(UNREADABLE, table.ids[position])
            else:
                openable.append(position)
        table = table.take(openable)
        found: PictureExamples | FeatureExamples
        known = knowledge_of(table)
        if self.frozen_backbone:
            store = open_store(cache, self.extractor)
            features_ND, unread = readable_features(self.model, table, store)
            found = FeatureExamples(features_ND, table.labels_N, known)
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
    ) -> TrainingResult:
        """Train in place; the generators derive from (seed, purpose, round).

        Args:
            examples: What to learn from; at least one.
            stretch: Which round of how many.
            purpose: Who trains, for instance a site's name.
            proximal_mu: FedProx's weight; 0: none.
            correct: Called after each backward pass; may change the gradients.
            settings: How; None: as the recipe says.
        """
        if self.model.norm == "fixbn":
            begun = (stretch.round - 1) / stretch.rounds
            self.model.fixed_statistics = begun >= self._norm_fixed_from
        generator = torch.Generator()
        generator.manual_seed(derive_seed(self.seed, "order", purpose, stretch.round))
        with torch.random.fork_rng(devices=[]):
            # Dropout draws from the global generator and takes no other.
            torch.manual_seed(derive_seed(self.seed, "dropout", purpose, stretch.round))
            counts_K = torch.bincount(examples.labels_N, minlength=self.num_classes)
            loss = self.loss.informed(examples.known).counted(counts_K)
            return train_passes(
                self.model,
                examples,
                loss,
                settings or self.settings,
                stretch,
                generator,
                proximal_mu,
                correct,
            )

    def evaluate(
        self, examples: Examples, batch_size: int, among_K: NDArray[np.bool_] | None = None
    ) -> tuple[Evaluation, NDArray[np.int64]]:
        """Confusion counts and predictions; see :func:`evaluate`."""
        return evaluate(self.model, examples, self.num_classes, batch_size, among_K)

    def pictures(self, table: ExampleTable, cache: Path) -> PictureBank:
        """A table's pictures as the model sees them, labelled or not."""
        return self._bank(table, cache)

    def _bank(self, table: ExampleTable, cache: Path, tolerant: bool = False) -> PictureBank:
        spec = self.model.input
        return PictureBank(
            table, spec.size, spec.crop, spec.interpolation, cache, tolerant=tolerant
        )
