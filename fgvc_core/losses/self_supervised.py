"""Losses on two views of the same pictures, without labels: lightly's.

``simclr``: NT-Xent (Chen et al. 2020, equation 1, https://arxiv.org/abs/2002.05709): a view has to
find its other half among all views of the batch. ``vicreg`` (Bardes et al. 2022, equations 1 to 6,
https://arxiv.org/abs/2105.04906): both views alike, each entry's variance over the batch kept up,
entries uncorrelated; no negatives. Both couple the examples of a batch, so that no single one's
part can be bounded.
"""

from collections.abc import Callable

import torch

from fgvc_core.errors import ConfigurationError

TwoViews = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Projections (N, P) of first and second views, in one order, to a scalar loss."""


def self_supervised_loss(method: str, temperature: float) -> TwoViews:
    """The loss of a method.

    Args:
        method: ``simclr`` or ``vicreg``.
        temperature: Of ``simclr``, above 0.

    Raises:
        ConfigurationError: if lightly is not installed.
    """
    try:
        from lightly.loss import NTXentLoss, VICRegLoss
    except ImportError:
        raise ConfigurationError(
            f"pretrain.method = '{method}' needs lightly, which is not installed.",
            why="Its losses are lightly's.",
            remedy="Install the extra: pip install 'fieldmark[pretraining]'.",
        ) from None
    loss: TwoViews = NTXentLoss(temperature) if method == "simclr" else VICRegLoss()
    return loss
