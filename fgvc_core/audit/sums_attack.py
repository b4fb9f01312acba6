"""Audit of the release of class sums, with canaries planted in the data.

A canary is a unit of several equal pictures, together ten times longer than the clipping bound, so
clipping is tested too. The release of the center is not attacked: it has too few dimensions for
canaries (unit tests cover it). The attacker, who supplies the center around which class sums are
taken, supplies zero.
"""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from fgvc_core.audit.attacker import estimate_coins
from fgvc_core.audit.planted import Observed, audit_generator, fair_coins
from fgvc_core.audit.planted_features import orthogonal_by_class
from fgvc_core.audit.settings import AuditSettings
from fgvc_core.errors import PolicyRefusal
from fgvc_core.models.heads import SubspaceHead
from fgvc_core.privacy.accountant import PrivacyEvent
from fgvc_core.privacy.class_sums import sums_bound, sums_deviation
from fgvc_core.privacy.planning import plan_for
from fgvc_core.privacy.sampling import clip_scales
from fgvc_core.privacy.settings import PrivacySettings
from fgvc_core.training.examples import Examples, FeatureExamples
from fgvc_core.training.learner import Learner
from fgvc_core.training.private import Units, projected_vectors, release_sums

Release = Callable[[Learner, Examples, Units, PrivacyEvent, PrivacySettings], NDArray[np.float64]]
"""As :func:`fgvc_core.training.private.release_sums`."""


def attack_sums(
    learner: Learner,
    examples: Examples,
    units_N: Units,
    privacy: PrivacySettings,
    settings: AuditSettings,
    rounds: int,
    release: Release = release_sums,
) -> Observed:
    """Release class sums of canaries and a random half of the site's own units.

    Args:
        learner: Has a subspace head; its center is set to zero.
        examples: All of the site's pictures, at least one.
        units_N: int64 (N,), the unit of each picture.
        privacy: ``[privacy]``, method ``class-sums``.
        settings: ``[audit]``.
        rounds: ``federation.rounds``.
        release: Releases the class sums: by the site alone, or in a masked sum.

    Raises:
        PolicyRefusal: if the recipe's model has no subspace head on a frozen backbone.
    """
    head = learner.model.head
    if not isinstance(head, SubspaceHead) or not isinstance(examples, FeatureExamples):
        raise PolicyRefusal(
            "privacy.method = 'class-sums' needs a frozen backbone and model.head = 'subspace'.",
            remedy="Set model.train = 'head' and model.head = 'subspace', or privacy.method = "
            "'gradients'.",
        )
    with torch.no_grad():
        head.centre.zero_()
    generator = audit_generator(settings)
    (event,) = [e for e in plan_for(privacy, rounds) if e.purpose == "class-sums"]
    classes, directions = learner.num_classes, len(head.directions_PD)
    count = min(settings.canaries, classes * directions)
    vectors_MP, labels_M = orthogonal_by_class(count, classes, directions, generator)
    included_M = fair_coins(count, generator)
    unit_included_U = fair_coins(int(units_N.max()) + 1, generator)

    planted_MD = vectors_MP @ head.directions_PD.cpu().double().numpy()
    rows = np.flatnonzero(unit_included_U[units_N])
    which = np.repeat(np.flatnonzero(included_M), max(round(settings.norm), 1))
    data = _with_planted(examples, rows, planted_MD[which], labels_M[which])
    units = np.concatenate([units_N[rows], which + len(unit_included_U)])
    _, units = np.unique(units, return_inverse=True)
    released_KQ = release(learner, data, units.astype(np.int64), event, privacy)

    constant = privacy.count_coordinate
    canaries_MQ = np.concatenate([vectors_MP, np.full((count, 1), constant)], axis=1)
    own_NP = projected_vectors(learner, examples, True)
    cells_CQ, cell_labels_C, cell_units_C = _cells(
        own_NP, examples.labels_N.numpy(), units_N, classes, constant
    )
    coins_MC = _coins(
        np.concatenate([canaries_MQ, cells_CQ]),
        np.concatenate([labels_M, cell_labels_C]),
        released_KQ,
        sums_deviation(classes, directions, constant, event.noise_multiplier),
    )
    unit_scores_U = np.zeros(len(unit_included_U))
    np.add.at(unit_scores_U, cell_units_C, coins_MC[count:])
    return Observed(
        scores_M=coins_MC[:count],
        included_M=included_M,
        unit_scores_U=unit_scores_U,
        unit_included_U=unit_included_U,
        engine="class-sums",
        releases=1,
        wanted=settings.canaries,
    )


def _with_planted(
    examples: FeatureExamples,
    rows: NDArray[np.int64],
    planted_CD: NDArray[np.float64],
    labels_C: NDArray[np.int64],
) -> FeatureExamples:
    """Some of the site's examples, and the canaries behind them."""
    planted = torch.from_numpy(planted_CD.astype(np.float32))
    return FeatureExamples(
        torch.cat([examples.features_ND[rows], planted]),
        np.concatenate([examples.labels_N.numpy()[rows], labels_C]),
        examples.known,
    )


def _cells(
    vectors_NP: NDArray[np.float64],
    labels_N: NDArray[np.int64],
    units_N: Units,
    classes: int,
    constant: float,
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
    """Contribution of each unit to each class: rows (C, Q), their classes and units (C,)."""
    rows_NQ = np.concatenate([vectors_NP, np.full((len(labels_N), 1), constant)], axis=1)
    cells_C, at_N = np.unique(units_N * classes + labels_N, return_inverse=True)
    cells_CQ = np.zeros((len(cells_C), rows_NQ.shape[1]))
    np.add.at(cells_CQ, at_N, rows_NQ)
    units_C, labels_C = np.divmod(cells_C, classes)
    squares_U = np.zeros(int(units_N.max()) + 1)
    np.add.at(squares_U, units_C, (cells_CQ**2).sum(axis=1))
    scales_U = clip_scales(squares_U, sums_bound(constant))
    return cells_CQ * scales_U[units_C][:, None], labels_C, units_C


def _coins(
    vectors_MQ: NDArray[np.float64],
    labels_M: NDArray[np.int64],
    released_KQ: NDArray[np.float64],
    deviation: float,
) -> NDArray[np.float64]:
    """Estimate the coins class by class: a vector contributes to the sum of its own class only."""
    coins_M = np.zeros(len(labels_M))
    for label in np.unique(labels_M):
        at = np.flatnonzero(labels_M == label)
        coins_M[at] = estimate_coins(vectors_MQ[at], released_KQ[label], deviation)
    return coins_M
