"""Evaluation on the held-out test split, which the coordinator holds and no site has."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fgvc_core.data.table import ExampleTable
from fgvc_core.training.examples import Evaluation, Examples
from fgvc_core.training.learner import Learner

PAIRS_SHOWN = 6
PICTURES_A_CLASS = 3
THUMBNAIL = 160


class TestSplit:
    """The coordinator's test split, ready to be scored.

    Args:
        table: Its examples, with pictures for the report.
        learner: Its model computes the scores.
        cache: Folder for decoded pictures and features.
        batch_size: Pictures per batch.
    """

    __test__ = False

    def __init__(
        self,
        table: ExampleTable,
        learner: Learner,
        cache: Path,
        batch_size: int,
    ) -> None:
        self.table = table
        self._learner = learner
        self._batch_size = batch_size
        self._examples: Examples = learner.examples(table, cache)

    def score(
        self,
        tensors: dict[str, NDArray[np.float32]],
        among_K: NDArray[np.bool_] | None = None,
    ) -> tuple[Evaluation, NDArray[np.int64]]:
        """Confusion counts and predictions (N,) of a model, among some classes or all."""
        self._learner.load(tensors)
        return self._learner.evaluate(self._examples, self._batch_size, among_K)


def confused_pairs(
    table: ExampleTable, scored: Evaluation, predicted_N: NDArray[np.int64], folder: Path | None
) -> list[dict[str, Any]]:
    """The most confused pairs of classes, with pictures of both and of the mistakes.

    Args:
        table: The scored examples.
        scored: Their confusion counts.
        predicted_N: int64 (N,).
        folder: Thumbnails (PNG) are written here; None if no picture may be shown.

    Returns:
        One entry per pair, as in ``evaluation.json``.
    """
    if folder is not None:
        folder.mkdir(exist_ok=True)
    support_K = scored.confusion_KK.sum(axis=1)
    pairs: list[dict[str, Any]] = []
    # A class is in several pairs, with the same pictures.
    written: set[int] = set()
    for true, predicted, count in scored.most_confused(PAIRS_SHOWN):
        mistaken = np.flatnonzero((table.labels_N == true) & (predicted_N == predicted))
        pairs.append(
            {
                "true": true,
                "predicted": predicted,
                "count": count,
                "support": int(support_K[true]),
                "rate": count / max(int(support_K[true]), 1),
                "mistaken": mistaken[:PICTURES_A_CLASS].tolist(),
                "pictures_true": _thumbnails(
                    table, _right(table, predicted_N, true), folder, written
                ),
                "pictures_predicted": _thumbnails(
                    table, _right(table, predicted_N, predicted), folder, written
                ),
                "pictures_mistaken": _thumbnails(table, mistaken, folder, written),
            }
        )
    return pairs


def _right(table: ExampleTable, predicted_N: NDArray[np.int64], label: int) -> NDArray[np.int64]:
    right = np.flatnonzero((table.labels_N == label) & (predicted_N == label))
    return right if len(right) else np.flatnonzero(table.labels_N == label)


def _thumbnails(
    table: ExampleTable, positions: NDArray[np.int64], folder: Path | None, written: set[int]
) -> list[str]:
    """Names of the first pictures, of which those not in ``written`` yet are written."""
    names: list[str] = []
    if folder is None:
        return names
    for position in positions[:PICTURES_A_CLASS].tolist():
        name = f"{position:06d}.png"
        if position not in written:
            picture = Image.fromarray(table.picture(position, THUMBNAIL))
            picture.thumbnail((THUMBNAIL, THUMBNAIL))
            picture.save(folder / name)
            written.add(position)
        names.append(f"{folder.name}/{name}")
    return names


def zero_shot(
    test: TestSplit,
    tensors: dict[str, NDArray[np.float32]],
    class_names: tuple[str, ...],
    unseen: tuple[str, ...],
) -> dict[str, Any]:
    """Scores on the test pictures of unseen classes, and of the others.

    After Xian et al. 2019, "Zero-Shot Learning - A Comprehensive Evaluation", section 3.3,
    https://arxiv.org/abs/1707.00600, but over pictures instead of class means: ``top1`` lets the
    model choose among the unseen classes only (chance is one over their number), the generalized
    scores let it choose among all, and ``harmonic`` is the harmonic mean of those on unseen and
    seen classes.

    Args:
        test: Holds pictures of all classes.
        tensors: A model whose head scores classes by their attributes.
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
