"""Running an exported graph, and how long it takes.

An exported graph on ONNX Runtime.

How long one picture takes, for several models in one run.
"""

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fgvc_core.errors import missing_extra
from fgvc_core.export.onnx_graph import INPUT, OUTPUT, Proto

_BATCH = 32


class OnnxModel:
    """Answers as :class:`TrainedModel` does.

    Args:
        proto: An ONNX model with this room's input and output.
        threads: Of one picture's computation.
    """

    def __init__(self, proto: Proto, threads: int = 1) -> None:
        try:
            import onnxruntime
        except ImportError:
            raise missing_extra("export", "ONNX Runtime") from None
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        # Notes on what its optimiser could not fold are no user's concern.
        options.log_severity_level = 3
        self._session: Any = onnxruntime.InferenceSession(
            proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )

    def logits(self, views_NHWC: NDArray[np.uint8]) -> NDArray[np.float32]:
        """uint8 (N, S, S, 3) to float32 (N, K)."""
        parts = [
            self._session.run([OUTPUT], {INPUT: views_NHWC[start : start + _BATCH]})[0]
            for start in range(0, len(views_NHWC), _BATCH)
        ]
        return np.concatenate(parts)


Answer = Callable[[NDArray[np.uint8]], Any]

_WARM_UP = 3


def latencies(
    models: Mapping[str, Answer], view_HWC: NDArray[np.uint8], turns: int = 30
) -> dict[str, float]:
    """Median milliseconds for one picture, on as many threads as each was given.

    The models take turns, so that whatever else the machine does hits all of them.

    Args:
        models: Name -> what answers a batch of one.
        view_HWC: uint8 (S, S, 3).
        turns: How often each is asked, 1 at least.
    """
    batch_1HWC = view_HWC[None]
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for turn in range(_WARM_UP + turns):
        for name, answer in models.items():
            start = time.perf_counter()
            answer(batch_1HWC)
            if turn >= _WARM_UP:
                seconds[name].append(time.perf_counter() - start)
    return {name: float(np.median(taken)) * 1000 for name, taken in seconds.items()}
