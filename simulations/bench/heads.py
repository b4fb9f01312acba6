"""Benchmark ``heads``: the head that ``train.start = "auto"`` finds, against four plain ones.

Everything is on frozen features, with five sites or the recipe's. For each seed (of the partition,
the validation split and the folds) a federation without rounds is simulated. The heads it is
compared with are fitted on the same training pictures in one place, and their settings are chosen
there by cross-validation: scikit-learn's logistic regression (C by top-1), a discriminant and its
cosine form (shrinkage, prior). No test picture takes part in any choice. All choices but that of C
are made twice, by top-1 and by macro-F1 (``train.start_metric``), and the head is scored on the
test split by the metric that it was chosen by.

Finished seeds are kept in a folder and reused for an equal recipe. Sets whose photographs are
missing are said to be skipped.
"""

import json
import os
import statistics
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fgvc_core.data.cache import cache_folder
from fgvc_core.data.table import fold_numbers
from fgvc_core.experiment import completed, make_learner
from fgvc_core.files import replace_json
from fgvc_core.recipe import Recipe, load_recipe
from fgvc_core.training.examples import Evaluation
from fgvc_core.training.head_search import Head, Pooled, best_closed_form
from fgvc_core.training.learner import Learner
from fgvc_core.training.plain import plain_regression
from fgvc_core.training.start import vectors
from fieldmark.simulations.bench import check_rows
from fieldmark.simulations.planning import Simulation
from fieldmark.simulations.preparation import Setting, deal, split_site
from fieldmark.simulations.simulate import run_with
from fieldmark.simulations.workers import available_cores, hired

RECIPES = Path(__file__).parents[1] / "recipes"
SEEDS = (1, 2, 3)
KEPT = Path("runs") / "bench-heads"

FOLDS = 3

AUTO = ("train.start=auto", "federation.rounds=0", "model.head=linear", "model.train=head")
FROZEN = (
    *("model.backbone=tf_efficientnet_lite0", "model.weights=package", "model.attention=none"),
    *("model.pooling=avg", "partition.sites=5", "data.image_size=96"),
    *("data.fieldmarks_train=1500", "data.fieldmarks_test=1200"),
)
HEADS = ("auto", "regression", "closed-form", "cosine")
METRICS = {"top1": "top1", "macro_f1": "macro-f1"}
"""Metric of the results -> ``train.start_metric``."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class Set:
    """Pictures that heads are compared on.

    Attributes:
        recipe: File in ``simulations/recipes``.
        sets: Changes to it.
        folder: Folder of the photographs below ``FIELDMARK_DATA``; None: drawn pictures.
    """

    recipe: str
    sets: tuple[str, ...] = ()
    folder: str | None = None


SETS = {
    "fieldmarks": Set("learner.toml", FROZEN),
    "cub50": Set("cub50.toml", folder="cub50"),
    # As the table in docs/learner.md: the last map.
    "ham10000": Set("ham10000.toml", ("model.until=", "model.pooling=avgmax"), folder="ham10000"),
}


def bench_heads(
    rows: Sequence[str] = (), kept: Path = KEPT, say: Say = lambda line: None
) -> dict[str, Any]:
    """The figures of ``fieldmark bench heads``, one for each set, head and metric.

    Args:
        rows: Names of sets; empty: all.
        kept: Folder of finished seeds.
        say: Called after every seed.

    Raises:
        ConfigurationError: for an unknown set.
    """
    check_rows(rows, SETS, "set of pictures of this benchmark")
    figures: dict[str, Any] = {}
    with hired(len(available_cores())) as pool:
        for name in rows or SETS:
            folder = photographs(SETS[name])
            if folder is not None and not folder.is_dir():
                figures[f"{name}/skipped"] = _skipped(folder)
                continue
            found = [_once(name, seed, kept, pool, say) for seed in SEEDS]
            figures |= _figures(name, found)
    return figures


def photographs(of: Set) -> Path | None:
    """Folder of a set's photographs, under ``FIELDMARK_DATA`` or beside the repository."""
    if of.folder is None:
        return None
    beside = Path(__file__).parents[3] / "shared" / "data"
    return Path(os.environ.get("FIELDMARK_DATA", beside)) / of.folder


def recipe_of(name: str, seed: int, metric: str = "top1") -> Recipe:
    """The recipe of a set, a seed and a metric."""
    chosen = SETS[name]
    folder = photographs(chosen)
    data = () if folder is None else (f"data.path={folder}",)
    changes = (*chosen.sets, *data, *AUTO, f"train.start_metric={metric}", f"seed={seed}")
    return load_recipe(RECIPES / chosen.recipe, changes)


def _skipped(folder: Path) -> dict[str, Any]:
    how = f"skipped: no photographs at {folder.name} (set FIELDMARK_DATA to the folder above it)"
    return {"value": None, "reference": None, "ratio": None, "unit": "top1", "how": how}


