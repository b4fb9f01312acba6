"""From tensors to what travels: difference, selection, rounding, bytes; in this order."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fgvc_core.errors import RunFailed
from fgvc_core.wire.arrays import Array, PackedTensor, first_not_finite, pack, pack_all
from fgvc_core.wire.delta import difference
from fgvc_core.wire.layout import AT, SCALE, travels_whole
from fgvc_core.wire.precision import HALVES, read_halves, write_halves
from fgvc_core.wire.quantise import dequantise, quantise
from fgvc_core.wire.settings import WireSettings
from fgvc_core.wire.sparsify import index_dtype, kept, largest

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
