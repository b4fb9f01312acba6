"""To the bit: what is computed of one unit depends on that unit alone, in every engine."""

import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from fgvc_core.losses.base import SmoothedCrossEntropy
from fgvc_core.models.build import build_classifier
from fgvc_core.models.heads import CosineHead, LinearHead, SubspaceHead
from fgvc_core.models.settings import ModelSettings
from fgvc_core.privacy import gradients, hooks
from fgvc_core.privacy.gradients import ClosedFormEngine, HeadView, LoopEngine, UnitBatch
from fgvc_core.privacy.hooks import OpacusEngine
from fgvc_core.privacy.rows import AT_ONCE, each_row, row_products, row_sums

SHAPES = [(7, 128), (12, 1280), (50, 130), (3, 17)]
"""(classes, directions): whole and odd numbers of a processor's vectors."""


class Setting:
    """Features, a head and the engines over it, in float32 as at a site."""

    def __init__(self, kind, classes, size, count, seed=3, at_once=1 << 30):
        generator = torch.Generator().manual_seed(seed)
        self.features = torch.randn(count, size, generator=generator)
        self.labels = torch.randint(classes, (count,), generator=generator)
        self.head = LinearHead(size, classes) if kind == "linear" else CosineHead(size, classes, 16)
        with torch.no_grad():
            for parameter in self.head.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
        parameters = list(self.head.parameters())
        self.loop = LoopEngine(parameters, self.losses, at_once=at_once)
        self.opacus = OpacusEngine(self.head, parameters, self.losses, at_once=at_once)
        self.closed = ClosedFormEngine(self.view, self.features, self.labels)

    def losses(self, positions):
        logits = self.head(self.features[positions])
        return SmoothedCrossEntropy(0.1).per_example(logits, self.labels[positions])

    def view(self):
        head = self.head
        return HeadView(head.weight, getattr(head, "bias", None), getattr(head, "scale", None), 0.1)


@pytest.fixture
def factors(monkeypatch):
    """Every factor that units are multiplied with, in the order of the units."""
    seen = []

    def spy(squares, bound):
        scales = clip(squares, bound)
        seen.extend(scales.tolist())
        return scales

    clip = gradients.clip_scales
    monkeypatch.setattr(gradients, "clip_scales", spy)
    monkeypatch.setattr(hooks, "clip_scales", spy)

    def of(engine, positions, units):
        names, numbered = np.unique(units, return_inverse=True)
        seen.clear()
        engine.clipped_sum(UnitBatch(positions, numbered.reshape(-1), len(names)), 1e-3)
        assert len(seen) == len(names)
        return dict(zip(names.tolist(), seen, strict=True))

    return of


def check_each_gone(factors, engine, units):
    """With any one unit away, each other's factor is what it was."""
    positions = np.arange(len(units))
    whole = factors(engine, positions, units)
    assert len(set(whole.values())) > 1
    for gone in whole:
        kept = units != gone
        less = factors(engine, positions[kept], units[kept])
        assert less == {unit: factor for unit, factor in whole.items() if unit != gone}, gone


@pytest.mark.parametrize(("classes", "size"), SHAPES)
@pytest.mark.parametrize("kind", ["linear", "cosine"])
@pytest.mark.parametrize("engine", ["closed", "loop"])
def test_a_units_factor_is_the_same_to_the_bit_whoever_else_is_drawn(
    factors, engine, kind, classes, size
):
    rng = np.random.default_rng(1)
    units = np.concatenate([np.arange(14), rng.integers(0, 6, 10), [20] * 9])
    setting = Setting(kind, classes, size, len(units))
    check_each_gone(factors, getattr(setting, engine), units)


@pytest.mark.parametrize("kind", ["linear", "cosine"])
@pytest.mark.parametrize("at_once", [4, 8])
def test_with_opacus_too_where_pieces_have_one_shape(factors, kind, at_once):
    units = np.array([0, 1, 2, 2, 3, 4, 5, 5, 5, 6, 7, 8, 9, 9, 9, 9, 9, 9, 9, 9, 9, 10, 11])
    setting = Setting(kind, 12, 130, len(units), at_once=at_once)
    check_each_gone(factors, setting.opacus, units)


