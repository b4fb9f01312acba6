"""Reads a picture as in training, for run_onnx.py beside it; needs only numpy and Pillow.

Pictures are turned upright as EXIF says, color profiles are applied, and transparency is laid on
white. Of several frames the one is taken that the model was trained with (data.frame). Pictures of
more than 8 bits a channel are mapped to 0..255 by the rule of its training (data.depth), and
refused where it had none. Refused are also more than 64 million pixels, DICOM and HEIC (convert
them to 8-bit PNG), and files that are no pictures.
"""

import functools
import io
import math
from typing import Any

import numpy as np
from PIL import Image, ImageFile, features

FORMATS: tuple[str, ...] = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
FORMATS += ("AVIF",) if features.check("avif") else ()
MAX_PIXELS, MAX_SIDE = 64_000_000, 30_000
TURNS = dict(zip(range(2, 9), (0, 3, 1, 5, 4, 6, 2), strict=True))  # EXIF -> Image.Transpose


@functools.lru_cache(maxsize=32)
def profile_to_srgb(profile: bytes, mode: str) -> Any:
    """Transform of an embedded color profile; None if it is sRGB, damaged or of another mode."""
    from PIL import ImageCms

    try:
        own, srgb = ImageCms.ImageCmsProfile(io.BytesIO(profile)), ImageCms.createProfile("sRGB")
        made = ImageCms.buildTransform(own, srgb, mode, "RGB", ImageCms.Intent.PERCEPTUAL)
        steps = np.linspace(0, 255, 9).round().astype(np.uint8)
        grid = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(1, -1, 3)
        if mode == "RGB":
            seen = np.asarray(made.apply(Image.fromarray(grid))).astype(int)
            return made if np.abs(seen - grid).max() > 2 else None
        return made
    except Exception:  # A damaged profile counts as none; the library raises errors of many types.
        return None


