"""The Opacus engine: per-picture gradients of a whole batch at once, for a GPU.

Opacus's GradSampleModule (hooks; Yousefpour et al. 2021, https://arxiv.org/abs/2109.12298)
gives each picture's gradient. They are summed within each unit, which Opacus knows nothing
of, and clipped there. Its DPOptimizer is not used: it clips pictures, draws the noise itself,
in floating point, from a seeded generator, and leaves a non-finite gradient in the sum. Here
the noise is on a grid and from the operating system, for every engine the same.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from opacus.grad_sample import GradSampleModule
from torch import nn

from fgvc_core.errors import PolicyRefusal
from fgvc_core.privacy.gradients import ClippedSum, LossOf, UnitBatch, size_of
from fgvc_core.privacy.samplers import register_samplers
from fgvc_core.privacy.units import clip_scales


class OpacusEngine:
    """Opacus's hooks on a model, as a :class:`~fgvc_core.privacy.gradients.GradientEngine`.

    The model is hooked within a :meth:`session` and is as it was after it.

    Args:
        model: What the losses are computed with; no layer may change a tensor in place.
        parameters: What trains of it, in order.
        losses: Per-picture losses of the present model.
        views: Random views of each picture, averaged.
        at_once: Most pictures (views counted) whose gradients are held at once; units may be
            larger.
    """

    def __init__(
        self,
        model: nn.Module,
        parameters: list[nn.Parameter],
        losses: LossOf,
        views: int = 1,
        at_once: int = 1 << 30,
    ) -> None:
        self._model = model
        self._parameters = parameters
        self._losses = losses
        self._views = views
        self._at_once = at_once
        self._hooked = False

    @contextmanager
    def session(self) -> Iterator[None]:
        """Around many calls: attaching the hooks takes as long as a small step."""
        if self._hooked:
            yield
            return
        register_samplers()
        # Pictures need no gradient themselves, and PyTorch says so at every first layer.
        warnings.filterwarnings("ignore", message="Full backward hook is firing")
        # Strict means: no buffer beside a trained parameter. What buffers do is found out by
        # experiment, in fgvc_core.training.validation.
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
        units = torch.from_numpy(np.repeat(batch.units_B[order], self._views))
        unclipped = batch.count
        open_unit, open_parts = -1, None
        with self.session():
            pieces = zip(positions.split(self._at_once), units.split(self._at_once), strict=True)
            for piece, owners in pieces:
                names, index_B = owners.unique_consecutive(return_inverse=True)
                sums = self._unit_sums(piece, index_B.to(device), len(names))
                # A unit that the last piece began goes on in this one, or is complete.
                if open_parts is not None:
                    if open_unit == int(names[0]):
                        for part_Ud, begun_d in zip(sums, open_parts, strict=True):
                            part_Ud[0] += begun_d
                    else:
                        unclipped -= _add_clipped(total_D, [p[None] for p in open_parts], bound)
                open_unit, open_parts = int(names[-1]), [part_Ud[-1].clone() for part_Ud in sums]
                unclipped -= _add_clipped(total_D, [part_Ud[:-1] for part_Ud in sums], bound)
            assert open_parts is not None
            unclipped -= _add_clipped(total_D, [p[None] for p in open_parts], bound)
        return ClippedSum(total_D, unclipped)

    def picture_gradients(self, positions: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """One (B, d) for each parameter: the gradients of the losses at B positions.

        Raises:
            PolicyRefusal: if Opacus cannot give them for this model.
        """
        total = self._losses(positions).sum()
        # Not backward(): the hooks fire all the same, and no sum is left in .grad.
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
        sums = []
        for sample_Bd in self.picture_gradients(piece):
            sum_Ud = sample_Bd.new_zeros(count, sample_Bd.shape[1])
            sums.append(sum_Ud.index_add_(0, index_B, sample_Bd / self._views))
        return sums

    def _forget(self) -> None:
        """Nothing of one piece is left for the next, even if it broke off halfway."""
        for parameter in self._parameters:
            if hasattr(parameter, "grad_sample"):
                parameter.grad_sample = None  # type: ignore[attr-defined]
                parameter._forward_counter = 0  # type: ignore[attr-defined]
        for module in self._model.modules():
            for name in ("activations", "max_batch_len"):
                if name in vars(module):
                    delattr(module, name)


def _add_clipped(total_D: torch.Tensor, parts: list[torch.Tensor], bound: float) -> int:
    """Add units' gradients (U, d), clipped; how many were clipped."""
    if not len(parts[0]):
        return 0
    squares_U = torch.stack([part_Ud.double().square().sum(dim=1) for part_Ud in parts]).sum(dim=0)
    scales = clip_scales(squares_U.cpu().numpy(), bound)
    scales_U = torch.from_numpy(scales).to(total_D.device)
    # Taken out, not multiplied by zero: zero times infinity is no number.
    kept_U = scales_U > 0
    at = 0
    for part_Ud in parts:
        size = part_Ud.shape[1]
        total_D[at : at + size] += scales_U[kept_U] @ part_Ud[kept_U].double()
        at += size
    return int((scales < 1.0).sum())
