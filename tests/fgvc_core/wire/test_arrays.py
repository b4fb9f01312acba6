from io import BytesIO

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fgvc_core.errors import PeerError
from fgvc_core.wire.arrays import (
    PackedTensor,
    TensorSpec,
    first_not_finite,
    pack,
    spec_of,
    unpack,
    unpack_all,
)

shapes = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5)
floats = hnp.arrays(np.float32, shapes, elements=st.floats(width=32))


@given(floats)
def test_what_is_packed_comes_back_to_the_bit(array):
    back = unpack(pack(array), spec_of(array), "w")
    assert back.dtype == array.dtype
    assert back.tobytes() == array.tobytes()


@given(floats)
def test_the_bytes_are_what_numpy_itself_writes(array):
    buffer = BytesIO()
    np.save(buffer, array, allow_pickle=False)
    assert pack(array).data == buffer.getvalue()


@settings(max_examples=300)
@given(st.binary(max_size=200), shapes)
def test_no_hostile_bytes_do_more_than_be_refused(data, shape):
    spec = TensorSpec("float32", shape)
    honest = pack(np.zeros(shape, np.float32)).data
    try:
        back = unpack(PackedTensor("float32", shape, data), spec, "w")
    except PeerError:
        return
    assert len(data) == len(honest)
    assert back.shape == shape


@pytest.mark.parametrize(
    "packed",
    [
        PackedTensor("float64", (2,), pack(np.zeros(2, np.float32)).data),
        PackedTensor("float32", (3,), pack(np.zeros(3, np.float32)).data),
        PackedTensor("float32", (2,), pack(np.zeros(2, np.float32)).data + b"\0"),
        PackedTensor("float32", (2,), b"\x93NUMPY\x02\0" + pack(np.zeros(2, np.float32)).data[8:]),
        PackedTensor("object", (2,), b""),
    ],
)
def test_a_tensor_that_is_not_exactly_what_was_expected_is_refused(packed):
    with pytest.raises(PeerError):
        unpack(packed, TensorSpec("float32", (2,)), "w")


def test_missing_and_unknown_names_are_refused():
    packed = {"a": pack(np.zeros(1, np.float32)), "c": pack(np.zeros(1, np.float32))}
    spec = TensorSpec("float32", (1,))
    with pytest.raises(PeerError, match=r"1 missing \['b'\], 1 unknown \['c'\]"):
        unpack_all(packed, {"a": spec, "b": spec})


def test_only_real_nan_and_infinity_count_as_not_finite():
    huge = np.full(4, np.finfo(np.float32).max, dtype=np.float32)
    assert first_not_finite({"a": huge}) is None
    assert first_not_finite({"a": huge, "b": np.array([1, np.nan], np.float32)}) == "b"
    assert first_not_finite({"b": np.array([np.inf, -np.inf], np.float32)}) == "b"


def test_a_digest_changes_with_values_shape_and_nothing_else():
    one = pack(np.arange(4, dtype=np.float32))
    assert one.digest() == pack(np.arange(4, dtype=np.float32)).digest()
    assert one.digest() != pack(np.arange(4, dtype=np.float32).reshape(2, 2)).digest()
    assert one.digest() != pack(np.arange(1, 5, dtype=np.float32)).digest()


def test_other_dtypes_do_not_travel():
    with pytest.raises(TypeError, match="float64 does not travel"):
        pack(np.zeros(2))
