"""The batched engine: several pictures in one forward and one backward pass, and no further pass.

The backward pass leads through the outputs of the operations only. From a layer's input and the
gradient in its output follows each picture's gradient (Goodfellow 2015,
https://arxiv.org/abs/1510.01799), which is kept until the unit's norm is known and then weighted,
so that no second backward pass is needed (as in "book-keeping", Bu et al. 2023,
https://arxiv.org/abs/2210.00038).

What is released must be what was measured. In float32, a product over the pictures of all units
would round each unit's part by more than the sensitivity allows for
(:data:`~fgvc_core.privacy.noise.SUMMING`), and a norm from inner products ("ghost norm", Bu et al.
2022, https://arxiv.org/abs/2205.10683) is not the norm of what is summed. Here, the gradient of a
unit is formed once; its norm is taken from it, and it alone is summed, both in float64, as the loop
does.
"""

from collections import abc
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, nullcontext
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from fgvc_core.privacy.gradients import ClippedSum, LossOf, UnitBatch, size_of, whole_units
from fgvc_core.privacy.picture_gradients import by_picture, to_parameters
from fgvc_core.privacy.sampling import clip_scales
from fgvc_core.privacy.settings import PIECE, batched_pictures
from fgvc_core.privacy.standardised import fixed_weights
from fgvc_core.privacy.tracing import Trace, Use, unfit


