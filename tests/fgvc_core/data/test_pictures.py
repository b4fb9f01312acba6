import os
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fgvc_core.data.catalogue import load_table
from fgvc_core.data.files import FileSource, first_few
from fgvc_core.data.pictures import PictureBank
from fgvc_core.data.settings import DataSettings
from fgvc_core.data.table import ExampleTable
from fgvc_core.data.transforms import square
from fgvc_core.errors import DataError

from .picture_trees import REPOSITORY, ArraySource, make_table, noise, write_picture


def files_table(root: Path, count: int = 5, ending: str = "png") -> ExampleTable:
    names = [f"{i}.{ending}" for i in range(count)]
    for i, name in enumerate(names):
        write_picture(root / name, i, height=40, width=50)
    return replace(make_table([0] * count), source=FileSource(root, names))


class CountingFiles(FileSource):
    """Counts how often each file was decoded."""

    def __init__(self, root: Path, names: tuple[str, ...]) -> None:
        super().__init__(root, names)
        self.decoded = [0] * len(names)

    def picture(self, row: int, size: int | None = None) -> np.ndarray:
        self.decoded[row] += 1
        return super().picture(row, size)


def counting_table(root: Path, count: int) -> tuple[ExampleTable, CountingFiles]:
    table = files_table(root, count)
    assert isinstance(table.source, FileSource)
    source = CountingFiles(root, table.source.relative_paths)
    return replace(table, source=source), source


def cached_files(cache: Path) -> list[str]:
    return sorted(path.name for path in (cache / "pictures").glob("*.npy"))


@pytest.mark.parametrize("keep", [True, False])
def test_a_batch_holds_the_squares_of_its_positions(tmp_path: Path, keep: bool) -> None:
    table = make_table([0] * 7)
    bank = PictureBank(table, 16, crop=0.8, cache=tmp_path if keep else None)
    batch_BCHW = bank.batch([6, 0, 6])
    assert len(bank) == 7
    assert batch_BCHW.dtype == torch.uint8
    assert batch_BCHW.shape == (3, 3, 16, 16)
    assert batch_BCHW.is_contiguous()
    for i, position in enumerate([6, 0, 6]):
        expected_HWC = square(noise(position), 16, 0.8, "bilinear")
        assert (batch_BCHW[i].permute(1, 2, 0).numpy() == expected_HWC).all()


def test_a_batch_is_the_callers_own(tmp_path: Path) -> None:
    bank = PictureBank(make_table([0] * 3), 16, cache=tmp_path)
    before = bank.batch([1]).clone()
    bank.batch([1]).zero_()
    assert torch.equal(bank.batch([1]), before)


def test_no_picture_is_decoded_twice_not_even_by_another_bank(tmp_path: Path) -> None:
    table, source = counting_table(tmp_path / "tree", 40)
    for _ in range(2):
        bank = PictureBank(table, 16, cache=tmp_path)
        bank.batch(np.arange(40))
        bank.batch(np.arange(40))
    assert source.decoded == [1] * 40


def test_other_pictures_another_order_and_another_cut_are_other_files(tmp_path: Path) -> None:
    table = make_table([0] * 6)
    banks = [
        PictureBank(table, 16, cache=tmp_path),
        PictureBank(table.take([1, 0, 2, 3, 4, 5]), 16, cache=tmp_path),
        PictureBank(table.take([0, 1]), 16, cache=tmp_path),
        PictureBank(table, 20, cache=tmp_path),
        PictureBank(table, 16, crop=0.9, cache=tmp_path),
        PictureBank(table, 16, interpolation="bicubic", cache=tmp_path),
    ]
    assert len(cached_files(tmp_path)) == len(banks)
    assert torch.equal(banks[0].batch([0, 1]), banks[1].batch([1, 0]))
    assert torch.equal(banks[0].batch([0, 1]), banks[2].batch([0, 1]))


def test_a_changed_file_is_seen(tmp_path: Path) -> None:
    table = files_table(tmp_path / "tree")
    before = PictureBank(table, 16, cache=tmp_path).batch([2])
    write_picture(tmp_path / "tree" / "2.png", 99, height=40, width=50)
    after = PictureBank(files_table_again(table), 16, cache=tmp_path).batch([2])
    assert not torch.equal(before, after)


def files_table_again(table: ExampleTable) -> ExampleTable:
    """The same files through a source that has read nothing yet, as in another process."""
    assert isinstance(table.source, FileSource)
    return replace(table, source=FileSource(table.source.root, table.source.relative_paths))


