"""Tests by experiment, not by layer types, whether a learner is fit for differential privacy.

Lists of types lag behind: Opacus's validator accepts timm's BatchNormAct2d. Here synthetic pictures
go through the actual steps of private training, with weights perturbed so that no zero hides an
effect. The guarantee requires:

* changing one picture changes no other picture's loss or gradient, sampled with it or not;
* a step leaves no trace, in a buffer or anywhere else;
* the engine's gradients equal those of plain autograd, wherever a picture stands in a batch.

No private data are used, so that the result says nothing about a site's pictures.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch.overrides import TorchFunctionMode

from fgvc_core.data.pictures import PictureBank
from fgvc_core.data.table import ExampleTable
from fgvc_core.errors import PolicyRefusal
from fgvc_core.losses.base import ClassKnowledge
from fgvc_core.privacy.batched import BatchedEngine
from fgvc_core.privacy.gradients import BySinglePictures, UnitBatch
from fgvc_core.privacy.settings import Engine, PrivacySettings
from fgvc_core.training.examples import Examples, FeatureExamples, PictureExamples
from fgvc_core.training.learner import Learner
from fgvc_core.training.maps import HeldMaps, MapExamples
from fgvc_core.training.private import PrivateTraining

PICTURES = 4
CHANGED = 1
OTHERS = (0, 2, 3)
SEEDS = (11, 12, 13)
"""Seeds of views and dropout; several, to detect random mixing of pictures."""

SAME_LOSS = 1e-5
SAME_GRADIENT = 1e-4
"""Relative difference up to which two runs of one computation count as equal; a GPU may sum in
another order each time.
"""

SAME_ENGINE = 2e-3
"""The same for two different computations, in float32."""

_Verdicts = dict[tuple[object, ...], PolicyRefusal | Engine]
_known: WeakKeyDictionary[Learner, _Verdicts] = WeakKeyDictionary()


def validate_private(learner: Learner, privacy: PrivacySettings) -> PrivacySettings:
    """Refuse a learner whose private training would break the privacy guarantee.

    The verdict is cached on the learner, so that a worker tests a recipe only once.

    Args:
        learner: Restored afterwards, in evaluation mode.
        privacy: ``[privacy]``.

    Returns:
        ``[privacy]`` with the engine that passed.

    Raises:
        PolicyRefusal: naming the cause, and an alternative.
    """
    if privacy.method != "gradients":
        return privacy
    verdicts = _known.setdefault(learner, {})
    key = (privacy.engine, privacy.physical_batch)
    if key not in verdicts:
        verdicts[key] = _verdict(learner, privacy)
    verdict = verdicts[key]
    if isinstance(verdict, PolicyRefusal):
        raise PolicyRefusal(verdict.what, why=verdict.why, remedy=verdict.remedy)
    return privacy.model_copy(update={"engine": verdict})


def _verdict(learner: Learner, privacy: PrivacySettings) -> PolicyRefusal | Engine:
    if (declared := learner.loss.refusal()) is not None:
        return declared
    try:
        with _moved(learner):
            trial = _Trial(learner, privacy)
            trial.check_traces()
            trial.check_coupling()
            trial.check_engine()
    except PolicyRefusal as refusal:
        return refusal
    return trial.kind


class _Trial:
    """Experiments on one learner."""

    def __init__(self, learner: Learner, privacy: PrivacySettings) -> None:
        self._learner = learner
        units = np.arange(PICTURES, dtype=np.int64)
        # One physical batch and one view, so that random draws can be repeated.
        one_view = privacy.model_copy(update={"views": 1})
        once = one_view.model_copy(update={"physical_batch": PICTURES})
        self._plain, self._other = (
            PrivateTraining(learner, _made_up(learner, changed), units, once)
            for changed in (False, True)
        )
        self.kind = self._plain.kind
        # In the very shape in which it works: dimensions could be mistaken for one another.
        self._full = PrivateTraining(learner, _made_up(learner, False), units, one_view)
        self._parameters = [p for p in learner.model.parameters() if p.requires_grad]
        learner.model.train()

    def check_traces(self) -> None:
        """A step must leave no trace."""
        parts = self._learner.model, self._plain.loss
        versions = {p: p._version for part in parts for p in part.parameters()}
        held = [{n: b.clone() for n, b in part.named_buffers()} for part in parts]
        first = self._losses(self._plain)
        if not torch.isfinite(first).all():
            raise PolicyRefusal(
                "The model's losses on made-up pictures are not finite.",
                why="What couples pictures could not be seen.",
                remedy="Take another backbone, or other weights.",
            )
        changed = [n for part in parts for n, p in part.named_parameters()
                   if p._version != versions[p]]  # fmt: skip
        for part, before in zip(parts, held, strict=True):
            changed += [n for n, b in part.named_buffers() if not torch.equal(b, before[n])]
        if changed:
            raise PolicyRefusal(
                f"A step of training changes '{changed[0]}' of the model.",
                why="Statistics of private pictures would leave with it, without noise.",
                remedy=_REPLACE_NORM,
            )
        self._losses(self._other)
        if _differ(first, self._losses(self._plain), SAME_LOSS):
            raise PolicyRefusal(
                "The same step on the same pictures gives another result the second time.",
                why="Something is kept of the pictures between steps, without noise.",
                remedy="Take a model and a loss without memory.",
            )

    def check_coupling(self) -> None:
        """Changing one picture must not change another's loss or gradient."""
        for seed in SEEDS:
            for drawn in ((0, CHANGED, 2, 3), OTHERS):
                watched = [at for at, position in enumerate(drawn) if position != CHANGED]
                both = [self._losses(t, drawn, seed)[watched] for t in (self._plain, self._other)]
                if _differ(both[0], both[1], SAME_LOSS):
                    raise _coupled(_suspect(self._learner))
                if seed != SEEDS[0]:
                    continue
                gradients = [self._gradient(losses.sum()) for losses in both]
                if any(_differ(a, b, SAME_GRADIENT) for a, b in zip(*gradients, strict=True)):
                    raise _coupled(_suspect(self._learner))

    def check_engine(self) -> None:
        """The engine's gradients must equal those of plain autograd."""
        if self.kind == "opacus":
            self._check_pictures(self._plain, np.arange(PICTURES), np.eye(PICTURES))
            return
        if self.kind == "batched":
            assert isinstance(self._full.engine, BatchedEngine)
            count = self._full.engine.at_once
            # Two sums with random weights tell pictures apart, and take two backward passes.
            weights_RN = np.random.default_rng(2).standard_normal((2, count))
            self._check_pictures(self._full, np.arange(count) % PICTURES, weights_RN)
            self._check_places(self._full.engine)
            return
        # One unit with all pictures, so that the engine sees the same batch as autograd.
        together = UnitBatch(np.arange(PICTURES), np.zeros(PICTURES, dtype=np.int64), 1)
        expected = self._gradient(self._losses(self._plain).sum())
        self._seed(self._plain, SEEDS[0])
        summed = self._plain.engine.clipped_sum(together, 1e9).total_D
        if _differ(summed.cpu(), torch.cat(expected).double().cpu(), SAME_ENGINE):
            raise PolicyRefusal(
                f"privacy.engine = '{self.kind}' does not give this model's gradient.",
                why="Clipping would bound something else than what is released.",
                remedy="Take another privacy.engine or another backbone.",
            )

    def _check_pictures(
        self, training: PrivateTraining, positions_N: NDArray[np.int64], weights_RN: NDArray[Any]
    ) -> None:
        """Compare an engine's gradients by picture with plain ones, in weighted sums.

        Args:
            training: Its engine gives gradients by picture.
            positions_N: The pictures, as many as the engine takes at once.
            weights_RN: Weights of R sums.
        """
        engine = training.engine
        assert isinstance(engine, BySinglePictures)
        losses_N = self._losses(training, tuple(positions_N.tolist()))
        weights = torch.from_numpy(weights_RN).to(losses_N)
        expected = [self._gradient(losses_N @ weights_N, keep=True) for weights_N in weights]
        del losses_N
        names = [n for n, p in self._learner.model.named_parameters() if p.requires_grad]
        try:
            with engine.session():
                self._seed(training, SEEDS[0])
                found = engine.picture_gradients(torch.from_numpy(positions_N))
        except (ArithmeticError, LookupError, RuntimeError, ValueError, TypeError) as error:
            raise PolicyRefusal(
                f"privacy.engine = '{self.kind}' cannot follow this model: {str(error)[:160]}",
                why="A layer that works in place, or draws in itself, gives no gradient by "
                "picture there.",
                remedy="Set privacy.engine = 'loop', which needs no hooks, or take a backbone "
                "without in-place activations.",
            ) from None
        for number, name in enumerate(names):
            wanted_Rd = torch.stack([gradients[number] for gradients in expected])
            if _differ(weights.to(found[number]) @ found[number], wanted_Rd, SAME_ENGINE):
                raise PolicyRefusal(
                    f"privacy.engine = '{self.kind}' does not give the gradient of '{name}'.",
                    why="The tensor is used outside of its layer, or in several.",
                    remedy="Set privacy.engine = 'loop'.",
                )

    def _check_places(self, engine: BatchedEngine) -> None:
        """One picture in all places of a piece: its loss and gradient are equal to the bit.

        Tried with a few made-up pictures. Others may still differ, so this finds a coupling and
        proves none absent: the engine is nobody's default.
        """
        dropping = [m for m in self._learner.model.modules() if "drop" in type(m).__name__.lower()]
        modes = [module.training for module in dropping]
        rows = []
        for module in dropping:
            module.eval()
        try:
            for number in range(PICTURES):
                same = torch.full((engine.at_once,), number)
                with _OneDraw():
                    rows.append(self._losses(self._full, tuple(same.tolist())))
                    rows += [part.clone() for part in engine.picture_gradients(same)]
        finally:
            for module, mode in zip(dropping, modes, strict=True):
                module.train(mode)
        if not all(torch.equal(part, part[:1].expand_as(part)) for part in rows):
            raise PolicyRefusal(
                "privacy.engine = 'batched': the last bits of a picture's gradient depend on its "
                "place among the pictures of a step.",
                why="Weights could be made that turn them into a whole gradient, which would show "
                "who else is in the data.",
                remedy="Set privacy.engine = 'loop'.",
            )

    def _losses(
        self,
        training: PrivateTraining,
        drawn: tuple[int, ...] = tuple(range(PICTURES)),
        seed: int = SEEDS[0],
    ) -> torch.Tensor:
        self._seed(training, seed)
        return training.losses(torch.tensor(drawn))

    def _seed(self, training: PrivateTraining, seed: int) -> None:
        # Views of synthetic pictures need not be secret, so a fixed seed is safe.
        torch.manual_seed(seed)
        training.generator.manual_seed(seed)

    def _gradient(self, loss: torch.Tensor, keep: bool = False) -> list[torch.Tensor]:
        found = torch.autograd.grad(loss, self._parameters, retain_graph=keep, allow_unused=True)
        pairs = zip(found, self._parameters, strict=True)
        return [(torch.zeros_like(p) if g is None else g).reshape(-1) for g, p in pairs]


