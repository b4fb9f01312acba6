"""Screening of updates against earlier rounds: weight, norm, direction, running statistics.

An update is the reply minus the model that was sent. Only closed rounds are compared with, so a
verdict never depends on the order of arrival. The first round has no history: only absolute bounds
apply.

Norms are divided by the mean learning rate of the site's steps in the round, because they grow with
it; the number of steps follows from the claimed examples. Directions are cosines with the model's
last movement: the noise in an update makes them small, not negative, while a reversed update points
against it.

Honest sites may be very unlike: a site of two classes, or of a dozen pictures, now and then points
against the others. So a verdict on direction, or on an update that hardly differs, needs evidence
of more than one round: the same finding in one of the site's own last rounds, or, for a site
without any, two closed rounds of the others. The finding is recorded either way, so a site that
goes on is refused from its second time on. The bounds follow the site's size: what is computed from
few pictures points in more directions and is shorter, what takes many steps is longer. A site's
claimed size changes a bound by at most ``SIZES`` times.

Running statistics of a normalizer are not learned in small steps, so they are judged separately.
Unscreened, one variance of 1e30 silences a layer of the mean, whatever the weights. Refused in any
round: a negative variance, or a value beyond ``LARGEST`` times the largest received in its tensor
(or times 1 if that is smaller). The change of all statistics is one figure, bounded by those of
earlier rounds: means in standard deviations and variances in variances of the received tensor, so
no layer hides behind another's scale.

If comparison refuses most replies and no quorum is left, the history is assumed to be wrong: it is
dropped, and only absolute bounds apply in the next attempt.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fgvc_core.errors import PeerError
from fgvc_core.protocol.settings import FederationSettings
from fgvc_core.protocol.tensor_names import is_statistic, split_control
from fgvc_core.wire.arrays import first_not_finite, on_all_cores, pieces
from fieldmark.server.strategies import SoundReply, Tensors

BLOCK = 1 << 16
"""Values processed at once: 256 kB of float32, which fits into a core's cache."""

ROUNDS_KEPT = 5
FIGURES_WANTED = 10
"""Norms shrink as a model converges, so only as many of the last rounds count as are needed for
this many values, usually one."""

LEAST_SPREAD = 0.1
AGAINST = -0.2
"""No update is refused for its direction above this cosine: noise alone gives small ones."""

NORMAL = 1.4826
"""Median absolute deviation times this estimates a normal distribution's standard deviation."""

LARGEST = 1000.0
"""Honest updates reached 30 in the worst first round measured (ResNet-18, random weights)."""

RATIO = 3.0
"""Factor on ``max_norm_ratio``: with a momentum of 0.1, a site with many steps changes its
statistics ten times as much as a site with a single step, and the learning rate does not reflect
that."""

SIZES = 4.0
"""Largest factor by which a site's claimed size widens a bound. Early steps all go one way, so a
norm grows with their number; the bound on direction and the least norm follow the same factor."""

SHRINKS = 0.1
"""An update is not idle if its norm is at least this share of the site's own last one: what is
left to learn becomes less, and does not vanish from one round to the next."""

OWN = "sites"
"""Key of the sites' own records in :attr:`UpdateHistory.kept`."""

_MEAN, _VARIANCE = "running_mean", "running_var"

_LEAST = 1e-12
"""Smallest variance to divide by; dead channels have a variance near zero."""

Measurements = dict[str, float]


class UnsoundUpdate(PeerError):
    """An update that differs too much from those of earlier rounds, with its measurements."""

    def __init__(self, what: str, figures: Measurements) -> None:
        super().__init__(what)
        self.figures = figures


