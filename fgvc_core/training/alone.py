"""Training without a federation: one model on one table, for comparison.

It gets what a federated site gets: the same passes a round, the same schedule over
the rounds, the same choice of the best round by validation.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fgvc_core.training.examples import Examples
from fgvc_core.training.learner import Learner
from fgvc_core.training.schedule import Stretch


@dataclass(frozen=True)
class Alone:
    """The best model of a training, and the round that it is from."""

    tensors: dict[str, NDArray[np.float32]]
    best_round: int
    passes: int


def train_alone(
    learner: Learner,
    train: Examples,
    validation: Examples,
    rounds: int,
    patience: int,
    batch_size: int,
    purpose: str,
) -> Alone:
    """Train from the learner's present tensors.

    Args:
        learner: Trained in place.
        train: What it learns from; at least one example.
        validation: What picks the best round; where empty, the last one is taken.
        rounds: Stretches of ``train.epochs`` passes each.
        patience: Stop after so many rounds without a better score; 0: never.
        batch_size: Pictures scored at once.
        purpose: Names the generator of order and views.
    """
    best, best_score, best_round, done = learner.tensors(), None, 0, 0
    for number in range(1, rounds + 1):
        learner.train_round(train, Stretch(number, rounds), purpose)
        done = number
        scored, _ = learner.evaluate(validation, batch_size)
        score = (scored.top1, -scored.loss)
        if best_score is None or not len(validation) or score > best_score:
            best, best_score, best_round = learner.tensors(), score, number
        elif 0 < patience <= number - best_round:
            break
    return Alone(best, best_round, done * learner.settings.epochs)
