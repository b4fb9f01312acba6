"""The tensors that a site gets to infer a head of its own, beside the model's."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from fgvc_core.errors import PeerError
from fgvc_core.protocol.messages import MOST_MEMBERS
from fgvc_core.wire.arrays import PackedTensor, TensorSpec

OTHERS = "own_sums"
"""Name of the event that says which sites were sent them."""

SUMS, UNITS, DEVIATION = "own_sums.sums", "own_sums.units", "own_sums.deviation"


def with_others(
    model: Mapping[str, NDArray[np.float32]],
    sums_SKQ: NDArray[np.float64],
    units_S: NDArray[np.float64],
    deviation: float,
) -> dict[str, NDArray[np.float32]]:
    """The model's tensors and the noisy sums (S, K, P + 1) of the other sites.

    Args:
        model: Tensors that travel.
        sums_SKQ: Noisy class sums, or one total of masked ones.
        units_S: Declared units of each.
        deviation: Standard deviation of the noise on each value.
    """
    return {
        **model,
        SUMS: sums_SKQ.astype(np.float32),
        UNITS: units_S.astype(np.float32),
        DEVIATION: np.array([deviation], np.float32),
    }


def specs_of_others(
    packed: Mapping[str, PackedTensor], classes: int, directions: int
) -> dict[str, TensorSpec]:
    """Specs of the three tensors, of which only the number of sums is the coordinator's to say.

    Args:
        packed: The received tensors.
        classes: K.
        directions: P.

    Raises:
        PeerError: if there are no sums, or too many.
    """
    found = packed.get(SUMS)
    count = found.shape[0] if found is not None and len(found.shape) == 3 else 0
    if not 1 <= count <= MOST_MEMBERS:
        raise PeerError(f"The request holds the sums of {count} sites; 1 to {MOST_MEMBERS} count.")
    return {
        SUMS: TensorSpec("float32", (count, classes, directions + 1)),
        UNITS: TensorSpec("float32", (count,)),
        DEVIATION: TensorSpec("float32", (1,)),
    }
