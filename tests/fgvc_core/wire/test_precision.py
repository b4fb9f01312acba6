import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fgvc_core.wire.lossy import read_halves, write_halves

shapes = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=5)
floats = hnp.arrays(np.float32, shapes, elements=st.floats(width=32))


@pytest.mark.parametrize(
    ("precision", "dtype"), [("float16", torch.float16), ("bfloat16", torch.bfloat16)]
)
@given(floats)
def test_values_round_as_torch_rounds_them(precision, dtype, values):
    read = read_halves(write_halves(values, precision), precision)
    expected = torch.from_numpy(values.copy()).to(dtype).float().numpy()
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read, expected)


@given(hnp.arrays(np.uint16, st.integers(0, 50)))
def test_any_bits_of_bfloat16_are_read_without_loss(bits):
    values = read_halves(bits, "bfloat16")
    numbers = ~np.isnan(values)
    np.testing.assert_array_equal(write_halves(values, "bfloat16")[numbers], bits[numbers])
    assert np.isnan(read_halves(write_halves(values, "bfloat16"), "bfloat16"))[~numbers].all()


def test_long_tensors_are_read_in_blocks_without_a_gap():
    values = np.arange(200_000, dtype=np.float32) % 251
    np.testing.assert_array_equal(read_halves(write_halves(values, "bfloat16"), "bfloat16"), values)
