"""Encoding and decoding of updates and models as ``[wire]`` says.

A tensor ``w`` is sent as ``w`` alone, or with ``w#scale`` (int8: one scale per channel) and
``w#at`` (top-k: the values' positions). Names, dtypes and shapes of these parts follow from the
model and ``[wire]``, so both sides know the size of a message in advance. Encoding takes the
difference, selects, rounds and packs, in this order.

Decoding does not trust its input: names, dtypes, shapes, lengths and headers are checked before
memory is allocated. After that, it allocates at most one float32 copy of the update and the
temporaries of its largest tensor.
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
"""Largest number of values of a tensor that is sent as it is: headers and digests of its parts
would
outweigh the savings."""

_STATISTICS = ("running_mean", "running_var")


def travels_whole(name: str, size: int) -> bool:
    """Whether a tensor is sent as float32 whatever ``[wire]`` says.

    This holds for small tensors and for running statistics of norm layers, which do not change in
    small steps; a variance rounded to a negative value would break the model. It also holds for
    names with a slash, which do not belong to the model (control variates, for instance).
    """
    return size <= SMALL or name.endswith(_STATISTICS) or "/" in name


def parts_of(name: str, spec: TensorSpec, wire: WireSettings) -> dict[str, TensorSpec]:
    """The parts of one encoded tensor."""
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
    """All parts of an encoded update.

    Args:
        specs: The tensors of the update.
        wire: ``[wire]``.
        model: Names of the model's tensors; others are sent as they are.
    """
    known = set(model)
    parts: dict[str, TensorSpec] = {}
    for name, spec in specs.items():
        parts.update(parts_of(name, spec, wire) if name in known else {name: spec})
    return parts


def model_parts(specs: Mapping[str, TensorSpec], wire: WireSettings) -> dict[str, TensorSpec]:
    """The tensors of a model encoded for the sites."""
    down = HALVES.get(wire.down, "float32")
    return {
        name: spec if travels_whole(name, spec.size) else TensorSpec(down, spec.shape)
        for name, spec in specs.items()
    }


def packed_bytes(parts: Mapping[str, TensorSpec]) -> int:
    """Bytes of packed parts, including their headers."""
    return sum(spec.packed_bytes for spec in parts.values())


Tensors = Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True)
class Encoded:
    """An encoded update, and with ``wire.top_k`` the residual for the next one."""

    parts: dict[str, PackedTensor]
    residual: dict[str, NDArray[np.float32]] = field(default_factory=dict)


def encode_update(
    tensors: Tensors, wire: WireSettings, reference: Tensors, residual: Tensors | None = None
) -> Encoded:
    """Encode an update as ``[wire]`` says.

    Args:
        tensors: The trained tensors, and others that are sent with them.
        wire: ``[wire]``.
        reference: The model as received; tensors that are not in it are sent as they are.
        residual: With ``wire.top_k``: the residual of earlier updates, or None.

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
    """Encode a model for the sites.

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
    """The packed values of a tensor, and the values that the receiver will decode."""
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
    """Decode an update; non-finite values are detected later, during screening.

    Args:
        packed: The parts received.
        specs: Required dtypes and shapes of the decoded tensors.
        wire: ``[wire]``.
        reference: The model as sent; tensors that are not in it are sent as they are.

    Raises:
        PeerError: if the parts are not those of such an update.
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
    """Decode a model that the coordinator sent; all values are finite.

    Raises:
        PeerError: if a value is not finite, or the parts are not those of the recipe's model.
    """
    tensors = read_model(packed, specs, wire)
    broken = first_not_finite(tensors)
    if broken is not None:
        raise PeerError(f"The received tensor '{broken}' is not finite.")
    return tensors


def read_model(
    packed: Mapping[str, PackedTensor], specs: Mapping[str, TensorSpec], wire: WireSettings
) -> dict[str, NDArray[np.float32]]:
    """Decode a model without checking its values: for the coordinator's own model.

    Raises:
        PeerError: if the parts are not those of the recipe's model.
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
