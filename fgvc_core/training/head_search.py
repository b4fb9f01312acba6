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
from itertools import combinations
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
    CORRECT,
    COUNTS,
    PREDICTED,
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

PENALTIES = (10.0, 30.0, 100.0, 300.0)
"""Penalties of the regression that are tried."""

KINDS = ("discriminant", "cosine", "regression")
"""Kinds of candidates, of which the best are blended."""

ROUGH = 1e-3
"""Precision of the regressions on folds: what is left changes hardly an answer."""

MOST_ROUGH, MOST = 20, 100
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
        kind: ``discriminant``, its ``cosine`` form, ``regression``, or a ``blend`` of these.
        prior: Weight of the class frequencies, 0 to 1; only for discriminant and regression.
        shrinkage: Of the covariance, for the first two kinds.
        penalty: Of the weights, for ``regression``.
        members: For ``blend``: what is blended.
    """

    kind: Literal["discriminant", "cosine", "regression", "blend"]
    prior: float = 0.0
    shrinkage: float = 0.0
    penalty: float = 0.0
    members: tuple["Candidate", ...] = ()

    def __str__(self) -> str:
        if self.kind == "blend":
            return " + ".join(str(one) for one in self.members)
        if self.kind == "regression":
            return f"regression, penalty {self.penalty:g}, prior {self.prior:g}"
        if self.kind == "cosine":
            return f"cosine, shrinkage {self.shrinkage:g}"
        return f"discriminant, shrinkage {self.shrinkage:g}, prior {self.prior:g}"


@dataclass(frozen=True, eq=False)
class Tried:
    """One candidate's result on the held-out folds of all sites.

    Attributes:
        candidate: The candidate.
        counts_F3K: float64 (F, 3, K), its counts on each fold.
    """

    candidate: Candidate
    counts_F3K: Floats

    @property
    def top1(self) -> float:
        """Over all folds, 0 to 1."""
        return top1(self.counts_F3K.sum(axis=0))

    @property
    def macro_f1(self) -> float:
        """Over all folds, 0 to 1."""
        return macro_f1(self.counts_F3K.sum(axis=0))

    @property
    def examples(self) -> int:
        """Pictures that it was counted on."""
        return round(float(self.counts_F3K[:, SUPPORT].sum()))

    def score(self, metric: str) -> float:
        """The metric that decides, 0 to 1."""
        return self.macro_f1 if metric == "macro-f1" else self.top1

    def error_beside(self, other: "Tried", metric: str) -> float:
        """Standard error of the difference of both scores, from how it varies over the folds.

        Taken within each class, so that it is no error that one candidate prefers some classes.
        """
        apart_FK = self._shares_FK(metric) - other._shares_FK(metric)
        folds = len(apart_FK)
        varied_FK = apart_FK - apart_FK.mean(axis=0)
        return float(np.sqrt((varied_FK**2).sum() * folds / (folds - 1)))

    def _shares_FK(self, metric: str) -> Floats:
        """What each fold and class contributes to the score (to macro-F1: about)."""
        support_FK = self.counts_F3K[:, SUPPORT]
        if metric == "macro-f1":
            both_FK = np.maximum(support_FK + self.counts_F3K[:, PREDICTED], 1.0)
            present = max(int((support_FK.sum(axis=0) > 0).sum()), 1)
            found: Floats = 2 * self.counts_F3K[:, CORRECT] / both_FK / present / len(both_FK)
            return found
        shares_FK: Floats = self.counts_F3K[:, CORRECT] / max(float(support_FK.sum()), 1.0)
        return shares_FK

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

    Of equal candidates the earlier: closed forms before regressions, more shrinkage and a larger
    penalty first.

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
    heads = _FoldHeads(parts, geometries, regressions)
    blends = _blends(tried, settings.start_metric)
    (blended,) = sites.counts([plain_stack([(*heads(c, f), f) for c in blends for f in used])])
    messages += 1
    found = _tried(blends, blended, len(used))
    # A site that was lost in between would leave them counted on other pictures.
    tried += [one for one in found if one.examples == tried[0].examples]
    best = safe_choice(tried, settings.start_metric)
    total = added(folds)
    final: dict[tuple[float, int], Regression] = {}
    geometry = Geometry(total)
    for member in best.members or (best,):
        if member.kind == "regression":
            start = _between([regressions[member.penalty, f].head for f in used])
            one = Regression(geometry, member.penalty, settings.start_precision, MOST, start)
            messages += fitted([(one, ALL)], sites)
            final[member.penalty, ALL] = one
    head = _FoldHeads({ALL: total}, {ALL: geometry}, final)(best, ALL)
    return Found(head, best, tuple(tried), messages)


@dataclass(frozen=True)
class _FoldHeads:
    """The heads of candidates by the fold that they have not learned from.

    Attributes:
        parts: Fold -> statistics of the other folds.
        geometries: Fold -> their geometry.
        regressions: (penalty, fold) -> the fitted regression.
    """

    parts: dict[int, ClassStatistics]
    geometries: dict[int, Geometry]
    regressions: dict[tuple[float, int], Regression]

    def __call__(self, candidate: Candidate, fold: int) -> Head:
        """The head of a candidate."""
        if candidate.kind == "regression":
            weight_KD, bias_K = self.regressions[candidate.penalty, fold].head
            return weight_KD, bias_K + _shift(self.parts[fold], candidate.prior)
        if candidate.kind != "blend":
            return closed_form(self.parts[fold], candidate)
        members = [self(member, fold) for member in candidate.members]
        spreads = [self.geometries[fold].spread(weight_KD) for weight_KD, _ in members]
        # As sure of its answers as the last member is.
        shares = [spreads[-1] / max(spread, 1e-12) / len(members) for spread in spreads]
        weights_KD, biases_K = (
            np.sum([share * head[i] for share, head in zip(shares, members, strict=True)], axis=0)
            for i in (0, 1)
        )
        return weights_KD.astype(np.float32), biases_K.astype(np.float32)


def _blends(tried: Sequence[Tried], metric: str) -> list[Candidate]:
    """Blends of the best of each kind, two and three at a time.

    Heads that err on different pictures are better together, and a blend is a linear head too. It
    also makes it matter less which of several about equal ones was the best by chance.
    """
    best = {
        kind: max(
            (one for one in tried if one.candidate.kind == kind), key=lambda one: one.score(metric)
        ).candidate
        for kind in KINDS
    }
    every = tuple(best.values())
    chosen = [members for size in (3, 2) for members in combinations(every, size)]
    return [Candidate("blend", members=members) for members in chosen]


def best_closed_form(
    folds: list[ClassStatistics], settings: TrainSettings, sites: Sites, kind: str
) -> Found:
    """The best closed form of one kind, chosen as :func:`best_head` does.

    Args:
        folds: Statistics of each fold, with a scatter; none without pictures.
        settings: ``[train]``.
        sites: The pictures.
        kind: ``discriminant`` or ``cosine``.
    """
    parts = {f: added(folds[:f] + folds[f + 1 :]) for f in range(len(folds))}
    shrinkages = sorted(SHRINKAGES, reverse=True)
    (counts_MV3K,) = sites.counts([_closed_forms(shrinkages, parts)])
    tried = _tried(_closed_candidates(shrinkages), counts_MV3K, len(folds))
    mine = [one for one in tried if one.candidate.kind == kind]
    best = max(mine, key=lambda one: one.score(settings.start_metric)).candidate
    return Found(closed_form(added(folds), best), best, tuple(mine), 1)


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
    counts_SFV3K = counts_MV3K.reshape(settings, folds, variants, *counts_MV3K.shape[2:])
    counts_SVF3K = np.moveaxis(counts_SFV3K, 2, 1)
    counts_CF3K = counts_SVF3K.reshape(settings * variants, folds, *counts_MV3K.shape[2:])
    return [Tried(one, counts_F3K) for one, counts_F3K in zip(candidates, counts_CF3K, strict=True)]


def safe_choice(tried: Sequence[Tried], metric: str) -> Candidate:
    """A blend, unless another candidate is clearly better.

    The best of forty by a few hundred pictures is partly the luckiest. So a blend is the safe
    choice, if it is within one standard error of the best (the rule of Breiman et al. 1984,
    "Classification and Regression Trees", section 3.4.3): that of all kinds, if none of them is
    clearly worse than another by itself (two standard errors); else the best of two kinds.
    """
    ranked = sorted(tried, key=lambda one: one.score(metric), reverse=True)
    best = ranked[0]
    singles = [one for one in ranked if not one.candidate.members]
    for safe in sorted(ranked, key=lambda one: len(one.candidate.members), reverse=True):
        members = safe.candidate.members
        kinds = [one for one in singles if one.candidate in members]
        alike = all(_behind(one, singles[0], metric) <= 2 for one in kinds)
        if members and (alike or len(members) == 2) and _behind(safe, best, metric) <= 1:
            return safe.candidate
    return best.candidate


def _behind(one: Tried, best: Tried, metric: str) -> float:
    """How far a candidate is behind the best, in standard errors of the difference."""
    lead = best.score(metric) - one.score(metric)
    return lead / max(best.error_beside(one, metric), 1e-12) if lead > 0 else 0.0


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
