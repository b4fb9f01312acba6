"""Whether a normaliser's running statistics can be: of an update, beside what its site received.

Statistics are not learnt in small steps, so an update's root mean square says nothing of them;
unscreened, one variance of 1e30 silences a layer of the mean whatever the weights are.

Two bounds. What cannot be is refused in any round: a negative variance, or a value beyond
``LARGEST`` times the largest that was received in its tensor, or times 1 where that is smaller.
Their change is one figure, which earlier closed rounds' figures bound: means in standard
deviations, variances in variances, both of the tensor as received, so that no layer hides
behind another's size.
"""

import numpy as np

from fgvc_core.protocol.tensor_names import is_statistic
from fieldmark.server.strategies import Tensors

LARGEST = 1000.0
"""Honest ones reached 30 in the worst round 1 that was measured (ResNet-18, random weights)."""

RATIO = 3.0
"""Times ``max_norm_ratio``: with a momentum of 0.1 a site of many steps changes its statistics ten
times as much as one of a single step, which no learning rate tells."""

_MEAN, _VARIANCE = "running_mean", "running_var"

_LEAST = 1e-12
"""Smallest variance of a tensor that is divided by: of dead channels nothing is left."""


def impossible_statistic(sent: Tensors, model: Tensors) -> str | None:
    """What is wrong with a statistic on its own, as a sentence, or None.

    Args:
        sent: The model as its site received it.
        model: The model that came back, finite, of the same names and shapes.
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
        model: The model that came back, finite, of the same names and shapes.

    Returns:
        The norm, 0 or more; None where no mean and no variance travels.
    """
    squared, found = 0.0, False
    for name, tensor in model.items():
        layer, _, kind = name.rpartition(".")
        if kind not in (_MEAN, _VARIANCE):
            continue
        found = True
        # Where the variance does not travel (it may stay local), means are as they are.
        variances = sent.get(f"{layer}.{_VARIANCE}")
        variance = 1.0 if variances is None else float(np.mean(variances, dtype=np.float64))
        unit = max(variance, _LEAST)
        change = tensor.reshape(-1).astype(np.float64) - sent[name].reshape(-1)
        squared += float(change @ change) / (unit if kind == _MEAN else unit * unit)
    return float(np.sqrt(squared)) if found else None
