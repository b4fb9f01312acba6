"""The search for a head before round 1: regression, or the best of several by held-out folds.

Every candidate is fitted on all folds but one and counted on that one, for each fold in turn (Stone
1974, https://doi.org/10.1111/j.2517-6161.1974.tb00994.x). Every site deals its own training
pictures into folds, so nothing but sums over learned folds and counts over held-out ones is asked
of it. No validation and no test picture takes part.

The search does not know where pictures lie: :class:`Sites` asks them, a federation's by messages
and :class:`Pooled` in one process.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from fgvc_core.errors import RunFailed
from fgvc_core.models.class_statistics import (
    ClassStatistics,
    Floats,
    added,
    class_statistics,
    discriminant_scores,
    log_shares,
)
from fgvc_core.models.head_stack import (
    ALL,
    COUNTS,
    SUPPORT,
    HeadStack,
    macro_f1,
    plain_stack,
    site_counts,
    top1,
)
from fgvc_core.models.regression import Geometry, Regression, Summed, summed_loss
from fgvc_core.training.settings import TrainSettings

SHRINKAGES = (0.1, 0.2, 0.4, 0.6, 0.8, 1.0)
"""Shrinkages that are tried; 1 is the nearest class mean."""

PRIORS = (0.0, 0.5, 1.0)
"""Weights of the class frequencies that are tried."""

PENALTIES = (10.0, 30.0, 100.0, 300.0, 1000.0)
"""Penalties of the regression that are tried."""

ROUGH = 1e-3
"""Precision of the regressions on folds: what is left changes hardly an answer."""

MOST_ROUGH, MOST = 25, 100
"""Most messages for the regressions on folds, and for the last one."""

Head = tuple[NDArray[np.float32], NDArray[np.float32]]
"""Weights (K, D) and biases (K,)."""


class Sites(Protocol):
    """The pictures that a head is searched for, wherever they lie."""

    def gradients(self, heads: HeadStack) -> tuple[list[Summed], bool]:
        """Sums of each head over its learned folds, and whether a site is missing since then."""
        ...

    def counts(self, stacks: Sequence[HeadStack]) -> list[Floats]:
        """Of each stack, float64 (M, V, 3, K): counts on the heads' held-out folds.

        All heads are counted on the same pictures.
        """
        ...


@dataclass(frozen=True)
class Candidate:
    """A kind of head with its settings.

    Attributes:
        kind: ``discriminant``, its ``cosine`` form, or ``regression``.
        prior: Weight of the class frequencies, 0 to 1; without meaning for ``cosine``.
        shrinkage: Of the covariance, for the first two kinds.
        penalty: Of the weights, for ``regression``.
    """

    kind: Literal["discriminant", "cosine", "regression"]
    prior: float = 0.0
    shrinkage: float = 0.0
    penalty: float = 0.0

    def __str__(self) -> str:
        if self.kind == "regression":
            return f"regression, penalty {self.penalty:g}, prior {self.prior:g}"
        if self.kind == "cosine":
            return f"cosine, shrinkage {self.shrinkage:g}"
        return f"discriminant, shrinkage {self.shrinkage:g}, prior {self.prior:g}"


@dataclass(frozen=True)
class Tried:
    """One candidate's result on the held-out folds of all sites."""

    candidate: Candidate
    top1: float
    macro_f1: float
    examples: int

    def score(self, metric: str) -> float:
        """The metric that decides, 0 to 1."""
        return self.macro_f1 if metric == "macro-f1" else self.top1

    def as_json(self) -> dict[str, Any]:
        """Plain values, for events and metrics."""
        return {
            "candidate": str(self.candidate),
            "kind": self.candidate.kind,
            "top1": round(self.top1, 6),
            "macro_f1": round(self.macro_f1, 6),
            "examples": self.examples,
        }


@dataclass(frozen=True)
class Found:
    """The result of a search.

    Attributes:
        head: Weights and biases.
        candidate: What it is.
        tried: All candidates with their results, in the order of trying; empty if there was nothing
            to choose.
        messages: Questions that each site was asked.
    """

    head: Head
    candidate: Candidate
    tried: tuple[Tried, ...] = ()
    messages: int = 0


def fitted(regressions: Sequence[tuple[Regression, int]], sites: Sites) -> int:
    """Fit several regressions, each without one fold, with the same messages; returns how many."""
    messages = 0
    while True:
        open_ = [(one, fold) for one, fold in regressions if not one.done]
        if not open_:
            return messages
        sums, fewer = sites.gradients(plain_stack([(*one.head, fold) for one, fold in open_]))
        messages += 1
        for (one, _), found in zip(open_, sums, strict=True):
            if fewer:
                one.restart()
            one.take(found)


