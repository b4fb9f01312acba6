"""Benchmark ``unknown``: which score tells pictures of other classes from those of a model's own.

A quarter of a set's classes is held out, a model learns the others, and each score is measured on
test pictures of both kinds by the area under the ROC curve. Models: two heads on frozen features
(the closed form, and a logistic regression), and a small network that learns everything, with and
without label smoothing. ``value`` is the mean over draws of the held-out classes, ``reference``
that of the largest share. :func:`fgvc_core.inference.confidence.default_score` is the best of each
kind of model on all sets but CUB's.
"""

import os
import statistics
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from fgvc_core.data.cache import cache_folder
from fgvc_core.data.table import ExampleTable
from fgvc_core.experiment import make_learner, make_table
from fgvc_core.inference.calibrating import fit_temperature
from fgvc_core.inference.confidence import SCORES, known_scores
from fgvc_core.inference.openset import auroc
from fgvc_core.inference.selecting import embed_all
from fgvc_core.models.class_statistics import (
    ClassStatistics,
    class_statistics,
    discriminant_scores,
)
from fgvc_core.recipe import Overrides, parse_recipe
from fgvc_core.seeds import derive_seed
from fgvc_core.training.loop import Stretch
from fgvc_core.words import counted
from fieldmark.simulations.bench.selection import RECIPE

SETS = {
    "fieldmarks": ("fieldmarks", 64, 120),
    "ham10000": ("ham10000", 160, 150),
    "cub50": ("cub", 224, 15),
}
"""Name -> data set, side of the square in pixels, most pictures a class and split."""

HELD_OUT = 0.25
"""Share of the classes that is held out."""

DRAWS, TRAINED_DRAWS = 5, 2
SHRINKAGE, PRIOR = 0.4, 0.5
NEIGHBORS = 10
PASSES = 30

SMOOTHED = {"with smoothing": (), "without smoothing": ("loss.label_smoothing=0",)}

FEATURE_SCORES = ("mahalanobis", "neighbors")
NAMES = (*SCORES, *FEATURE_SCORES)

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]
Found = dict[str, list[float]]
"""Score -> area under the ROC curve of each draw."""

Say = Callable[[str], None]


def bench_unknown(say: Say = lambda line: None) -> dict[str, Any]:
    """The figures of ``fieldmark bench unknown``, one per set, model and score."""
    figures: dict[str, Any] = {}
    for how, sets in SMOOTHED.items():
        figures |= _figures(f"fieldmarks, trained {how}", trained(say, sets=sets))
    for name in SETS:
        folder = None if name == "fieldmarks" else _folder(name)
        if folder is not None and not folder.is_dir():
            why = f"skipped: no pictures at {folder} (set FIELDMARK_DATA to the folder above it)"
            figures[f"{name}, skipped"] = {
                "value": None, "reference": None, "ratio": None, "unit": "AUROC", "how": why,
            }  # fmt: skip
            continue
        train, test = frozen_features(name, folder, say)
        for head in ("closed form", "regression"):
            figures |= _figures(f"{name}, {head}", with_head(head, train, test))
            say(f"{name}, {head}: done")
    return figures


def frozen_features(
    name: str, folder: Path | None, say: Say
) -> tuple[tuple[Floats, Labels], tuple[Floats, Labels]]:
    """Frozen features (N, D) and labels (N,) of a set's training and of its test pictures."""
    data, side, most = SETS[name]
    recipe = parse_recipe(
        f"[data]\nname = '{data}'\nimage_size = {side}\n"
        + ("" if folder is None else f"path = '{folder}'\n")
        + "[model]\nbackbone = 'tf_efficientnet_lite0'\nweights = 'package'\n"
        "attention = 'none'\npooling = 'avg'\ntrain = 'head'\n"
    )
    cache = cache_folder()
    table = make_table(recipe, cache)
    learner = make_learner(recipe, table.num_classes)
    found = []
    for split in ("train", "test"):
        part = _at_most(table.where(split), most)
        say(f"{name}: features of {counted(len(part), f'{split} picture')}")
        features_ND, _ = embed_all(learner, part, cache, 64)
        found.append((features_ND.astype(np.float64), part.labels_N))
    return found[0], found[1]


