"""Cross-entropy at the coarser levels of a taxonomy.

The probability of a family is the sum of its species' (Bertinetto et al. 2020, "Making
Better Mistakes", section 3.1, https://arxiv.org/abs/1912.09393, takes the same view of a
taxonomy): a wrong species in the right family costs less than one in a wrong family. No
parameters, no coupling; one pass over the logits a level. A warning: it buys milder
mistakes, seldom fewer.
"""

from collections.abc import Sequence

import torch

from fgvc_core.errors import ConfigurationError
from fgvc_core.losses.base import Answers, ClassKnowledge, Loss


class HierarchicalCrossEntropy(Loss):
    """The mean of the cross-entropies at all levels above the class.

    Args:
        taxonomy: K tuples of names from coarse to fine, ending in the class.
    """

    def __init__(self, taxonomy: Sequence[Sequence[str]] = ()) -> None:
        super().__init__()
        self.levels = [_groups([chain[level] for chain in taxonomy]) for level in _above(taxonomy)]

    def informed(self, known: ClassKnowledge) -> Loss:
        """See :class:`Loss`."""
        if not _above(known.taxonomy):
            raise ConfigurationError(
                "loss.hierarchy > 0, but the data set has no taxonomy.",
                why="It scores the coarser levels that a taxonomy names.",
                remedy="Set loss.hierarchy = 0, or take a data set with one (fieldmarks, cars, "
                "aircraft).",
            )
        return HierarchicalCrossEntropy(known.taxonomy)

    def each(self, answers: Answers, labels_N: torch.Tensor) -> torch.Tensor:
        """See :class:`Loss`."""
        if not self.levels:
            raise TypeError("a hierarchical loss is informed before it is used")
        log_NK = answers.logits_NK.log_softmax(dim=1)
        total_N = log_NK.new_zeros(len(log_NK))
        for groups_K in self.levels:
            groups_K = groups_K.to(log_NK.device)
            log_NG = group_log_probabilities(log_NK, groups_K)
            if labels_N.ndim == 2:
                share_NG = log_NG.new_zeros(log_NG.shape).index_add_(
                    1, groups_K, labels_N.to(log_NG.dtype)
                )
                total_N = total_N - (share_NG * log_NG).sum(dim=1)
            else:
                total_N = total_N - log_NG.gather(1, groups_K[labels_N, None]).squeeze(1)
        return total_N / len(self.levels)


def group_log_probabilities(log_NK: torch.Tensor, groups_K: torch.Tensor) -> torch.Tensor:
    """(N, G): the log of each group's summed probability.

    Args:
        log_NK: Log probabilities of the classes.
        groups_K: int64 (K,), each class's group, 0 to G - 1, none empty.
    """
    members_GK = torch.nn.functional.one_hot(groups_K).T.bool()
    spread_NGK = log_NK[:, None, :].masked_fill(~members_GK, -torch.inf)
    return spread_NGK.logsumexp(dim=2)


def _above(taxonomy: Sequence[Sequence[str]]) -> range:
    return range(len(taxonomy[0]) - 1) if taxonomy else range(0)


def _groups(names: Sequence[str]) -> torch.Tensor:
    number = {name: g for g, name in enumerate(dict.fromkeys(names))}
    return torch.tensor([number[name] for name in names], dtype=torch.int64)
