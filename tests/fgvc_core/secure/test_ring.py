"""The ring: a sum of values in steps is exact, and no honest sum wraps."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fgvc_core.privacy.noise import largest_draw
from fgvc_core.secure.ring import bits_for, from_ring, most_steps, to_ring, to_steps
from fgvc_core.secure.rules import MOST_SITES


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("levels", [0, 1, 2])
def test_the_largest_federation_of_the_largest_values_and_noise_does_not_wrap(bits, levels):
    most = most_steps(bits, levels)
    noise = largest_draw(levels) if levels else 0
    for sign in (1, -1):
        steps = np.array([sign * (most + noise)], np.int64)
        total = sum(int(s) for s in steps) * MOST_SITES
        words = to_ring(steps, bits)
        added = words.copy()
        for _ in range(MOST_SITES - 1):
            added += words
        assert from_ring(added, 1.0)[0] == float(total)
        assert abs(total) < 2 ** (bits - 1)


@settings(max_examples=200, deadline=None)
@given(
    values=st.lists(st.floats(-1e300, 1e300, allow_nan=False), min_size=1, max_size=20),
    bits=st.sampled_from([32, 64]),
    step=st.sampled_from([2.0**-20, 0.3, 7.0]),
)
def test_a_value_comes_back_within_half_a_step_or_clamped(values, bits, step):
    most = most_steps(bits, 1)
    found = from_ring(to_ring(to_steps(np.array(values), step, most), bits), step)
    for value, back in zip(values, found, strict=True):
        if abs(value) < (most - 1) * step:
            assert abs(back - value) <= step / 2 * (1 + 1e-9) + 1e-9 * abs(value)
        else:
            assert abs(back) == pytest.approx(most * step, rel=1e-6)
            assert np.sign(back) == np.sign(value)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(-1e12, 1e12), min_size=2, max_size=2))
def test_clamping_never_moves_two_values_apart(pair):
    most = most_steps(32, 1)
    one, other = (int(v) for v in to_steps(np.array(pair), 1.0, most))
    assert abs(one - other) <= abs(pair[0] - pair[1]) + 1


def test_many_values_travel_in_32_bits_unless_their_noise_is_wide():
    assert [bits_for(1 << 20, 1), bits_for((1 << 20) + 1, 1), bits_for((1 << 20) + 1, 2)] == [
        64, 32, 32,
    ]  # fmt: skip
    assert bits_for(1 << 24, 3) == 64
    # Wider noise would leave no room for a value in 32 bits.
    assert most_steps(32, 3) < 0 < most_steps(32, 2)
