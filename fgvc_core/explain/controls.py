"""What explanations are compared with: a network that has learnt nothing, and the centre.

Adebayo et al. 2018, "Sanity Checks for Saliency Maps", section 3,
https://arxiv.org/abs/1810.03292: a map that stays the same when the weights are randomised shows
the picture, or the network's shape, and not what was learnt.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import rankdata

from fgvc_core.inference.trained import TrainedModel
from fgvc_core.models.build import build_classifier
from fgvc_core.models.classifier import FineGrainedClassifier
from fgvc_core.seeds import derive_seed

UNCHANGED = 0.5
"""Mean rank correlation from which a map is reported as one that learning hardly changed."""


def randomised(trained: TrainedModel, number: int) -> FineGrainedClassifier:
    """The same network with every tensor initialised anew, the pre-trained ones too.

    Layers that our networks start at zero (a linear head, gates) are drawn from a Gaussian as
    wide as the trained tensor: at zero there would be no map at all.

    Args:
        trained: Gives the recipe.
        number: Which draw, 0 and up.
    """
    recipe = trained.recipe
    settings = recipe.model.model_copy(update={"weights": "none"})
    seed = derive_seed(recipe.seed, "explain", "randomised", number)
    if settings.head == "subspace":
        # Its directions come from the pre-trained classifier: there are none without weights.
        settings = recipe.model
    model = build_classifier(settings, len(trained.class_names), recipe.data.image_size, seed)
    model.adapt(trained.model.input)
    generator = torch.Generator().manual_seed(seed)
    learnt = dict(trained.model.named_parameters())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not bool(parameter.any()):
                width = float(learnt[name].std()) if learnt[name].numel() > 1 else 1.0
                drawn = torch.randn(parameter.shape, generator=generator)
                parameter.copy_(drawn * (width if width > 0 else 0.05))
    return model.eval()


def centre_map(size: int) -> NDArray[np.float32]:
    """float32 (size, size): a Gaussian in the middle, a quarter of the side wide."""
    at = (np.arange(size) + 0.5 - size / 2) / (size / 4)
    bell = np.exp(-(at**2) / 2)
    return np.outer(bell, bell).astype(np.float32)


def rank_correlation(one_HW: NDArray[np.float32], two_HW: NDArray[np.float32]) -> float:
    """Spearman's, -1 to 1, between two maps; 0 where one of them is constant."""
    ranks = [rankdata(m_HW, axis=None) for m_HW in (one_HW, two_HW)]
    spreads = [float(r.std()) for r in ranks]
    if min(spreads) == 0:
        return 0.0
    one, two = ((r - r.mean()) / s for r, s in zip(ranks, spreads, strict=True))
    return float((one * two).mean())
