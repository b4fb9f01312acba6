"""Benchmark ``features``: features of JPEG files against the network alone, and scaled decoding.

Pictures of the embedded set are drawn at 512 px and written as JPEGs, so that a network with
pictures of 224 px lets libjpeg decode them at half their size (Pillow's ``draft``).
"""

import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from fgvc_core.data.cache import cache_folder
from fgvc_core.data.files import FileSource
from fgvc_core.data.pictures import PictureBank
from fgvc_core.data.table import ExampleTable, PictureSource
from fgvc_core.experiment import make_learner, make_table
from fgvc_core.models.classifier import FineGrainedClassifier
from fgvc_core.recipe import parse_recipe
from fgvc_core.training.features import FeatureStore, ensure_features, read_features
from fgvc_core.training.plain import plain_regression
from fieldmark.simulations.bench import figure

STORED = 512
"""Side of the stored pictures, in pixels."""

QUALITY = 92
TRAIN, TEST = 192, 96
BATCH = 32
REPEATS = 3

RECIPE = """
name = "bench-features"
[model]
backbone = "tf_efficientnet_lite0"
weights = "package"
attention = "none"
train = "head"
[data]
image_size = {size}
"""


def bench_features(size: int = 224) -> dict[str, Any]:
    """The figures of ``fieldmark bench features``.

    Args:
        size: Side of the network's pictures, in pixels.
    """
    learner = make_learner(parse_recipe(RECIPE.format(size=size)), 12)
    drawn = make_table(
        parse_recipe("", [f"data.image_size={STORED}", f"data.fieldmarks_train={TRAIN}",
                          f"data.fieldmarks_test={TEST}"]), cache_folder()
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        scaled = as_jpegs(drawn, Path(folder) / "pictures")
        whole = replace(scaled, source=Whole(scaled.source))
        timed = scaled.where("test")
        passed, alone = pictures_a_second(learner.model, timed, Path(folder))
        figures: dict[str, Any] = {
            "pictures_a_core_second": figure(
                passed,
                alone,
                "1/s",
                f"features of {len(timed)} JPEGs of {STORED} px at {size} px, decoding and storing "
                f"included, against the network on decoded pictures; processor time of all "
                f"threads, best of {REPEATS} in turn",
            )
        }
        figures["scaled_decoding_levels"] = figure(
            levels_apart(scaled.where("test"), whole.where("test"), learner.model),
            None,
            "levels",
            "mean distance of a picture's values from those after whole decoding, of 255",
        )
        half, full = (
            top1(learner.model, tested, FeatureStore(Path(folder), bytes([number]) * 32))
            for number, tested in enumerate((scaled, whole))
        )
        how = f"top-1 of a regression on {TRAIN} pictures' features, on {TEST} others"
        figures["scaled_decoding_top1"] = figure(
            half, full, "share", f"{how}, decoded at half size; reference: decoded whole"
        )
    return figures


class Whole(PictureSource):
    """A source that decodes whole pictures, whatever size is asked for.

    Args:
        source: The pictures.
    """

    def __init__(self, source: PictureSource) -> None:
        self._source = source

    def picture(self, row: int, size: int | None = None) -> NDArray[np.uint8]:
        """See :class:`~fgvc_core.data.table.PictureSource`."""
        return self._source.picture(row)

    def content_key(self, row: int) -> bytes:
        """See :class:`~fgvc_core.data.table.PictureSource`."""
        return self._source.content_key(row)


def as_jpegs(table: ExampleTable, folder: Path) -> ExampleTable:
    """The table with its pictures as JPEG files in a folder."""
    folder.mkdir()
    names = [f"{position}.jpg" for position in range(len(table))]
    for name, row in zip(names, table.rows.tolist(), strict=True):
        Image.fromarray(table.source.picture(row)).save(folder / name, quality=QUALITY)
    return replace(table, source=FileSource(folder, names), rows=np.arange(len(table)))


def pictures_a_second(
    model: FineGrainedClassifier, table: ExampleTable, folder: Path
) -> tuple[float, float]:
    """Pictures a second of processor time: with decoding, and of the network alone."""
    spec = model.input
    images_NCHW = PictureBank(table, spec.size, spec.crop, spec.interpolation).batch(
        np.arange(len(table))
    )
    stores = iter(range(REPEATS + 1))

    def passed() -> None:
        store = FeatureStore(folder, bytes([100 + next(stores)]) * 32)
        ensure_features(model, table, store, BATCH)

    @torch.inference_mode()
    def alone() -> None:
        for batch_NCHW in images_NCHW.split(BATCH):
            model.embed(model.normalise(batch_NCHW))

    model.eval()
    best = {passed: np.inf, alone: np.inf}
    for repeat in range(REPEATS + 1):
        for run in best:
            seconds = _processor_seconds(run)
            if repeat:
                best[run] = min(best[run], seconds)
    return len(table) / best[passed], len(table) / best[alone]


def levels_apart(one: ExampleTable, other: ExampleTable, model: FineGrainedClassifier) -> float:
    """Mean absolute difference of two decodings of the same pictures, 0 to 255."""
    spec = model.input
    banks = [
        PictureBank(table, spec.size, spec.crop, spec.interpolation).batch(np.arange(len(table)))
        for table in (one, other)
    ]
    return float((banks[0].float() - banks[1].float()).abs().mean())


def top1(model: FineGrainedClassifier, table: ExampleTable, store: FeatureStore) -> float:
    """Top-1 of a regression on the training split's features, on the test split."""
    train, test = table.where("train"), table.where("test")
    vectors_ND = read_features(model, train, store).numpy()
    scored_MD = read_features(model, test, store).numpy()
    found = plain_regression(vectors_ND, train.labels_N, train.subjects, scored_MD, 1)
    return float((found.predicted_M == test.labels_N).mean())


def _processor_seconds(run: Callable[[], None]) -> float:
    started = time.process_time()
    run()
    return time.process_time() - started
