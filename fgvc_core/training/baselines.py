"""Baselines for a federation: one model trained on one table, and a linear model on pixels."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from fgvc_core.data.pictures import PictureBank
from fgvc_core.data.table import ExampleTable
from fgvc_core.training.examples import Evaluation, Examples
from fgvc_core.training.learner import Learner
from fgvc_core.training.loop import Stretch


@dataclass(frozen=True)
class Alone:
    """The best model of a training run, and its round."""

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
    tell: Callable[[int, int], None] | None = None,
) -> Alone:
    """Train without a federation, from the learner's current tensors.

    The schedule, the epochs per round, the choice of the best round and the end by patience are
    those of a federation: a model is scored when the next round begins, the model before round 1
    takes part in the choice, and the last one is scored after the last round. A federation of one
    site by plain averaging therefore ends with the same tensors.

    Args:
        learner: Trained in place.
        train: Training examples, at least one.
        validation: Selects the best round; if empty, the last round is taken.
        rounds: Number of rounds of ``train.epochs`` epochs each; 0: the model stays as it is.
        patience: Stop after this many rounds without improvement; 0: never.
        batch_size: Pictures per evaluation batch.
        purpose: Names the generator of order and views.
        tell: Called with (rounds done, most rounds) after each.
    """
    best, best_score, best_round = learner.tensors(), (-1.0, 0.0), 0
    since_best = 0

    def consider(number: int) -> None:
        nonlocal best, best_score, best_round, since_best
        scored, _ = learner.evaluate(validation, batch_size)
        score = (scored.top1, -scored.loss)
        if not len(validation) or score > best_score:
            best, best_score, best_round, since_best = learner.tensors(), score, number, 0
        else:
            since_best += 1

    done = 0
    while done < rounds and not 0 < patience <= since_best:
        # A coordinator learns a model's scores with the replies of the next round.
        consider(done)
        learner.train_round(train, Stretch(done + 1, rounds), purpose)
        done += 1
        if tell is not None:
            tell(done, rounds)
    consider(done)
    passes = done * learner.settings.epochs // learner.settings.pass_rounds
    return Alone(best, best_round, passes)


LARGEST_SIDE = 64
"""Larger pictures are reduced to this side: more pixels only overfit faster."""

PENALTIES = (1e-3, 1e-2, 1e-1, 1.0)

ITERATIONS = 60

HELD_OUT = 5


def pixel_baseline(train: ExampleTable, test: ExampleTable, image_size: int) -> Evaluation:
    """Multinomial logistic regression on standardized pixels: the floor for any learner.

    The L2 penalty is selected on every fifth training picture, then the model is fitted to all
    of them, by L-BFGS (Liu and Nocedal 1989, https://doi.org/10.1007/BF01589116).

    Args:
        train: Labeled pictures of all sites together.
        test: The held-out split.
        image_size: Side of the squares, in pixels; at most ``LARGEST_SIDE`` is used.
    """
    size = min(image_size, LARGEST_SIDE)
    classes = train.num_classes
    images_ND, labels_N = _pixels(train, size), torch.from_numpy(train.labels_N)
    mean_D, scale = images_ND.mean(dim=0), images_ND.std().clamp_min(1e-6)
    images_ND = (images_ND - mean_D) / scale
    held = torch.arange(len(labels_N)) % HELD_OUT == 0
    best, penalty = -1.0, PENALTIES[0]
    for candidate in PENALTIES:
        weights_KD = _fit(images_ND[~held], labels_N[~held], classes, candidate)
        right = (_logits(weights_KD, images_ND[held]).argmax(dim=1) == labels_N[held]).float()
        if float(right.mean()) > best:
            best, penalty = float(right.mean()), candidate
    weights_KD = _fit(images_ND, labels_N, classes, penalty)
    logits_NK = _logits(weights_KD, (_pixels(test, size) - mean_D) / scale)
    cells = test.labels_N * classes + logits_NK.argmax(dim=1).numpy()
    counts_KK: NDArray[np.int64] = np.bincount(cells, minlength=classes**2)
    loss = float(F.cross_entropy(logits_NK, torch.from_numpy(test.labels_N), reduction="sum"))
    return Evaluation(counts_KK.reshape(classes, classes).astype(np.int64), loss)


def _pixels(table: ExampleTable, size: int) -> torch.Tensor:
    bank = PictureBank(table, size)
    return bank.batch(np.arange(len(table))).flatten(1).float() / 255


def _logits(weights_KD: torch.Tensor, images_ND: torch.Tensor) -> torch.Tensor:
    return images_ND @ weights_KD[:, :-1].T + weights_KD[:, -1]


def _fit(
    images_ND: torch.Tensor, labels_N: torch.Tensor, classes: int, penalty: float
) -> torch.Tensor:
    weights_KD = torch.zeros(classes, images_ND.shape[1] + 1, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights_KD], max_iter=ITERATIONS, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(_logits(weights_KD, images_ND), labels_N)
        loss = loss + penalty * weights_KD[:, :-1].square().sum() / 2
        loss.backward()
        return loss

    optimizer.step(closure)
    return weights_KD.detach()