class BatchedEngine:
    """Units in pieces of a constant number of pictures.

    A unit's gradient must not depend on the units drawn with it, to the bit: weights could be made
    that turn a last bit into a whole gradient. Whether a picture's values depend on its place in
    the piece is found by experiment before a run, see :mod:`fgvc_core.training.compatibility`.

    Args:
        model: The model of the losses.
        parameters: Its trainable parameters, in order.
        losses: Per-picture losses of the current model.
        views: Random views of each picture, averaged.
        at_once: Most pictures (times views) in memory at once. A smaller piece is padded to the
            constant size, so every picture's gradient is computed in the same shape.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        parameters: list[torch.nn.Parameter],
        losses: LossOf,
        views: int = 1,
        at_once: int = PIECE,
    ) -> None:
        self._model = model
        self._parameters = parameters
        self._losses = losses
        self._views = views
        self.at_once = batched_pictures(size_of(parameters), at_once)
        self._room_UD: torch.Tensor | None = None

    def session(self) -> AbstractContextManager[None]:
        """See :class:`~fgvc_core.privacy.gradients.GradientEngine`; nothing is attached."""
        return nullcontext()

    def clipped_sum(self, batch: UnitBatch, bound: float) -> ClippedSum:
        """See :class:`~fgvc_core.privacy.gradients.GradientEngine`.

        Raises:
            PolicyRefusal: if the model cannot be followed.
        """
        device = self._parameters[0].device
        total_D = torch.zeros(size_of(self._parameters), dtype=torch.float64, device=device)
        unclipped = batch.count
        if not len(batch.positions_B):
            return ClippedSum(total_D, unclipped)
        order = np.argsort(batch.units_B, kind="stable")
        positions = torch.from_numpy(np.repeat(batch.positions_B[order], self._views))
        units_B = np.repeat(batch.units_B[order], self._views)
        for sums_UD in self._sums(positions, units_B):
            squares_U = np.array([float(row_D.dot(row_D)) for row_D in sums_UD])
            scales_U = clip_scales(np.where(np.isnan(squares_U), np.inf, squares_U), bound)
            unclipped -= int((scales_U < 1.0).sum())
            # Select rather than multiply by zero: zero times infinity is NaN.
            kept_UD = sums_UD if scales_U.all() else sums_UD[torch.from_numpy(scales_U > 0.0)]
            scales = torch.from_numpy(scales_U[scales_U > 0.0]).to(device)
            total_D.addmv_(kept_UD.T, scales)
        return ClippedSum(total_D, unclipped)

    def picture_gradients(self, positions: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """One (B, d) per parameter: gradients of the losses at B positions, B at most ``at_once``.

        Raises:
            PolicyRefusal: if the model cannot be followed.
        """
        with closing(self._sums(positions, np.arange(len(positions)))) as sums:
            sums_BD = next(sums)
        return sums_BD.split([parameter.numel() for parameter in self._parameters], dim=1)

    def _sums(
        self, positions: torch.Tensor, units_B: NDArray[np.int64]
    ) -> abc.Generator[torch.Tensor]:
        """float64 (U, D) for each piece: summed gradients of its whole units; then overwritten."""
        if self._room_UD is None:
            # Every row begins at a multiple of 64 bytes: a dot product's bits can depend on it.
            width = -(-size_of(self._parameters) // 8) * 8
            device = self._parameters[0].device
            room = torch.empty((self.at_once, width), dtype=torch.float64, device=device)
            self._room_UD = room[:, : size_of(self._parameters)]
        mean_losses = partial(_divided, self._losses, self._views)
        one_pass = _Pass(self._model, self._parameters, mean_losses, self._room_UD)
        with one_pass.fixed_weights():
            for start, stop in whole_units(units_B, self.at_once):
                index_B = np.cumsum(np.diff(units_B[start:stop], prepend=units_B[start]) != 0)
                one_pass.clear(int(index_B[-1]) + 1)
                # Only a unit larger than a piece is split into several.
                for at in range(start, stop, self.at_once):
                    until = min(at + self.at_once, stop)
                    owners = torch.from_numpy(index_B[at - start : until - start])
                    one_pass.add(positions[at:until], owners)
                yield one_pass.finished()


class _Pass:
    """Forward and backward passes of one step, which share its derived weights and memory."""

    def __init__(
        self,
        model: torch.nn.Module,
        parameters: list[torch.nn.Parameter],
        losses: LossOf,
        room_UD: torch.Tensor,
    ) -> None:
        self._model = model
        self._parameters = parameters
        self._losses = losses
        self._pictures = len(room_UD)
        self._trace = Trace(parameters, [*model.buffers(), *model.parameters()], self._used)
        sizes = [parameter.numel() for parameter in parameters]
        self._places = {
            id(parameter): slice(stop - size, stop)
            for parameter, size, stop in zip(
                parameters, sizes, np.cumsum(sizes).tolist(), strict=True
            )
        }
        self._room_UD = room_UD
        self._sums_UD = room_UD
        self._written: set[int] = set()
        self._owners = torch.zeros(0, dtype=torch.int64)

    @contextmanager
    def fixed_weights(self) -> Iterator[None]:
        """Context in which standardized weights are taken as computed once."""
        with ExitStack() as stack:
            with self._trace:
                stack.enter_context(fixed_weights(self._model))
            yield

    def clear(self, units: int) -> None:
        """Begin the sums of so many units."""
        self._sums_UD = self._room_UD[:units]
        self._written = set()

    def add(self, positions: torch.Tensor, owners: torch.Tensor) -> None:
        """Add the gradients of at most a piece of pictures to those of their units."""
        missing = self._pictures - len(positions)
        # Pad all pieces to one shape with the last picture: another shape could select other
        # kernels, and a unit's gradient would depend in the last bits on the units beside it.
        full = torch.cat([positions, positions[-1:].expand(missing)])
        self._owners = owners.to(self._sums_UD.device)
        self._trace.start(self._pictures)
        with self._trace:
            losses_B = self._losses(full)
        # Each picture's loss depends on that picture alone: one backward pass serves them all.
        found = torch.autograd.grad(
            losses_B.sum(), [*self._trace.leaves, *self._parameters], allow_unused=True
        )
        if any(gradient is not None for gradient in found[len(self._trace.leaves) :]):
            raise unfit("a parameter is used by an operation that is not seen")

    def finished(self) -> torch.Tensor:
        """The sums (U, D); a parameter that the losses do not use has a gradient of zero."""
        for number, place in self._places.items():
            if number not in self._written:
                self._sums_UD[:, place] = 0.0
        return self._sums_UD

    def _used(self, use: Use, gradient: torch.Tensor) -> None:
        for shared, grads in by_picture(use, gradient, self._pictures):
            for parameter, found in to_parameters(self._trace, shared, grads):
                self._add_to(parameter, found[: len(self._owners)])

    def _add_to(self, parameter: torch.Tensor, grads_B: torch.Tensor) -> None:
        part_Ud = self._sums_UD[:, self._places[id(parameter)]]
        if id(parameter) not in self._written:
            self._written.add(id(parameter))
            if len(self._owners) == len(part_Ud):
                # One picture a unit, in order.
                part_Ud.view(grads_B.shape).copy_(grads_B)
                return
            part_Ud.zero_()
        part_Ud.index_add_(0, self._owners, grads_B.double().reshape(len(grads_B), -1))


def _divided(losses: LossOf, views: int, positions: torch.Tensor) -> torch.Tensor:
    losses_B = losses(positions)
    return losses_B if views == 1 else losses_B / views
