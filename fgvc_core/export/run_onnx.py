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


def main(model: str, *paths: str) -> None:
    """Print each picture's three most likely classes."""
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    facts = session.get_modelmeta().custom_metadata_map
    names, how = json.loads(facts["class_names"]), json.loads(facts["preprocessing"])
    for path in paths:
        view = square(path, how["size"], how["short_side"], how["interpolation"])
        logits = session.run(["logits"], {"pictures": view[None]})[0][0].astype(np.float64)
        shares = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
        best = (-shares).argsort()[:3]
        print(path, *(f"{names[k]} {shares[k]:.3f}" for k in best), sep="\t")


if __name__ == "__main__":
    main(*sys.argv[1:])
