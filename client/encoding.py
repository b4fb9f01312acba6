"""What an update travels as: the gate's last stage, for one request.

Under differential privacy the tensors that come in are the noised release: differences from
the public model that was received, and rounding, are post-processing of it and cost nothing.
Error feedback is state that comes from private data, and never part of such a run: the policy
refuses ``wire.top_k`` there (:func:`client.privacy.policy.protection`).
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from client.feedback import Feedback
from fgvc_core.errors import PeerError
from fgvc_core.protocol.messages import Request
from fgvc_core.recipe import Recipe
from fgvc_core.wire.arrays import PackedTensor, TensorSpec, pack_all, unpack_all
from fgvc_core.wire.decode import decode_model
from fgvc_core.wire.encode import encode_update
from fgvc_core.wire.layout import model_parts, packed_bytes, update_parts
from fgvc_core.wire.settings import WireSettings


class UpdateEncoder:
    """Encodes the answer to one request.

    Args:
        home: The site's.
        request: What is answered; only to ``train`` an update goes out.
        recipe: Of the run.
        received: The model that came with the request.

    Raises:
        PeerError: if what came is no model of the recipe's ``[wire]``.
    """

    def __init__(
        self, home: Path, request: Request, recipe: Recipe, received: Mapping[str, PackedTensor]
    ) -> None:
        self._request = request
        self._wire = recipe.wire
        self._received = received
        self._specs = {n: TensorSpec("float32", tuple(t.shape)) for n, t in received.items()}
        self._feedback = Feedback(home, request.run) if recipe.wire.top_k else None
        # Lengths and headers, before anything is computed from the shapes.
        unpack_all(received, model_parts(self._specs, self._wire))

    @property
    def nbytes(self) -> int:
        """Bytes of the update's tensors, known before there is one."""
        if self._request.kind != "train":
            return 0
        return packed_bytes(update_parts(self._specs, self._wire, self._specs))

    def __call__(self, tensors: Mapping[str, NDArray[np.float32]]) -> dict[str, PackedTensor]:
        """The tensors as they travel; what error feedback keeps back is on the disk then.

        A repeated request gives equal bytes: its round starts from what the round before it
        has left behind, whatever this one left behind at the first try.
        """
        if self._wire.plain or self._request.kind != "train":
            return pack_all(tensors)
        reference = decode_model(self._received, self._specs, self._wire)
        number = self._request.round
        residual = self._feedback.before(number) if self._feedback else None
        encoded = encode_update(tensors, self._wire, reference, residual)
        if self._feedback:
            self._feedback.commit(number, encoded.residual)
        return encoded.parts


def check_weight(received: Mapping[str, PackedTensor], wire: WireSettings) -> None:
    """Refuse a model that is heavier than the recipe allows, before it is read.

    Raises:
        PeerError: if it is.
    """
    weight_mb = sum(len(tensor.data) for tensor in received.values()) / 1e6
    if weight_mb > wire.max_update_mb:
        raise PeerError(
            f"The request weighs {weight_mb:.1f} MB, more than "
            f"wire.max_update_mb = {wire.max_update_mb:g}."
        )
