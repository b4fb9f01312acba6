"""The model as it travels to the sites, and what a round's tensors weigh before it begins."""

from collections.abc import Mapping

from flwr.app import ArrayRecord

from fgvc_core.errors import ConfigurationError
from fgvc_core.flower.records import from_array_record, to_array_record
from fgvc_core.wire.arrays import TensorSpec, unpack_all
from fgvc_core.wire.codec import encode_model, model_parts, packed_bytes, read_model, update_parts
from fgvc_core.wire.settings import WireSettings
from fieldmark.server.strategies import Tensors

Specs = Mapping[str, TensorSpec]


class Outgoing:
    """Turns the coordinator's model into what the sites receive.

    The same model goes to every site of a round: it is encoded, and read back, once.

    Args:
        specs: The model's tensors.
        wire: ``[wire]``.
    """

    def __init__(self, specs: Specs, wire: WireSettings) -> None:
        self._specs = specs
        self._wire = wire
        self._sent: tuple[ArrayRecord | None, ArrayRecord] = (None, ArrayRecord())
        self._read: tuple[ArrayRecord | None, Tensors] = (None, {})

    def __call__(self, arrays: ArrayRecord) -> ArrayRecord:
        """What travels in place of a float32 model; the same record where that is the model."""
        if self._wire.down == "float32":
            return arrays
        if self._sent[0] is not arrays:
            tensors = unpack_all(from_array_record(arrays), self._specs)
            self._sent = arrays, to_array_record(encode_model(tensors, self._wire))
        return self._sent[1]

    def received(self, sent: ArrayRecord) -> Tensors:
        """The model as the sites read it out of what was sent: what their updates refer to."""
        if self._read[0] is not sent:
            self._read = sent, read_model(from_array_record(sent), self._specs, self._wire)
        return self._read[1]


def check_round_weight(specs: Specs, wire: WireSettings, cohort: int) -> None:
    """Refuse a run whose rounds weigh more than the recipe allows; before the first.

    Args:
        specs: The model's tensors.
        wire: ``[wire]``.
        cohort: Sites in a round.

    Raises:
        ConfigurationError: naming what a round would weigh.
    """
    up = packed_bytes(update_parts(specs, wire, specs)) / 1e6
    down = packed_bytes(model_parts(specs, wire)) / 1e6
    for name, weight in (("update", up), ("model", down)):
        if weight > wire.max_update_mb:
            raise ConfigurationError(
                f"The {name} weighs {weight:.2f} MB, more than "
                f"wire.max_update_mb = {wire.max_update_mb:g}.",
                why="No reply could be accepted.",
                remedy="Train less of the model ([model] train), send it in fewer bytes ([wire]), "
                "or raise wire.max_update_mb.",
            )
    total = cohort * (up + down)
    if 0 < wire.max_round_mb < total:
        raise ConfigurationError(
            f"A round of {cohort} sites weighs {total:.2f} MB ({down:.2f} MB to each, {up:.2f} MB "
            f"from each), more than wire.max_round_mb = {wire.max_round_mb:g}.",
            why="Nothing was sent.",
            remedy="Send fewer bytes (wire.precision, wire.top_k, wire.down), ask fewer sites "
            "(federation.fraction), or raise wire.max_round_mb.",
        )