@pytest.mark.parametrize("damage", ["cut", "other", "empty"])
def test_a_damaged_cache_file_is_made_again(tmp_path: Path, damage: str) -> None:
    table = make_table([0] * 4)
    before = PictureBank(table, 16, cache=tmp_path).batch(range(4))
    (path,) = (tmp_path / "pictures").glob("*.npy")
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-100])
    elif damage == "other":
        np.save(path, np.zeros((4, 8, 8, 3), dtype=np.uint8))
    else:
        path.write_bytes(b"")
    assert torch.equal(PictureBank(table, 16, cache=tmp_path).batch(range(4)), before)


def test_nothing_is_left_behind_when_a_picture_cannot_be_decoded(tmp_path: Path) -> None:
    table = files_table(tmp_path / "tree", count=8, ending="jpg")
    for name in ("3.jpg", "5.jpg"):
        path = tmp_path / "tree" / name
        path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(DataError, match=r"2 of 8 pictures cannot be read.*3\.jpg.*5\.jpg"):
        PictureBank(table, 16, cache=tmp_path)
    assert [path.suffix for path in (tmp_path / "pictures").iterdir()] == [".lock"]


def test_two_processes_make_one_file_together(tmp_path: Path) -> None:
    files_table(tmp_path / "tree", count=60)
    program = f"""
import sys, hashlib, numpy as np
from pathlib import Path
sys.path.insert(0, {str(REPOSITORY)!r})
from fgvc_core.data.catalogue import load_table
from fgvc_core.data.pictures import PictureBank
from fgvc_core.data.settings import DataSettings
root = Path({str(tmp_path)!r})
table = load_table(DataSettings(name="folder", path=str(root)), root)
bank = PictureBank(table, 24, cache=root / "cache")
print(hashlib.sha256(bank.batch(np.arange(60)).numpy().tobytes()).hexdigest())
"""
    runs = [
        subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = [run.communicate(timeout=120)[0].strip() for run in runs]
    assert [run.returncode for run in runs] == [0, 0]
    assert len(said[0]) == 64
    assert said[0] == said[1]
    assert len(cached_files(tmp_path / "cache")) == 1


def test_a_bank_travels_to_another_process_without_its_pixels(tmp_path: Path) -> None:
    bank = PictureBank(make_table([0] * 50), 32, cache=tmp_path)
    carried = pickle.dumps(bank)
    assert len(carried) < 5000
    assert torch.equal(pickle.loads(carried).batch([7]), bank.batch([7]))  # noqa: S301


class MappedSource(ArraySource):
    """Keeps its pictures in a file of its own, as the embedded set does."""

    def __init__(self, path: Path, count: int) -> None:
        np.save(path, np.stack([noise(i, 16, 16) for i in range(count)]))
        super().__init__(np.load(path, mmap_mode="r"))

    def picture(self, row: int, size: int | None = None) -> np.ndarray:
        return np.asarray(super().picture(row, size))


def test_pictures_that_a_source_maps_from_disk_are_not_copied(tmp_path: Path) -> None:
    source = MappedSource(tmp_path / "own.npy", 9)
    table = replace(make_table([0] * 9), source=source).take([8, 3])
    bank = PictureBank(table, 16, cache=tmp_path)
    batch_BHWC = bank.batch([1, 0]).permute(0, 2, 3, 1).numpy()
    assert (batch_BHWC == [noise(3, 16, 16), noise(8, 16, 16)]).all()
    assert not (tmp_path / "pictures").exists()
    bank.batch([1]).zero_()
    assert bank.batch([1]).any()
    PictureBank(table, 12, cache=tmp_path)
    PictureBank(table, 16, crop=0.8, cache=tmp_path)
    assert len(cached_files(tmp_path)) == 2


def test_the_embedded_set_is_read_from_its_own_cache(tmp_path: Path) -> None:
    settings = DataSettings(image_size=32, fieldmarks_train=30, fieldmarks_test=12)
    table = load_table(settings, tmp_path)
    bank = PictureBank(table, 32, cache=tmp_path)
    at = [41, 0, 29, 30]
    expected_BHWC = np.stack([table.picture(i) for i in at])
    assert (bank.batch(at).permute(0, 2, 3, 1).numpy() == expected_BHWC).all()
    carried = pickle.dumps(bank)
    assert len(carried) < 10_000
    assert torch.equal(pickle.loads(carried).batch(at), bank.batch(at))  # noqa: S301
    assert not (tmp_path / "pictures").exists()


def test_an_empty_table_makes_an_empty_bank(tmp_path: Path) -> None:
    bank = PictureBank(make_table([0]).take([]), 16, cache=tmp_path)
    assert len(bank) == 0
    assert bank.batch([]).shape == (0, 3, 16, 16)


@pytest.mark.parametrize("where", ["os.posix_fallocate", "numpy.lib.format.open_memmap"])
def test_a_full_disk_is_said_before_anything_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(where, full, raising=False)
    table, source = counting_table(tmp_path / "tree", 3)
    with pytest.raises(DataError, match=r"no room for 0 MB.*No space left on device"):
        PictureBank(table, 16, cache=tmp_path)
    assert source.decoded == [0, 0, 0]
    assert not cached_files(tmp_path)


def test_a_cache_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(DataError, match="cannot be used"):
        PictureBank(make_table([0]), 16, cache=tmp_path / "cache")


def test_a_draft_decode_keeps_the_short_side(tmp_path: Path) -> None:
    write_picture(tmp_path / "a.jpg", 1, height=640, width=900)
    source = FileSource(tmp_path, ["a.jpg"])
    assert source.picture(0).shape == (640, 900, 3)
    for size, short_side in ((100, 160), (160, 160), (161, 320), (640, 640), (2000, 640)):
        assert min(source.picture(0, size).shape[:2]) == short_side


def test_every_kind_of_picture_comes_as_rgb(tmp_path: Path) -> None:
    image = Image.fromarray(noise(1))
    for mode, name in (("L", "a.png"), ("P", "b.gif"), ("RGBA", "c.png"), ("CMYK", "d.jpg")):
        image.convert(mode).save(tmp_path / name)
    source = FileSource(tmp_path, ["a.png", "b.gif", "c.png", "d.jpg"])
    for row in range(4):
        picture_HWC = source.picture(row)
        assert picture_HWC.shape == (24, 30, 3)
        assert picture_HWC.dtype == np.uint8
    assert (source.picture(2) == noise(1)).all()


def test_orientation_is_followed(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(noise(1)).save(tmp_path / "a.png", exif=exif)
    turned = FileSource(tmp_path, ["a.png"]).picture(0)
    assert (turned == np.rot90(noise(1), -1)).all()


@pytest.mark.parametrize("ending", ["jpg", "png", "gif", "webp", "bmp", "tif"])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.6])
def test_a_cut_picture_is_an_error_that_names_it(tmp_path: Path, ending: str, share: float) -> None:
    path = tmp_path / f"bird.{ending}"
    write_picture(path, 1, height=60, width=80)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(DataError, match=rf"bird\.{ending}' cannot be read"):
        FileSource(tmp_path, [path.name]).picture(0, 16)


