"""The frozen prefix of a model: everything in front of the first stage that trains.

With ``model.train = "blocks.5"`` the stages before ``blocks.5`` never change, so that the map
between the two parts can be computed once per picture. How a backbone calls its stages is its own
code. The model is therefore cut by hooks: a hook stops the forward pass where it reaches the
stage, and another one puts a map in place of the stage's input while the modules in front of it do
nothing. Whether this computes what the whole model computes is found by experiment when the cut is
made; a backbone that fails it (two maps between its stages, a stage that runs twice) has no cut.

A mirrored map is not the map of the mirrored picture: the kernels in front of it are not symmetric.
Each view of a picture therefore has its own map.

A cut changes the modules' ``forward`` during a pass, so one thread at a time may use a model.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from fgvc_core.errors import ConfigurationError
from fgvc_core.models.backbones import TimmBackbone

if TYPE_CHECKING:
    from fgvc_core.models.classifier import FineGrainedClassifier

SAME = 1e-4
"""Difference, relative to the largest value, up to which two maps count as equal: sums in another
order give 1e-6, another computation gives more than 1e-2."""

_TRIED = 2
"""Pictures of the experiment: each must have its own map."""


class _Reached(Exception):
    """Carries the input of the first trained stage out of a forward pass."""

    def __init__(self, map_NCHW: torch.Tensor) -> None:
        super().__init__()
        self.map_NCHW = map_NCHW


class NoCut(Exception):
    """A model cannot be cut; the text says why, for people."""


class FrozenPrefix:
    """A model, cut in front of its first trained stage.

    Args:
        model: A model of which a stage and everything after it trains.
        stage: The stage's name.

    Attributes:
        shape: Shape of one picture's map, ``(C, h, w)``, or of its tokens, ``(T, C)``.

    Raises:
        NoCut: if the model cannot be cut there.
    """

    def __init__(self, model: "FineGrainedClassifier", stage: str) -> None:
        self.stage = stage
        self._model = model
        backbone = model.backbone
        root = backbone.model if isinstance(backbone, TimmBackbone) else backbone
        if stage not in model.stage_names:
            raise NoCut(f"'{stage}' is no stage of the backbone")
        self._target: nn.Module = root.get_submodule(stage)
        self._side = model.input.size
        self._skip: list[nn.Module] = []
        begun = self._order(root)
        fixed = [*begun, *model.before.modules()]
        if stage == model.stage_names[0]:
            raise NoCut(f"nothing is in front of '{stage}'")
        if any(p.requires_grad for module in fixed for p in module.parameters(recurse=False)):
            raise NoCut(f"something in front of '{stage}' trains, too")
        self._ways = _skipped(root, stage, begun)
        map_NCHW = self.map(self._blank(1))
        self.shape = tuple(map_NCHW.shape[1:])
        if not map_NCHW.is_meta:
            self._try()

    @property
    def spatial(self) -> bool:
        """Whether a map is of channels by rows by columns, so that it can be mirrored."""
        inner = getattr(self._model.backbone, "model", None)
        return len(self.shape) == 3 and getattr(inner, "output_fmt", "NCHW") == "NCHW"

    @torch.no_grad()
    def map(self, images_NCHW: torch.Tensor) -> torch.Tensor:
        """Map normalized pictures (N, 3, S, S) to the input of the stage, (N, *shape)."""
        model = self._model

        def stop(module: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
            raise _Reached(_only_map(given, named, len(images_NCHW)))

        handle = self._target.register_forward_pre_hook(stop, with_kwargs=True)
        try:
            model.backbone(model.before(images_NCHW))
        except _Reached as reached:
            return reached.map_NCHW
        finally:
            handle.remove()
        raise NoCut(f"the backbone does not run '{self.stage}'")

    def rest(self, map_NCHW: torch.Tensor) -> torch.Tensor:
        """Map the stage's input (N, *shape) to the feature map before pooling, (N, D, h, w)."""
        seen = []

        def put(module: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> Any:
            seen.append(module)
            return (map_NCHW, *given[1:]), named

        handle = self._target.register_forward_pre_hook(put, with_kwargs=True)
        try:
            with _idle(self._skip):
                found_NCHW = self._model.backbone(self._blank(len(map_NCHW)))
        finally:
            handle.remove()
        if len(seen) != 1:
            raise NoCut(f"the backbone runs '{self.stage}' {len(seen)} times")
        return self._model.attention(found_NCHW)

    def _blank(self, count: int) -> torch.Tensor:
        """Squares that only start a forward pass: one pixel in memory, whatever the size."""
        at = next(self._model.parameters())
        return torch.zeros(1, 1, 1, 1, device=at.device).expand(count, 3, self._side, self._side)

    def _order(self, root: nn.Module) -> list[nn.Module]:
        """Modules that have begun when the stage is reached, in order."""
        begun: list[nn.Module] = []
        handles = [
            module.register_forward_pre_hook(lambda module, given: begun.append(module))
            for module in root.modules()
            if module is not self._target
        ]
        try:
            self.map(self._blank(1))
        finally:
            for handle in handles:
                handle.remove()
        return begun

    def _try(self) -> None:
        """Compare the two parts with the whole, on random pictures.

        Raises:
            NoCut: if they differ.
        """
        model = self._model
        mode = model.training
        model.eval()
        generator = torch.Generator().manual_seed(1)
        shape = (_TRIED, 3, self._side, self._side)
        images_NCHW = torch.randn(shape, generator=generator).to(self._blank(1).device)
        try:
            with torch.no_grad():
                whole_NCHW = model.map(images_NCHW)
                map_NCHW = self.map(images_NCHW)
                self._skip = self._working(map_NCHW, whole_NCHW)
        finally:
            model.train(mode)

    def _working(self, map_NCHW: torch.Tensor, whole_NCHW: torch.Tensor) -> list[nn.Module]:
        """The modules to leave out, of the first way that gives the whole model's map."""
        why = "nothing between its stages can be left out"
        for skip in self._ways:
            self._skip = skip
            try:
                rest_NCHW = self.rest(map_NCHW)
            except (NoCut, ArithmeticError, AssertionError, AttributeError, LookupError,
                    RuntimeError, TypeError, ValueError) as error:  # fmt: skip
                # A network's own code, run in a way that it was not written for.
                why = (str(error).splitlines() or [type(error).__name__])[0][:120]
                continue
            if _same(rest_NCHW, whole_NCHW):
                return skip
            why = "more than one map leads from its frozen part to its trained part"
        raise NoCut(why)


def no_places(stage: str) -> ConfigurationError:
    """Error for maps that cannot be mirrored."""
    return ConfigurationError(
        f"augment.mirror_maps = true, and what enters '{stage}' is no map of rows and columns.",
        why="Tokens of a transformer have no sides to mirror.",
        remedy="Leave augment.mirror_maps out: each mirror image then has its own map.",
    )


def _skipped(root: nn.Module, stage: str, begun: list[nn.Module]) -> list[list[nn.Module]]:
    """Ways to leave out what runs before a stage, the one that leaves out most first.

    The second way keeps what is outside of the stage's own container, for instance the patch
    embedding of a transformer, whose output the model adds position embeddings to.
    """
    path = stage.split(".")
    containers = [root.get_submodule(".".join(path[:depth])) for depth in range(len(path))]
    ran = set(begun)
    levels = [
        [child for child in container.children() if child in ran and child not in containers]
        for container in containers
    ]
    every = [child for level in levels for child in level]
    return [every, levels[-1]] if len(levels) > 1 else [every, []]


@contextmanager
def _idle(modules: list[nn.Module]) -> Iterator[None]:
    """Make modules return their input for a while."""
    # Another context may have put its own method there, see fgvc_core.privacy.standardised.
    own = [vars(module).get("forward") for module in modules]
    for module in modules:
        vars(module)["forward"] = _same_again
    try:
        yield
    finally:
        for module, method in zip(modules, own, strict=True):
            del vars(module)["forward"]
            if method is not None:
                vars(module)["forward"] = method


def _same_again(given: torch.Tensor, *further: object, **named: object) -> torch.Tensor:
    return given


def _only_map(given: tuple[Any, ...], named: dict[str, Any], count: int) -> torch.Tensor:
    """The one tensor that a stage is called with, a row for each picture."""
    found = [value for value in (*given, *named.values()) if isinstance(value, torch.Tensor)]
    if not given or given[0] is not (found[0] if found else None) or len(found) != 1:
        raise NoCut("a stage takes more than one map")
    if len(found[0]) != count:
        raise NoCut("the stage sees several pictures as one")
    return found[0]


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    if one.shape != other.shape:
        return False
    scale = max(float(other.abs().max()), 1e-6)
    # "<=" is false for NaN, which counts as different.
    return float((one - other).abs().max()) <= SAME * scale