def rgb(image: Image.Image) -> Image.Image:
    """Samples of 8 bits as sRGB on white."""
    profile = image.info.get("icc_profile")
    mode = {"L": "L", "LA": "L", "CMYK": "CMYK"}.get(image.mode, "RGB")
    made = None
    if profile and len(profile) <= 4 << 20 and image.mode not in ("1", "LAB", "HSV"):
        made = profile_to_srgb(profile, mode) if features.check("littlecms2") else None
    clear = image.convert("RGBA") if image.has_transparency_data else None
    if made is not None:
        source = clear if clear is not None and image.mode != "LA" else image
        colored: Image.Image = made.apply(source if source.mode == mode else source.convert(mode))
        if clear is None:
            return colored
        colored.putalpha(clear.getchannel("A"))
        clear = colored
    if clear is None:
        return image.convert("RGB")
    rgba = np.asarray(clear).astype(np.uint16)
    mixed = rgba[..., :3] * rgba[..., 3:] + 255 * (255 - rgba[..., 3:])
    return Image.fromarray(((mixed + 127) // 255).astype(np.uint8))


def png16(path: str, image: ImageFile.ImageFile) -> np.ndarray:
    """Samples of a 16-bit PNG in color or with transparency: high bytes, then low bytes."""
    with Image.open(path, formats=("PNG",)) as whole:
        whole.verify()
    tile = image.tile[0]
    stored = str(tile.args)
    if stored == "LA;16B":  # As many bytes a pixel as 8-bit RGBA.
        image.tile = [tile._replace(args="RGBA")]
        image.load()
        parts = np.asarray(image).astype(np.uint16)
        return parts[..., 0::2] << 8 | parts[..., 1::2]
    image.load()
    with Image.open(path, formats=("PNG",)) as again:
        again.tile = [again.tile[0]._replace(args=stored.replace(";16B", ";16L"))]
        again.load()
        return np.asarray(image).astype(np.uint16) << 8 | np.asarray(again)


def deep(path: str, image: ImageFile.ImageFile, rule: dict[str, Any] | None) -> Image.Image:
    """A picture of more than 8 bits a channel by the rule of training, not yet upright."""
    if rule is None:
        raise ValueError(
            "it has more than 8 bits a channel, and the model was trained without a rule for that; "
            "convert it to 8 bits with the window that your field uses"
        )
    most, grey = float(2 ** rule["bits"] - 1), image.mode[0] in "IF"
    codec, _, offset, told = image.tile[0][:4]
    words = told if isinstance(told, tuple) else (told,)
    if grey:
        most = 65535.0 if image.format == "PPM" else most
        image.load()
        samples = np.asarray(image)[..., None]
    elif image.mode == "RGB" and (codec == "ppm" or (codec == "raw" and image.format == "TIFF")):
        order = "<u2" if image.format == "TIFF" and "16B" not in str(words[0]) else ">u2"
        most = float(words[-1]) if codec == "ppm" else most
        parts = []
        with open(path, "rb") as file:
            for _, box, at, _ in image.tile:
                left, top, right, bottom = box or (0, 0, *image.size)
                file.seek(at if codec == "raw" else offset)
                count = 6 * (right - left) * (bottom - top)
                parts.append(np.frombuffer(file.read(count), dtype=order))
        samples = np.concatenate(parts).reshape(image.height, image.width, 3)
    elif image.format == "PNG":
        samples = png16(path, image)
    else:
        raise ValueError(
            "its samples of more than 8 bits cannot be read in full (convert it to PNG, or to TIFF "
            "without compression)"
        )
    low, high = 0.0, most
    if rule["rule"] == "window":
        center, width = rule["window"]
        low, high = center - width / 2, center + width / 2
    elif rule["rule"] == "percentile":
        some = samples[..., : samples.shape[2] - (samples.shape[2] in (2, 4))].reshape(-1)
        some = some[:: max(some.size // 1_000_000, 1)].astype(np.float64)
        some = some[np.isfinite(some)]
        low, high = np.percentile(some, (0.5, 99.5)) if some.size else (0.0, 1.0)
        low, high = float(low), float(high)
    clear = samples.shape[2] in (2, 4)
    values = samples.astype(np.float32)
    colors = values[..., :-1] if clear else values
    scaled = (colors - low) * (255.0 / max(high - low, 1e-12))
    scaled = np.nan_to_num(scaled, nan=0.0, posinf=255.0, neginf=0.0).clip(0, 255)
    if clear:
        alpha = values[..., -1:] / 65535.0
        scaled = scaled * alpha + 255 * (1 - alpha)
    return Image.fromarray(np.broadcast_to(scaled.round().astype(np.uint8), (*scaled.shape[:2], 3)))


def refuse_other_formats(path: str) -> None:
    """Refuse, with what to do, the formats that the product reads with an extra."""
    with open(path, "rb") as file:
        start = file.read(132)
    heic = start[4:8] == b"ftyp" and start[8:11] in (b"hei", b"hev", b"mif", b"msf")
    if heic or start[128:] == b"DICM":
        raise ValueError(
            f"it is {'HEIC' if heic else 'DICOM'}, which this sample does not read; convert it to "
            "8-bit PNG"
        )


def read(
    path: str, short_side: int, rule: dict[str, Any] | None = None, frame: str = "first"
) -> Image.Image:
    """The picture upright, as RGB on white."""
    refuse_other_formats(path)
    with Image.open(path, formats=FORMATS) as opened:
        image: Image.Image = opened
        if frame != "first" and opened.format in ("AVIF", "GIF", "PNG", "TIFF", "WEBP"):
            last = getattr(opened, "n_frames", 1) - 1
            opened.seek(last if frame == "last" else last // 2)
        if image.width * image.height > MAX_PIXELS or max(image.size) > MAX_SIDE:
            raise ValueError(f"{image.width} x {image.height} pixels are too many")
        tiles = [(t[0], t[3] if isinstance(t[3], tuple) else (t[3],)) for t in opened.tile]
        words = [str(word) for _, told in tiles for word in told]
        more = any(";16" in word and not word.startswith("BGR") for word in words)
        more = more or any(name.startswith("ppm") and told[-1] > 255 for name, told in tiles)
        mapped = deep(path, opened, rule) if more or image.mode[0] in "IF" else None
        if opened.format == "JPEG":
            opened.draft("RGB", (short_side, short_side))
        image.load()
        try:
            turn = image.getexif().get(274, 1)
            turn = turn[0] if isinstance(turn, tuple) and turn else turn
        except Exception:  # A damaged EXIF block; the pixels are whole.
            turn = 1
        image = image if mapped is None else mapped
        if isinstance(turn, int) and turn in TURNS:
            image = image.transpose(Image.Transpose(TURNS[turn]))
        return rgb(image) if mapped is None else image


def square(
    path: str,
    size: int,
    short_side: int,
    interpolation: str,
    rule: dict[str, Any] | None = None,
    frame: str = "first",
) -> np.ndarray:
    """The picture as the uint8 (size, size, 3) square that the model sees."""
    image = read(path, short_side, rule, frame)
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
