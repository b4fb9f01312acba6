"""From what a stranger sent back to float32 tensors, or a refusal.

Names, dtypes, shapes, lengths and headers are compared with what the model and ``[wire]``
imply before anything is allocated. After that, no more is allocated than one float32 copy of
the update, and beside it the temporaries of its largest tensor.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from fgvc_core.errors import PeerError
from fgvc_core.wire import quantise, sparsify
from fgvc_core.wire.arrays import Array, PackedTensor, TensorSpec, first_not_finite, unpack_all
from fgvc_core.wire.delta import add_in_place, scatter_add
from fgvc_core.wire.layout import AT, SCALE, model_parts, travels_whole, update_parts
from fgvc_core.wire.precision import HALVES, read_halves
from fgvc_core.wire.settings import WireSettings

Tensors = Mapping[str, NDArray[np.float32]]


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
            tensors[name] = _values(name, parts, wire)
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


def _values(name: str, parts: Mapping[str, Array], wire: WireSettings) -> NDArray[np.float32]:
    values = parts[name]
    if wire.precision == "int8":
        scales_C = parts[name + SCALE]
        fault = quantise.first_fault(values, scales_C)
        if fault:
            raise PeerError(f"The update's tensor '{name}' {fault}.")
        return quantise.dequantise(values, scales_C)
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
    fault = sparsify.first_fault(parts[name + AT], spec.size)
    if fault:
        raise PeerError(f"The update's tensor '{name}' {fault}.")
    values = _values(name, parts, wire)
    tensor = np.array(reference, order="C")
    scatter_add(values, parts[name + AT], tensor)
    return tensor
