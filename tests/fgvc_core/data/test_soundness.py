import contextlib
import os
import random
import struct
import subprocess
import sys
import threading
import time
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from fgvc_core.cli import data_app
from fgvc_core.data import decoding
from fgvc_core.data.catalogue import load_table
from fgvc_core.data.check import check_table
from fgvc_core.data.files import FileSource
from fgvc_core.data.labels import LeftOut
from fgvc_core.data.passing import DECODING_BYTES
from fgvc_core.data.settings import DataSettings
from fgvc_core.data.soundness import MAX_PIXELS
from fgvc_core.errors import DataError

from .picture_trees import REPOSITORY, make_table, write_folders, write_picture


def bomb(path: Path, width: int, height: int) -> None:
    """A PNG of a few kilobytes that unfolds into width x height grey pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    rows = zlib.compress(b"\0" * 1000)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("width", "height", "said"),
    [
        (12_000, 10_000, "says that it is 12,000 x 10,000"),
        (8_001, 8_000, "says that it is 8,001 x 8,000 pixels; at most 30,000 a side and 64 mill"),
        (40_000, 1, "says that it is 40,000 x 1"),
        (20_000, 20_000, "cannot be read: Image size .400000000 pixels. exceeds"),
    ],
)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_decompression_bomb_is_refused_by_name_before_it_unfolds(
    tmp_path: Path, width: int, height: int, said: str
) -> None:
    bomb(tmp_path / "bomb.png", width, height)
    with pytest.raises(DataError, match=rf"bomb\.png' {said}"):
        FileSource(tmp_path, ["bomb.png"]).picture(0)


def test_a_link_out_of_the_tree_is_refused_and_nothing_of_it_is_read(tmp_path: Path) -> None:
    write_picture(tmp_path / "private" / "secret.png", 1)
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "a.png").symlink_to(tmp_path / "private" / "secret.png")
    (tree / "sub").symlink_to(tmp_path / "private")
    source = FileSource(tree, ["a.png", "sub/secret.png", "../private/secret.png"])
    for row in range(3):
        with pytest.raises(DataError, match="leads out of the data tree"):
            source.picture(row)
        with pytest.raises(DataError, match="leads out of the data tree"):
            source.content_key(row)
        assert source.pixel_size(row) is None


def test_links_within_the_tree_and_to_the_tree_are_followed(tmp_path: Path) -> None:
    write_picture(tmp_path / "disk" / "a.png", 1)
    (tmp_path / "disk" / "b.png").symlink_to("a.png")
    (tmp_path / "tree").symlink_to(tmp_path / "disk")
    assert FileSource(tmp_path / "tree", ["b.png"]).picture(0).shape == (24, 30, 3)


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"a\.png' cannot be read: it is no plain file"):
        FileSource(tmp_path, ["a.png"]).picture(0)


def test_an_absurdly_long_file_is_refused_unread(tmp_path: Path) -> None:
    with (tmp_path / "a.png").open("wb") as file:
        file.truncate(600 * 1024**2)
    with pytest.raises(DataError, match=r"a file of 629 MB"):
        FileSource(tmp_path, ["a.png"]).content_key(0)


@pytest.mark.parametrize(
    "content", [b"#!/bin/sh\n", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", b""]
)
def test_what_is_no_picture_is_refused_whatever_it_is_called(
    tmp_path: Path, content: bytes
) -> None:
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(DataError, match=r"a\.jpg' cannot be read"):
        FileSource(tmp_path, ["a.jpg"]).picture(0)


def test_a_check_names_each_refused_picture_and_why(tmp_path: Path) -> None:
    write_folders(tmp_path / "tree", ["wren"], each=6)
    write_picture(tmp_path / "elsewhere.png", 77)
    (tmp_path / "tree" / "wren" / "link.png").symlink_to(tmp_path / "elsewhere.png")
    bomb(tmp_path / "tree" / "wren" / "bomb.png", 30_000, 30_000)
    settings = DataSettings(name="folder", path=str(tmp_path / "tree"))
    report = check_table(load_table(settings, tmp_path, require_pictures=False))
    assert set(report.unreadable) == {"wren/bomb.png"}
    assert report.unused.counts() == {"behind a link that leads out of the data tree": 1}
    assert any("wren/link.png (to " in fault for fault in report.faults())
    assert "exceeds limit" in report.unreadable["wren/bomb.png"]


@pytest.mark.parametrize("ending", ["tif", "png", "gif", "bmp", "jpg", "webp", "ppm"])
@pytest.mark.filterwarnings("ignore")
def test_whatever_a_decoder_raises_over_a_damaged_file_is_an_error_of_the_data(
    tmp_path: Path, ending: str
) -> None:
    """Headers with some bytes changed: a picture, or one kind of error, and nothing else."""
    write_picture(tmp_path / f"sound.{ending}", 1)
    sound = (tmp_path / f"sound.{ending}").read_bytes()
    rng = random.Random(ending)
    # A TIFF's directory is at its end, all others begin with what they are.
    spread = len(sound) if ending == "tif" else min(len(sound), 200)
    for number in range(150):
        data = bytearray(sound)
        for _ in range(rng.randint(1, 4)):
            at = rng.randrange(spread)
            data[-1 - at if ending == "tif" and rng.random() < 0.9 else at] = rng.randrange(256)
        (tmp_path / f"{number}.{ending}").write_bytes(data)
        source = FileSource(tmp_path, [f"{number}.{ending}"])
        with contextlib.suppress(DataError):
            assert source.picture(0, 16).shape[2] == 3
        source.pixel_size(0)
        source.content_key(0)


def text_for_offsets(content: bytes) -> bytes:
    """A TIFF whose directory calls its strip offsets (tag 273) text (2) instead of numbers."""
    at = content.index(struct.pack("<HH", 273, 4))
    return content[:at] + struct.pack("<HH", 273, 2) + content[at + 4 :]


def test_a_check_names_a_damaged_tiff_and_ends_with_the_code_for_data(tmp_path: Path) -> None:
    write_folders(tmp_path / "tree", ["jay", "wren"])
    Image.new("RGB", (50, 40)).save(tmp_path / "whole.tif")
    damaged = text_for_offsets((tmp_path / "whole.tif").read_bytes())
    (tmp_path / "tree" / "jay" / "x.tif").write_bytes(damaged)
    done = CliRunner().invoke(data_app, ["check", str(tmp_path / "tree")], terminal_width=200)
    assert done.exit_code == 3, (done.output, done.exception)
    assert "jay/x.tif" in done.output


def test_the_most_that_a_picture_may_unfold_into_is_what_is_asked_of_the_memory() -> None:
    assert MAX_PIXELS * 16 <= DECODING_BYTES


def test_large_pictures_are_decoded_one_at_a_time_and_all_others_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoding, "LARGE_PIXELS", 1000)
    monkeypatch.setattr(decoding, "cores", lambda: 4)
    monkeypatch.setattr(decoding, "_CHUNK", 1)
    names = [f"{'large' if number % 2 else 'small'}-{number}.png" for number in range(16)]
    for number, name in enumerate(names):
        write_picture(tmp_path / name, number, height=40 if number % 2 else 20)
    (tmp_path / names[3]).write_bytes((tmp_path / names[3]).read_bytes()[:500])
    table = replace(make_table([0] * 16), source=FileSource(tmp_path, names))
    held, most = {"large": 0, "small": 0}, {"large": 0, "small": 0}
    guard = threading.Lock()

    def use(position: int, picture_HWC: np.ndarray) -> None:
        kind = names[position].split("-")[0]
        with guard:
            held[kind] += 1
            most[kind] = max(most[kind], held[kind])
        time.sleep(0.05)
        with guard:
            held[kind] -= 1

    assert list(decoding.decode_each(table, 16, use)) == [3]
    assert most["large"] == 1
    assert most["small"] > 1


def test_a_picture_takes_little_memory_beside_itself(tmp_path: Path) -> None:
    """Peak of a whole process, above that of a small picture: 8 bytes for each pixel at most."""
    Image.new("RGB", (4000, 4000), (1, 2, 3)).save(tmp_path / "large.png")
    write_picture(tmp_path / "small.png", 1)
    program = f"""