def _figures(name: str, found: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over the seeds; the reference is the better of regression and closed form."""
    figures = {}
    for metric in ("top1", "macro_f1"):
        means = {head: statistics.mean(one[head][metric] for one in found) for head in HEADS}
        reference = max(means["regression"], means["closed-form"])
        for head, mean in means.items():
            spread = statistics.stdev(one[head][metric] for one in found)
            chosen = "; ".join(str(one[head][f"chosen_{metric}"]) for one in found)
            figures[f"{name}/{head}/{metric}"] = {
                "value": round(mean, 4),
                "reference": round(reference, 4),
                "ratio": round(mean / reference, 4) if reference else None,
                "deviation": round(spread, 4),
                "unit": metric,
                "how": f"mean of {len(found)} seeds, against the better mean of regression and "
                f"closed form; chosen: {chosen}",
            }
    for figure in ("messages", "mb_up", "mb_down"):
        mean = statistics.mean(one["auto"][figure] for one in found)
        figures[f"{name}/auto/{figure}"] = {
            "value": round(mean, 2),
            "reference": None,
            "ratio": None,
            "unit": "MB" if figure.startswith("mb") else "messages",
            "how": "of one site, on average, for the whole start",
        }
    return figures


def _once(name: str, seed: int, kept: Path, pool: Executor, say: Say) -> dict[str, Any]:
    path = kept / f"{name}-{seed}.json"
    asked = recipe_of(name, seed).digest
    if path.is_file():
        known = json.loads(path.read_text(encoding="utf-8"))
        if known["recipe"] == asked:
            return dict(known["heads"])
    heads = {"auto": federated(name, seed, pool)}
    heads |= plain_heads(recipe_of(name, seed))
    kept.mkdir(parents=True, exist_ok=True)
    replace_json(path, {"recipe": asked, "heads": heads})
    told = ", ".join(f"{h} {s['top1']:.3f} ({s['macro_f1']:.3f})" for h, s in heads.items())
    say(f"{name}, seed {seed}, top-1 (macro-F1): {told}")
    return heads


def federated(name: str, seed: int, pool: Executor) -> dict[str, Any]:
    """Test scores of a federation's start, chosen by either metric, and what it cost."""
    found: dict[str, Any] = {}
    for metric, setting in METRICS.items():
        with tempfile.TemporaryDirectory() as folder:
            plan = Simulation(recipe_of(name, seed, setting), Path(folder) / "run")
            run = run_with(plan, pool, len(available_cores()), lambda done, total: None)
        found[metric], found[f"chosen_{metric}"] = run[metric], run["start"]["chosen"]
    sites = len(run["sites"])
    return {
        **found,
        # And the one with the class statistics.
        "messages": run["start"]["messages"] + 1,
        "mb_up": run["bytes_up"] / sites / 1e6,
        "mb_down": run["bytes_down"] / sites / 1e6,
    }


def plain_heads(recipe: Recipe) -> dict[str, Any]:
    """Test scores of the heads that are fitted to all sites' training pictures in one place."""
    setting = deal(recipe, cache_folder())
    recipe = completed(recipe, setting.table)
    learner = make_learner(recipe, setting.table.num_classes)
    parts = [split_site(recipe, setting, site)[0] for site in sorted(setting.rows)]
    examples = [learner.examples(part, setting.cache) for part in parts]
    batch = recipe.evaluate.batch_size
    features_ND = np.concatenate([vectors(learner, one, batch) for one in examples])
    labels_N = np.concatenate([one.labels_N.numpy() for one in examples])
    subjects = [subject for part in parts for subject in part.subjects]
    fold_N = fold_numbers(subjects, labels_N, FOLDS, b"bench heads")
    pooled = Pooled(features_ND, labels_N, fold_N)
    folds = pooled.statistics(learner.num_classes, FOLDS)
    test = learner.examples(setting.table.where("test"), setting.cache)
    heads = {"regression": _plain(recipe, setting, learner, features_ND, labels_N, subjects)}
    for metric, name in METRICS.items():
        train = recipe.train.model_copy(update={"start_metric": name})
        for row, kind in (("closed-form", "discriminant"), ("cosine", "cosine")):
            closed = best_closed_form(folds, train, pooled, kind)
            _set_head(learner, closed.head)
            scored, _ = learner.evaluate(test, batch)
            values = {metric: getattr(scored, metric), f"chosen_{metric}": str(closed.candidate)}
            heads.setdefault(row, {}).update(values)
    return heads


def _plain(
    recipe: Recipe,
    setting: Setting,
    learner: Learner,
    features_ND: NDArray[np.float32],
    labels_N: NDArray[np.int64],
    subjects: Sequence[str],
) -> dict[str, Any]:
    """Test scores of scikit-learn's logistic regression."""
    test = setting.table.where("test")
    tested_MD = vectors(learner, learner.examples(test, setting.cache), recipe.evaluate.batch_size)
    found = plain_regression(features_ND, labels_N, subjects, tested_MD, recipe.seed)
    classes = learner.num_classes
    confusion = np.bincount(test.labels_N * classes + found.predicted_M, minlength=classes**2)
    scored = Evaluation(confusion.reshape(classes, classes).astype(np.int64), 0.0)
    values = {metric: getattr(scored, metric) for metric in METRICS}
    return values | {f"chosen_{metric}": f"C = {found.strength:g}" for metric in METRICS}


def _set_head(learner: Learner, head: Head) -> None:
    weights_KD, biases_K = head
    learner.load({**learner.tensors(), "head.weight": weights_KD, "head.bias": biases_K})