class _OneDraw(TorchFunctionMode):
    """Context in which all values of a random draw are its first, so that all views are alike."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """See :class:`torch.overrides.TorchFunctionMode`."""
        drawn = func(*args, **(kwargs or {}))
        return drawn.flatten()[0].expand_as(drawn).clone() if func in _DRAWING else drawn


_DRAWING = (torch.rand, torch.randn, torch.randint, torch.normal, torch.bernoulli)


class _MadeUp:
    """Random pictures, as a :class:`~fgvc_core.data.table.PictureSource`."""

    def __init__(self, pictures_NHWC: NDArray[np.uint8]) -> None:
        self._pictures_NHWC = pictures_NHWC

    def picture(self, row: int, size: int | None = None) -> NDArray[np.uint8]:
        """See :class:`~fgvc_core.data.table.PictureSource`."""
        return self._pictures_NHWC[row]

    def content_key(self, row: int) -> bytes:
        """See :class:`~fgvc_core.data.table.PictureSource`."""
        return bytes(32)


def _made_up(learner: Learner, changed: bool) -> Examples:
    """Four synthetic examples; with ``changed`` the second one differs."""
    spec = learner.model.input
    random = np.random.default_rng(1)
    labels_N = np.arange(PICTURES) % learner.num_classes
    if changed:
        labels_N[CHANGED] = (labels_N[CHANGED] + 1) % learner.num_classes
    if learner.frozen_backbone:
        features_ND = random.standard_normal((PICTURES + 1, learner.model.feature_dim))
        features_ND[CHANGED] = features_ND[PICTURES if changed else CHANGED]
        features = torch.from_numpy(features_ND[:PICTURES]).float()
        return FeatureExamples(features, labels_N, _knowledge(learner.num_classes))
    shape = (PICTURES + 1, spec.size, spec.size, 3)
    pictures_NHWC = random.integers(0, 256, shape, dtype=np.uint8)
    pictures_NHWC[CHANGED] = pictures_NHWC[PICTURES if changed else CHANGED]
    names = tuple(str(number) for number in range(PICTURES))
    table = ExampleTable(
        source=_MadeUp(pictures_NHWC),
        rows=np.arange(PICTURES),
        ids=names,
        labels_N=labels_N,
        splits=tuple("train" for _ in range(PICTURES)),
        subjects=names,
        class_names=tuple(str(number) for number in range(learner.num_classes)),
    )
    bank = PictureBank(table, spec.size, 1.0, spec.interpolation)
    if learner.prefix is not None:
        device = next(learner.model.parameters()).device
        images_NCHW = learner.model.normalise(bank.batch(np.arange(PICTURES)).to(device))
        maps = HeldMaps(learner.prefix.map(images_NCHW).cpu())
        known = _knowledge(learner.num_classes)
        return MapExamples(maps, learner.prefix, labels_N, learner.views, known)
    return PictureExamples(bank, labels_N, learner.augment, _knowledge(learner.num_classes))


def _knowledge(classes: int) -> ClassKnowledge:
    """Synthetic taxonomy and attributes, for losses that use class knowledge."""
    attributes_KA = torch.rand(classes, 5, generator=torch.Generator().manual_seed(1))
    return ClassKnowledge(tuple((f"kind {k % 2}", str(k)) for k in range(classes)), attributes_KA)


@contextmanager
def _moved(learner: Learner) -> Iterator[None]:
    """Perturb parameters by a tenth of their spread, and restore them at the end."""
    model = learner.model
    parameters = [p for part in (model, learner.loss) for p in part.parameters()]
    before = [p.detach().clone() for p in parameters]
    buffers = [
        (module, name, buffer, buffer.clone())
        for part in (model, learner.loss)
        for module in part.modules()
        for name, buffer in module.named_buffers(recurse=False)
    ]
    generator = torch.Generator().manual_seed(1)
    devices = [d for d in {p.device for p in model.parameters()} if d.type == "cuda"]
    try:
        with torch.random.fork_rng(devices=devices):
            with torch.no_grad():
                for parameter in model.parameters():
                    if parameter.requires_grad:
                        spread = parameter.std(correction=0) * 0.1 + 0.02
                        noise = torch.randn(parameter.shape, generator=generator)
                        parameter.add_(noise.to(parameter.device) * spread)
            yield
    finally:
        with torch.no_grad():
            for parameter, value in zip(parameters, before, strict=True):
                parameter.copy_(value)
            for module, name, buffer, value in buffers:
                module._buffers[name] = buffer.copy_(value)
        model.eval()


def _differ(one: torch.Tensor, other: torch.Tensor, share: float) -> bool:
    one, other = one.detach(), other.detach()
    scale = max(float(one.abs().max()), float(other.abs().max()), 1e-6)
    # "not <=" rather than ">", so that NaN counts as different.
    return not float((one - other).abs().max()) <= share * scale


def _coupled(what: str) -> PolicyRefusal:
    return PolicyRefusal(
        f"One picture of a step changes another's loss or gradient: {what}.",
        why="What a single picture does to an update can then not be bounded, by no noise.",
        remedy=_REPLACE_NORM,
    )


def _suspect(learner: Learner) -> str:
    names = {
        type(module).__name__
        for module in learner.model.modules()
        if "norm" in type(module).__name__.lower() and module.training
    }
    return ", ".join(sorted(names)) or "mixing of pictures, or a loss over pairs"


_REPLACE_NORM = (
    "Take a backbone without BatchNorm (fieldmark_tiny, or one with GroupNorm), freeze it "
    "(model.train = 'head'), and a loss and views of single pictures."
)
