"""Reliability of confidences: accuracy by confidence, and the expected calibration error.

Guo et al. 2017, section 2, https://arxiv.org/abs/1706.04599.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

BINS = 15
"""Number of bins of the expected calibration error, as in the paper."""


@dataclass(frozen=True)
class Reliability:
    """Accuracy by confidence, in M bins of equal width.

    Attributes:
        count_M: int64, number of answers in each bin.
        confidence_M: float64, their mean confidence; 0 in an empty bin.
        accuracy_M: float64, the share of correct answers; 0 in an empty bin.
    """

    count_M: NDArray[np.int64]
    confidence_M: NDArray[np.float64]
    accuracy_M: NDArray[np.float64]

    @property
    def ece(self) -> float:
        """Expected calibration error, 0 to 1."""
        gap_M = np.abs(self.accuracy_M - self.confidence_M)
        return float((self.count_M * gap_M).sum() / max(int(self.count_M.sum()), 1))


def reliability(
    logits_NK: NDArray[np.float64], labels_N: NDArray[np.int64], temperature: float = 1.0
) -> Reliability:
    """Accuracy of the answers at each level of confidence."""
    confidence_N = softmax(logits_NK / temperature, axis=1).max(axis=1)
    right_N = (logits_NK.argmax(axis=1) == labels_N).astype(np.float64)
    bin_N = bins_of(confidence_N)
    count_M = np.bincount(bin_N, minlength=BINS)
    some_M = np.maximum(count_M, 1)
    return Reliability(
        count_M,
        np.bincount(bin_N, confidence_N, BINS) / some_M,
        np.bincount(bin_N, right_N, BINS) / some_M,
    )


def bins_of(confidence_N: NDArray[np.float64]) -> NDArray[np.int64]:
    """int64 (N,): the bin of each confidence, 0 to M - 1."""
    return np.minimum((confidence_N * BINS).astype(np.int64), BINS - 1)


def gaps(
    logits_NK: NDArray[np.float64], labels_N: NDArray[np.int64], temperature_N1: NDArray[np.float64]
) -> NDArray[np.float64]:
    """float64 (N, M): each picture's confidence minus its correctness, in the column of its bin.

    The expected calibration error of a set of pictures is the sum over bins of the absolute value
    of their sum, divided by their number.
    """
    confidence_N = softmax(logits_NK / temperature_N1, axis=1).max(axis=1)
    right_N = logits_NK.argmax(axis=1) == labels_N
    found_NM = np.zeros((len(labels_N), BINS))
    found_NM[np.arange(len(labels_N)), bins_of(confidence_N)] = confidence_N - right_N
    return found_NM
