"""Classify pictures with an exported model; needs only onnxruntime, numpy and Pillow.

Usage: python run_onnx.py model.onnx PICTURE...

Pictures are read as in training, by read_picture.py, which belongs beside this file and says what
it refuses. Each refused picture is named on standard error with what to do, and the exit code is
then 3.
"""

import json
import sys
from typing import Any

import numpy as np
import onnxruntime

try:
    from read_picture import square  # Exported beside this file: as of the model's own version.
except ImportError:
    from fgvc_core.export.read_picture import square


def softmax(logits: np.ndarray) -> np.ndarray:
    """Shares that sum to 1."""
    raised = np.exp(logits - logits.max())
    return raised / raised.sum()


def decide(logits: np.ndarray, rule: dict[str, Any]) -> tuple[str, np.ndarray]:
    """The answer, and the share of each class; ``rule`` is the file's metadata "confidence"."""
    shares, plain = softmax(logits / (rule["temperature"] or 1)), softmax(logits)
    energy = logits.max() + np.log(np.exp(logits - logits.max()).sum())
    scores = {"probability": shares.max(), "logit": logits.max(), "energy": energy}
    if rule["threshold"] is not None and scores[rule["score"]] < rule["threshold"]:
        return "none of these", shares
    # From the classes to coarser names; one has to be sure without the calibration, too.
    for names, groups in zip(reversed(rule["names"]), reversed(rule["groups"]), strict=True):
        sums = np.bincount(groups, shares, len(names))
        best = sums.argmax()
        if min(sums[best], np.bincount(groups, plain, len(names))[best]) >= rule["sure"]:
            return names[best], shares
    return "not sure", shares


def shown(text: str) -> str:
    """Text on one line: control characters, as a file's name may hold, become codes."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def main(model: str, *paths: str) -> int:
    """Print each picture's answer and its three most likely classes; the number refused."""
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    facts = session.get_modelmeta().custom_metadata_map
    names, how, rule = (
        json.loads(facts[k]) for k in ("class_names", "preprocessing", "confidence")
    )
    refused = 0
    for path in paths:
        try:
            sizes = (how["size"], how["short_side"], how["interpolation"])
            view = square(path, *sizes, how.get("depth"), how.get("frame", "first"))
        except Exception as error:
            refused += 1
            print(shown(f"'{path}' cannot be read: {error}"), file=sys.stderr)
            continue
        logits = session.run(["logits"], {"pictures": view[None]})[0][0].astype(np.float64)
        answer, shares = decide(logits, rule)
        best = (-shares).argsort()[:3]
        tops = (f"{names[k]} {shares[k]:.3f}" for k in best)
        print(*map(shown, (path, answer, *tops)), sep="\t", flush=True)
    return refused


if __name__ == "__main__":
    getattr(sys.stdout, "reconfigure")(errors="backslashreplace")  # noqa: B009
    sys.exit(3 if main(*sys.argv[1:]) else 0)
