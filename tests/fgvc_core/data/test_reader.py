"""One reader: orientation, transparency, depth, thin pictures and damaged EXIF."""

import io
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from fgvc_core.data.files import FileSource
from fgvc_core.data.reader import turned_boxes
from fgvc_core.data.transforms import square
from fgvc_core.errors import DataError

from .picture_trees import noise, write_cub

BACK = {1: None, 2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}
"""Orientation -> how Pillow makes the stored picture from the upright one."""


def scene() -> Image.Image:
    """Red top left, blue below: not symmetric."""
    picture_HWC = np.full((64, 96, 3), 120, dtype=np.uint8)
    picture_HWC[:21, :48], picture_HWC[-21:] = (220, 30, 30), (30, 30, 220)
    return Image.fromarray(picture_HWC)


def read(path: Path) -> np.ndarray:
    return FileSource(path.parent, [path.name]).picture(0)


def stored(orientation: int) -> Image.Image:
    back = BACK[orientation]
    return scene() if back is None else scene().transpose(Image.Transpose(back))


def exif_of(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


@pytest.mark.parametrize("orientation", BACK)
@pytest.mark.parametrize("ending", ["jpg", "png", "webp", "tif"])
def test_a_picture_is_turned_as_its_exif_says(
    tmp_path: Path, orientation: int, ending: str
) -> None:
    path = tmp_path / f"a.{ending}"
    options = {"lossless": True} if ending == "webp" else {"quality": 95} if ending == "jpg" else {}
    stored(orientation).save(path, exif=exif_of(orientation), **options)
    difference_HWC = np.abs(read(path).astype(int) - np.asarray(scene()))
    assert difference_HWC.mean() < 3


@pytest.mark.parametrize("orientation", BACK)
def test_boxes_and_parts_of_published_sets_turn_with_their_pictures(tmp_path, orientation):
    from fgvc_core.data.catalogue import load_table
    from fgvc_core.data.settings import DataSettings

    write_cub(tmp_path)
    path = tmp_path / "images" / "001.Small_Bird_1" / "Bird_1_0.jpg"
    picture_HWC = np.full((24, 30, 3), 255, dtype=np.uint8)
    picture_HWC[6:18, 3:18] = 0
    Image.fromarray(picture_HWC).save(path, quality=95, exif=exif_of(orientation))
    table = load_table(DataSettings(name="cub", path=str(tmp_path)), tmp_path / "cache")
    upright_HWC = table.picture(0)
    height, width = upright_HWC.shape[:2]
    x, y, w, h = (table.boxes_N4[0] * (width, height, width, height)).round().astype(int)
    assert upright_HWC[y : y + h, x : x + w].mean() < 10
    assert upright_HWC.mean() > 100
    part_x, part_y, visible = table.parts_NP3[0, 0]
    assert visible == 1
    # The first part lies on the middle of the stored box's upper edge.
    assert (np.array([part_x, part_y]) >= table.boxes_N4[0, :2] - 0.05).all()
    assert (
        np.array([part_x, part_y]) <= table.boxes_N4[0, :2] + table.boxes_N4[0, 2:] + 0.05
    ).all()
    if orientation == 1:
        assert np.allclose(table.boxes_N4[0], turned_boxes(table.boxes_N4[:1], 1)[0])


def block(*entries: tuple[int, int, int, bytes], extra: bytes = b"") -> bytes:
    """An EXIF block of one little-endian directory."""
    packed = b"".join(struct.pack("<HHI", tag, kind, n) + v for tag, kind, n, v in entries)
    return b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + packed + bytes(4) + extra


SIX = (0x112, 3, 1, struct.pack("<HH", 6, 0))
DAMAGED = {
    "twice": b"Exif\0\0" + block(SIX),
    "short": block(SIX)[:17],
    "text": block((0x112, 2, 2, b"6\0\0\0")),
    "nine": block((0x112, 3, 1, struct.pack("<HH", 9, 0))),
    "signed": block(SIX, (0x11A, 10, 1, struct.pack("<I", 38)), extra=struct.pack("<ii", -1, 0)),
    "nan": block(SIX, (0x11A, 11, 1, struct.pack("<f", float("nan")))),
    "bytes": block(SIX, (0x11A, 7, 4, b"abcd")),
    "double": block(SIX, (0x132, 12, 1, struct.pack("<I", 38)), extra=struct.pack("<d", 1e300)),
    "two": block((0x112, 3, 2, struct.pack("<HH", 6, 6))),
    "double orientation": block((0x112, 12, 1, struct.pack("<I", 8))),
    "loop": block(SIX, (0x8769, 4, 1, struct.pack("<I", 8)), (0x8825, 4, 1, struct.pack("<I", 8))),
    "far": block(SIX, (0x10F, 2, 40, struct.pack("<I", 60_000))),
    "zeros": bytes(80),
    "offset": b"Exif\0\0II*\0\xff\xff\xff\x7f",
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_exif_does_not_lose_whole_pixels(tmp_path: Path, name: str) -> None:
    held = io.BytesIO()
    scene().save(held, "JPEG", quality=95)
    jpeg, app1 = held.getvalue(), DAMAGED[name]
    path = tmp_path / "a.jpg"
    path.write_bytes(jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(app1) + 2) + app1 + jpeg[2:])
    plain = name in ("short", "text", "nine", "zeros", "offset", "double orientation")
    assert read(path).shape == ((64, 96, 3) if plain else (96, 64, 3))


def test_transparency_lies_on_white_and_what_is_under_it_never_shows(tmp_path: Path) -> None:
    rgba_HWC = np.zeros((40, 40, 4), np.uint8)
    rgba_HWC[15:25, 15:25] = (200, 100, 50, 255)
    rgba_HWC[30:35, 30:35] = (0, 0, 0, 128)
    image = Image.fromarray(rgba_HWC, "RGBA")
    image.save(tmp_path / "a.png")
    image.save(tmp_path / "a.webp", lossless=True, exact=True)
    image.save(tmp_path / "a.tif")
    image.convert("LA").save(tmp_path / "grey.png")
    image.quantize(8).save(tmp_path / "palette.png")
    key = Image.fromarray(rgba_HWC[..., :3].copy())
    key.save(tmp_path / "key.png", transparency=(0, 0, 0))
    gif = Image.fromarray(np.zeros((40, 40), np.uint8), "P")
    gif.putpalette([0, 0, 0, 9, 9, 9])
    gif.save(tmp_path / "a.gif", transparency=0)
    for path in sorted(tmp_path.iterdir()):
        picture_HWC = read(path)
        assert (picture_HWC[0, 0] == 255).all(), path.name
        if path.name in ("a.png", "a.webp", "a.tif"):
            assert (picture_HWC[20, 20] == (200, 100, 50)).all()
            assert (picture_HWC[32, 32] == 127).all()


def png16(samples_HWC: np.ndarray) -> bytes:
    """A PNG of 16 bits a channel: 1, 2 (grey and alpha), 3 or 4 channels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        crc = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + crc

    h, w, c = samples_HWC.shape
    head = struct.pack(">IIBBBBB", w, h, 16, {1: 0, 2: 4, 3: 2, 4: 6}[c], 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples_HWC)
    parts = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def tiff16(samples_HWC: np.ndarray) -> bytes:
    """An uncompressed RGB TIFF of 16 bits a channel."""
    h, w, _ = samples_HWC.shape
    data = samples_HWC.astype("<u2").tobytes()
    bits = 8 + 2 + 12 * 10 + 4
    tags = [(256, 4, 1, w), (257, 4, 1, h), (258, 3, 3, bits), (259, 3, 1, 1), (262, 3, 1, 2),
            (273, 4, 1, bits + 6), (277, 3, 1, 3), (278, 4, 1, h), (279, 4, 1, len(data)),
            (284, 3, 1, 1)]  # fmt: skip
    packed = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    return b"II*\0\x08\0\0\0" + struct.pack("<H", 10) + packed + bytes(4) + b"\x10\0" * 3 + data


def deep_files(folder: Path) -> list[str]:
    """The same values of 12 bits in files of 16, as microscope cameras write them."""
    v = np.full((40, 40, 1), 4000, np.uint16)
    rgb, opaque = np.repeat(v, 3, 2), np.full_like(v, 65535)
    files = {
        "grey.png": png16(v),
        "grey-alpha.png": png16(np.concatenate([v, opaque], 2)),
        "rgb.png": png16(rgb),
        "rgba.png": png16(np.concatenate([rgb, opaque], 2)),
        "rgb.tif": tiff16(rgb),
        "rgb.ppm": b"P6 40 40 65535\n" + rgb.astype(">u2").tobytes(),
        "grey.pgm": b"P5 40 40 4095\n" + v.astype(">u2").tobytes(),
    }
    for name, content in files.items():
        (folder / name).write_bytes(content)
    Image.fromarray(v[:, :, 0]).save(folder / "grey.tif")
    Image.fromarray(v[:, :, 0].astype(np.float32)).save(folder / "float.tif")
    return sorted(path.name for path in folder.iterdir())


def test_more_than_8_bits_a_channel_are_refused_whatever_the_mode(tmp_path: Path) -> None:
    for name in deep_files(tmp_path):
        with pytest.raises(DataError, match=r"more than 8 bits a channel"):
            read(tmp_path / name)
    # 5, 6 and 5 bits are not deep.
    path = tmp_path / "a.bmp"
    mask = struct.pack("<IiiHHIIiiII", 40, 4, 4, 1, 16, 3, 32, 0, 0, 0, 0)
    header = (
        b"BM" + struct.pack("<IHHI", 98, 0, 0, 66) + mask + struct.pack("<III", 63488, 2016, 31)
    )
    path.write_bytes(header + b"\xff\xff" * 16)
    assert (read(path) == 255).all()


def icc(space: bytes, gamma: float, primaries: Sequence[Sequence[float]] = ()) -> bytes:
    """A profile of gamma and, for RGB, primaries in XYZ (D50), as ICC.1 lays it out."""

    def fixed(*values: float) -> bytes:
        return struct.pack(f">{len(values)}i", *(round(value * 65536) for value in values))

    curve = b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256)) + bytes(2)
    white = b"XYZ " + bytes(4) + fixed(0.9642, 1.0, 0.8249)
    tags = {b"wtpt": white, b"kTRC": curve} if space == b"GRAY" else {b"wtpt": white}
    for name, place in zip((b"r", b"g", b"b"), primaries, strict=False):
        tags[name + b"XYZ"] = b"XYZ " + bytes(4) + fixed(*place)
        tags[name + b"TRC"] = curve
    at, table, body = 128 + 4 + 12 * len(tags), struct.pack(">I", len(tags)), b""
    for name, content in tags.items():
        table += name + struct.pack(">II", at + len(body), len(content))
        body += content
    head = struct.pack(">I4sI4s4s4s", 0, b"none", 0x02400000, b"mntr", space, b"XYZ ")
    head = head.ljust(36, b"\0") + b"acsp"
    head = head.ljust(68, b"\0") + fixed(0.9642, 1.0, 0.8249)
    whole = head.ljust(128, b"\0") + table + body
    return struct.pack(">I", len(whole)) + whole[4:]


PRIMARIES = [(0.6097, 0.3111, 0.0195), (0.2053, 0.6257, 0.0609), (0.1492, 0.0632, 0.7446)]
WIDE = icc(b"RGB ", 2.2, PRIMARIES)
"""About Adobe RGB (1998), whose green and red are more vivid than those of sRGB."""


def write_profiled(folder: Path) -> None:
    """The same colors with a profile in every kind of file that may have one."""
    rgb = Image.fromarray(np.full((32, 40, 3), (100, 180, 90), np.uint8))
    rgba = rgb.copy()
    rgba.putalpha(Image.fromarray(np.repeat(np.uint8([[0] * 20 + [255] * 20]), 32, 0)))
    rgb.save(folder / "rgb.png", icc_profile=WIDE)
    rgb.save(folder / "rgb.jpg", quality=100, subsampling=0, icc_profile=WIDE)
    rgb.save(folder / "rgb.webp", lossless=True, icc_profile=WIDE)
    rgb.save(folder / "rgb.tif", icc_profile=WIDE)
    rgb.quantize(4).save(folder / "palette.png", icc_profile=WIDE)
    rgba.save(folder / "rgba.png", icc_profile=WIDE)
    grey = icc(b"GRAY", 1.0)
    rgb.convert("L").save(folder / "grey.png", icc_profile=grey)
    rgba.convert("LA").save(folder / "grey-alpha.png", icc_profile=grey)
    # These change nothing: none, sRGB itself, damaged, and of another kind of color.
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for name, profile in (("none", None), ("srgb", srgb), ("cut", WIDE[:200]), ("grey", grey)):
        rgb.save(folder / f"same-{name}.png", icc_profile=profile)
    rgb.convert("L").save(folder / "same-as-grey.png", icc_profile=WIDE)


def test_embedded_color_profiles_are_applied_and_damaged_ones_are_none(tmp_path: Path) -> None:
    write_profiled(tmp_path)
    for path in sorted(tmp_path.iterdir()):
        place = read(path)[16, 30].astype(int)
        if path.name.startswith("same-"):
            expected = [100, 180, 90] if "as-grey" not in path.name else [146] * 3
            assert np.abs(place - expected).max() <= 1, path.name
        elif path.name.startswith("grey"):
            # Linear light: a sample of 146 is 199 in sRGB.
            assert np.abs(place - 199).max() <= 2, path.name
        else:
            assert place[0] < 60, path.name
            assert abs(place[1] - 181) <= 4, path.name
    assert (read(tmp_path / "rgba.png")[16, 5] == 255).all()
    assert (read(tmp_path / "grey-alpha.png")[16, 5] == 255).all()


@pytest.mark.parametrize("size", [(1, 5000), (30_000, 1), (3, 29_000)])
def test_of_a_thin_picture_only_the_middle_is_resized(tmp_path: Path, size) -> None:
    Image.new("RGB", size, (220, 30, 30)).save(tmp_path / "a.png")
    view_HWC = square(read(tmp_path / "a.png"), 224, 0.875, "bicubic")
    assert (view_HWC == (220, 30, 30)).all()


def test_a_picture_in_memory_is_read_like_a_file(tmp_path: Path) -> None:
    from fgvc_core.data.reader import as_rgb

    stored(6).save(tmp_path / "a.png", exif=exif_of(6))
    with Image.open(tmp_path / "a.png") as image:
        assert (as_rgb(image) == np.asarray(scene())).all()
    assert (as_rgb(Image.fromarray(noise(1))) == noise(1)).all()


def series(folder: Path) -> tuple[str, ...]:
    """Files of three pictures: red, green, blue."""
    pages = [Image.new("RGB", (40, 30), color) for color in ("#ff0000", "#00ff00", "#0000ff")]
    names = ("a.tif", "a.gif", "a.webp", "a.png")
    for name in names:
        lossless = {"lossless": True} if name == "a.webp" else {}
        pages[0].save(folder / name, save_all=True, append_images=pages[1:], **lossless)
    return names


@pytest.mark.parametrize(("frame", "channel"), [("first", 0), ("middle", 1), ("last", 2)])
def test_the_frame_that_the_recipe_names_is_read(tmp_path, frame, channel):
    from fgvc_core.data.settings import DataSettings

    names = series(tmp_path)
    source = FileSource(tmp_path, names).read_as(DataSettings(frame=frame))
    for row, name in enumerate(names):
        color_3 = source.picture(row).reshape(-1, 3).mean(axis=0)
        assert color_3.argmax() == channel, name
        assert color_3.max() > 250, name
    # Decoded pictures are kept by what was read of them.
    plain = FileSource(tmp_path, names)
    assert (source.view_key(0) == plain.view_key(0)) == (frame == "first")


def test_previews_in_a_phones_picture_are_never_read_in_its_place(tmp_path):
    whole, preview = Image.new("RGB", (40, 30), "#ff0000"), Image.new("RGB", (20, 15), "#0000ff")
    whole.save(tmp_path / "a.jpg", format="MPO", save_all=True, append_images=[preview])
    assert Image.open(tmp_path / "a.jpg").n_frames == 2
    source = FileSource(tmp_path, ["a.jpg"], frame="last")
    assert source.picture(0).shape == (30, 40, 3)


def test_a_page_of_another_size_has_its_own(tmp_path):
    large, small = Image.new("RGB", (64, 48)), Image.new("RGB", (32, 24))
    small.save(tmp_path / "a.tif", save_all=True, append_images=[large])
    assert FileSource(tmp_path, ["a.tif"], frame="last").pixel_size(0) == (64, 48)
    assert FileSource(tmp_path, ["a.tif"]).pixel_size(0) == (32, 24)