def regression_head(total: ClassStatistics, settings: TrainSettings, sites: Sites) -> Found:
    """The regression of ``train.start_penalty`` on all training pictures.

    Args:
        total: Statistics of all sites, with a scatter.
        settings: ``[train]``.
        sites: The pictures.
    """
    one = Regression(Geometry(total), settings.start_penalty, settings.start_precision, MOST)
    messages = fitted([(one, ALL)], sites)
    candidate = Candidate("regression", 1.0, penalty=settings.start_penalty)
    return Found(one.head, candidate, messages=messages)


def best_head(folds: Sequence[ClassStatistics], settings: TrainSettings, sites: Sites) -> Found:
    """The best of all candidates by ``train.start_metric`` on held-out folds, fitted on all.

    The earlier of equal candidates is taken: closed forms before regressions, more shrinkage and a
    larger penalty first.

    Args:
        folds: Statistics of each fold over all sites, with a scatter.
        settings: ``[train]``.
        sites: The pictures.

    Raises:
        RunFailed: if the pictures do not fill every fold.
    """
    used = [f for f, fold in enumerate(folds) if fold.counts_K.any()]
    if len(used) < len(folds):
        raise RunFailed(
            f"The sites' training pictures fill {len(used)} of {len(folds)} folds.",
            why="A candidate could not be counted on pictures that it has not learned from.",
            remedy="Set train.start_folds lower, or name a train.start that chooses nothing.",
        )
    parts = {f: added(folds[g] for g in used if g != f) for f in used}
    geometries = {f: Geometry(part) for f, part in parts.items()}
    regressions = {
        (penalty, f): Regression(geometry, penalty, ROUGH, MOST_ROUGH)
        for penalty in sorted(PENALTIES, reverse=True)
        for f, geometry in geometries.items()
    }
    messages = fitted([(one, f) for (_, f), one in regressions.items()], sites)
    shrinkages = sorted(SHRINKAGES, reverse=True)
    closed = _closed_forms(shrinkages, parts)
    counts = sites.counts([closed, _regressions(regressions, parts)])
    messages += len(counts)
    tried = _tried(_closed_candidates(shrinkages), counts[0], len(used))
    tried += _tried(_regression_candidates(), counts[1], len(used))
    best = max(tried, key=lambda one: one.score(settings.start_metric)).candidate
    total = added(folds)
    if best.kind != "regression":
        return Found(closed_form(total, best), best, tuple(tried), messages)
    heads = [one.head for (penalty, _), one in regressions.items() if penalty == best.penalty]
    one = Regression(Geometry(total), best.penalty, settings.start_precision, MOST, _between(heads))
    messages += fitted([(one, ALL)], sites)
    weight_KD, bias_K = one.head
    head = weight_KD, bias_K + _shift(total, best.prior)
    return Found(head, best, tuple(tried), messages)


def closed_form(total: ClassStatistics, candidate: Candidate) -> Head:
    """The head of a closed-form candidate."""
    prior = candidate.prior if candidate.kind == "discriminant" else 0.0
    weight_KD, bias_K = discriminant_scores(total, candidate.shrinkage, prior)
    if candidate.kind == "cosine":
        scale_K, bias_K = _cosine(total, weight_KD)
        weight_KD = weight_KD * scale_K[:, None]
    return weight_KD.astype(np.float32), bias_K.astype(np.float32)


def _cosine(part: ClassStatistics, weight_KD: Floats) -> tuple[Floats, Floats]:
    """Factors (K,) and biases (K,) that make a discriminant answer by the cosine.

    In coordinates in which the shrunken covariance is the identity, the cosine between a vector
    and a class mean, both taken from the mean of the classes, has a factor of the vector alone;
    without it the answer is the same, and linear.
    """
    means_KD = part.means_KD
    centre_D = means_KD.mean(axis=0)
    lengths_K = np.sqrt(np.maximum((weight_KD * (means_KD - centre_D)).sum(axis=1), 0.0))
    scale_K = np.divide(1.0, lengths_K, out=np.zeros_like(lengths_K), where=lengths_K > 0)
    return scale_K, -scale_K * (weight_KD @ centre_D)


def _shift(part: ClassStatistics, prior: float) -> NDArray[np.float32]:
    """What is added to a regression's biases so that it counts on other class frequencies.

    Menon et al. 2021, "Long-tail learning via logit adjustment", section 4,
    https://arxiv.org/abs/2007.07314.
    """
    shift_K: NDArray[np.float32] = ((prior - 1.0) * log_shares(part)).astype(np.float32)
    return shift_K


def _closed_candidates(shrinkages: Sequence[float]) -> list[Candidate]:
    """Candidates in the order of the heads and variants of :func:`_closed_forms`."""
    found = []
    for shrinkage in shrinkages:
        found += [Candidate("discriminant", prior, shrinkage) for prior in PRIORS]
        found.append(Candidate("cosine", 0.0, shrinkage))
    return found


