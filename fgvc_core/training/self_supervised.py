"""Self-supervised pretraining of the backbone before round 1, and its losses.

``simclr``: NT-Xent (Chen et al. 2020, equation 1, https://arxiv.org/abs/2002.05709): a view has to
identify its counterpart among all views of the batch. ``vicreg`` (Bardes et al. 2022, equations 1
to 6, https://arxiv.org/abs/2105.04906): both views are pulled together, each entry's variance over
the batch is kept up, and entries are decorrelated; no negatives. Both couple the examples of a
batch, so that no single example's contribution can be bounded.

Two random views of each picture pass through backbone and projector. The projector (Chen et al.
2020, section 4.2) is discarded afterwards. Unlike in the papers it has no BatchNorm, because sites
average weights, not statistics.
"""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fgvc_core.data.pictures import PictureBank
from fgvc_core.data.transforms import RandomViews
from fgvc_core.errors import ConfigurationError, PeerError
from fgvc_core.seeds import derive_seed
from fgvc_core.training.learner import Learner
from fgvc_core.training.loop import (
    Stretch,
    TrainingResult,
    batch_count,
    batches_of,
    make_optimizer,
    make_scheduler,
)
from fgvc_core.training.settings import PretrainSettings, TrainSettings

TwoViews = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Maps projections (N, P) of first and second views, in the same order, to a scalar loss."""


def self_supervised_loss(method: str, temperature: float) -> TwoViews:
    """Build the loss of a method.

    Args:
        method: ``simclr`` or ``vicreg``.
        temperature: Temperature of ``simclr``, above 0.

    Raises:
        ConfigurationError: if lightly is not installed.
    """
    try:
        from lightly.loss import NTXentLoss, VICRegLoss
    except ImportError:
        raise ConfigurationError(
            f"pretrain.method = '{method}' needs lightly, which is not installed.",
            why="Its losses are lightly's.",
            remedy="Install the extra: pip install 'fieldmark[pretraining]'.",
        ) from None
    loss: TwoViews = NTXentLoss(temperature) if method == "simclr" else VICRegLoss()
    return loss


HEAD = "head."

PROJECTOR = "projector."

Tensors = dict[str, NDArray[np.float32]]


class Pretraining:
    """A learner's backbone followed by a projector.

    Args:
        learner: Its backbone is trained in place; its head is unchanged.
        settings: ``[pretrain]``, with a method.

    Raises:
        ConfigurationError: if only the head trains, or lightly is missing.
    """

    def __init__(self, learner: Learner, settings: PretrainSettings) -> None:
        if learner.frozen_backbone:
            raise ConfigurationError(
                "pretrain.method is set, and nothing of the model trains but its head.",
                why="It is the backbone that learns from pictures without labels.",
                remedy="Set model.train = 'all' or a stage, or pretrain.method = 'none'.",
            )
        self._learner = learner
        self._settings = settings
        self._loss = self_supervised_loss(settings.method, settings.temperature)
        self._views = RandomViews(settings.crop, settings.rotation, settings.color, settings.grey)
        self._train = steps_of(settings)
        model = learner.model
        device = next(model.parameters()).device
        self._projector = _projector(model.feature_dim, settings, learner.seed).to(device)

    def tensors(self) -> Tensors:
        """Copies of the traveling tensors: trainable ones before the head, and the projector."""
        backbone = {n: a for n, a in self._learner.tensors().items() if not n.startswith(HEAD)}
        state = self._projector.state_dict()
        return backbone | {PROJECTOR + n: t.cpu().float().numpy().copy() for n, t in state.items()}

    def load(self, tensors: Tensors) -> None:
        """Set the tensors that :meth:`tensors` returns.

        Raises:
            PeerError: if a name or a shape does not match.
        """
        parted, backbone = split_projector(tensors)
        head = {n: a for n, a in self._learner.tensors().items() if n.startswith(HEAD)}
        state = {
            n.removeprefix(PROJECTOR): torch.from_numpy(np.array(a)) for n, a in parted.items()
        }
        try:
            self._projector.load_state_dict(state)
        except RuntimeError as error:
            raise PeerError(f"The projector's tensors are not its own: {error}") from None
        self._learner.load({**head, **backbone})

    def train_round(self, bank: PictureBank, stretch: Stretch, purpose: str) -> TrainingResult:
        """Train in place; generators are derived from (seed, purpose, round).

        Args:
            bank: The pictures; fewer than two change nothing.
            stretch: The round's place in the run.
            purpose: Name of the trainer, for instance the site.

        Returns:
            Mean loss, and pictures per epoch.
        """
        seed = self._learner.seed
        generator = torch.Generator()
        generator.manual_seed(derive_seed(seed, "pretrain", purpose, stretch.round))
        with torch.random.fork_rng(devices=[]):
            # Dropout only draws from the global generator.
            torch.default_generator.manual_seed(
                derive_seed(seed, "pretrain dropout", purpose, stretch.round)
            )
            return self._passes(bank, stretch, generator)

    def _passes(
        self, bank: PictureBank, stretch: Stretch, generator: torch.Generator
    ) -> TrainingResult:
        model, settings = self._learner.model, self._settings
        parameters = [p for p in model.parameters() if p.requires_grad]
        parameters += list(self._projector.parameters())
        optimizer = make_optimizer(parameters, self._train)
        steps = settings.epochs * batch_count(len(bank), settings.batch_size)
        scheduler = make_scheduler(optimizer, self._train, stretch, max(steps, 1))
        device = parameters[0].device
        total, seen = 0.0, 0
        model.train()
        for _ in range(settings.epochs):
            order = torch.randperm(len(bank), generator=generator)
            for positions in batches_of(order, settings.batch_size):
                if len(positions) < 2:
                    # The losses need at least two pictures in a batch.
                    continue
                images_NCHW = bank.batch(positions.numpy())
                views_MCHW = torch.cat([self._views(images_NCHW, generator) for _ in range(2)])
                optimizer.zero_grad(set_to_none=True)
                features_MD = model.embed(model.normalise(views_MCHW.to(device)))
                one_NP, two_NP = self._projector(features_MD).chunk(2)
                value = self._loss(one_NP, two_NP)
                value.backward()
                optimizer.step()
                scheduler.step()
                total += float(value.detach()) * len(positions)
                seen += len(positions)
        model.eval()
        return TrainingResult(total / max(seen, 1), len(bank))


def fresh_projector(dim: int, settings: PretrainSettings, seed: int) -> Tensors:
    """Initial tensors of the projector, by their names on the wire."""
    state = _projector(dim, settings, seed).state_dict()
    return {PROJECTOR + name: tensor.numpy().copy() for name, tensor in state.items()}


def split_projector(tensors: Tensors) -> tuple[Tensors, Tensors]:
    """Split into the projector's tensors and all others."""
    projector = {n: a for n, a in tensors.items() if n.startswith(PROJECTOR)}
    return projector, {n: a for n, a in tensors.items() if n not in projector}


def steps_of(settings: PretrainSettings) -> TrainSettings:
    """``[pretrain]`` converted to settings of the training loop: optimizer and learning rate."""
    return TrainSettings(
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        optimizer="adam",
        lr=settings.lr,
        weight_decay=settings.weight_decay,
        schedule="cosine",
        warmup=0.1,
    )


def _projector(dim: int, settings: PretrainSettings, seed: int) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive_seed(seed, "projector"))
        return nn.Sequential(
            nn.Linear(dim, settings.hidden),
            nn.ReLU(),
            nn.Linear(settings.hidden, settings.projection),
        )
