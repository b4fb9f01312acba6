"""The Opacus engine: per-picture gradients of a whole batch at once, for a GPU.

Opacus's GradSampleModule (hooks; Yousefpour et al. 2021, https://arxiv.org/abs/2109.12298) computes
each picture's gradient. This engine sums them within units, which Opacus does not support, and
clips the sums. Opacus's DPOptimizer is not used: it clips pictures, draws floating-point noise from
a seeded generator, and leaves non-finite gradients in the sum. Here, all engines share the discrete
noise from the operating system's randomness.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from opacus.grad_sample import GradSampleModule
from torch import nn

from fgvc_core.errors import PolicyRefusal
from fgvc_core.privacy.gradients import (
    UNBOUNDED,
    ClippedSum,
    LossOf,
    UnitBatch,
    size_of,
    whole_units,
)
from fgvc_core.privacy.samplers import register_samplers
from fgvc_core.privacy.sampling import clip_scales


class OpacusEngine:
    """Opacus's hooks on a model, as a :class:`~fgvc_core.privacy.gradients.GradientEngine`.

    The hooks are attached within a :meth:`session` and removed after it.

    Args:
        model: The model of the losses; no layer may change a tensor in place.
        parameters: Its trainable parameters, in order.
        losses: Per-picture losses of the current model.
        views: Random views of each picture, averaged.
        at_once: Pictures (times views) whose gradients are in memory at once; units may be larger.
            A smaller batch is padded to this size, so every picture's gradient is computed in the
            same shape.
    """

    def __init__(
        self,
        model: nn.Module,
        parameters: list[nn.Parameter],
        losses: LossOf,
        views: int = 1,
        at_once: int = UNBOUNDED,
    ) -> None:
        self._model = model
        self._parameters = parameters
        self._losses = losses
        self._views = views
        self._at_once = at_once
        self._hooked = False

    @contextmanager
    def session(self) -> Iterator[None]:
        """Context for many calls: attaching the hooks takes as long as a small step."""
        if self._hooked:
            yield
            return
        register_samplers()
        # PyTorch warns at every first layer that its input requires no gradient, which is intended.
        warnings.filterwarnings("ignore", message="Full backward hook is firing")
        # Strict mode refuses buffers beside trained parameters. fgvc_core.training.compatibility
        # tests empirically what buffers do.
        hooks = GradSampleModule(self._model, loss_reduction="sum", strict=False)
        self._hooked = True
        try:
            yield
        finally:
            self._hooked = False
            hooks.to_standard_module()
            self._forget()

    def clipped_sum(self, batch: UnitBatch, bound: float) -> ClippedSum:
        """See :class:`~fgvc_core.privacy.gradients.GradientEngine`."""
        device = self._parameters[0].device
        total_D = torch.zeros(size_of(self._parameters), dtype=torch.float64, device=device)
        if not len(batch.positions_B):
            return ClippedSum(total_D, batch.count)
        order = np.argsort(batch.units_B, kind="stable")
        positions = torch.from_numpy(np.repeat(batch.positions_B[order], self._views))
        units_B = np.repeat(batch.units_B[order], self._views)
        unclipped = batch.count
        with self.session():
            for start, stop in whole_units(units_B, self._at_once):
                sums = self._sums(positions[start:stop], units_B[start:stop])
                unclipped -= _add_clipped(total_D, sums, bound)
        return ClippedSum(total_D, unclipped)

    def _sums(self, positions: torch.Tensor, units_B: NDArray[np.int64]) -> list[torch.Tensor]:
        """One (U, d) per parameter: summed gradients of the whole units in a range."""
        device = self._parameters[0].device
        index_B = torch.from_numpy(np.cumsum(np.diff(units_B, prepend=units_B[0]) != 0))
        count, sums = int(index_B[-1]) + 1, None
        # Only a unit larger than a piece is split into several.
        for piece, owners in zip(
            positions.split(self._at_once), index_B.split(self._at_once), strict=True
        ):
            found = self._unit_sums(piece, owners.to(device), count)
            sums = found if sums is None else [a.add_(b) for a, b in zip(sums, found, strict=True)]
        assert sums is not None
        return sums

    def picture_gradients(self, positions: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """One (B, d) per parameter: gradients of the losses at B positions.

        Raises:
            PolicyRefusal: if Opacus cannot compute them for this model.
        """
        total = self._losses(positions).sum()
        # Unlike backward(), this leaves no sum in .grad; the hooks fire all the same.
        sums = torch.autograd.grad(total, self._parameters, allow_unused=True)
        found = []
        for parameter, summed in zip(self._parameters, sums, strict=True):
            sample = getattr(parameter, "grad_sample", None)
            if sample is None:
                if summed is not None:
                    raise PolicyRefusal(
                        "privacy.engine = 'opacus': a parameter is used outside of its layer.",
                        why="Its gradient cannot be told apart by picture.",
                        remedy="Set privacy.engine = 'loop'.",
                    )
                sample = parameter.new_zeros(len(positions), *parameter.shape)
            found.append(sample.detach().reshape(len(positions), -1))
        self._forget()
        return tuple(found)

    def _unit_sums(
        self, piece: torch.Tensor, index_B: torch.Tensor, count: int
    ) -> list[torch.Tensor]:
        # Pad all pieces to one shape with the last picture. Another shape could select other
        # kernels, and a unit's gradient would depend in the last bits on the units drawn with it.
        missing = self._at_once - len(piece) if self._at_once < UNBOUNDED else 0
        full = torch.cat([piece, piece[-1:].expand(missing)])
        sums = []
        for sample_Bd in self.picture_gradients(full):
            own_Bd = sample_Bd[: len(piece)] / self._views
            sum_Ud = own_Bd.new_zeros(count, own_Bd.shape[1])
            sums.append(sum_Ud.index_add_(0, index_B, own_Bd))
        return sums

    def _forget(self) -> None:
        """Remove Opacus's per-piece state, which an error may have left incomplete."""
        for parameter in self._parameters:
            if hasattr(parameter, "grad_sample"):
                parameter.grad_sample = None  # type: ignore[attr-defined]
                parameter._forward_counter = 0  # type: ignore[attr-defined]
        for module in self._model.modules():
            for name in ("activations", "max_batch_len"):
                if name in vars(module):
                    delattr(module, name)


def _add_clipped(total_D: torch.Tensor, parts: list[torch.Tensor], bound: float) -> int:
    """Add clipped gradients of units (U, d) to the total; returns how many were clipped."""
    if not len(parts[0]):
        return 0
    squares_U = torch.stack([part_Ud.double().square().sum(dim=1) for part_Ud in parts]).sum(dim=0)
    scales = clip_scales(squares_U.cpu().numpy(), bound)
    scales_U = torch.from_numpy(scales).to(total_D.device)
    # Select rather than multiply by zero: zero times infinity is NaN.
    kept_U = scales_U > 0
    at = 0
    for part_Ud in parts:
        size = part_Ud.shape[1]
        total_D[at : at + size] += scales_U[kept_U] @ part_Ud[kept_U].double()
        at += size
    return int((scales < 1.0).sum())
