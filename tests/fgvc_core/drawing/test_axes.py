import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fgvc_core.drawing.axes import (
    LEAST_LABEL_PX,
    ROOM_PX,
    WIDTH,
    count_ticks,
    round_ticks,
    round_top,
)


@given(st.floats(1e-6, 1e9), st.integers(2, 8))
def test_ticks_are_few_round_and_begin_at_nothing(high, most):
    ticks = round_ticks(0, high, most)
    assert ticks[0] == 0
    assert len(ticks) <= most + 1
    assert ticks[-1] <= high * (1 + 1e-6)
    if len(ticks) > 1:
        step = ticks[1]
        mantissa = step / 10 ** math.floor(math.log10(step) + 1e-9)
        assert round(mantissa, 6) in (1, 2, 5)


@given(st.floats(1e-6, 1e9))
def test_an_axis_ends_at_a_round_value_that_is_not_below_the_data(high):
    assert high <= round_top(high) * (1 + 1e-9)
    assert round_top(high) <= 2.5 * high


@given(st.integers(1, 100_000))
def test_rounds_are_labeled_by_round_numbers_at_equal_distances(last):
    ticks = count_ticks(last)
    assert 1 <= len(ticks) <= 6
    assert all(1 <= tick <= last for tick in ticks)
    step = ticks[0]
    assert ticks == [step * number for number in range(1, len(ticks) + 1)]
    assert int(str(step).rstrip("0")) in (1, 2, 5)


@pytest.mark.parametrize("high", [0.0, -1.0, math.nan, math.inf])
def test_without_a_value_the_axis_is_from_nought_to_one(high):
    assert round_top(high) == 1


def test_the_view_box_leaves_labels_their_size_on_a_phone():
    assert 12.5 * ROOM_PX / WIDTH >= LEAST_LABEL_PX