import resource
from pathlib import Path
from fgvc_core.data.files import FileSource
source = FileSource(Path({str(tmp_path)!r}), ["small.png", "large.png"])
peaks = []
for row in (0, 1):
    source.picture(row, 16)
    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
print((peaks[1] - peaks[0]) / 16e6)
"""
    said = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=REPOSITORY
    )
    assert float(said.stdout) < 9


def test_modern_phones_pictures_still_open(tmp_path: Path) -> None:
    Image.new("RGB", (40, 30)).save(
        tmp_path / "a.jpg", format="MPO", save_all=True, append_images=[Image.new("RGB", (40, 30))]
    )
    assert FileSource(tmp_path, ["a.jpg"]).picture(0).shape == (30, 40, 3)


@pytest.mark.parametrize("left_out", [None, LeftOut()], ids=["strict", "tolerant"])
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("manifest.csv", {"name": "manifest"}),
        ("classes.txt", {"name": "cub"}),
    ],
)
def test_a_list_that_never_ends_or_lies_elsewhere_is_refused(
    tmp_path: Path, name: str, settings: dict[str, str], left_out: LeftOut | None
) -> None:
    tree = tmp_path / "tree"
    (tree / name).parent.mkdir(parents=True)
    (tmp_path / "elsewhere.csv").write_text("path,label\na.png,x\n")
    read = DataSettings(path=str(tree), **settings)
    for make, said in (
        (lambda path: path.symlink_to("/dev/zero"), "leads out of the data tree"),
        (lambda path: path.symlink_to(tmp_path / "elsewhere.csv"), "leads out of the data tree"),
        (os.mkfifo, "no plain file"),
        (lambda path: _sparse(path, 2 * 1024**3), "a file of 2,147 MB"),
    ):
        (tree / name).unlink(missing_ok=True)
        make(tree / name)
        with pytest.raises(DataError, match=said):
            load_table(read, tmp_path / "cache", left_out=left_out)


def _sparse(path: Path, size: int) -> None:
    with path.open("wb") as file:
        file.truncate(size)
