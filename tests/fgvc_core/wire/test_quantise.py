import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fgvc_core.wire.lossy import (
    LARGEST_SCALE,
    SMALLEST_SCALE,
    channels,
    dequantise,
    first_fault_of_codes,
    quantise,
)

shapes = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5)
finite = st.floats(width=32, allow_nan=False, allow_infinity=False)
tensors = hnp.arrays(np.float32, shapes, elements=finite)


@given(tensors)
def test_every_value_comes_back_within_half_a_step_of_its_channel(values):
    codes, scales_C = quantise(values)
    assert codes.shape == values.shape
    assert first_fault_of_codes(codes, scales_C) == ""
    read = dequantise(codes, scales_C)
    assert np.isfinite(read).all()
    rows = (len(scales_C), -1) if values.size else (len(scales_C), 0)
    error = np.abs(read.astype(np.float64) - values).reshape(rows)
    half = scales_C.astype(np.float64)[:, None] / 2
    assert (error <= half * (1 + 1e-4)).all()


@given(tensors)
def test_what_was_rounded_once_is_rounded_to_itself(values):
    codes, scales_C = quantise(values)
    again, same_C = quantise(dequantise(codes, scales_C))
    np.testing.assert_array_equal(again, codes)
    np.testing.assert_allclose(same_C, scales_C, rtol=1e-6)


def test_a_channel_of_small_values_keeps_its_own_scale():
    values = np.array([[1000.0, -500.0], [1e-3, 5e-4]], dtype=np.float32)
    read = dequantise(*quantise(values))
    np.testing.assert_allclose(read, values, rtol=0.01)
    assert channels((2,)) == 1


@pytest.mark.parametrize(
    "scale", [0.0, -1.0, np.nan, np.inf, -np.inf, 1e-45, float(SMALLEST_SCALE) / 2, 3e38]
)
def test_a_scale_that_no_sender_makes_is_a_fault(scale):
    scales_C = np.array([1.0, scale], dtype=np.float32)
    assert "scale" in first_fault_of_codes(np.zeros((2, 2), np.int8), scales_C)


def test_a_code_that_no_sender_makes_is_a_fault():
    assert "-127" in first_fault_of_codes(np.array([-128], np.int8), np.ones(1, np.float32))
    assert first_fault_of_codes(np.array([-127, 127], np.int8), np.array([LARGEST_SCALE])) == ""
    assert np.isfinite(dequantise(np.array([-127, 127], np.int8), np.array([LARGEST_SCALE]))).all()
