"""From a trained model to an ONNX graph that says what it is."""

import json
import warnings
from typing import Any

import torch

from fgvc_core import __version__
from fgvc_core.errors import RunFailed, missing_extra
from fgvc_core.export.graph import ExportedGraph
from fgvc_core.inference.trained import TrainedModel

OPSET = 18
"""Every ONNX Runtime of the last years reads it, onnxruntime-web too."""

INPUT, OUTPUT = "pictures", "logits"

_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"

Proto = Any
"""An ``onnx.ModelProto``."""


def to_onnx(trained: TrainedModel) -> Proto:
    """The model as ONNX: ``pictures`` uint8 (N, S, S, 3) to ``logits`` float32 (N, K).

    N is free. Normalisation is inside; how a picture becomes a square, and the classes'
    names, are in the metadata.

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
            # The exporter warns of its own deprecations.
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
        # torch's exporter raises what its tracer, its passes and its registry happen to raise.
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
    """Write what the model is into its metadata, in place of what is there."""
    del proto.metadata_props[:]
    facts = {
        "class_names": json.dumps(trained.class_names),
        "preprocessing": json.dumps(preprocessing(trained)),
        "recipe_digest": trained.recipe.digest,
        "made_by": f"fieldmark {__version__}",
    }
    for key, value in facts.items():
        proto.metadata_props.add(key=key, value=value)


def preprocessing(trained: TrainedModel) -> dict[str, Any]:
    """How a picture becomes the square that the graph takes, in words and numbers."""
    spec = trained.model.input
    return {
        "input": "uint8 RGB, (N, size, size, 3), 0 to 255; the graph normalises it",
        "size": spec.size,
        "short_side": round(spec.size / spec.crop),
        "interpolation": spec.interpolation,
        "steps": "turn upright as EXIF says; resize the short side to short_side with "
        "anti-aliasing, keeping the shape; cut out the centre square",
    }


def slim(proto: Proto) -> None:
    """Take out what only the exporter wants to know, and shorten inner names, in place.

    In a small int8 model the names would weigh as much as the weights.
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
