from dataclasses import dataclass

import numpy as np
import pytest

from fgvc_core.data.table import ExampleTable
from fgvc_core.training.baselines import LARGEST_SIDE, pixel_baseline


@dataclass(frozen=True)
class Pictures:
    """Pictures that are in memory."""

    images_NHWC: np.ndarray

    def picture(self, row, size=None):
        return self.images_NHWC[row]

    def content_key(self, row):
        return row.to_bytes(32, "big")


def table(images_NHWC, labels_N, classes):
    count = len(labels_N)
    ids = tuple(f"{i}" for i in range(count))
    return ExampleTable(
        source=Pictures(images_NHWC),
        rows=np.arange(count),
        ids=ids,
        labels_N=np.asarray(labels_N, dtype=np.int64),
        splits=("train",) * count,
        subjects=ids,
        class_names=tuple("abcd"[:classes]),
    )


def pictures(count, strength, seed, side=16, classes=4):
    """Noise, with one quadrant as much brighter as the strength says."""
    generator = np.random.default_rng(seed)
    labels_N = generator.integers(classes, size=count)
    images_NHWC = generator.normal(110, 20, (count, side, side, 3))
    half = side // 2
    for image_HWC, label in zip(images_NHWC, labels_N, strict=True):
        down, across = divmod(int(label), 2)
        image_HWC[down * half : (down + 1) * half, across * half : (across + 1) * half] += strength
    return table(images_NHWC.clip(0, 255).astype(np.uint8), labels_N, classes)


def test_classes_that_a_line_separates_are_told_apart():
    scored = pixel_baseline(pictures(120, 30, 0), pictures(80, 30, 1), 16)
    assert scored.examples == 80
    assert scored.top1 >= 0.97


def test_noise_is_told_apart_no_better_than_by_chance():
    scored = pixel_baseline(pictures(120, 0, 0), pictures(200, 0, 1), 16)
    assert 0.12 <= scored.top1 <= 0.38


def test_the_same_pictures_give_the_same_floor_whatever_their_brightness():
    train, test = pictures(80, 12, 0), pictures(80, 12, 1)
    once, twice = pixel_baseline(train, test, 16), pixel_baseline(train, test, 16)
    assert (once.confusion_KK == twice.confusion_KK).all()
    dim = [table(t.source.images_NHWC // 2 + 60, t.labels_N, 4) for t in (train, test)]
    assert pixel_baseline(*dim, 16).top1 == pytest.approx(once.top1, abs=0.1)


def test_large_pictures_are_reduced_first(monkeypatch):
    import fgvc_core.training.baselines as baseline

    asked, bank = [], baseline.PictureBank
    monkeypatch.setattr(
        baseline, "PictureBank", lambda t, size: asked.append(size) or bank(t, size)
    )
    monkeypatch.setattr(baseline, "ITERATIONS", 2)
    pixel_baseline(pictures(20, 30, 0, side=80), pictures(8, 30, 1, side=80), 80)
    assert asked == [LARGEST_SIDE] * 2


def test_a_class_that_training_lacks_is_only_scored():
    few = pictures(60, 30, 0)
    kept = few.take(np.flatnonzero(few.labels_N != 3))
    scored = pixel_baseline(kept, pictures(60, 30, 1), 16)
    assert scored.recall_K[3] == 0
    assert scored.recall_K[:3].min() > 0.9
