import shutil
from collections import namedtuple

import numpy as np
import pytest

from fgvc_core.errors import DataError
from fgvc_core.training import features
from fgvc_core.training.map_store import MapStore, check_room

KEYS = [bytes([number]) * 32 for number in range(5)]


def maps(count=5, seed=1):
    return np.random.default_rng(seed).standard_normal((count, 3, 4, 4)).astype(np.float32)


def written(tmp_path, dtype="float16"):
    store = MapStore(tmp_path, b"d" * 32, dtype)
    store.add(KEYS, maps())
    return store


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_another_process_finds_what_was_written(tmp_path, dtype):
    written(tmp_path, dtype)
    other = MapStore(tmp_path, b"d" * 32, dtype)
    assert other.missing([*KEYS, b"?" * 32]) == [5]
    found = other.get([KEYS[3], KEYS[0], KEYS[3]])
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, maps()[[3, 0, 3]].astype(dtype))
    assert MapStore(tmp_path, b"e" * 32, dtype).missing(KEYS) == [0, 1, 2, 3, 4]


def test_values_beyond_half_precision_are_its_largest_and_a_hole_stays_a_hole(tmp_path):
    store, given = MapStore(tmp_path, b"d" * 32), maps(2)
    given[0, 0, 0, 0], given[1] = 1e9, np.nan
    store.add(KEYS[:2], given)
    assert store.missing(KEYS[:2]) == []
    assert store.get(KEYS[:1])[0, 0, 0, 0] == np.finfo(np.float16).max
    assert store.unreadable(KEYS[:2]) == [1]


def test_a_changed_byte_is_found_when_its_map_is_read(tmp_path):
    store = written(tmp_path)
    (path,) = store.folder.glob("*.safetensors")
    whole = path.read_bytes()
    start = whole.index(maps().astype(np.float16)[2].tobytes())
    path.write_bytes(whole[:start] + bytes([whole[start] ^ 1]) + whole[start + 1 :])
    fresh = MapStore(tmp_path, b"d" * 32)
    assert fresh.missing(KEYS) == []
    fresh.get([KEYS[1], KEYS[3]])
    with pytest.raises(DataError, match="not those that were written") as caught:
        fresh.get([KEYS[2]])
    assert "Delete that file" in caught.value.remedy


def test_a_changed_key_is_another_pictures_and_never_takes_its_map(tmp_path):
    store = written(tmp_path)
    (path,) = store.folder.glob("*.safetensors")
    path.write_bytes(path.read_bytes().replace(KEYS[2], KEYS[2][:-1] + b"?"))
    fresh = MapStore(tmp_path, b"d" * 32)
    assert fresh.missing(KEYS) == [2]
    with pytest.raises(DataError, match="not those that were written"):
        fresh.get([KEYS[2][:-1] + b"?"])


@pytest.mark.parametrize("length", [0, 7, 100, 400])
def test_a_file_that_is_cut_short_is_named(tmp_path, length):
    store = written(tmp_path)
    (path,) = store.folder.glob("*.safetensors")
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(DataError, match="cannot be read") as caught:
        MapStore(tmp_path, b"d" * 32).missing(KEYS)
    assert path.name in caught.value.what


def test_files_are_private(tmp_path):
    store = written(tmp_path)
    (path,) = store.folder.glob("*.safetensors")
    assert path.stat().st_mode & 0o777 == 0o600
    assert store.folder.stat().st_mode & 0o777 == 0o700


def test_what_does_not_fit_on_the_disk_is_refused_before_any_work(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 0, 5_000_000))
    check_room(tmp_path / "not" / "yet", 5_000_000)
    with pytest.raises(DataError, match="no room for 6 MB of maps: 5 MB are free") as caught:
        check_room(tmp_path / "not" / "yet", 6_000_000)
    assert "augment.cached_views = 0" in caught.value.remedy


def test_a_disk_that_fills_up_is_said(tmp_path, monkeypatch):
    def full(*given):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(features, "save_file", full)
    with pytest.raises(DataError, match="has no room"):
        written(tmp_path)
    assert list(tmp_path.rglob("*.safetensors")) == []
