"""Encoding of an update for the wire, the last step of the gate.

Under differential privacy the input is the noised release. Differences from the received public
model, and rounding, are post-processing and cost nothing. Error feedback is state computed from
private data and is not allowed in such a run (:func:`fgvc_core.recipe_rules.refuse_wire`).
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
    """Encodes the tensors of one reply; only updates are compressed.

    Args:
        home: Home of the site.
        request: The request that is answered.
        recipe: Recipe of the run.
        packed: The model that came with the request.

    Attributes:
        received: Specs of that model's tensors once decoded.

    Raises:
        PeerError: if the packed tensors are not a model under the recipe's ``[wire]``.
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
        # Validate lengths and headers before anything is computed from the shapes.
        unpack_all(packed, model_parts(self.received, self._wire))

    def parts(self, specs: Specs) -> Specs:
        """Specs on the wire of tensors with these specs."""
        return update_parts(specs, self._wire, self.received) if self._encodes else specs

    def __call__(self, tensors: Mapping[str, NDArray[np.float32]]) -> dict[str, PackedTensor]:
        """Encode tensors; error feedback is on the disk when this returns.

        With ``wire.top_k``, the residual of the last accepted reply is added first. Like all kept
        tensors (:mod:`fieldmark.client.kept`) it is versioned: a lost or refused reply loses
        nothing, and a repeated request gives equal bytes.
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
    """Refuse a model larger than ``wire.max_update_mb``, before it is decoded.

    Raises:
        PeerError: if it is larger.
    """
    weight_mb = sum(len(tensor.data) for tensor in packed.values()) / 1e6
    if weight_mb > wire.max_update_mb:
        raise PeerError(
            f"The request weighs {weight_mb:.1f} MB, more than "
            f"wire.max_update_mb = {wire.max_update_mb:g}."
        )