@dataclass
class UpdateHistory:
    """Compares updates with those of earlier rounds.

    Attributes:
        settings: ``[federation]``.
        kept: Measurements of accepted updates of the last rounds, as in a checkpoint, and under
            ``OWN`` each site's last findings: ``pace``, ``against`` and ``idle`` (0 or 1).
        direction: The model's last movement, or empty.
        waits: Rounds over which a site may accumulate unsent changes (``wire.top_k``); an update's
            norm may be larger by this factor.
    """

    settings: FederationSettings
    kept: dict[str, Any] = field(default_factory=dict)
    direction: Tensors = field(default_factory=dict)
    waits: int = 1
    _sent: Tensors = field(default_factory=dict)
    _rate: Callable[[float], float] = field(default=lambda examples: 1.0)
    _pending: dict[str, Measurements] = field(default_factory=dict)
    _judged: dict[str, Measurements] = field(default_factory=dict)
    _unlike: int = 0

    def begin(self, sent: Tensors, rate: Callable[[float], float]) -> None:
        """Begin a round.

        Args:
            sent: The model that its updates are relative to.
            rate: Number of examples -> mean learning rate of such a site's steps in the round.
        """
        self._sent, self._rate = sent, rate
        self._pending, self._judged = {}, {}
        self._unlike = 0

    @property
    def sent(self) -> Tensors:
        """The model that the current replies were computed from."""
        return self._sent

    def judge(self, reply: SoundReply) -> Measurements:
        """An update's measurements, rounded.

        Raises:
            UnsoundUpdate: if it is not finite, or differs too much from earlier rounds.
        """
        if not self.settings.screening:
            # Only in a scenario, to study an undefended model.
            return {}
        model, control = split_control(reply.tensors)
        figures = self._measure(model)
        if not np.isfinite(figures["norm"]):
            raise UnsoundUpdate(_not_finite(model), {})
        impossible = impossible_statistic(self._sent, model)
        if impossible is not None:
            raise UnsoundUpdate(impossible, {})
        change = change_of_statistics(self._sent, model)
        if change is not None:
            figures["statistics"] = change
        if control:
            figures["control_norm"] = _norm(control)
            if not np.isfinite(figures["control_norm"]):
                raise UnsoundUpdate(_not_finite(control), {})
        figures["weight"] = reply.weight
        figures["pace"] = figures["norm"] / max(self._rate(reply.weight), 1e-30)
        self._judged[reply.site] = figures
        self._check(figures, self.kept.get(OWN, {}).get(reply.site, []))
        self._pending[reply.site] = figures
        return {name: round(value, 6) for name, value in figures.items()}

    def close(self, moved_to: Tensors) -> None:
        """Close a round that counts: extend the history, and set the direction."""
        columns: dict[str, list[float]] = {}
        for site in sorted(self._pending):
            for name, value in self._pending[site].items():
                columns.setdefault(name, []).append(value)
        for name, values in columns.items():
            rounds = [*self.kept.get(name, []), values][-ROUNDS_KEPT:]
            # Directions are judged by two rounds at least.
            fewest = 2 if name == "cosine" else 1
            while len(rounds) > fewest and sum(map(len, rounds[1:])) >= FIGURES_WANTED:
                rounds = rounds[1:]
            self.kept[name] = rounds
        self._record()
        if self.settings.screening and self.settings.direction_spread:
            self.direction = {
                n: a - self._sent[n] for n, a in moved_to.items() if not is_statistic(n)
            }
        self._pending, self._judged = {}, {}

    def _record(self) -> None:
        """Add to each site's own record what was found in this round, refused or not.

        The bounds include this round, so a record begins with the first round that has figures.
        """
        records = self.kept.setdefault(OWN, {})
        for site in sorted(self._judged):
            figures = self._judged[site]
            own = records.setdefault(site, [])
            finding = {
                "pace": figures["pace"],
                "against": float(self._against(figures)),
                "idle": float(self._idle(figures, own)),
            }
            records[site] = [*own, finding][-ROUNDS_KEPT:]

    def void(self) -> bool:
        """Close a round without a quorum; returns whether the history is dropped."""
        wrong = self._unlike > len(self._pending)
        if wrong:
            self.kept.clear()
            self.direction = {}
        self._pending, self._judged = {}, {}
        return wrong

    def _measure(self, model: Tensors) -> Measurements:
        """Norm, root mean square and, if the model has moved before, the cosine."""
        learnt = {name: tensor for name, tensor in model.items() if not is_statistic(name)}
        # Statistics differ in scale from learned tensors and are judged separately.
        others = (tensor for name, tensor in model.items() if is_statistic(name))
        squared = 0.0 if all(np.isfinite(tensor).all() for tensor in others) else np.nan

        def sums(piece: tuple[str, slice]) -> NDArray[np.float64]:
            name, where = piece
            ahead = self.direction.get(name)
            return _sums(
                learnt[name].reshape(-1)[where],
                self._sent[name].reshape(-1)[where],
                None if ahead is None else ahead.reshape(-1)[where],
            )

        of_all = pieces((name, tensor.size) for name, tensor in learnt.items())
        found = on_all_cores(sums, of_all, sum(tensor.nbytes for tensor in learnt.values()))
        count = sum(tensor.size for tensor in learnt.values())
        # Sum in the order of the pieces, so the result does not depend on thread timing.
        of_update, inner, length = np.sum(found, axis=0).tolist() if found else (0.0, 0.0, 0.0)
        squared += of_update
        figures = {"norm": float(np.sqrt(squared)), "rms": float(np.sqrt(squared / max(count, 1)))}
        if length > 0 and squared > 0:
            figures["cosine"] = inner / float(np.sqrt(squared * length))
        return figures

    def _check(self, figures: Measurements, own: Sequence[Measurements]) -> None:
        if figures["rms"] > self.settings.max_rms:
            limit = self.settings.max_rms
            raise _beyond("root mean square", figures, "rms", limit, "max_rms")
        try:
            self._compare(figures, own)
        except UnsoundUpdate:
            self._unlike += 1
            raise

    def _compare(self, figures: Measurements, own: Sequence[Measurements]) -> None:
        """Compare with the medians of earlier rounds, and with the site's own record."""
        settings = self.settings
        for name, what, ratio, setting in (
            ("weight", "weight", settings.max_weight_ratio, "max_weight_ratio"),
            (
                "pace",
                "norm over its learning rate",
                settings.max_norm_ratio * self.waits * max(self._size(figures), 1.0),
                "max_norm_ratio",
            ),
            ("control_norm", "variates' norm", settings.max_norm_ratio, "max_norm_ratio"),
            (
                "statistics",
                "change of running statistics",
                settings.max_norm_ratio * RATIO * self.waits,
                f"max_norm_ratio times {RATIO:g}",
            ),
        ):
            middle = self._median(name)
            if name in figures and middle and figures[name] > ratio * middle:
                raise _beyond(what, figures, name, ratio * middle, setting)
        if self._idle(figures, own) and self._again("idle", "pace", own):
            raise UnsoundUpdate(
                f"The update hardly differs from what was sent: norm {figures['norm']:.3g} "
                f"(federation.min_norm_ratio = {settings.min_norm_ratio:g}).",
                {**figures, "limit": self._least(figures)},
            )
        if self._against(figures) and self._again("against", "cosine", own):
            middle, limit = self._direction_limit(figures)
            raise UnsoundUpdate(
                f"The update points against the model's last movement: cosine "
                f"{figures['cosine']:.3f}, below {limit:.3f} (median of the last rounds "
                f"{middle:.3f}, federation.direction_spread = {settings.direction_spread:g}).",
                {**figures, "limit": limit},
            )

    def _again(self, finding: str, name: str, own: Sequence[Measurements]) -> bool:
        """Whether a finding has the evidence of an earlier round of the site itself or, where it
        has none, of two closed rounds of the others."""
        if own:
            return any(record[finding] for record in own)
        return len(self.kept.get(name, [])) > 1

    def _idle(self, figures: Measurements, own: Sequence[Measurements]) -> bool:
        """Whether an update hardly differs from what was sent, for a site of this size and past."""
        before = own[-1]["pace"] if own else 0.0
        shrunk = before > 0 and figures["pace"] >= SHRINKS * before
        return figures["pace"] < self._least(figures) and not shrunk

    def _least(self, figures: Measurements) -> float:
        least = self.settings.min_norm_ratio * self._median("pace")
        return least * min(self._size(figures), 1.0)

    def _against(self, figures: Measurements) -> bool:
        """Whether an update points against the last movement, for a site of this size."""
        if not self.settings.direction_spread or "cosine" not in figures:
            return False
        return len(self._earlier("cosine")) > 0 and (
            figures["cosine"] < self._direction_limit(figures)[1]
        )

    def _direction_limit(self, figures: Measurements) -> tuple[float, float]:
        """The median cosine of the last rounds, and the least that passes at this site."""
        cosines = self._earlier("cosine")
        middle = float(np.median(cosines))
        spread = max(NORMAL * float(np.median(np.abs(cosines - middle))), LEAST_SPREAD)
        # What is averaged over few pictures varies with the root of their number.
        spread /= min(self._size(figures), 1.0) ** 0.5
        return middle, min(middle - self.settings.direction_spread * spread, AGAINST)

    def _size(self, figures: Measurements) -> float:
        """A site's claimed examples over the median of the last rounds, bounded."""
        middle = self._median("weight")
        if not middle:
            return 1.0
        return float(np.clip(figures["weight"] / middle, 1 / SIZES, SIZES))

    def _median(self, name: str) -> float:
        earlier = self._earlier(name)
        return float(np.median(earlier)) if len(earlier) else 0.0

    def _earlier(self, name: str) -> np.ndarray[Any, np.dtype[np.float64]]:
        return np.array([v for values in self.kept.get(name, []) for v in values])


