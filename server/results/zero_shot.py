"""Classes that no site had a picture of: how well they are named all the same."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fieldmark.server.results.evaluation import TestSplit


def zero_shot(
    test: TestSplit,
    tensors: dict[str, NDArray[np.float32]],
    class_names: tuple[str, ...],
    unseen: tuple[str, ...],
) -> dict[str, Any]:
    """Scores on the test pictures of unseen classes, and of the others.

    After Xian et al. 2019, "Zero-Shot Learning - A Comprehensive Evaluation", section 3.3,
    https://arxiv.org/abs/1707.00600, with pictures instead of class means: ``top1`` lets the model
    choose among the unseen classes only (chance is one over their number), the
    generalised scores let it choose among all, and ``harmonic`` is the harmonic mean of
    those on unseen and seen classes.

    Args:
        test: Holds pictures of all classes.
        tensors: A model whose head names classes by their attributes.
        class_names: K names.
        unseen: Some of them.
    """
    unseen_K = np.isin(np.array(class_names), unseen)
    whole, _ = test.score(tensors)
    narrowed, _ = test.score(tensors, unseen_K)
    on_unseen, on_seen = whole.among(unseen_K).top1, whole.among(~unseen_K).top1
    together = on_unseen + on_seen
    return {
        "classes": [name for name in class_names if name in unseen],
        "examples": narrowed.among(unseen_K).examples,
        "top1": narrowed.among(unseen_K).top1,
        "chance": 1 / max(int(unseen_K.sum()), 1),
        "generalised_unseen": on_unseen,
        "generalised_seen": on_seen,
        "harmonic": 2 * on_unseen * on_seen / together if together else 0.0,
    }
