"""Classify pictures with an exported model; needs only onnxruntime, numpy and Pillow.

Usage: python run_onnx.py model.onnx PICTURE...
"""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageOps


def square(path: str, size: int, short_side: int, interpolation: str) -> np.ndarray:
    """The picture as the uint8 (size, size, 3) square that the model sees."""
    image = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
    scale = short_side / min(image.size)
    width, height = (max(round(side * scale), size) for side in image.size)
    if image.size != (size, size) or short_side != size:
        image = image.resize((width, height), Image.Resampling[interpolation.upper()])
    left, top = ((side - size) // 2 for side in image.size)
    return np.asarray(image.crop((left, top, left + size, top + size)))


def softmax(logits: np.ndarray) -> np.ndarray:
    """Shares that sum to 1."""
    raised = np.exp(logits - logits.max())
    return raised / raised.sum()


def decide(logits: np.ndarray, rule: dict) -> tuple[str, np.ndarray]:
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


def main(model: str, *paths: str) -> None:
    """Print each picture's answer and its three most likely classes."""
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    facts = session.get_modelmeta().custom_metadata_map
    names, how, rule = (
        json.loads(facts[k]) for k in ("class_names", "preprocessing", "confidence")
    )
    for path in paths:
        view = square(path, how["size"], how["short_side"], how["interpolation"])
        logits = session.run(["logits"], {"pictures": view[None]})[0][0].astype(np.float64)
        answer, shares = decide(logits, rule)
        best = (-shares).argsort()[:3]
        print(path, answer, *(f"{names[k]} {shares[k]:.3f}" for k in best), sep="\t")


if __name__ == "__main__":
    main(*sys.argv[1:])