def _sums(
    new: NDArray[np.float32], old: NDArray[np.float32], ahead: NDArray[np.float32] | None
) -> NDArray[np.float64]:
    """float64 (3,): |update|^2, update times direction, |direction|^2."""
    squared = inner = length = 0.0
    buffer = np.empty(min(BLOCK, new.size), dtype=np.float32)
    for start in range(0, new.size, BLOCK):
        where = slice(start, min(start + BLOCK, new.size))
        part = buffer[: where.stop - start]
        with np.errstate(over="ignore", invalid="ignore"):
            np.subtract(new[where], old[where], out=part)
            squared += float(np.dot(part, part))
            if ahead is not None:
                inner += float(np.dot(part, ahead[where]))
                length += float(np.dot(ahead[where], ahead[where]))
    return np.array([squared, inner, length])


def _beyond(
    what: str, figures: Measurements, name: str, limit: float, setting: str
) -> UnsoundUpdate:
    return UnsoundUpdate(
        f"The update's {what} is {figures[name]:.4g}, above {limit:.4g} (federation.{setting}).",
        {**figures, "limit": limit},
    )


def _norm(tensors: Tensors) -> float:
    with np.errstate(over="ignore", invalid="ignore"):
        squares = [float(np.dot(flat, flat)) for flat in (t.reshape(-1) for t in tensors.values())]
    return float(np.sqrt(sum(squares)))


