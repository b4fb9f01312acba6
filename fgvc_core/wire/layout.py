"""What an update travels as: the parts of each tensor, their dtypes and their shapes.

A tensor ``w`` travels as ``w`` alone, or with ``w#scale`` (int8: one scale a channel) and
``w#at`` (top-k: where the values belong). Names, dtypes, shapes and so the bytes follow from
the model and ``[wire]`` alone: both sides know what a message weighs before it is made, and
nothing that arrives is allocated for before it is compared with that.
"""

from collections.abc import Iterable, Mapping

from fgvc_core.wire.arrays import TensorSpec
from fgvc_core.wire.precision import HALVES
from fgvc_core.wire.quantise import channels
from fgvc_core.wire.settings import WireSettings
from fgvc_core.wire.sparsify import index_dtype, kept

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
