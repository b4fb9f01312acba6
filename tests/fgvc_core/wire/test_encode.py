import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fgvc_core.errors import ConfigurationError, PeerError, RunFailed
from fgvc_core.wire.arrays import PackedTensor, pack, pack_all, spec_of
from fgvc_core.wire.codec import (
    SMALL,
    decode_model,
    decode_update,
    encode_model,
    encode_update,
    model_parts,
    packed_bytes,
    update_parts,
)
from fgvc_core.wire.settings import WireSettings

SHAPES = {
    "head.weight": (7, 40),
    "bias": (300,),
    "small": (SMALL,),
    "scale": (),
    "norm.running_var": (500,),
    "none": (0,),
}
ENCODED = {"head.weight", "bias"}
WIRES = [
    WireSettings(precision=precision, delta=delta, top_k=top_k)
    for precision, delta, top_k in itertools.product(
        ("float32", "float16", "bfloat16", "int8"), (False, True), (0.0, 0.1)
    )
    if delta or not top_k
]


def model(seed, spread=1.0):
    draw = np.random.default_rng(seed)
    return {n: np.asarray(spread * draw.standard_normal(s), np.float32) for n, s in SHAPES.items()}


def moved(reference, seed, by=1e-2):
    step = model(seed, by)
    return {name: reference[name] + step[name] for name in reference}


REFERENCE = model(0)
SPECS = {name: spec_of(tensor) for name, tensor in REFERENCE.items()}


@pytest.mark.parametrize("wire", WIRES, ids=str)
def test_what_is_encoded_has_the_announced_parts_and_bytes_and_comes_back_close(wire):
    tensors = moved(REFERENCE, 1)
    encoded = encode_update(tensors, wire, REFERENCE)
    parts = update_parts(SPECS, wire, REFERENCE)
    assert {n: (p.dtype, p.shape) for n, p in encoded.parts.items()} == {
        n: (s.dtype, s.shape) for n, s in parts.items()
    }
    assert sum(len(p.data) for p in encoded.parts.values()) == packed_bytes(parts)
    back = decode_update(encoded.parts, SPECS, wire, REFERENCE)
    for name, tensor in tensors.items():
        assert (back[name].dtype, back[name].shape) == (np.float32, tensor.shape)
        # What was left out is a change of 1e-2 a value at most; 8 bits of a whole weight less.
        np.testing.assert_allclose(back[name], tensor, atol=0.06)
    for name in {*SHAPES} - ENCODED:
        np.testing.assert_array_equal(back[name], tensors[name])


@pytest.mark.parametrize("wire", WIRES, ids=str)
def test_what_stays_behind_is_exactly_what_did_not_travel(wire):
    tensors = moved(REFERENCE, 2)
    encoded = encode_update(tensors, wire, REFERENCE)
    assert set(encoded.residual) == (ENCODED if wire.top_k else set())
    zero = {name: np.zeros_like(tensor) for name, tensor in REFERENCE.items()}
    # Against a model of zeros the decoder shows the difference itself.
    travelled = decode_update(encoded.parts, SPECS, wire, zero)
    for name, left in encoded.residual.items():
        np.testing.assert_allclose(
            travelled[name] + left, tensors[name] - REFERENCE[name], atol=1e-8
        )


def test_error_feedback_loses_nothing_over_many_rounds():
    wire = WireSettings(precision="int8", delta=True, top_k=0.1)
    residual, arrived, wanted = None, {}, {}
    for round_ in range(60):
        tensors = moved(REFERENCE, 100 + round_)
        encoded = encode_update(tensors, wire, REFERENCE, residual)
        residual = encoded.residual
        back = decode_update(encoded.parts, SPECS, wire, REFERENCE)
        for name in residual:
            arrived[name] = arrived.get(name, 0) + (back[name] - REFERENCE[name])
            wanted[name] = wanted.get(name, 0) + (tensors[name] - REFERENCE[name])
    for name in residual:
        np.testing.assert_allclose(arrived[name] + residual[name], wanted[name], atol=1e-4)
        if residual[name].size:
            # Whatever waits goes out in its turn: it does not pile up with the rounds.
            assert np.abs(residual[name]).max() < 0.2


