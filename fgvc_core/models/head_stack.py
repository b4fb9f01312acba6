"""A stack of linear heads, as it is sent to the sites, and what a site answers about it.

A head's logits can be read in several variants: scaled by class and shifted by other biases. So
one matrix of weights serves a discriminant under several priors and its cosine form. A head belongs
to a fold that it has not learned from; its gradient is over the other folds' pictures, its counts
are over this fold's. Fold ``ALL`` is no fold: the gradient is over all training pictures.

Counts are the only thing that is said about held-out pictures: of each class, how many there are,
how often it was answered, and how often rightly. Top-1 and macro-F1 follow from their sums.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fgvc_core.errors import PeerError
from fgvc_core.models.class_statistics import Floats
from fgvc_core.models.regression import Summed, summed_loss
from fgvc_core.wire.arrays import TensorSpec

Tensors = dict[str, NDArray[np.float32]]

WEIGHT, SCALE, BIAS, FOLD = "heads/weight", "heads/scale", "heads/bias", "heads/fold"
"""Names of the sent tensors; with a slash, they travel as they are whatever ``[wire]`` says."""

LOSS, GRADIENT, BIAS_GRADIENT = "gradients.loss", "gradients.weight", "gradients.bias"
COUNTS = "fold-counts"
"""Names of the answers' tensors."""

ALL = -1
MOST_HEADS = 4096
MOST_VARIANTS = 16

SUPPORT, PREDICTED, CORRECT = 0, 1, 2
"""Rows of the counts of one head."""


