"""Encoding and decoding of an update: layout, encoder, and the decoder of what strangers send.

What an update travels as: the parts of each tensor, their dtypes and their shapes.

A tensor ``w`` travels as ``w`` alone, or with ``w#scale`` (int8: one scale a channel) and
``w#at`` (top-k: where the values belong). Names, dtypes, shapes and so the bytes follow from
the model and ``[wire]`` alone: both sides know what a message weighs before it is made, and
nothing that arrives is allocated for before it is compared with that.

From tensors to what travels: difference, selection, rounding, bytes; in this order.

From what a stranger sent back to float32 tensors, or a refusal.

Names, dtypes, shapes, lengths and headers are compared with what the model and ``[wire]``
imply before anything is allocated. After that, no more is allocated than one float32 copy of
the update, and beside it the temporaries of its largest tensor.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fgvc_core.errors import PeerError, RunFailed
from fgvc_core.wire.arrays import (
    Array,
    PackedTensor,
    TensorSpec,
    first_not_finite,
    pack,
    pack_all,
    unpack_all,
)
from fgvc_core.wire.lossy import (
    HALVES,
    add_in_place,
    channels,
    dequantise,
    difference,
    first_fault_of_codes,
    first_fault_of_places,
    index_dtype,
    kept,
    largest,
    quantise,
    read_halves,
    scatter_add,
    write_halves,
)
from fgvc_core.wire.settings import WireSettings

SCALE, AT = "#scale", "#at"

SMALL = 256
"""Up to so many values a tensor travels as it is: the headers and digests of its parts would
weigh more than fewer bits save."""

_STATISTICS = ("running_mean", "running_var")


def travels_whole(name: str, size: int) -> bool:
    """Whether a tensor travels as float32 whatever ``[wire]`` says.

    Small ones do, and the running statistics of norm layers: they are not learnt in small
    steps, and a variance that a rounding made negative would break the model. A name with a
    slash is not the model's own, but goes beside it (a control variate, say).
    """
    return size <= SMALL or name.endswith(_STATISTICS) or "/" in name


def parts_of(name: str, spec: TensorSpec, wire: WireSettings) -> dict[str, TensorSpec]:
    """The parts that one tensor travels as."""
    if travels_whole(name, spec.size):
        return {name: spec}
    shape, parts = spec.shape, {}
    if wire.top_k:
        shape = (kept(spec.size, wire.top_k),)
        parts[name + AT] = TensorSpec(index_dtype(spec.size), shape)
    if wire.precision == "int8":
        parts[name + SCALE] = TensorSpec("float32", (channels(shape),))
        parts[name] = TensorSpec("int8", shape)
    else:
        parts[name] = TensorSpec(HALVES.get(wire.precision, "float32"), shape)
    return parts


def update_parts(
    specs: Mapping[str, TensorSpec], wire: WireSettings, model: Iterable[str]
) -> dict[str, TensorSpec]:
    """All parts of an update.

    Args:
        specs: The tensors of the update.
        wire: ``[wire]``.
        model: Names of those that the model consists of; others travel as they are.
    """
    known = set(model)
    parts: dict[str, TensorSpec] = {}
    for name, spec in specs.items():
        parts.update(parts_of(name, spec, wire) if name in known else {name: spec})
    return parts


def model_parts(specs: Mapping[str, TensorSpec], wire: WireSettings) -> dict[str, TensorSpec]:
    """What the model travels to the sites as."""
    down = HALVES.get(wire.down, "float32")
    return {
        name: spec if travels_whole(name, spec.size) else TensorSpec(down, spec.shape)
        for name, spec in specs.items()
    }


def packed_bytes(parts: Mapping[str, TensorSpec]) -> int:
    """Bytes of packed parts, their headers included."""
    return sum(spec.packed_bytes for spec in parts.values())


Tensors = Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True)
class Encoded:
    """What travels, and with ``wire.top_k`` what stays behind for the next update."""

    parts: dict[str, PackedTensor]
    residual: dict[str, NDArray[np.float32]] = field(default_factory=dict)


def encode_update(
    tensors: Tensors, wire: WireSettings, reference: Tensors, residual: Tensors | None = None
) -> Encoded:
    """An update as ``[wire]`` says.

    Args:
        tensors: The trained tensors, and whatever else goes along.
        wire: ``[wire]``.
        reference: The model as it was received; tensors that are not in it travel as they are.
        residual: With ``wire.top_k``: what earlier updates left behind, or None.

    Raises:
        RunFailed: if a tensor is not finite, or too large for the precision.
    """
    if wire.plain:
        return Encoded(pack_all(tensors))
    parts: dict[str, PackedTensor] = {}
    left: dict[str, NDArray[np.float32]] = {}
    for name, tensor in sorted(tensors.items()):
        if name not in reference or travels_whole(name, tensor.size):
            parts[name] = pack(tensor)
            continue
        values = difference(tensor, reference[name]) if wire.delta else tensor
        if not wire.top_k:
            parts.update(_values(name, values, wire)[0])
            continue
        if residual is not None:
            values = values + residual[name]
        flat = values.reshape(-1)
        at = largest(flat, kept(flat.size, wire.top_k))
        packed, travelled = _values(name, flat[at], wire)
        parts.update(packed)
        parts[name + AT] = pack(at.astype(index_dtype(flat.size)))
        rest = np.array(flat)
        rest[at] -= travelled
        left[name] = rest.reshape(values.shape)
    return Encoded(parts, left)


def encode_model(tensors: Tensors, wire: WireSettings) -> dict[str, PackedTensor]:
    """The model as it travels to the sites.

    Raises:
        RunFailed: if a tensor is too large for ``wire.down``.
    """
    if wire.down == "float32":
        return pack_all(tensors)
    return {
        name: pack(tensor)
        if travels_whole(name, tensor.size)
        else pack(_halves(name, tensor, wire.down)[0])
        for name, tensor in sorted(tensors.items())
    }


def _values(
    name: str, values: NDArray[np.float32], wire: WireSettings
) -> tuple[dict[str, PackedTensor], NDArray[np.float32]]:
    """The packed values of a tensor, and what the other side will read from them."""
    if first_not_finite({name: values}) is not None:
        raise RunFailed(
            f"The update's tensor '{name}' is not finite.",
            why="Training has diverged; a scale computed from it would mean nothing.",
            remedy="Lower train.lr.",
        )
    if wire.precision == "int8":
        codes, scales_C = quantise(values)
        return {name: pack(codes), name + SCALE: pack(scales_C)}, dequantise(codes, scales_C)
    if wire.precision in HALVES:
        halves, read = _halves(name, values, wire.precision)
        return {name: pack(halves)}, read
    return {name: pack(values)}, values


def _halves(
    name: str, values: NDArray[np.float32], precision: str
) -> tuple[Array, NDArray[np.float32]]:
    halves = write_halves(values, precision)
    read = read_halves(halves, precision)
    if first_not_finite({name: read}) is not None:
        raise RunFailed(
            f"Tensor '{name}' has a value beyond the range of {precision}.",
            why="It would arrive as infinity.",
            remedy="Use bfloat16, which has float32's range, or delta = true.",
        )
    return halves, read


def decode_update(
    packed: Mapping[str, PackedTensor],
    specs: Mapping[str, TensorSpec],
    wire: WireSettings,
    reference: Tensors,
) -> dict[str, NDArray[np.float32]]:
    """The tensors of an update; whether they are finite is seen when they are measured.

    Args:
        packed: What arrived.
        specs: What the tensors have to be once decoded.
        wire: ``[wire]``.
        reference: The model as it was sent; tensors that are not in it travel as they are.

    Raises:
        PeerError: if it is not exactly what such an update can be.
    """
    parts = unpack_all(packed, update_parts(specs, wire, reference))
    tensors = {}
    for name, spec in specs.items():
        if wire.plain or name not in reference or travels_whole(name, spec.size):
            tensors[name] = parts[name]
        elif wire.top_k:
            tensors[name] = _sparse(name, spec, parts, wire, reference[name])
        else:
            tensors[name] = _read_values(name, parts, wire)
            if wire.delta:
                if not tensors[name].flags.writeable:
                    tensors[name] = np.array(tensors[name])
                add_in_place(tensors[name], reference[name])
    return tensors


def decode_model(
    packed: Mapping[str, PackedTensor], specs: Mapping[str, TensorSpec], wire: WireSettings
) -> dict[str, NDArray[np.float32]]:
    """The tensors of a model that the coordinator sent, finite.

    Raises:
        PeerError: if they are not exactly what the recipe's model travels as.
    """
    tensors = read_model(packed, specs, wire)
    broken = first_not_finite(tensors)
    if broken is not None:
        raise PeerError(f"The received tensor '{broken}' is not finite.")
    return tensors


def read_model(
    packed: Mapping[str, PackedTensor], specs: Mapping[str, TensorSpec], wire: WireSettings
) -> dict[str, NDArray[np.float32]]:
    """The same, whatever the values are: for the coordinator's own model.

    Raises:
        PeerError: if they are not exactly what the recipe's model travels as.
    """
    tensors: dict[str, NDArray[np.float32]] = unpack_all(packed, model_parts(specs, wire))
    if wire.down != "float32":
        for name, values in tensors.items():
            if not travels_whole(name, values.size):
                tensors[name] = read_halves(values, wire.down)
    return tensors


def _read_values(name: str, parts: Mapping[str, Array], wire: WireSettings) -> NDArray[np.float32]:
    values = parts[name]
    if wire.precision == "int8":
        scales_C = parts[name + SCALE]
        fault = first_fault_of_codes(values, scales_C)
        if fault:
            raise PeerError(f"The update's tensor '{name}' {fault}.")
        return dequantise(values, scales_C)
    if wire.precision in HALVES:
        return read_halves(values, wire.precision)
    return values


def _sparse(
    name: str,
    spec: TensorSpec,
    parts: Mapping[str, Array],
    wire: WireSettings,
    reference: NDArray[np.float32],
) -> NDArray[np.float32]:
    fault = first_fault_of_places(parts[name + AT], spec.size)
    if fault:
        raise PeerError(f"The update's tensor '{name}' {fault}.")
    values = _read_values(name, parts, wire)
    tensor = np.array(reference, order="C")
    scatter_add(values, parts[name + AT], tensor)
    return tensor