def test_with_opacus_on_a_whole_network_too(factors):
    model = build_classifier(ModelSettings(backbone="fieldmark_nano", head="cosine"), 5, 32, 1)
    images = torch.randn(9, 3, 32, 32, generator=torch.Generator().manual_seed(2))

    def losses(positions):
        return F.cross_entropy(model.train()(images[positions]), positions % 5, reduction="none")

    engine = OpacusEngine(model, list(model.parameters()), losses, at_once=4)
    check_each_gone(factors, engine, np.array([0, 1, 1, 2, 3, 3, 3, 4, 5]))


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(0, 7), min_size=2, max_size=24),
    st.integers(1, 40),
    st.integers(2, 300),
    st.integers(0, 1 << 16),
)
def test_rows_do_not_see_each_other(owners, classes, size, seed):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(len(owners), size, generator=generator, dtype=torch.float64)
    weight = torch.randn(classes, size, generator=generator, dtype=torch.float64)
    kept = [at for at, owner in enumerate(owners) if owner != owners[0]]
    for order in (kept, kept[::-1]):
        assert torch.equal(row_products(rows, weight)[order], row_products(rows[order], weight))
        assert torch.equal(row_sums(rows)[order], row_sums(rows[order]))
    products = rows @ weight.T
    assert float((row_products(rows, weight) - products).abs().max()) < 1e-10


@pytest.mark.parametrize("size", [64, 130, 1280])
def test_what_is_computed_of_each_row_by_itself_does_not_see_the_others(size):
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(30, size, generator=generator)
    directions = torch.linalg.qr(torch.randn(size, 16, generator=generator))[0].T.contiguous()
    head = SubspaceHead(directions, 5)
    whole = each_row(head.project, rows, 16)
    for gone in range(30):
        kept = [at for at in range(30) if at != gone]
        assert each_row(head.project, rows[kept], 16).tobytes() == whole[kept].tobytes()
    assert each_row(head.project, rows[:0], 16).shape == (0, 16)


@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_a_unit_of_very_many_pictures_is_summed_like_any_other(kind):
    count = AT_ONCE + 300
    setting = Setting(kind, 5, 24, count + 5)
    units = np.concatenate([[0, 1], np.full(count, 2), [3, 0, 1]])
    batch = UnitBatch(np.arange(count + 5), units, 4)
    for bound in (1e-2, 1e9):
        found, loop = (
            setting.closed.clipped_sum(batch, bound),
            setting.loop.clipped_sum(batch, bound),
        )
        scale = max(1.0, float(loop.total_D.abs().max()))
        assert float((found.total_D - loop.total_D).abs().max()) < 2e-5 * scale
        assert found.unclipped == loop.unclipped == (4 if bound > 1 else 0)


def test_a_unit_of_very_many_pictures_that_is_not_finite_counts_as_zero():
    setting = Setting("linear", 5, 24, AT_ONCE + 4)
    setting.features[7] = torch.nan
    units = np.concatenate([np.zeros(AT_ONCE + 1, dtype=np.int64), [1, 2, 3]])
    found = setting.closed.clipped_sum(UnitBatch(np.arange(len(units)), units, 4), 1.0)
    less = UnitBatch(np.arange(AT_ONCE + 1, len(units)), np.arange(3), 3)
    assert torch.equal(found.total_D, setting.closed.clipped_sum(less, 1.0).total_D)


def test_one_unit_of_ten_thousand_pictures_takes_no_more_memory_than_many_of_one():
    """In a process of its own, whose peak is its own; all engines together stay below the bound."""
    code = """
        import resource, sys
        import numpy as np
        from test_rows import Setting
        from fgvc_core.privacy.gradients import UnitBatch
        setting = Setting("linear", 12, 256, 10_000, at_once=32)
        engines = [setting.closed, setting.loop, setting.opacus]
        few = UnitBatch(np.arange(64), np.arange(64), 64)
        one = UnitBatch(np.arange(10_000), np.zeros(10_000, dtype=np.int64), 1)
        def peak():
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for engine in engines:
            engine.clipped_sum(few, 1.0)
        before = peak()
        for engine in engines:
            assert engine.clipped_sum(one, 1.0).total_D.isfinite().all()
        print((peak() - before) / 1024)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True, text=True, timeout=200, check=False,
        cwd=__file__.rpartition("/")[0],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    # 10,000 x 10,000 numbers would be 800 MB.
    assert float(done.stdout.split()[-1]) < 60