@dataclass(frozen=True)
class HeadStack:
    """M heads in V variants each.

    Attributes:
        weight_MKD: float32 (M, K, D).
        scale_MVK: float32 (M, V, K), factor of each class's product with the vector.
        bias_MVK: float32 (M, V, K).
        fold_M: int64 (M,), the fold that a head has not learned from, or ``ALL``.
    """

    weight_MKD: NDArray[np.float32]
    scale_MVK: NDArray[np.float32]
    bias_MVK: NDArray[np.float32]
    fold_M: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.fold_M)

    def packed(self) -> Tensors:
        """Named tensors for the wire."""
        return {
            WEIGHT: self.weight_MKD,
            SCALE: self.scale_MVK,
            BIAS: self.bias_MVK,
            FOLD: self.fold_M.astype(np.float32),
        }

    def chunks(self, most_bytes: float) -> list["HeadStack"]:
        """The same heads in stacks of at most so many bytes each, and at least one head."""
        each = sum(a[:1].nbytes for a in self.packed().values())
        size = min(max(int(most_bytes // each), 1), MOST_HEADS)
        return [
            HeadStack(
                self.weight_MKD[at : at + size],
                self.scale_MVK[at : at + size],
                self.bias_MVK[at : at + size],
                self.fold_M[at : at + size],
            )
            for at in range(0, len(self), size)
        ]


def plain_stack(heads: list[tuple[NDArray[np.float32], NDArray[np.float32], int]]) -> HeadStack:
    """Stack of heads (weights, biases, fold) in one variant, as they are."""
    weights, biases, folds = zip(*heads, strict=True)
    bias_MVK = np.stack(biases)[:, None]
    return HeadStack(
        np.stack(weights), np.ones_like(bias_MVK), bias_MVK, np.array(folds, dtype=np.int64)
    )


def stack_specs(heads: int, variants: int, num_classes: int, dim: int) -> dict[str, TensorSpec]:
    """Specs of :meth:`HeadStack.packed`."""
    return {
        WEIGHT: TensorSpec("float32", (heads, num_classes, dim)),
        SCALE: TensorSpec("float32", (heads, variants, num_classes)),
        BIAS: TensorSpec("float32", (heads, variants, num_classes)),
        FOLD: TensorSpec("float32", (heads,)),
    }


def read_stack(tensors: Tensors, folds: int) -> HeadStack:
    """Validate a stranger's stack, whose names, shapes and finiteness were checked before.

    Raises:
        PeerError: if a fold is not one of the recipe's.
    """
    fold_M = tensors[FOLD]
    if (fold_M != np.rint(fold_M)).any() or (fold_M < ALL).any() or (fold_M >= folds).any():
        raise PeerError(f"A head names a fold that is not one of the {folds} of this run.")
    return HeadStack(tensors[WEIGHT], tensors[SCALE], tensors[BIAS], fold_M.astype(np.int64))


def gradient_specs(heads: int, num_classes: int, dim: int) -> dict[str, TensorSpec]:
    """Specs of a site's gradients."""
    return {
        # A float64 loss as two float32: the second is what the first has lost.
        LOSS: TensorSpec("float32", (heads, 2)),
        GRADIENT: TensorSpec("float32", (heads, num_classes, dim)),
        BIAS_GRADIENT: TensorSpec("float32", (heads, num_classes)),
    }


def site_gradients(
    features_ND: NDArray[np.float32],
    labels_N: NDArray[np.int64],
    fold_N: NDArray[np.int64],
    heads: HeadStack,
) -> Tensors:
    """A site's answer: loss and gradient of each head's first variant over its learned folds."""
    specs = gradient_specs(len(heads), heads.weight_MKD.shape[1], heads.weight_MKD.shape[2])
    packed = {name: np.zeros(spec.shape, np.float32) for name, spec in specs.items()}
    for m in range(len(heads)):
        learned_N = fold_N != heads.fold_M[m]
        found = summed_loss(
            features_ND[learned_N], labels_N[learned_N], heads.weight_MKD[m], heads.bias_MVK[m, 0]
        )
        packed[LOSS][m, 0] = found.loss
        packed[LOSS][m, 1] = found.loss - np.float64(packed[LOSS][m, 0])
        packed[GRADIENT][m], packed[BIAS_GRADIENT][m] = found.weight_KD, found.bias_K
    return packed


def read_gradients(tensors: Tensors, head: int) -> Summed:
    """One head's sums in a site's answer."""
    return Summed(
        float(tensors[LOSS][head].sum(dtype=np.float64)),
        tensors[GRADIENT][head].astype(np.float64),
        tensors[BIAS_GRADIENT][head].astype(np.float64),
    )


def counts_specs(heads: int, variants: int, num_classes: int) -> dict[str, TensorSpec]:
    """Specs of a site's counts."""
    return {COUNTS: TensorSpec("float32", (heads, variants, 3, num_classes))}


def site_counts(
    features_ND: NDArray[np.float32],
    labels_N: NDArray[np.int64],
    fold_N: NDArray[np.int64],
    heads: HeadStack,
) -> Tensors:
    """A site's answer: the counts of each head and variant on the fold that it has not seen."""
    classes, variants = heads.weight_MKD.shape[1], heads.bias_MVK.shape[1]
    counts_MV3K = np.zeros((len(heads), variants, 3, classes), np.float32)
    for m in range(len(heads)):
        held_N = fold_N == heads.fold_M[m]
        labels_B = labels_N[held_N]
        products_BK = features_ND[held_N].astype(np.float64) @ heads.weight_MKD[m].T
        for v in range(variants):
            answers_B = (heads.scale_MVK[m, v] * products_BK + heads.bias_MVK[m, v]).argmax(axis=1)
            right_B = answers_B == labels_B
            for row, chosen_B in enumerate((labels_B, answers_B, labels_B[right_B])):
                counts_MV3K[m, v, row] = np.bincount(chosen_B, minlength=classes)
    return {COUNTS: counts_MV3K}


def top1(counts_3K: Floats) -> float:
    """Share of right answers, 0 to 1; 0 without examples."""
    return float(counts_3K[CORRECT].sum() / max(counts_3K[SUPPORT].sum(), 1.0))


def macro_f1(counts_3K: Floats) -> float:
    """Mean F1 over the classes with examples, 0 to 1; 0 without any."""
    present_K = counts_3K[SUPPORT] > 0
    both_K = (counts_3K[SUPPORT] + counts_3K[PREDICTED])[present_K]
    return float((2 * counts_3K[CORRECT][present_K] / both_K).mean()) if present_K.any() else 0.0
