"""Intervals hold what they say as often as they say."""

import numpy as np
import pytest
from scipy.stats import binomtest

from fgvc_core.inference.intervals import wilson


def test_wilsons_interval_holds_a_known_share_as_often_as_it_says():
    generator = np.random.default_rng(0)
    right = generator.binomial(60, 0.85, size=1000) / 60
    held = [low <= 0.85 <= high for low, high in (wilson(share, 60) for share in right)]
    assert 0.92 <= np.mean(held) <= 0.98
    assert wilson(1.0, 10)[1] == pytest.approx(1.0)
    assert wilson(0.0, 10)[0] == pytest.approx(0.0)


@pytest.mark.parametrize(
    ("right", "total"), [(0, 1), (1, 1), (0, 7), (7, 7), (3, 10), (421, 500), (1, 4000)]
)
@pytest.mark.parametrize("level", [0.9, 0.95])
def test_the_closed_form_is_scipys(right, total, level):
    known = binomtest(right, total).proportion_ci(level, method="wilson")
    assert wilson(right / total, total, level) == pytest.approx((known.low, known.high), abs=1e-12)
