"""ONNX export: makes the graphs, checks and measures them, and only then writes files."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fgvc_core.errors import ConfigurationError, PolicyRefusal
from fgvc_core.export.checks import (
    MAX_SIZE_RATIO,
    GraphCheck,
    compare,
    refuse_lossy,
    refuse_unfaithful,
)
from fgvc_core.export.graph import multiply_adds
from fgvc_core.export.int8 import quantise
from fgvc_core.export.judging import Judges
from fgvc_core.export.onnx_graph import (
    OnnxModel,
    confidence_facts,
    describe,
    latencies,
    preprocessing,
    to_onnx,
)
from fgvc_core.inference.trained import TrainedModel

SAMPLE, READER = "run_onnx.py", "read_picture.py"
"""The sample program, and the module beside it that reads pictures."""

_BATCH = 32


@dataclass(frozen=True)
class OnnxFiles:
    """The result of an export, before it is written.

    Attributes:
        float_bytes: The float graph.
        int8_bytes: The int8 graph; None if not requested.
        figures: Comparison, size, latency and multiply-adds of each model.
    """

    float_bytes: bytes
    int8_bytes: bytes | None
    figures: dict[str, Any]


def make_onnx(
    trained: TrainedModel,
    judges: Judges,
    calibration: Judges | None = None,
    *,
    public: bool = False,
    force: bool = False,
    tell: Callable[[int, int], None] = lambda done, total: None,
) -> OnnxFiles:
    """Export, check against PyTorch, quantize if requested, and measure.

    Args:
        trained: The model, on the CPU.
        judges: Pictures for the check.
        calibration: Pictures that determine int8's ranges; None: no int8.
        public: The user's statement that the calibration pictures are public.
        force: Accept what the checks refuse; the figures say so.
        tell: Called with (steps done, steps in all): the graph, PyTorch's and each graph's answers,
            int8, and the timing.

    Raises:
        PolicyRefusal: if int8 is requested for a model trained under [privacy] without ``public``.
        RunFailed: if a check fails.
        ConfigurationError: without the 'export' extra.
    """
    if calibration is not None and trained.recipe.privacy is not None and not public:
        raise PolicyRefusal(
            "The model was trained under [privacy], and nobody said that the calibration "
            "pictures are public.",
            why="int8 keeps the range of activations that they show: an unnoised release.",
            remedy="Calibrate on public pictures, and say so with --calibration-is-public.",
        )
    steps = 4 if calibration is None else 6
    float_proto = to_onnx(trained)
    tell(1, steps)
    float_bytes = float_proto.SerializeToString()
    expected_NK = _torch_logits(trained, judges.views_NHWC)
    tell(2, steps)
    running = OnnxModel(float_proto)
    float_verdict = compare(expected_NK, running.logits(judges.views_NHWC), judges.labels_N)
    tell(3, steps)
    if not force:
        refuse_unfaithful(float_verdict)
    answering: dict[str, Any] = {
        "pytorch": lambda views_NHWC: trained.logits(views_NHWC),
        "float": running.logits,
    }
    rows = {
        "pytorch": _row(compare(expected_NK, expected_NK, judges.labels_N), _torch_bytes(trained)),
        "float": _row(float_verdict, len(float_bytes)),
    }
    int8_bytes: bytes | None = None
    how: dict[str, Any] = {}
    if calibration is not None:
        int8_proto, how = _quantised(trained, float_proto, calibration)
        int8_bytes = int8_proto.SerializeToString()
        tell(4, steps)
        running8 = OnnxModel(int8_proto)
        verdict = compare(expected_NK, running8.logits(judges.views_NHWC), judges.labels_N)
        tell(5, steps)
        if not force:
            refuse_lossy(float_verdict, verdict, len(int8_bytes) / len(float_bytes))
        answering["int8"] = running8.logits
        rows["int8"] = _row(verdict, len(int8_bytes))
    for name, milliseconds in latencies(answering, judges.views_NHWC[0]).items():
        rows[name]["latency_ms"] = milliseconds
    tell(steps, steps)
    figures = {
        "judged_on": judges.told,
        "pictures": len(judges.views_NHWC),
        "multiply_adds": multiply_adds(trained.model),
        "models": rows,
        "forced": force,
    }
    return OnnxFiles(float_bytes, int8_bytes, figures | ({"int8": how} if how else {}))


def write_onnx(files: OnnxFiles, trained: TrainedModel, folder: Path) -> list[Path]:
    """Write the graphs, their preprocessing, the figures and a sample program.

    Raises:
        ConfigurationError: if the folder cannot be written.
    """
    texts = {
        "preprocessing.json": json.dumps(
            preprocessing(trained)
            | {
                "class_names": list(trained.class_names),
                "confidence": confidence_facts(trained),
            },
            indent=1,
        ),
        "export.json": json.dumps(files.figures, indent=1),
        **{n: Path(__file__).with_name(n).read_text(encoding="utf-8") for n in (SAMPLE, READER)},
    }
    parts: dict[str, bytes] = {"model.onnx": files.float_bytes}
    if files.int8_bytes is not None:
        parts["model.int8.onnx"] = files.int8_bytes
    parts |= {name: text.encode() for name, text in texts.items()}
    return write_folder(folder, parts)


def write_folder(folder: Path, parts: dict[str, bytes]) -> list[Path]:
    """Write files into a folder, which is made if necessary.

    Raises:
        ConfigurationError: if a file cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in parts.items():
            (folder / name).write_bytes(content)
    except OSError as error:
        raise ConfigurationError(
            f"--out '{folder}' cannot be written: {error.strerror}.",
            remedy="Name a folder that you may write to.",
        ) from None
    return [folder / name for name in parts]


def _quantised(
    trained: TrainedModel, float_proto: Any, calibration: Judges
) -> tuple[Any, dict[str, Any]]:
    """The int8 graph with its metadata, and how it was made."""
    nbytes = float_proto.ByteSize()
    # The metadata are added to what the quantizer writes, and count toward the size limit.
    most = int(MAX_SIZE_RATIO * nbytes) - sum(p.ByteSize() for p in float_proto.metadata_props)
    proto, way, agreement = quantise(float_proto, calibration.views_NHWC, most)
    describe(proto, trained)
    return proto, {
        "way": str(way),
        "pictures": len(calibration.views_NHWC),
        "agreement_on_them": agreement,
        "size_ratio": proto.ByteSize() / nbytes,
    }


def _torch_logits(trained: TrainedModel, views_NHWC: NDArray[np.uint8]) -> NDArray[np.float32]:
    starts: Sequence[int] = range(0, len(views_NHWC), _BATCH)
    return np.concatenate([trained.logits(views_NHWC[s : s + _BATCH]).numpy() for s in starts])


def _torch_bytes(trained: TrainedModel) -> int:
    """Size of all tensors: a safetensors file of the whole model without its header."""
    return sum(t.numel() * t.element_size() for t in trained.model.state_dict().values())


def _row(verdict: GraphCheck, size: int) -> dict[str, Any]:
    return verdict.as_json() | {"bytes": size}
