"""The exported sample reads pictures as the product does, and refuses the same."""

import resource
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fgvc_core.data.depth import Depth
from fgvc_core.data.files import FileSource
from fgvc_core.data.transforms import square
from fgvc_core.errors import DataError
from tests.fgvc_core.data.picture_trees import noise
from tests.fgvc_core.data.test_reader import (
    DAMAGED,
    deep_files,
    exif_of,
    series,
    stored,
    write_profiled,
)

read_picture = pytest.importorskip("fgvc_core.export.read_picture")
run_onnx = pytest.importorskip("fgvc_core.export.run_onnx", reason="needs onnxruntime")


def both(path: Path, size: int = 32, short: int = 37) -> tuple[np.ndarray, np.ndarray]:
    picture_HWC = FileSource(path.parent, [path.name]).picture(0, short)
    ours = square(picture_HWC, size, size / short, "bicubic")
    return ours, read_picture.square(str(path), size, short, "bicubic")


def test_the_same_squares_of_every_kind_of_picture(tmp_path):
    for orientation in range(1, 9):
        for ending in ("jpg", "png", "webp", "tif"):
            path = tmp_path / f"o{orientation}.{ending}"
            stored(orientation).save(path, exif=exif_of(orientation))
    rgba_HWC = np.dstack([noise(1), noise(2)[..., 0]])
    image = Image.fromarray(rgba_HWC, "RGBA")
    for name in ("a.png", "a.webp", "a.tif"):
        image.save(tmp_path / name)
    image.convert("LA").save(tmp_path / "la.png")
    image.quantize(8).save(tmp_path / "p.png")
    Image.fromarray(noise(3)).convert("CMYK").save(tmp_path / "cmyk.jpg")
    Image.fromarray(noise(4, 700, 900)).save(tmp_path / "large.jpg")
    Image.fromarray(noise(5, 700, 900)).save(tmp_path / "large.png")
    Image.fromarray(noise(6, 2000, 3)).save(tmp_path / "thin.png")
    Image.fromarray(noise(7, 1, 900)).save(tmp_path / "flat.png")
    for path in sorted(tmp_path.iterdir()):
        ours, theirs = both(path)
        assert np.abs(ours.astype(int) - theirs).max() == 0, path.name


def test_it_refuses_what_the_product_refuses(tmp_path):
    names = deep_files(tmp_path)
    (tmp_path / "text.jpg").write_text("not found")
    (tmp_path / "empty.png").write_bytes(b"")
    for name in [*names, "text.jpg", "empty.png"]:
        with pytest.raises(DataError):
            FileSource(tmp_path, [name]).picture(0)
        with pytest.raises((ValueError, OSError)):
            read_picture.square(str(tmp_path / name), 32, 32, "bilinear")


def test_color_profiles_are_applied_alike(tmp_path):
    write_profiled(tmp_path)
    for path in sorted(tmp_path.iterdir()):
        ours, theirs = both(path)
        assert (ours == theirs).all(), path.name


@pytest.mark.parametrize("depth", [
    Depth("scale", bits=12), Depth("percentile"), Depth("window", window=(2000.0, 3000.0)),
])  # fmt: skip
def test_deep_pictures_follow_the_rule_of_training(tmp_path, depth):
    deep_files(tmp_path)
    deep = Image.fromarray(np.asarray(stored(6).convert("L")).astype(np.uint16) * 16)
    deep.save(tmp_path / "turned.png", exif=exif_of(6))
    for path in sorted(tmp_path.iterdir()):
        sizes = (str(path), 32, 37, "bicubic", asdict(depth))
        picture_HWC = FileSource(tmp_path, [path.name], depth=depth).picture(0, 37)
        assert (square(picture_HWC, 32, 32 / 37, "bicubic") == read_picture.square(*sizes)).all()


@pytest.mark.parametrize("frame", ["first", "middle", "last"])
def test_the_frame_of_training_is_read(tmp_path, frame):
    for name in series(tmp_path):
        picture_HWC = FileSource(tmp_path, [name], frame=frame).picture(0, 30)
        theirs = read_picture.square(str(tmp_path / name), 30, 30, "bicubic", frame=frame)
        assert (square(picture_HWC, 30, 1.0, "bicubic") == theirs).all(), name


def test_what_is_refused_says_what_to_do_and_names_stay_on_one_line(tmp_path):
    deep_files(tmp_path)
    with pytest.raises(ValueError, match="convert it to 8 bits with the window"):
        read_picture.square(str(tmp_path / "grey.png"), 32, 37, "bicubic")
    assert run_onnx.shown("a\nb\x1b[2J \u202ec.png") == r"a\nb\x1b[2J \u202ec.png"
    assert run_onnx.shown("Bécasse 🐦.png") == "Bécasse 🐦.png"


@pytest.mark.parametrize(("name", "start"), [
    ("HEIC", bytes(4) + b"ftypheic"), ("HEIC", bytes(4) + b"ftypmif1"),
    ("DICOM", bytes(128) + b"DICM"),
])  # fmt: skip
def test_what_needs_an_extra_of_the_product_is_named_with_what_to_do(tmp_path, name, start):
    (tmp_path / "x").write_bytes(start + bytes(200))
    with pytest.raises(ValueError, match=f"it is {name}.*convert it to 8-bit PNG"):
        read_picture.square(str(tmp_path / "x"), 32, 37, "bicubic")


def test_damaged_exif_is_read_alike(tmp_path):
    import io
    import struct

    held = io.BytesIO()
    stored(1).save(held, "JPEG")
    jpeg = held.getvalue()
    for name, app1 in DAMAGED.items():
        path = tmp_path / f"{name}.jpg"
        size = struct.pack(">H", len(app1) + 2)
        path.write_bytes(jpeg[:2] + b"\xff\xe1" + size + app1 + jpeg[2:])
        ours, theirs = both(path)
        assert (ours == theirs).all(), name


def test_a_thin_picture_takes_little_memory(tmp_path):
    Image.new("RGB", (30_000, 1), (220, 30, 30)).save(tmp_path / "a.png")
    code = (
        "import sys, resource; from fgvc_core.export.read_picture import square\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "view = square(sys.argv[1], 224, 256, 'bicubic')\n"
        "assert view.shape == (224, 224, 3) and (view == (220, 30, 30)).all()\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    limit = 8 * 1024**3
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "a.png")],
        capture_output=True, text=True, check=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
    )  # fmt: skip
    assert int(done.stdout) < 100_000  # kB
