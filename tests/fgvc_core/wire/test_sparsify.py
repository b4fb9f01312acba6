import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fgvc_core.wire.lossy import first_fault_of_places, index_dtype, kept, largest

finite = st.floats(width=32, allow_nan=False, allow_infinity=False)


@given(hnp.arrays(np.float32, st.integers(1, 60), elements=finite), st.floats(0.01, 0.99))
def test_nothing_left_out_is_larger_than_what_travels(values, share):
    count = kept(values.size, share)
    at = largest(values, count)
    assert len(at) == count == len(set(at.tolist()))
    assert first_fault_of_places(at.astype(index_dtype(values.size)), values.size) == ""
    rest = np.delete(np.abs(values), at)
    assert not rest.size or rest.max() <= np.abs(values[at]).min()


def test_of_equal_values_the_first_are_taken():
    assert largest(np.array([2, -2, 3, 2, 2], np.float32), 3).tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("at", "said"),
    [([3, 2], "ascending"), ([2, 2], "ascending"), ([0, 4], "beyond"), ([1, 70_000], "beyond")],
)
def test_places_that_no_sender_makes_are_a_fault(at, said):
    assert said in first_fault_of_places(np.array(at, np.uint32), 4)


def test_places_are_as_narrow_as_the_tensor_allows():
    assert index_dtype(65_536) == "uint16"
    assert index_dtype(65_537) == "uint32"