def test_missing_files_and_files_that_are_no_pictures_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("not a picture")
    (tmp_path / "b.png").mkdir()
    source = FileSource(tmp_path, ["a.png", "b.png", "c.png"])
    assert source.missing() == ["b.png", "c.png"]
    with pytest.raises(DataError, match=r"a\.png' cannot be read"):
        source.picture(0)
    with pytest.raises(DataError, match=r"b\.png' cannot be read"):
        source.content_key(1)
    for fetch in (source.picture, source.content_key):
        with pytest.raises(DataError, match=r"1 picture is missing: .*c\.png"):
            fetch(2)


def test_deep_pictures_are_refused_instead_of_clipped(tmp_path: Path) -> None:
    Image.fromarray(np.full((8, 8), 40_000, dtype=np.uint16)).save(tmp_path / "scan.png")
    with pytest.raises(DataError, match=r"scan\.png' has more than 8 bits"):
        FileSource(tmp_path, ["scan.png"]).picture(0)


def test_equal_bytes_have_equal_keys_and_a_source_travels_light(tmp_path: Path) -> None:
    write_picture(tmp_path / "a.png", 1)
    os.link(tmp_path / "a.png", tmp_path / "b.png")
    write_picture(tmp_path / "c.png", 2)
    source = FileSource(tmp_path, ["a.png", "b.png", "c.png"])
    assert source.content_key(0) == source.content_key(1) != source.content_key(2)
    assert len(source.content_key(0)) == 32
    assert len(pickle.dumps(source)) < 1000


def test_long_lists_are_shortened() -> None:
    assert first_few(["a"]) == "'a'"
    assert first_few(range(5)) == "'0', '1', '2' and 2 more"
