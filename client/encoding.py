"""What an update travels as: the gate's last stage, for one request.

Under differential privacy the tensors that come in are the noised release: differences from
the public model that was received, and rounding, are post-processing of it and cost nothing.
Error feedback is state from private data, and no part of such a run
(:func:`fgvc_core.recipe_rules.refuse_wire`).
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fgvc_core.errors import PeerError
from fgvc_core.protocol.messages import Request
from fgvc_core.protocol.stages import stage_of
from fgvc_core.recipe import Recipe
from fgvc_core.wire.arrays import PackedTensor, TensorSpec, pack_all, unpack_all
from fgvc_core.wire.codec import decode_model, encode_update, model_parts, update_parts
from fgvc_core.wire.settings import WireSettings
from fieldmark.client.kept import KeptTensors

Specs = Mapping[str, TensorSpec]


class UpdateEncoder:
    """Encodes the answer to one request; only updates are encoded.

    Args:
        home: The site's.
        request: What is answered.
        recipe: Of the run.
        packed: The model that came with the request.

    Attributes:
        received: What the tensors of that model are once they are read.

    Raises:
        PeerError: if what came is no model of the recipe's ``[wire]``.
    """

    def __init__(
        self, home: Path, request: Request, recipe: Recipe, packed: Mapping[str, PackedTensor]
    ) -> None:
        self._home = home
        self._request = request
        self._wire = recipe.wire
        self._packed = packed
        self._encodes = stage_of(request).encoded and not recipe.wire.plain
        self.received = {n: TensorSpec("float32", tuple(t.shape)) for n, t in packed.items()}
        # Lengths and headers, before anything is computed from the shapes.
        unpack_all(packed, model_parts(self.received, self._wire))

    def parts(self, specs: Specs) -> Specs:
        """What tensors of these dtypes and shapes travel as."""
        return update_parts(specs, self._wire, self.received) if self._encodes else specs

    def __call__(self, tensors: Mapping[str, NDArray[np.float32]]) -> dict[str, PackedTensor]:
        """The tensors as they travel; what error feedback keeps back is on the disk then.

        With ``wire.top_k`` what the last reply that counted has left out is added first, as
        for everything that a site keeps (:mod:`fieldmark.client.kept`): a reply that was lost or
        refused takes nothing with it, and a repeated request gives equal bytes.
        """
        if not self._encodes:
            return pack_all(tensors)
        reference = decode_model(self._packed, self.received, self._wire)
        if not self._wire.top_k:
            return encode_update(tensors, self._wire, reference).parts
        request = self._request
        kept = KeptTensors(self._home, request.run, "feedback")
        residual = kept.read(request.base_round)
        encoded = encode_update(tensors, self._wire, reference, residual or None)
        kept.commit(request.round, encoded.residual, request.base_round)
        return encoded.parts


def check_weight(packed: Mapping[str, PackedTensor], wire: WireSettings) -> None:
    """Refuse a model that is heavier than the recipe allows, before it is read.

    Raises:
        PeerError: if it is.
    """
    weight_mb = sum(len(tensor.data) for tensor in packed.values()) / 1e6
    if weight_mb > wire.max_update_mb:
        raise PeerError(
            f"The request weighs {weight_mb:.1f} MB, more than "
            f"wire.max_update_mb = {wire.max_update_mb:g}."
        )