def _closed_forms(shrinkages: Sequence[float], parts: dict[int, ClassStatistics]) -> HeadStack:
    """One head for each shrinkage and fold; its variants are the priors and the cosine."""
    weights, scales, biases, folds = [], [], [], []
    for shrinkage in shrinkages:
        for f, part in parts.items():
            weight_KD, plain_K = discriminant_scores(part, shrinkage, 0.0)
            scale_K, cosine_K = _cosine(part, weight_KD)
            shifted = [plain_K + prior * log_shares(part) for prior in PRIORS]
            weights.append(weight_KD)
            scales.append(np.stack([*[np.ones_like(plain_K)] * len(PRIORS), scale_K]))
            biases.append(np.stack([*shifted, cosine_K]))
            folds.append(f)
    return _stack(weights, scales, biases, folds)


def _regression_candidates() -> list[Candidate]:
    """Candidates in the order of the heads and variants of :func:`_regressions`."""
    penalties = sorted(PENALTIES, reverse=True)
    return [Candidate("regression", prior, penalty=one) for one in penalties for prior in PRIORS]


def _regressions(
    regressions: dict[tuple[float, int], Regression], parts: dict[int, ClassStatistics]
) -> HeadStack:
    """One head for each penalty and fold; its variants are the priors."""
    weights, biases, folds = [], [], []
    for (_, f), one in regressions.items():
        weight_KD, bias_K = one.head
        weights.append(weight_KD)
        biases.append(np.stack([bias_K + _shift(parts[f], prior) for prior in PRIORS]))
        folds.append(f)
    return _stack(weights, [np.ones_like(bias_VK) for bias_VK in biases], biases, folds)


def _stack(
    weights: Sequence[NDArray[np.floating]],
    scales: Sequence[NDArray[np.floating]],
    biases: Sequence[NDArray[np.floating]],
    folds: Sequence[int],
) -> HeadStack:
    return HeadStack(
        np.stack(weights).astype(np.float32),
        np.stack(scales).astype(np.float32),
        np.stack(biases).astype(np.float32),
        np.array(folds, dtype=np.int64),
    )


def _tried(candidates: Sequence[Candidate], counts_MV3K: Floats, folds: int) -> list[Tried]:
    """Results of candidates, whose heads are ordered by setting and then by fold."""
    settings, variants = len(counts_MV3K) // folds, counts_MV3K.shape[1]
    shape = (settings, folds, variants, *counts_MV3K.shape[2:])
    counts_C3K = counts_MV3K.reshape(shape).sum(axis=1).reshape(-1, *shape[3:])
    return [
        Tried(one, top1(counts_3K), macro_f1(counts_3K), round(float(counts_3K[SUPPORT].sum())))
        for one, counts_3K in zip(candidates, counts_C3K, strict=True)
    ]


def _between(heads: Sequence[Head]) -> Head:
    """The mean of the folds' heads, for each class over those that had pictures of it.

    It is close to the regression on all folds.
    """
    weights_FKD = np.stack([head[0] for head in heads]).astype(np.float64)
    biases_FK = np.stack([head[1] for head in heads]).astype(np.float64)
    had_FK = weights_FKD.any(axis=2)
    share_FK = had_FK / np.maximum(had_FK.sum(axis=0), 1)
    weight_KD = np.einsum("fk,fkd->kd", share_FK, weights_FKD)
    return weight_KD.astype(np.float32), (share_FK * biases_FK).sum(axis=0).astype(np.float32)


class Pooled:
    """Pictures in one process, as sites of a search.

    Args:
        features_ND: N vectors.
        labels_N: N labels.
        fold_N: The fold of each.
    """

    def __init__(
        self,
        features_ND: NDArray[np.float32],
        labels_N: NDArray[np.int64],
        fold_N: NDArray[np.int64],
    ) -> None:
        self._features_ND, self._labels_N, self._fold_N = features_ND, labels_N, fold_N

    def statistics(self, num_classes: int, folds: int) -> list[ClassStatistics]:
        """Statistics of each fold, with a scatter."""
        return [
            class_statistics(self._features_ND[at_N], self._labels_N[at_N], num_classes, True)
            for at_N in (self._fold_N == f for f in range(folds))
        ]

    def gradients(self, heads: HeadStack) -> tuple[list[Summed], bool]:
        """See :class:`Sites`."""
        found = []
        for m in range(len(heads)):
            at_N = self._fold_N != heads.fold_M[m]
            features_BD, labels_B = self._features_ND[at_N], self._labels_N[at_N]
            head = heads.weight_MKD[m], heads.bias_MVK[m, 0]
            found.append(summed_loss(features_BD, labels_B, *head))
        return found, False

    def counts(self, stacks: Sequence[HeadStack]) -> list[Floats]:
        """See :class:`Sites`."""
        mine = self._features_ND, self._labels_N, self._fold_N
        return [site_counts(*mine, heads)[COUNTS].astype(np.float64) for heads in stacks]
