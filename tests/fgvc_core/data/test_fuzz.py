"""Damaged pictures, EXIF blocks, tables and annotation files: an answer or a DataError, in bounds.

500 inputs in the default suite, 5,000 in the slow one; seeds are fixed, so that a failure can be
repeated by its number.
"""

import io
import json
import random
import resource
import struct
import time
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fgvc_core.data.catalogue import load_table
from fgvc_core.data.files import FileSource
from fgvc_core.data.labels import LeftOut
from fgvc_core.data.settings import DataSettings
from fgvc_core.errors import DataError, FieldmarkError

SECONDS, MEGABYTES = 5.0, 500
"""Most time for one input, and most memory that all inputs together may add."""

ENDINGS = ("jpg", "png", "gif", "webp", "tif", "bmp", "ppm", "avif")
QUICK, SLOW = 60, 620


def sound_files() -> dict[str, bytes]:
    """One small sound picture of each format."""
    picture = Image.fromarray(np.random.default_rng(1).integers(0, 256, (24, 30, 3), np.uint8))
    exif = Image.Exif()
    exif[0x0112], exif[0x010F], exif[0x011A] = 6, "maker", 72.0
    found = {}
    for ending in ENDINGS:
        held = io.BytesIO()
        kind = {"jpg": "JPEG", "tif": "TIFF"}.get(ending, ending.upper())
        try:
            picture.save(held, kind, **({"exif": exif} if ending in ("jpg", "png", "webp") else {}))
        except (KeyError, OSError):
            continue  # This Pillow lacks the format.
        found[ending] = held.getvalue()
    frames = [picture.rotate(90 * k) for k in range(3)]
    for ending in ("gif", "tif", "png", "webp"):
        held = io.BytesIO()
        kind = "TIFF" if ending == "tif" else ending.upper()
        frames[0].save(held, kind, save_all=True, append_images=frames[1:])
        found[f"frames.{ending}"] = held.getvalue()
    return found


def flipped(data: bytes, rng: random.Random, most: int = 8) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.randint(1, most)):
        # Headers and directories decide more than pixels do.
        near = rng.choice((len(changed), min(len(changed), 160)))
        changed[rng.randrange(near)] ^= 1 << rng.randrange(8)
    return bytes(changed)


def mangled_picture(files: dict[str, bytes], rng: random.Random) -> tuple[str, bytes]:
    """Name and bytes: cut, spliced, flipped, under another ending, or with a random EXIF block."""
    kind = rng.choice(sorted(files))
    data, name = files[kind], kind
    way = rng.randrange(5)
    if way == 0:
        data = data[: rng.randrange(len(data))]
    elif way == 1:
        other = files[rng.choice(sorted(files))]
        data = data[: rng.randrange(len(data))] + other[rng.randrange(len(other)) :]
    elif way == 2:
        data = flipped(data, rng)
    elif way == 3:
        name = rng.choice(ENDINGS)
        data = flipped(data, rng, 2)
    else:
        block = b"Exif\0\0" + flipped(_exif(rng), rng)
        jpeg = files["jpg"]
        name = "jpg"
        data = jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(block) + 2) + block + jpeg[2:]
    return f"x.{name}", data


def _exif(rng: random.Random) -> bytes:
    """A little-endian directory of random entries, an orientation among them."""
    entries = [(0x112, 3, 1, struct.pack("<I", rng.randrange(10)))]
    for _ in range(rng.randrange(6)):
        tag = rng.choice((0x10F, 0x11A, 0x132, 0x8769, 0x8825, 0x501, rng.randrange(65536)))
        size = rng.choice((1, 2, 9, 70_000, 2**31))
        entries.append((tag, rng.randrange(15), size, rng.randbytes(4)))
    packed = b"".join(struct.pack("<HHI", t, k, n) + v for t, k, n, v in entries)
    return (
        b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + packed + bytes(4) + rng.randbytes(40)
    )


TABLE = "path,label,subject,split\n" + "".join(
    f"images/{i}.png,{'ab'[i % 2]},s{i // 2},{('train', 'test')[i // 4]}\n" for i in range(8)
)
ODD = ('"', ";", "\t", "\r", "\n", "\0", ",", "\ufeff", "#", "=1+1", "../", "file://[", "\\", "é",
       "\u2028", "%00", "sep=;", "'" * 9, "a" * 5000)  # fmt: skip


def mangled_text(text: str, rng: random.Random) -> bytes:
    for _ in range(rng.randint(1, 6)):
        at = rng.randrange(len(text) + 1)
        text = text[:at] + rng.choice(ODD) + text[at + rng.randrange(3) :]
    data = text.encode(rng.choice(("utf-8", "utf-8", "utf-16", "cp1252")), "replace")
    return flipped(data, rng, 3) if rng.random() < 0.3 else data


