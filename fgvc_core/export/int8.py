"""Static int8 quantization of an exported graph, calibrated on pictures.

Post-training quantization by ONNX Runtime: int8 weights with one scale per channel, uint8
activations with the range seen on the calibration pictures; Jacob et al. 2018, section 2,
https://arxiv.org/abs/1712.05877. Note: on CPUs without VNNI, uint8 times int8 accumulates in 16
bits and may saturate. The check before writing runs on the exporting machine, not on the target.
"""

import io
import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fgvc_core.errors import RunFailed
from fgvc_core.export.onnx_graph import INPUT, OnnxModel, Proto, slim

_OPERATIONS = ["Conv", "Gemm", "MatMul", "Add", "AveragePool", "MaxPool", "Clip", "Relu"]

ENOUGH = 0.995
"""Agreement with the float model on the calibration pictures that ends the search."""

HISTOGRAM_VALUES = 400_000
"""Most calibration pixels for a histogram method, which keeps every activation in memory."""


@dataclass(frozen=True)
class Way:
    """One quantization configuration.

    Attributes:
        calibration: minmax (whole range), percentile (99.999 % of it) or entropy.
        excluded: Layers that stay float: "head", "first" (the first convolution).
    """

    calibration: str
    excluded: tuple[str, ...] = ()

    def __str__(self) -> str:
        return ", ".join((self.calibration, *(f"{name} in float" for name in self.excluded)))


WAYS = (
    Way("minmax"),
    Way("percentile"),
    Way("entropy"),
    Way("minmax", ("head",)),
    Way("percentile", ("head", "first")),
)


def quantise(
    proto: Proto, views_NHWC: NDArray[np.uint8], most_bytes: int
) -> tuple[Proto, Way, float]:
    """The graph in int8, by the first configuration that keeps the answers, or else the best one.

    Args:
        proto: A float graph from this package; not changed.
        views_NHWC: Calibration pictures, uint8 (N, S, S, 3), as the model sees them.
        most_bytes: Size limit; a larger graph is chosen only if all are larger.

    Returns:
        The int8 graph, its configuration, and its share of equal top-1 answers on the calibration
        pictures, 0 to 1.

    Raises:
        RunFailed: if no configuration works on this graph.
    """
    expected_N = OnnxModel(proto).logits(views_NHWC).argmax(axis=1)
    best: tuple[Proto, Way, float] | None = None
    best_rank = (False, -1.0)
    fault = ""
    for way in WAYS:
        try:
            found = _quantised(proto, views_NHWC, way)
            answers_N = OnnxModel(found).logits(views_NHWC).argmax(axis=1)
        except Exception as error:
            # On unsupported graphs, the quantizer raises exceptions of many types.
            fault = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            continue
        agreement = float((answers_N == expected_N).mean())
        rank = (found.ByteSize() <= most_bytes, agreement)
        if rank > best_rank:
            best, best_rank = (found, way, agreement), rank
        if best_rank >= (True, ENOUGH):
            break
    if best is None:
        raise RunFailed(
            f"This network cannot be quantized: {fault}.",
            why="ONNX Runtime's quantiser fits it in no way that is known here.",
            remedy="Export it without --int8.",
        )
    return best


def _quantised(proto: Proto, views_NHWC: NDArray[np.uint8], way: Way) -> Proto:
    import onnx
    from onnxruntime.quantization import (
        CalibrationMethod,
        QuantFormat,
        QuantType,
        quantize_static,
    )
    from onnxruntime.quantization.shape_inference import quant_pre_process

    method = {
        "minmax": CalibrationMethod.MinMax,
        "percentile": CalibrationMethod.Percentile,
        "entropy": CalibrationMethod.Entropy,
    }[way.calibration]
    if way.calibration != "minmax":
        size = views_NHWC.shape[1]
        views_NHWC = _spread(views_NHWC, max(HISTOGRAM_VALUES // size**2, 4))
    with tempfile.TemporaryDirectory() as folder, _quiet():
        plain, ready, done = (str(Path(folder) / f"{n}.onnx") for n in ("plain", "ready", "done"))
        named, excluded = _named(proto, way.excluded)
        onnx.save(named, plain)
        quant_pre_process(plain, ready, skip_symbolic_shape=True)
        quantize_static(
            ready,
            done,
            _Reader(views_NHWC),
            # A tenth smaller than the QDQ format for small networks, and not slower in our
            # measurements.
            quant_format=QuantFormat.QOperator,
            op_types_to_quantize=_OPERATIONS,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=method,
            nodes_to_exclude=excluded,
        )
        found = onnx.load(done)
    slim(found)
    return found


def _named(proto: Proto, excluded: tuple[str, ...]) -> tuple[Proto, list[str]]:
    """A copy with names for all nodes, and the names of the nodes that stay float."""
    copy = type(proto)()
    copy.CopyFrom(proto)
    for number, node in enumerate(copy.graph.node):
        node.name = f"n{number}"
    heavy = [n.name for n in copy.graph.node if n.op_type in ("Conv", "Gemm", "MatMul")]
    at = {"first": heavy[:1], "head": heavy[-1:]}
    return copy, [name for what in excluded for name in at[what]]


def _spread(views_NHWC: NDArray[np.uint8], most: int) -> NDArray[np.uint8]:
    """At most ``most`` of the pictures, evenly spread."""
    at = np.unique(np.linspace(0, len(views_NHWC) - 1, min(most, len(views_NHWC))).astype(int))
    return views_NHWC[at]


class _Reader:
    """Feeds the calibration pictures to the quantizer, which requires only ``get_next``."""

    def __init__(self, views_NHWC: NDArray[np.uint8]) -> None:
        self._feed: Iterator[dict[str, Any]] = iter(
            {INPUT: views_NHWC[start : start + 16]} for start in range(0, len(views_NHWC), 16)
        )

    def get_next(self) -> dict[str, Any] | None:
        """The next batch, or None at the end."""
        return next(self._feed, None)


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress the quantizer's log and progress output, which users would take for ours."""
    before = logging.root.level
    logging.root.setLevel(logging.ERROR)
    try:
        with redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.root.setLevel(before)
