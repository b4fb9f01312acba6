"""Checks that an exported graph must pass before it is written."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fgvc_core.errors import RunFailed

MAX_DIFFERENCE = 1e-4
"""Largest absolute difference of the float graph's logits from PyTorch's."""

MAX_TOP1_LOSS = 0.01
"""Largest loss of top-1 of the int8 graph against the float graph."""

MAX_SIZE_RATIO = 0.30
"""Largest size of the int8 file, relative to the float file."""

# Float32 sums of a few thousand terms differ in the last digits, which decides ties.
_TIE = 1e-4


@dataclass(frozen=True)
class GraphCheck:
    """Comparison of one graph with PyTorch on the same pictures.

    Attributes:
        pictures: Number of pictures.
        max_difference: Largest absolute difference of a logit.
        agreement: Share of equal top-1 answers, 0 to 1.
        top1: Top-1 accuracy of the graph, 0 to 1; None without labels.
    """

    pictures: int
    max_difference: float
    agreement: float
    top1: float | None

    def as_json(self) -> dict[str, Any]:
        """The fields as a dict."""
        return asdict(self)


def compare(
    expected_NK: NDArray[np.float32],
    found_NK: NDArray[np.float32],
    labels_N: NDArray[np.int64] | None,
) -> GraphCheck:
    """Compare a graph's logits with PyTorch's.

    If PyTorch's two best classes are closer than 1e-4, either counts as its answer.
    """
    answers_N = found_NK.argmax(axis=1)
    chosen_N = np.take_along_axis(expected_NK, answers_N[:, None], axis=1)[:, 0]
    equal_N = expected_NK.max(axis=1) - chosen_N <= _TIE
    return GraphCheck(
        len(expected_NK),
        float(np.abs(expected_NK - found_NK).max(initial=0.0)),
        float(equal_N.mean()),
        None if labels_N is None else float((answers_N == labels_N).mean()),
    )


def refuse_unfaithful(verdict: GraphCheck) -> None:
    """Refuse a float graph that does not reproduce the model.

    Raises:
        RunFailed: if a logit is off by more than 1e-4 or an answer differs.
    """
    if verdict.max_difference <= MAX_DIFFERENCE and verdict.agreement == 1.0:
        return
    raise RunFailed(
        f"The ONNX graph differs from the model: logits by up to {verdict.max_difference:.2g} "
        f"({MAX_DIFFERENCE:g} is allowed), {1 - verdict.agreement:.2%} of the answers.",
        why="Nothing was written: it would be another model under the same name.",
        remedy="Report it with the recipe; --force writes it all the same.",
    )


def refuse_lossy(float_verdict: GraphCheck, int8_verdict: GraphCheck, size_ratio: float) -> None:
    """Refuse an int8 graph that loses too much accuracy or saves too little space.

    Without labels, the share of answers that differ from PyTorch's stands for the loss.

    Raises:
        RunFailed: if it loses more than 0.01 of top-1, or exceeds 0.30 of the float file's size.
    """
    if float_verdict.top1 is None or int8_verdict.top1 is None:
        loss, kind = 1 - int8_verdict.agreement, "of the answers differ"
    else:
        loss, kind = float_verdict.top1 - int8_verdict.top1, "of top-1 is lost"
    if loss > MAX_TOP1_LOSS + 1e-9:
        raise RunFailed(
            f"int8 costs too much: {loss:.2%} {kind} ({MAX_TOP1_LOSS:.0%} is allowed).",
            why="Nothing was written.",
            remedy="Calibrate on more pictures, and on such as it will see; --force writes it all "
            "the same.",
        )
    if size_ratio > MAX_SIZE_RATIO:
        raise RunFailed(
            f"int8 saves too little: {size_ratio:.2f} of the float file's size "
            f"({MAX_SIZE_RATIO:.2f} is allowed).",
            why="Nothing was written. Very small networks are mostly scales and structure.",
            remedy="Use the float file; --force writes both all the same.",
        )