def with_head(
    head: str,
    train: tuple[Floats, Labels],
    test: tuple[Floats, Labels],
    draws: int = DRAWS,
) -> Found:
    """Each score's area for a head that is fitted on features.

    Args:
        head: ``closed form`` or ``regression``.
        train: Training features (N, D) and labels (N,).
        test: Test features and labels.
        draws: Number of draws of the held-out classes.
    """
    found: Found = {name: [] for name in NAMES}
    for draw in range(draws):
        known_K = known_classes(int(train[1].max()) + 1, draw)
        inside_N, own_N = np.isin(train[1], known_K), np.isin(test[1], known_K)
        features_ND, labels_N = train[0][inside_N], np.searchsorted(known_K, train[1][inside_N])
        weights_KD, biases_K = _fitted(head, features_ND, labels_N, len(known_K))
        logits_NK = test[0] @ weights_KD.T + biases_K
        own_NK = _out_of_fold(head, features_ND, labels_N, len(known_K))
        divisor = fit_temperature(own_NK, labels_N)
        _measure(found, logits_NK, divisor, test[0], own_N, features_ND, labels_N)
    return found


def trained(
    say: Say, draws: int = TRAINED_DRAWS, passes: int = PASSES, sets: Overrides = ()
) -> Found:
    """Each score's area for a small network that has learned everything.

    Args:
        say: Called with the progress.
        draws: Number of draws of the held-out classes.
        passes: Number of passes over the training pictures.
        sets: Changes to the recipe.
    """
    found: Found = {name: [] for name in NAMES}
    cache = cache_folder()
    recipe = parse_recipe(RECIPE, sets)
    table = make_table(recipe, cache)
    test = table.where("test")
    for draw in range(draws):
        known_K = known_classes(table.num_classes, draw)
        part = table.where("train")
        part = part.take(np.flatnonzero(np.isin(part.labels_N, known_K)))
        labels_N = np.searchsorted(known_K, part.labels_N)
        part = replace(
            part,
            labels_N=labels_N,
            class_names=tuple(part.class_names[k] for k in known_K),
            taxonomy=(),
            attributes_KA=None,
        )
        learner = make_learner(recipe, len(known_K))
        examples = learner.examples(part, cache)
        for number in range(1, passes + 1):
            learner.train_round(examples, Stretch(number, passes), "unknown")
        own_MD, _ = embed_all(learner, part, cache, 64)
        features_ND, logits_NK = (x.astype(np.float64) for x in embed_all(learner, test, cache, 64))
        own_N = np.isin(test.labels_N, known_K)
        # Half of the test pictures set the temperature, which hardly moves the area.
        half_N = own_N & (np.arange(len(test)) % 2 == 0)
        divisor = fit_temperature(
            logits_NK[half_N], np.searchsorted(known_K, test.labels_N[half_N])
        )
        right = float((known_K[logits_NK.argmax(axis=1)] == test.labels_N)[own_N].mean())
        _measure(found, logits_NK, divisor, features_ND, own_N, own_MD.astype(np.float64), labels_N)
        say(f"fieldmarks, trained, draw {draw}: top-1 {right:.3f} on its own classes")
    return found


def known_classes(classes: int, draw: int) -> Labels:
    """int64 (K,), ascending: the classes that are not held out in a draw."""
    order = np.random.default_rng(derive_seed(draw, "unknown")).permutation(classes)
    return np.sort(order[max(1, round(HELD_OUT * classes)) :])


def mahalanobis(features_ND: Floats, found: ClassStatistics) -> Floats:
    """float64 (N,): least squared distance to a class mean, by the closed form's covariance.

    Lee et al. 2018, section 2.1, https://arxiv.org/abs/1807.03888.
    """
    within_DD = found.within_DD()
    dim = len(within_DD)
    scale = float(np.trace(within_DD)) / dim
    shrunken_DD = (1 - SHRINKAGE) * within_DD + SHRINKAGE * scale * np.eye(dim)
    root_DD = np.linalg.cholesky(np.linalg.inv(shrunken_DD))
    one_ND, means_KD = features_ND @ root_DD, found.means_KD @ root_DD
    squared_NK = (
        (one_ND**2).sum(axis=1)[:, None] - 2 * one_ND @ means_KD.T + (means_KD**2).sum(axis=1)
    )
    least_N: Floats = squared_NK.min(axis=1)
    return least_N


