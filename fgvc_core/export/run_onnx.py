"""Classify pictures with an exported model; needs only onnxruntime, numpy and Pillow.

Usage: python run_onnx.py model.onnx PICTURE...

Pictures are read as in training: turned upright as EXIF says, transparency laid on white, the first
frame of several. Refused are pictures of more than 8 bits a channel (how their values map to 0..255
changes the answer), of more than 64 million pixels, and files that are no pictures. Each refused
picture is named on standard error, and the exit code is then 3.
"""

import json
import math
import sys
from typing import Any

import numpy as np
import onnxruntime
from PIL import Image, features

FORMATS: tuple[str, ...] = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
FORMATS += ("AVIF",) if features.check("avif") else ()
MAX_PIXELS, MAX_SIDE = 64_000_000, 30_000
TURNS = dict(zip(range(2, 9), (0, 3, 1, 5, 4, 6, 2), strict=True))  # EXIF -> Image.Transpose


def read(path: str, short_side: int) -> Image.Image:
    """The picture upright, as RGB on white."""
    with Image.open(path, formats=FORMATS) as opened:
        image: Image.Image = opened
        if image.width * image.height > MAX_PIXELS or max(image.size) > MAX_SIDE:
            raise ValueError(f"{image.width} x {image.height} pixels are too many")
        tiles = [(t[0], t[3] if isinstance(t[3], tuple) else (t[3],)) for t in opened.tile]
        words = [str(word) for _, told in tiles for word in told]
        deep = any(";16" in word and not word.startswith("BGR") for word in words)
        deep = deep or any(name.startswith("ppm") and told[-1] > 255 for name, told in tiles)
        if deep or image.mode[0] in "IF":
            raise ValueError("it has more than 8 bits a channel")
        if opened.format == "JPEG":
            opened.draft("RGB", (short_side, short_side))
        image.load()
        try:
            turn = image.getexif().get(274, 1)
            turn = turn[0] if isinstance(turn, tuple) and turn else turn
        except Exception:  # A damaged EXIF block; the pixels are whole.
            turn = 1
        if isinstance(turn, int) and turn in TURNS:
            image = image.transpose(Image.Transpose(TURNS[turn]))
        if not image.has_transparency_data:
            return image.convert("RGB")
        rgba = np.asarray(image.convert("RGBA")).astype(np.uint16)
        mixed = rgba[..., :3] * rgba[..., 3:] + 255 * (255 - rgba[..., 3:])
        return Image.fromarray(((mixed + 127) // 255).astype(np.uint8))


def square(path: str, size: int, short_side: int, interpolation: str) -> np.ndarray:
    """The picture as the uint8 (size, size, 3) square that the model sees."""
    image = read(path, short_side)
    if image.size == (size, size) and short_side == size:
        return np.asarray(image)
    method = Image.Resampling[interpolation.upper()]
    scale = short_side / min(image.size)
    target = (max(round(image.width * scale), size), max(round(image.height * scale), size))
    starts = ((target[0] - size) // 2, (target[1] - size) // 2)
    if target[0] * target[1] <= max(4 * size * size, image.width * image.height):
        left, top = starts
        return np.asarray(image.resize(target, method).crop((left, top, left + size, top + size)))
    # Of a long thin picture only the middle is resized: the whole would take gigabytes.
    for axis in (0, 1):
        step = image.size[axis] / target[axis]
        low, high = starts[axis] * step, (starts[axis] + size) * step
        if high - low < 1 / 16:
            low = min(max((low + high - 1 / 16) / 2, 0.0), image.size[axis] - 1 / 16)
            high = low + 1 / 16
        reach = math.ceil(2 * max(step, 1.0)) + 1
        first = max(math.floor(low) - reach, 0)
        last = min(math.ceil(high) + reach, image.size[axis])
        shape, part = list(image.size), [0, 0, *image.size]
        region = [float(edge) for edge in part]
        shape[axis], part[axis], part[axis + 2] = size, first, last
        region[axis], region[axis + 2] = low - first, high - first
        near = image.crop((part[0], part[1], part[2], part[3]))
        image = near.resize(shape, method, box=(region[0], region[1], region[2], region[3]))
    return np.asarray(image)


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
            view = square(path, how["size"], how["short_side"], how["interpolation"])
        except Exception as error:
            refused += 1
            print(f"{path!r} cannot be read: {error}", file=sys.stderr)
            continue
        logits = session.run(["logits"], {"pictures": view[None]})[0][0].astype(np.float64)
        answer, shares = decide(logits, rule)
        best = (-shares).argsort()[:3]
        tops = (f"{names[k]} {shares[k]:.3f}" for k in best)
        print(path, answer, *tops, sep="\t", flush=True)
    return refused


if __name__ == "__main__":
    getattr(sys.stdout, "reconfigure")(errors="backslashreplace")  # noqa: B009
    sys.exit(3 if main(*sys.argv[1:]) else 0)