def mangled_json(rng: random.Random) -> bytes:
    """COCO and MegaDetector files with values of other types, missing keys, or damaged text."""
    odd = (None, -1, 1e308, [], {}, "x", True, [[[]]], {"a": 1}, "../../etc/passwd", 10**30)
    found = {
        "images": [{"id": i, "file_name": f"images/{i}.png", "file": f"images/{i}.png",
                    "width": 30, "height": 24, "seq_id": i // 2,
                    "detections": [{"category": "1", "conf": 0.9, "bbox": [0.1, 0.1, 0.5, 0.5]}]}
                   for i in range(8)],
        "annotations": [{"image_id": i, "category_id": i % 2, "bbox": [1, 1, 9, 9]}
                        for i in range(8)],
        "categories": [{"id": 0, "name": "a"}, {"id": 1, "name": "b"}],
    }  # fmt: skip
    for _ in range(rng.randint(1, 6)):
        at: object = found
        while isinstance(at, dict | list) and at:
            key = rng.choice(list(at)) if isinstance(at, dict) else rng.randrange(len(at))
            if rng.random() < 0.4 or not isinstance(at[key], dict | list):  # type: ignore[index]
                at[key] = deepcopy(rng.choice(odd))  # type: ignore[index]
                break
            at = at[key]  # type: ignore[index]
    text = json.dumps(found)
    return mangled_text(text, rng) if rng.random() < 0.3 else text.encode()


def peak_megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000


def timed(what: str, number: int, look) -> bool:
    """Whether there was an answer; a DataError is none, and any other failure fails the test."""
    began = time.process_time()
    answered = False
    try:
        look()
        answered = True
    except FieldmarkError as error:
        if not isinstance(error, DataError):
            raise AssertionError(f"{what} {number}: {error!r}") from error
    except Exception as error:
        raise AssertionError(f"{what} {number}: {error!r}") from error
    assert time.process_time() - began < SECONDS, f"{what} {number}"
    return answered


def fuzz_pictures(folder: Path, numbers: range) -> None:
    files, answers = sound_files(), 0
    for number in numbers:
        name, data = mangled_picture(files, random.Random(number))
        (folder / name).write_bytes(data)
        source = FileSource(folder, [name])

        def look(source=source) -> None:
            source.pixel_size(0)
            source.orientation(0)
            picture_HWC = source.picture(0, 16)
            assert picture_HWC.dtype == np.uint8
            assert picture_HWC.shape[2] == 3

        answers += timed("picture", number, look)
    # Neither so mild that all are read, nor so harsh that none is.
    assert 0.1 < answers / len(numbers) < 0.9


def fuzz_lists(folder: Path, numbers: range, kind: str) -> None:
    for i in range(8):
        path = folder / "images" / f"{i}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (30, 24), (i, i, i)).save(path)
    answers = 0
    for number in numbers:
        rng = random.Random(number)
        if kind == "csv":
            (folder / "manifest.csv").write_bytes(mangled_text(TABLE, rng))
            settings = DataSettings(name="manifest", path=str(folder))
        else:
            (folder / "a.json").write_bytes(mangled_json(rng))
            crop = rng.choice(("none", "box"))
            boxes = rng.choice((None, "a.json")) if crop == "box" else None
            # What is lost is counted and allowed, so that reading goes on to the pictures.
            settings = DataSettings(
                name="coco", path=str(folder), manifest="a.json", crop=crop, boxes=boxes,
                max_left_out=1.0,
            )  # fmt: skip
        for left_out in (None, LeftOut()):

            def look(settings=settings, left_out=left_out) -> None:
                table = load_table(settings, folder / "cache", left_out=left_out)
                for position in range(len(table)):
                    try:
                        table.picture(position, 16)
                    except DataError:
                        continue

            answers += timed(kind, number, look)
    assert 0.1 < answers / (2 * len(numbers)) < 0.95


@pytest.mark.parametrize("part", range(4))
def test_damaged_pictures(tmp_path, part):
    before = peak_megabytes()
    fuzz_pictures(tmp_path, range(part * QUICK, (part + 1) * QUICK))
    assert peak_megabytes() - before < MEGABYTES


@pytest.mark.parametrize("kind", ["csv", "json"])
def test_damaged_lists(tmp_path, kind):
    fuzz_lists(tmp_path, range(130), kind)


@pytest.mark.slow
def test_many_damaged_pictures(tmp_path):
    before = peak_megabytes()
    fuzz_pictures(tmp_path, range(1000, 1000 + 5 * SLOW))
    assert peak_megabytes() - before < MEGABYTES


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["csv", "json"])
def test_many_damaged_lists(tmp_path, kind):
    fuzz_lists(tmp_path, range(1000, 1000 + 2 * SLOW), kind)