def _not_finite(tensors: Tensors) -> str:
    broken = first_not_finite(tensors)
    if broken is None:
        return "The update is so long that its norm is not finite."
    return f"The update's tensor '{broken}' is not finite."


def impossible_statistic(sent: Tensors, model: Tensors) -> str | None:
    """Why a running statistic is impossible, as a sentence, or None.

    Args:
        sent: The model as its site received it.
        model: The returned model, finite, of the same names and shapes.
    """
    for name, tensor in model.items():
        if not is_statistic(name) or not tensor.size:
            continue
        least = float(tensor.min())
        if name.endswith(_VARIANCE) and least < 0:
            return f"The update's variance '{name}' is negative: {least:.4g}."
        largest = float(np.abs(tensor).max())
        limit = LARGEST * max(1.0, float(np.abs(sent[name]).max()))
        if largest > limit:
            return (
                f"The update's statistic '{name}' reaches {largest:.4g}, above {limit:.4g}: "
                f"{LARGEST:g} times the largest value that was sent, or 1."
            )
    return None


def change_of_statistics(sent: Tensors, model: Tensors) -> float | None:
    """Norm of the change of all statistics, each tensor's in its own units.

    Args:
        sent: The model as its site received it.
        model: The returned model, finite, of the same names and shapes.

    Returns:
        The norm, 0 or more; None if no mean and no variance is exchanged.
    """
    squared, found = 0.0, False
    for name, tensor in model.items():
        layer, _, kind = name.rpartition(".")
        if kind not in (_MEAN, _VARIANCE):
            continue
        found = True
        # If the variance is not exchanged (it may stay local), means are not scaled.
        variances = sent.get(f"{layer}.{_VARIANCE}")
        variance = 1.0 if variances is None else float(np.mean(variances, dtype=np.float64))
        unit = max(variance, _LEAST)
        change = tensor.reshape(-1).astype(np.float64) - sent[name].reshape(-1)
        squared += float(change @ change) / (unit if kind == _MEAN else unit * unit)
    return float(np.sqrt(squared)) if found else None
