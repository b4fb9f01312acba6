"""Multinomial logistic regression on frozen features, from sums over the pictures of all sites.

The objective is convex, and its gradient and loss are sums over pictures: added up over sites they
equal those of one site with all pictures, and so does the optimum. The coordinator takes L-BFGS
steps (Nocedal 1980, https://doi.org/10.1090/S0025-5718-1980-0572855-7; Liu and Nocedal 1989,
https://doi.org/10.1007/BF01589116): a message carries a head to the sites, and its gradient back.

The initial curvature of a step is, for class k, ``c_k (S + m_k m_k') + penalty``: S is the scatter
within classes (with a tenth of that between them) and m_k the class's mean, from the class
statistics, which are sent once anyway. It is the Hessian's form in the bound of Boehning (1992,
"Multinomial logistic regression algorithm", https://doi.org/10.1007/BF00048682), for pictures near
the class, with a factor fitted to the last step in place of one half. On frozen features of birds
and of skin lesions this took 39 and 64 messages to 1e-4 of the objective (penalty 100), the pooled
scatter in place of S and m_k 44 and 86, and the fixed factor more still.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fgvc_core.models.class_statistics import ClassStatistics, Floats

NEVER = -1e4
"""Bias of a class without pictures."""

MEMORY = 10
"""Steps whose curvature is kept."""

_SUFFICIENT = 1e-4
"""Share of the expected decrease that a step must give (Armijo's condition)."""

_ROUNDING = 1e-7
"""Relative increase of the objective that is put down to float32 rounding of the sums."""

_SHORTEST = 8
"""Most times that one step is shortened."""

_BETWEEN = 0.1
"""Share of the scatter between classes in the first curvature; the class's own mean is apart."""

_LOOSE = 1e-3
"""Curvature along a bias, beside the class's mean; relative to features of variance 1."""

_LEAST = 1e-12


@dataclass(frozen=True)
class Summed:
    """Loss and gradient of one head, summed over pictures; the penalty is not part of either.

    Attributes:
        loss: Sum of the cross-entropy, in nats.
        weight_KD: float64 (K, D), the gradient with regard to the weights.
        bias_K: float64 (K,), with regard to the biases.
    """

    loss: float
    weight_KD: Floats
    bias_K: Floats

    def plus(self, other: "Summed") -> "Summed":
        """Sum of both."""
        return Summed(
            self.loss + other.loss, self.weight_KD + other.weight_KD, self.bias_K + other.bias_K
        )

    def times(self, factor: float) -> "Summed":
        """With every picture weighted by ``factor``."""
        return Summed(factor * self.loss, factor * self.weight_KD, factor * self.bias_K)


def summed_loss(
    features_ND: NDArray[np.floating],
    labels_N: NDArray[np.int64],
    weight_KD: NDArray[np.floating],
    bias_K: NDArray[np.floating],
    batch_size: int = 1024,
) -> Summed:
    """Loss and gradient of one head on some pictures, in float64.

    Args:
        features_ND: N vectors; N may be 0.
        labels_N: 0 to K - 1.
        weight_KD: The head's weights.
        bias_K: Its biases.
        batch_size: Pictures at once; memory grows with it.
    """
    weight_KD, bias_K = weight_KD.astype(np.float64), bias_K.astype(np.float64)
    found = Summed(0.0, np.zeros_like(weight_KD), np.zeros_like(bias_K))
    for begin in range(0, len(labels_N), batch_size):
        part_ND = features_ND[begin : begin + batch_size].astype(np.float64)
        labels_B = labels_N[begin : begin + batch_size]
        at_B = np.arange(len(labels_B))
        shares_BK = part_ND @ weight_KD.T + bias_K
        shares_BK -= shares_BK.max(axis=1, keepdims=True)
        own_B = shares_BK[at_B, labels_B]
        np.exp(shares_BK, out=shares_BK)
        total_B = shares_BK.sum(axis=1)
        shares_BK /= total_B[:, None]
        loss = float((np.log(total_B) - own_B).sum())
        shares_BK[at_B, labels_B] -= 1.0
        found = found.plus(Summed(loss, shares_BK.T @ part_ND, shares_BK.sum(axis=0)))
    return found


class Geometry:
    """Coordinates in which the scatter of the features is diagonal, nearly.

    Features are shifted by their pooled mean and divided by one scale, the root of their mean
    variance; then the axes are turned. The penalty is the squared norm of the weights in these
    coordinates, so it does not depend on the features' unit. Costs one eigendecomposition of a
    D x D matrix.

    Args:
        found: Statistics with a scatter, of at least one picture.
    """

    def __init__(self, found: ClassStatistics) -> None:
        assert found.scatter_DD is not None
        self.counts_K = found.counts_K
        self.total = float(found.counts_K.sum())
        self.mean_D = found.sums_KD.sum(axis=0) / self.total
        covariance_DD = found.scatter_DD / self.total - np.outer(self.mean_D, self.mean_D)
        self.scale = float(np.sqrt(max(np.trace(covariance_DD) / len(covariance_DD), _LEAST)))
        self._covariance_DD = covariance_DD / self.scale**2
        offsets_KD = (found.means_KD - self.mean_D) / self.scale
        between_DD = (offsets_KD * (self.counts_K / self.total)[:, None]).T @ offsets_KD
        values_D, self.axes_DD = np.linalg.eigh(self._covariance_DD - (1 - _BETWEEN) * between_DD)
        self.variances_D = np.maximum(values_D, 0.0)
        """float64 (D,), variance within classes along each axis, with a tenth of that between."""
        ones_K1 = np.ones((len(offsets_KD), 1))
        self.means_KP = np.concatenate([offsets_KD @ self.axes_DD, ones_K1], axis=1)
        """float64 (K, D + 1), the classes' means in these coordinates, and the bias's one."""

    def to_head(self, point_KP: Floats) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Weights (K, D) and biases (K,) of a point (K, D + 1), as they are sent."""
        weight_KD = (point_KP[:, :-1] @ self.axes_DD.T) / self.scale
        bias_K = point_KP[:, -1] - weight_KD @ self.mean_D
        return weight_KD.astype(np.float32), bias_K.astype(np.float32)

    def from_head(self, weight_KD: NDArray[np.floating], bias_K: NDArray[np.floating]) -> Floats:
        """Point (K, D + 1) of a head."""
        wide_KD = weight_KD.astype(np.float64)
        point_K1 = (bias_K.astype(np.float64) + wide_KD @ self.mean_D)[:, None]
        return np.concatenate([(wide_KD * self.scale) @ self.axes_DD, point_K1], axis=1)

    def spread(self, weight_KD: NDArray[np.floating]) -> float:
        """Standard deviation of a head's logits over pictures, each from the classes' mean."""
        centred_KD = (weight_KD - weight_KD.mean(axis=0)).astype(np.float64)
        centred_KD *= self.scale
        return float(np.sqrt(((centred_KD @ self._covariance_DD) * centred_KD).sum(axis=1).mean()))

    def gradient(self, found: Summed) -> Floats:
        """Gradient (K, D + 1) in these coordinates."""
        shifted_KD = found.weight_KD - np.outer(found.bias_K, self.mean_D)
        turned_KD = (shifted_KD / self.scale) @ self.axes_DD
        return np.concatenate([turned_KD, found.bias_K[:, None]], axis=1)


class Regression:
    """One regression that is being fitted: evaluate :attr:`head`, then call :meth:`take`.

    The objective is scikit-learn's (``LogisticRegression`` with ``C = 1 / penalty``): the sum of
    the cross-entropy over pictures, plus ``penalty / 2`` times the squared norm of the weights, in
    the coordinates of :class:`Geometry`. Biases are free. Classes without pictures have weights of
    zero and the bias ``NEVER``.

    Args:
        geometry: From the statistics of the pictures that are learned from.
        penalty: Above 0.
        precision: Stop once the expected decrease is below this share of the objective.
        most: Most evaluations.
        start: Weights (K, D) and biases (K,) to start from; None: zeros and the classes' shares.
    """

    def __init__(
        self,
        geometry: Geometry,
        penalty: float,
        precision: float,
        most: int,
        start: tuple[NDArray[np.floating], NDArray[np.floating]] | None = None,
    ) -> None:
        self.geometry, self.penalty = geometry, penalty
        self._precision, self._most = precision, most
        self._held_K = geometry.counts_K > 0
        if start is None:
            classes, dim = len(geometry.counts_K), len(geometry.mean_D)
            point_KP = np.zeros((classes, dim + 1))
            point_KP[:, -1] = np.log(np.maximum(geometry.counts_K, _LEAST) / geometry.total)
        else:
            point_KP = geometry.from_head(*start)
        share_K = geometry.counts_K / geometry.total
        self._mass_K = geometry.total * np.maximum(share_K * (1 - share_K), _LEAST)
        self._factor = 1.0
        self._pairs: list[tuple[NDArray[np.float32], NDArray[np.float32]]] = []
        self._point_KP: Floats | None = None
        self._value, self._gradient_KP = np.inf, np.zeros_like(point_KP)
        self._direction_KP = np.zeros_like(point_KP)
        self._length, self._shortened = 0.0, 0
        self.evaluations = 0
        """Heads that were evaluated."""
        self.done = False
        """Whether the best head was found, as precisely as was asked."""
        self._try(point_KP)

    @property
    def value(self) -> float:
        """The objective at the best point so far."""
        return float(self._value)

    @property
    def head(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Weights (K, D) and biases (K,) to evaluate next; the fitted ones once :attr:`done`."""
        return self._head

    def restart(self) -> None:
        """Forget earlier sums: from the next ones on, they are over other pictures."""
        self._point_KP, self._pairs, self._value = None, [], np.inf

    def take(self, found: Summed) -> None:
        """Go on with the sums of :attr:`head` over all pictures."""
        self.evaluations += 1
        trial_KP = self._trial_KP
        weight_KD = trial_KP[:, :-1]
        value = found.loss + 0.5 * self.penalty * float((weight_KD**2).sum())
        gradient_KP = self.geometry.gradient(found)
        gradient_KP[:, :-1] += self.penalty * weight_KD
        gradient_KP[~self._held_K] = 0.0
        if self._point_KP is not None:
            expected = self._length * float((self._gradient_KP * self._direction_KP).sum())
            allowed = _SUFFICIENT * expected + _ROUNDING * abs(self._value)
            if not value <= self._value + allowed:
                self._shorten(value, expected)
                return
            self._remember(trial_KP - self._point_KP, gradient_KP - self._gradient_KP)
        self._point_KP, self._value, self._gradient_KP = trial_KP, value, gradient_KP
        self._shortened, self._length = 0, 1.0
        self._direction_KP = -self._inverse(gradient_KP)
        decrease = -0.5 * float((gradient_KP * self._direction_KP).sum())
        if decrease <= self._precision * abs(value):
            self._finish()
        else:
            self._go()

    def _shorten(self, value: float, expected: float) -> None:
        """Try a shorter step, by the parabola through what is known of this direction."""
        bent = value - self._value - expected
        share = -expected / (2 * bent) if bent > 0 and np.isfinite(bent) else 0.5
        self._length *= min(max(share, 0.1), 0.5)
        self._shortened += 1
        if self._shortened > _SHORTEST:
            # No step along this direction helps: the sums contradict each other, or rounding rules.
            self._finish()
        else:
            self._go()

    def _go(self) -> None:
        if self.evaluations >= self._most:
            self._finish()
            return
        assert self._point_KP is not None
        self._try(self._point_KP + self._length * self._direction_KP)

    def _finish(self) -> None:
        assert self._point_KP is not None
        self.done = True
        self._try(self._point_KP)

    def _try(self, point_KP: Floats) -> None:
        """Take a point as the next to evaluate, exactly as the sites will read it."""
        weight_KD, bias_K = self.geometry.to_head(point_KP)
        weight_KD[~self._held_K], bias_K[~self._held_K] = 0.0, NEVER
        self._head = weight_KD, bias_K
        self._trial_KP = self.geometry.from_head(weight_KD, bias_K)

    def _remember(self, step_KP: Floats, change_KP: Floats) -> None:
        """Keep the curvature along the last step, and fit the factor of the initial curvature."""
        bent = float((step_KP * change_KP).sum())
        if bent <= _LEAST:
            return
        self._pairs.append((step_KP.astype(np.float32), change_KP.astype(np.float32)))
        del self._pairs[:-MEMORY]
        penalized = self.penalty * float((step_KP[:, :-1] ** 2).sum())
        along_K = (step_KP * self.geometry.means_KP).sum(axis=1)
        curved = float((step_KP**2 * self._diagonal_KP()).sum() + (self._mass_K @ along_K**2))
        self._factor = max((bent - penalized) / max(curved, _LEAST), 1e-4)

    def _diagonal_KP(self) -> Floats:
        """Curvature along each axis, but for the class means, the factor and the penalty."""
        found: Floats = np.outer(self._mass_K, np.append(self.geometry.variances_D, _LOOSE))
        return found

    def _initial(self, gradient_KP: Floats) -> Floats:
        """The inverse of the initial curvature times a gradient, by Sherman and Morrison."""
        diagonal_KP = self._factor * self._diagonal_KP()
        diagonal_KP[:, :-1] += self.penalty
        solved_KP = gradient_KP / diagonal_KP
        means_KP = self.geometry.means_KP
        scaled_KP = means_KP / diagonal_KP
        mass_K = self._factor * self._mass_K
        share_K = mass_K * (means_KP * solved_KP).sum(axis=1)
        share_K /= 1 + mass_K * (means_KP * scaled_KP).sum(axis=1)
        found: Floats = solved_KP - share_K[:, None] * scaled_KP
        return found

    def _inverse(self, gradient_KP: Floats) -> Floats:
        """The estimated inverse Hessian times a gradient (the two loops of L-BFGS)."""
        left_KP = gradient_KP.copy()
        shares = []
        for step_KP, change_KP in reversed(self._pairs):
            bent = float((step_KP * change_KP).sum(dtype=np.float64))
            share = float((step_KP * left_KP).sum()) / bent
            left_KP -= share * change_KP
            shares.append((share, bent))
        left_KP = self._initial(left_KP)
        for (step_KP, change_KP), (share, bent) in zip(self._pairs, reversed(shares), strict=True):
            left_KP += (share - float((change_KP * left_KP).sum()) / bent) * step_KP
        left_KP[~self._held_K] = 0.0
        return left_KP