def test_a_plain_wire_is_what_it_was_before_there_were_settings():
    assert encode_update(REFERENCE, WireSettings(), {}).parts == pack_all(REFERENCE)
    assert encode_model(REFERENCE, WireSettings()) == pack_all(REFERENCE)


def test_tensors_beside_the_model_travel_as_they_are():
    wire = WireSettings(precision="int8", delta=True)
    tensors = {**moved(REFERENCE, 3), "variate": np.linspace(0, 1, 900, dtype=np.float32)}
    specs = {name: spec_of(tensor) for name, tensor in tensors.items()}
    parts = encode_update(tensors, wire, REFERENCE).parts
    np.testing.assert_array_equal(
        decode_update(parts, specs, wire, REFERENCE)["variate"], tensors["variate"]
    )


@pytest.mark.parametrize("down", ["float32", "float16", "bfloat16"])
def test_the_model_goes_down_in_as_many_bits_as_asked(down):
    wire = WireSettings(down=down)
    parts = encode_model(REFERENCE, wire)
    assert packed_bytes(model_parts(SPECS, wire)) == sum(len(p.data) for p in parts.values())
    back = decode_model(parts, SPECS, wire)
    for name, tensor in REFERENCE.items():
        np.testing.assert_allclose(back[name], tensor, rtol=2**-8 if down != "float32" else 0)


@pytest.mark.parametrize(
    ("wire", "value"),
    [
        (WireSettings(precision="float16"), 7e4),
        (WireSettings(precision="bfloat16"), np.finfo(np.float32).max),
        (WireSettings(precision="int8"), np.nan),
        (WireSettings(delta=True), np.inf),
    ],
    ids=str,
)
def test_a_value_that_cannot_travel_is_said_by_name(wire, value):
    tensors = {**REFERENCE, "bias": np.full(300, value, np.float32)}
    with pytest.raises(RunFailed, match="'bias'"):
        encode_update(tensors, wire, REFERENCE)


def sparse(**changes):
    wire = WireSettings(precision="int8", delta=True, top_k=0.1)
    parts = encode_update(moved(REFERENCE, 4), wire, REFERENCE).parts
    return wire, {**parts, **{n.replace("_", "#"): pack(a) for n, a in changes.items()}}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"bias_at": np.arange(271, 301, dtype=np.uint16)}, "beyond its 300"),
        ({"head.weight_at": np.arange(28, dtype=np.uint16)[::-1]}, "ascending"),
        ({"head.weight_scale": np.array([np.nan], np.float32)}, "scale"),
        ({"head.weight_scale": np.array([0], np.float32)}, "scale"),
        ({"head.weight": np.full(28, -128, np.int8)}, "code"),
        ({"head.weight": np.zeros(29, np.int8)}, "expected"),
        ({"head.weight": np.zeros(28, np.float32)}, "expected"),
        ({"head.weight_more": np.zeros(28, np.int8)}, "unknown"),
    ],
    ids=str,
)
def test_what_no_sender_makes_is_refused_by_name(changes, said):
    wire, parts = sparse(**changes)
    with pytest.raises(PeerError, match=said):
        decode_update(parts, SPECS, wire, REFERENCE)


@given(st.binary(max_size=40), st.sampled_from(["head.weight", "head.weight#at", "bias#scale"]))
def test_hostile_bytes_do_no_more_than_be_refused(data, name):
    wire, parts = sparse()
    part = parts[name]
    for hostile in (data, part.data[: -len(data)] + data if data else part.data):
        changed = {**parts, name: PackedTensor(part.dtype, part.shape, hostile)}
        try:
            back = decode_update(changed, SPECS, wire, REFERENCE)
        except PeerError:
            continue
        assert {n: spec_of(tensor) for n, tensor in back.items()} == SPECS


def test_leaving_out_parts_of_a_whole_model_is_refused():
    with pytest.raises(ConfigurationError, match="needs delta"):
        WireSettings.read({"top_k": 0.1})
