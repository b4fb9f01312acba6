"""lightly's losses by hand, and what changing one picture shows."""

import math
import sys

import pytest
import torch
from extras import needs

from fgvc_core.errors import ConfigurationError
from fgvc_core.training.self_supervised import self_supervised_loss

needs("lightly", "the extra 'pretraining' is not installed")

METHODS = ("simclr", "vicreg")


def random_views(seed=0, count=6, dim=5):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(count, dim, generator=generator) for _ in range(2))


def test_simclr_of_perfect_pairs_is_what_the_formula_gives():
    views_NP = torch.eye(4)
    found = self_supervised_loss("simclr", 0.5)(views_NP, views_NP)
    # One other view alike (cosine 1), six at right angles.
    expected = -math.log(math.exp(2) / (math.exp(2) + 6))
    assert float(found) == pytest.approx(expected, rel=1e-5)


def test_vicreg_is_zero_where_views_agree_and_entries_vary_on_their_own():
    signs_NP = 2 * torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    found = self_supervised_loss("vicreg", 1.0)(signs_NP, signs_NP.clone())
    assert float(found) == pytest.approx(0.0, abs=1e-5)


def test_vicreg_of_collapsed_vectors_is_the_whole_variance_term():
    same_NP = torch.ones(6, 3)
    # 25 times the mean shortfall of both halves' deviations; lightly keeps 1e-4 in the root.
    expected = 25 * (1 - math.sqrt(1e-4))
    found = self_supervised_loss("vicreg", 1.0)(same_NP, same_NP.clone())
    assert float(found) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_one_pictures_gradient_depends_on_another_picture(method):
    loss = self_supervised_loss(method, 0.2)

    def gradient(changed):
        one_NP, two_NP = random_views()
        if changed:
            one_NP[5] = -3 * one_NP[5].flip(0)
        one_NP.requires_grad_()
        loss(one_NP, two_NP).backward()
        return one_NP.grad[:5]

    assert float((gradient(False) - gradient(True)).abs().max()) > 1e-5


@pytest.mark.parametrize("method", METHODS)
def test_without_lightly_the_extra_is_named(method, monkeypatch):
    monkeypatch.setitem(sys.modules, "lightly.loss", None)
    with pytest.raises(ConfigurationError, match="lightly") as refused:
        self_supervised_loss(method, 0.2)
    assert "fieldmark[pretraining]" in refused.value.remedy
