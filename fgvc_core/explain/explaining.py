"""Explains pictures: the model's answer, where its evidence lies, and why not the runner-up."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fgvc_core.data.cache import cache_folder
from fgvc_core.data.table import ExampleTable
from fgvc_core.errors import DataError
from fgvc_core.experiment import make_table
from fgvc_core.explain.attention_maps import attention_maps
from fgvc_core.explain.class_maps import ClassMaps
from fgvc_core.inference.named import named_views, spread
from fgvc_core.inference.predicting import judge_of
from fgvc_core.inference.trained import TrainedModel
from fgvc_core.inference.verdict import Judge, Verdict
from fgvc_core.recipe import Overrides, parse_recipe

_BATCH = 16


@dataclass(frozen=True)
class Explained:
    """The explanation of one picture.

    Attributes:
        name: Name of the picture.
        view_HWC: uint8 (S, S, 3), as the model sees it.
        truth: The true class, if known.
        verdict: The answer, as ``fieldmark predict`` gives it.
        wrong: Whether the answer is a name, and not that of the true class or of a group of it.
        maps: Title -> float32 (S, S), 0 to 1.
    """

    name: str
    view_HWC: NDArray[np.uint8]
    truth: str | None
    verdict: Verdict
    wrong: bool
    maps: dict[str, NDArray[np.float32]]

    def as_json(self) -> dict[str, Any]:
        """Names and numbers; for each map its peak (as fractions of the side) and its mean."""
        return {
            "picture": self.name,
            "truth": self.truth,
            "answer": self.verdict.answer,
            "sure": self.verdict.sure,
            "level": self.verdict.level,
            "reason": self.verdict.reason,
            "best": _share(self.verdict.top[0]),
            "second": _share(self.verdict.top[1]),
            "maps": {title: _summary(map_HW) for title, map_HW in self.maps.items()},
        }


def explain_some(
    trained: TrainedModel,
    pictures: Sequence[Path],
    overrides: Overrides,
    examples: int,
    method: str = "layercam",
    stage: str = "auto",
    faults: list[str] | None = None,
    tell: Callable[[int, int], None] | None = None,
) -> list[Explained]:
    """Explain named pictures, or some of the test split of the model's data.

    Args:
        trained: The model.
        pictures: Files and folders; if empty, the test split.
        overrides: Changes to the recipe, such as the location of its data.
        examples: Most pictures to explain, spread evenly.
        method: Method of the class maps.
        stage: Layer of the class maps.
        faults: If given, named pictures that cannot be read are recorded here and passed over.
        tell: Called with (pictures done, pictures in all).

    Raises:
        DataError: if there are no pictures, or ``faults`` is not given and one cannot be read.
    """
    maker = ClassMaps(trained.model, method, stage)
    judge = judge_of(trained, top=2)
    if pictures:
        found = named_views(trained, pictures, examples, faults)
        unknown = [None] * len(found.names)
        return explain(trained, found.names, found.views_NHWC, unknown, maker, judge, tell)
    table = held_out_pictures(trained, overrides, examples)
    short = round(trained.model.input.size / trained.model.input.crop)
    views = [trained.view(table.picture(n, short)) for n in range(len(table))]
    truths = [table.class_names[k] for k in table.labels_N]
    return explain(trained, table.ids, np.stack(views), truths, maker, judge, tell)


def held_out_pictures(
    trained: TrainedModel, overrides: Overrides = (), examples: int | None = None
) -> ExampleTable:
    """The test split of the model's data, or ``examples`` of it, spread evenly.

    Raises:
        DataError: if it is empty.
    """
    recipe = parse_recipe(trained.recipe.to_toml(), overrides)
    table = make_table(recipe, cache_folder()).where("test")
    if not len(table):
        raise DataError("The data have no test split.", remedy="Name pictures instead.")
    return table if examples is None else table.take(spread(len(table), examples))


def explain(
    trained: TrainedModel,
    names: Sequence[str],
    views_NHWC: NDArray[np.uint8],
    truths: Sequence[str | None],
    maker: ClassMaps,
    judge: Judge,
    tell: Callable[[int, int], None] | None = None,
) -> list[Explained]:
    """Explain N pictures.

    Args:
        trained: The model.
        names: Names of the pictures.
        views_NHWC: uint8 (N, S, S, 3).
        truths: Their true classes; None if unknown.
        maker: Makes the class maps.
        judge: Gives the answers; it lists at least two classes.
        tell: Called with (pictures done, pictures in all).

    Raises:
        DataError: if the model has one class only.
    """
    if len(trained.class_names) < 2:
        raise DataError("The model knows one class only.", why="There is nothing to tell it from.")
    found = []
    for start in range(0, len(names), _BATCH):
        stop = min(start + _BATCH, len(names))
        found += _batch(
            trained, names[start:stop], views_NHWC[start:stop], truths[start:stop], maker, judge
        )
        if tell is not None:
            tell(stop, len(names))
    return found


def _batch(
    trained: TrainedModel,
    names: Sequence[str],
    views_NHWC: NDArray[np.uint8],
    truths: Sequence[str | None],
    maker: ClassMaps,
    judge: Judge,
) -> list[Explained]:
    verdicts = judge(trained.logits(views_NHWC).numpy().astype(np.float64))
    number = {name: k for k, name in enumerate(trained.class_names)}
    best_N, second_N = (
        np.array([number[verdict.top[rank][0]] for verdict in verdicts]) for rank in (0, 1)
    )
    maps = {
        "for {best}": maker(views_NHWC, best_N),
        "for {second}": maker(views_NHWC, second_N),
        "{best}, not {second}": maker(views_NHWC, best_N, second_N),
        "{second}, not {best}": maker(views_NHWC, second_N, best_N),
    }
    own_NHW = attention_maps(trained.model, views_NHWC)
    if own_NHW is not None:
        maps["the model's own attention"] = own_NHW
    chains = dict(zip(judge.class_names, judge.taxonomy.chains, strict=True))
    found = []
    for n, (name, verdict) in enumerate(zip(names, verdicts, strict=True)):
        (best, _), (second, _) = verdict.top[:2]
        titled = {t.replace("{best}", best).replace("{second}", second): m for t, m in maps.items()}
        own = {title: maps_NHW[n] for title, maps_NHW in titled.items()}
        truth = truths[n]
        wrong = (
            truth is not None and verdict.sure and verdict.answer not in chains.get(truth, (truth,))
        )
        found.append(Explained(name, views_NHWC[n], truth, verdict, wrong, own))
    return found


def _share(ranked: tuple[str, float]) -> dict[str, Any]:
    return {"class": ranked[0], "share": ranked[1]}


def _summary(map_HW: NDArray[np.float32]) -> dict[str, Any]:
    if not map_HW.any():
        return {"peak": None, "mean": 0.0}
    row, column = np.unravel_index(int(map_HW.argmax()), map_HW.shape)
    side = map_HW.shape[0]
    return {
        "peak": [(int(column) + 0.5) / side, (int(row) + 0.5) / side],
        "mean": float(map_HW.mean()),
    }