def neighbors(features_ND: Floats, training_MD: Floats) -> Floats:
    """float64 (N,): cosine to the tenth nearest training picture.

    Sun et al. 2022, https://arxiv.org/abs/2204.06507.
    """
    one_ND, other_MD = (
        x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
        for x in (features_ND, training_MD)
    )
    alike_NM = one_ND @ other_MD.T
    place = max(alike_NM.shape[1] - NEIGHBORS, 0)
    found_N: Floats = np.partition(alike_NM, place, axis=1)[:, place]
    return found_N


def _measure(
    found: Found,
    logits_NK: Floats,
    divisor: float,
    features_ND: Floats,
    own_N: NDArray[np.bool_],
    training_MD: Floats,
    labels_M: Labels,
) -> None:
    """Add one draw's areas."""
    of_class = class_statistics(
        training_MD.astype(np.float32), labels_M, int(labels_M.max()) + 1, True
    )
    values: dict[str, Floats] = {score: known_scores(logits_NK, score, divisor) for score in SCORES}
    values |= {
        "mahalanobis": -mahalanobis(features_ND, of_class),
        "neighbors": neighbors(features_ND, training_MD),
    }
    for name, values_N in values.items():
        found[name].append(auroc(values_N[own_N], values_N[~own_N]))


def _figures(what: str, found: Found) -> dict[str, Any]:
    reference = statistics.mean(found["probability"])
    figures = {}
    for name, areas in found.items():
        value = statistics.mean(areas)
        figures[f"{what}, {name}"] = {
            "value": round(value, 4),
            "reference": round(reference, 4),
            "ratio": round(value / reference, 4),
            "unit": "AUROC",
            "how": f"{len(areas)} draws of {HELD_OUT:.0%} of the classes: "
            + ", ".join(f"{area:.3f}" for area in areas),
        }
    return figures


def _at_most(table: ExampleTable, most: int) -> ExampleTable:
    """At most so many labeled pictures of each class, drawn by a fixed seed."""
    order = np.random.default_rng(derive_seed(0, "unknown", "pictures")).permutation(len(table))
    kept: list[int] = []
    for label in range(table.num_classes):
        kept += order[table.labels_N[order] == label][:most].tolist()
    return table.take(sorted(kept))


def _fitted(
    head: str, features_ND: Floats, labels_N: Labels, classes: int
) -> tuple[Floats, Floats]:
    """Weights (K, D) and biases (K,) of a head."""
    if head == "regression":
        return _regression(features_ND, labels_N, classes)
    found = class_statistics(features_ND.astype(np.float32), labels_N, classes, True)
    return discriminant_scores(found, SHRINKAGE, PRIOR)


def _out_of_fold(head: str, features_ND: Floats, labels_N: Labels, classes: int) -> Floats:
    """Logits of the training pictures by heads that have not learned from them: three folds."""
    fold_N = np.random.default_rng(0).permutation(len(labels_N)) % 3
    found_NK = np.zeros((len(labels_N), classes))
    for fold in range(3):
        rest_N = fold_N != fold
        weights_KD, biases_K = _fitted(head, features_ND[rest_N], labels_N[rest_N], classes)
        found_NK[~rest_N] = features_ND[~rest_N] @ weights_KD.T + biases_K
    return found_NK


def _regression(features_ND: Floats, labels_N: Labels, classes: int) -> tuple[Floats, Floats]:
    """Multinomial logistic regression with a weak ridge, by L-BFGS."""
    length = float(np.linalg.norm(features_ND, axis=1).mean())
    x_ND, y_N = torch.from_numpy(features_ND / length), torch.from_numpy(labels_N)
    weight = torch.zeros(classes, x_ND.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(classes, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=60, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(x_ND @ weight.T + bias, y_N)
        loss = loss + 1e-4 * weight.square().sum() / 2
        torch.autograd.backward(loss)
        return loss

    optimizer.step(closure)
    return weight.detach().numpy() / length, bias.detach().numpy()


def _folder(name: str) -> Path:
    beside = Path(__file__).resolve().parents[3] / "shared" / "data"
    return Path(os.environ.get("FIELDMARK_DATA", beside)) / name
