"""Conversion of a trained model to a self-describing ONNX graph, and its use in ONNX Runtime."""

import json
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fgvc_core import __version__
from fgvc_core.data.depth import HIGH, LOW, Depth
from fgvc_core.data.reader import GROUND
from fgvc_core.errors import RunFailed, missing_extra
from fgvc_core.export.graph import ExportedGraph
from fgvc_core.inference.calibration import told_of
from fgvc_core.inference.predicting import judge_of
from fgvc_core.inference.trained import TrainedModel

OPSET = 18
"""Supported by all ONNX Runtime releases of recent years, including onnxruntime-web."""

INPUT, OUTPUT = "pictures", "logits"

_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"

Proto = Any
"""An ``onnx.ModelProto``."""


def to_onnx(trained: TrainedModel) -> Proto:
    """The model as ONNX: ``pictures`` uint8 (N, S, S, 3) to ``logits`` float32 (N, K).

    N is dynamic. The graph includes normalization; its metadata contain the class names, how to
    make a square of a picture, and the rule of confidence.

    Raises:
        ConfigurationError: without the 'export' extra.
        RunFailed: if torch cannot export this network.
    """
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError:
        raise missing_extra("export", "ONNX") from None
    size = trained.model.input.size
    example = torch.zeros(3, size, size, 3, dtype=torch.uint8)
    try:
        with warnings.catch_warnings():
            # The exporter emits warnings about its own deprecations.
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                ExportedGraph(trained.model),
                (example,),
                dynamo=True,
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_shapes=({0: torch.export.Dim("N")},),
                opset_version=OPSET,
                verbose=False,
            )
    except Exception as error:
        # The exporter's tracer, passes and registry raise exceptions of many types.
        raise RunFailed(
            f"torch cannot export this network to ONNX: {type(error).__name__}: "
            f"{str(error).splitlines()[0] if str(error) else ''}",
            why=f"model.backbone = '{trained.recipe.model.backbone}' holds an operation that its "
            "exporter does not know.",
            remedy="Export a model with another backbone.",
        ) from None
    assert program is not None
    proto = program.model_proto
    slim(proto)
    describe(proto, trained)
    return proto


def describe(proto: Proto, trained: TrainedModel) -> None:
    """Replace the graph's metadata by a description of the model."""
    del proto.metadata_props[:]
    facts = {
        "class_names": json.dumps(trained.class_names),
        "preprocessing": json.dumps(preprocessing(trained)),
        "confidence": json.dumps(confidence_facts(trained)),
        "recipe_digest": trained.recipe.digest,
        "made_by": f"fieldmark {__version__}",
    }
    for key, value in facts.items():
        proto.metadata_props.add(key=key, value=value)


def confidence_facts(trained: TrainedModel) -> dict[str, Any]:
    """The model's rule of confidence, by which every export answers as ``fieldmark predict``.

    Raises:
        DataError: if the checkpoint's calibration is damaged or another checkpoint's.
    """
    judge = judge_of(trained)
    return {**judge.facts(), "told": told_of(judge.calibration)}


def preprocessing(trained: TrainedModel) -> dict[str, Any]:
    """The steps from a picture to the square that the graph takes."""
    spec = trained.model.input
    data = trained.recipe.data
    rule = data.depth_rule
    cut = (
        f"cut out the square around the subject's box with a margin of {data.crop_margin:g} of its "
        "longer side; "
        if data.crop == "box"
        else ""
    )
    return {
        "input": "uint8 RGB, (N, size, size, 3), 0 to 255; the graph normalises it",
        "size": spec.size,
        "short_side": round(spec.size / spec.crop),
        "interpolation": spec.interpolation,
        "ground": GROUND,
        "depth": None if rule is None else asdict(rule),
        "frame": data.frame,
        "steps": f"take the {data.frame} frame; {_depth_words(rule)}; turn upright as EXIF says; "
        f"apply an embedded color profile (to sRGB); lay transparency on white (ground); {cut}"
        "resize the short side to short_side with anti-aliasing, keeping the shape; "
        "cut out the centre square",
    }


def _depth_words(rule: Depth | None) -> str:
    """How pictures of more than 8 bits a channel are read, as one step."""
    if rule is None:
        return "refuse more than 8 bits a channel"
    return (
        "map more than 8 bits a channel to 0..255: "
        + {
            "scale": f"0 to {2**rule.bits - 1} becomes 0 to 255",
            "percentile": f"the picture's {LOW:g}th and {HIGH:g}th percentile become 0 and 255",
            "window": f"the window with center {rule.window[0]:g} and width {rule.window[1]:g}",
        }[rule.rule]
    )


def slim(proto: Proto) -> None:
    """Remove the exporter's annotations and shorten inner names, in place.

    In a small int8 model, the names would take as much space as the weights.
    """
    graph = proto.graph
    kept = {value.name for value in (*graph.input, *graph.output)}
    short: dict[str, str] = {"": ""} | {name: name for name in kept}

    def rename(name: str) -> str:
        if name not in short:
            short[name] = "_" + _base62(len(short))
        return short[name]

    for node in graph.node:
        node.input[:] = [rename(name) for name in node.input]
        node.output[:] = [rename(name) for name in node.output]
        for part in ("name", "doc_string", "metadata_props"):
            node.ClearField(part)
    for tensor in graph.initializer:
        tensor.name = rename(tensor.name)
        tensor.ClearField("doc_string")
    del graph.value_info[:]
    graph.ClearField("metadata_props")
    graph.ClearField("doc_string")
    proto.ClearField("doc_string")


def _base62(number: int) -> str:
    text = ""
    while True:
        number, digit = divmod(number, len(_DIGITS))
        text = _DIGITS[digit] + text
        if not number:
            return text


_BATCH = 32


class OnnxModel:
    """An ONNX model with the ``logits`` method of :class:`TrainedModel`.

    Args:
        proto: An ONNX model with this package's input and output.
        threads: Number of threads for one picture.
    """

    def __init__(self, proto: Proto, threads: int = 1) -> None:
        try:
            import onnxruntime
        except ImportError:
            raise missing_extra("export", "ONNX Runtime") from None
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        # Hide notes about what the runtime's optimizer could not fold.
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
    """Median latency of one picture for each model, in milliseconds.

    The models take turns, so other load on the machine affects them equally.

    Args:
        models: Name -> function that answers a batch of one.
        view_HWC: uint8 (S, S, 3).
        turns: Number of measurements, at least 1.
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
