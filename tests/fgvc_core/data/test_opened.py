"""A second look at unchanged pictures opens none of them."""

import hashlib

import numpy as np
import pytest
from PIL import Image

from fgvc_core.data import opened
from fgvc_core.data.files import FileSource
from fgvc_core.data.opened import open_each
from fgvc_core.data.table import ExampleTable


@pytest.fixture
def tree(tmp_path):
    rng = np.random.default_rng(0)
    names = [f"{i}.png" for i in range(40)]
    for name in names:
        pixels = rng.integers(0, 255, (20, 20, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / name)
    return tmp_path, names


def table_of(tree):
    root, names = tree
    source = FileSource(root, names)
    return ExampleTable(
        source=source,
        rows=np.arange(len(names)),
        ids=tuple(names),
        labels_N=np.zeros(len(names), dtype=np.int64),
        class_names=("one",),
        subjects=tuple(names),
        splits=("train",) * len(names),
    )


@pytest.fixture
def decoded(monkeypatch):
    """Names of the pictures that were decoded since the last call."""
    found, picture = [], FileSource.picture

    def counted(self, row, size=None):
        found.append(self.relative_paths[row])
        return picture(self, row, size)

    monkeypatch.setattr(FileSource, "picture", counted)

    def since():
        names = sorted(found)
        found.clear()
        return names

    return since


def test_the_second_look_opens_only_what_has_changed(tree, tmp_path, decoded):
    cache, told = tmp_path / "cache", []
    assert open_each(table_of(tree), cache) == {}
    assert decoded() == sorted(tree[1])
    assert open_each(table_of(tree), cache, lambda *now: told.append(now)) == {}
    assert decoded() == []
    assert told[-1] == (40, 40)
    changed = tmp_path / "7.png"
    Image.new("RGB", (20, 20), "red").save(changed)
    assert open_each(table_of(tree), cache) == {}
    assert decoded() == ["7.png"]


def test_a_damaged_picture_is_named_each_time_and_never_remembered(tree, tmp_path, decoded):
    cache, broken = tmp_path / "cache", tmp_path / "3.png"
    whole = broken.read_bytes()
    broken.write_bytes(whole[:60])
    for _ in range(2):
        (position,) = open_each(table_of(tree), cache)
        assert position == 3
    decoded()
    broken.write_bytes(whole)
    assert open_each(table_of(tree), cache) == {}
    assert decoded() == ["3.png"]
    broken.unlink()
    assert list(open_each(table_of(tree), cache)) == [3]


def test_what_is_remembered_is_private_and_nothing_but_digests(tree, tmp_path):
    cache = tmp_path / "cache"
    open_each(table_of(tree), cache)
    (path,) = (cache / "opened").iterdir()
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert path.stat().st_size == 41 * 32


@pytest.mark.parametrize("damage", ["cut", "flipped", "other code"])
def test_a_damaged_memory_or_other_code_counts_as_none(
    tree, tmp_path, decoded, monkeypatch, damage
):
    cache = tmp_path / "cache"
    open_each(table_of(tree), cache)
    decoded()
    (path,) = (cache / "opened").iterdir()
    data = path.read_bytes()
    if damage == "cut":
        path.write_bytes(data[:-1])
    elif damage == "flipped":
        path.write_bytes(bytes([data[0] ^ 1]) + data[1:])
    else:
        monkeypatch.setattr(opened, "code_digest", lambda: hashlib.sha256(b"new").hexdigest())
    assert open_each(table_of(tree), cache) == {}
    assert decoded() == sorted(tree[1])
    assert len(list((cache / "opened").iterdir())) == 1


def test_a_cache_that_cannot_be_written_is_done_without(tree, tmp_path):
    (tmp_path / "cache").write_text("a file, not a folder")
    assert open_each(table_of(tree), tmp_path / "cache") == {}
    assert open_each(table_of(tree)) == {}
