"""How long one picture takes, for several models in one run."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

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
