import hashlib
import multiprocessing
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from fgvc_core.data.fieldmarks import build_table, contact_sheet
from fgvc_core.data.fieldmarks.source import render
from fgvc_core.data.fieldmarks.species import ATTRIBUTE_NAMES, SPECIES
from fgvc_core.data.settings import DataSettings
from fgvc_core.data.table import UNLABELLED
from fgvc_core.errors import DataError
from fgvc_core.training.baselines import pixel_baseline


def settings(**changes):
    values = {
        "image_size": 32,
        "fieldmarks_train": 96,
        "fieldmarks_test": 24,
        "fieldmarks_pool": 12,
    }
    return DataSettings(**{**values, **changes})


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    return build_table(settings(), tmp_path_factory.mktemp("cache"))


def test_another_process_draws_the_same_pictures():
    code = (
        "import hashlib; from fgvc_core.data.fieldmarks.source import render;"
        "print(hashlib.sha256(b''.join(render(5, 'train', i, 40)[0].tobytes()"
        " for i in range(4))).hexdigest())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    here = b"".join(render(5, "train", i, 40)[0].tobytes() for i in range(4))
    assert done.stdout.strip() == hashlib.sha256(here).hexdigest()


def test_a_picture_does_not_depend_on_how_many_there_are(table, tmp_path):
    fewer = build_table(settings(fieldmarks_train=36, fieldmarks_pool=0), tmp_path)
    for at in (0, 17, 35):
        assert (fewer.picture(at) == table.picture(at)).all()
        assert fewer.subjects[at] == table.subjects[at]


@pytest.mark.parametrize("size", [32, 64, 100])
def test_it_is_drawn_at_any_size(size):
    picture, parts, box = render(1, "test", 3, size)
    assert (picture.shape, picture.dtype) == ((size, size, 3), np.uint8)
    assert picture.std() > 10
    assert parts[:, :2][parts[:, 2] > 0].min() >= 0
    assert parts[:, :2][parts[:, 2] > 0].max() <= 1
    assert box[0] >= 0 <= box[1]
    assert box[0] + box[2] <= 1 >= box[1] + box[3]


def test_relatives_differ_by_little_and_no_two_species_by_nothing():
    for one in SPECIES:
        for two in SPECIES:
            if one is two:
                continue
            differing = sum(one.marks[part] != two.marks[part] for part in one.marks)
            assert differing >= 1
            if one.family == two.family:
                assert differing <= 3
                assert one.order == two.order


def test_attributes_and_taxonomy_describe_the_classes(table):
    assert table.attributes_KA.shape == (12, len(ATTRIBUTE_NAMES))
    assert len({row.tobytes() for row in table.attributes_KA}) == 12
    assert [levels[-1] for levels in table.taxonomy] == list(table.class_names)
    assert table.taxonomy_levels == ("order", "family", "species")


def test_splits_are_balanced_and_a_subject_stays_in_one_with_one_label_and_site(table):
    for split in ("train", "test"):
        assert len(set(table.where(split).class_counts_K().tolist())) == 1
    held = {}
    for at, subject in enumerate(table.subjects):
        facts = (table.splits[at], table.labels_N[at], table.columns["site"][at])
        assert held.setdefault(subject, facts) == facts
    assert len(held) < len(table)


def test_the_pool_is_unlabelled(table):
    pool = table.where("pool")
    assert len(pool) == 12
    assert (pool.labels_N == UNLABELLED).all()


def test_pictures_are_drawn_once_and_whole_files_left(tmp_path, monkeypatch):
    first = build_table(settings(), tmp_path)
    monkeypatch.setattr("fgvc_core.data.fieldmarks.source.render", None)
    again = build_table(settings(), tmp_path)
    assert (again.picture(7) == first.picture(7)).all()
    assert not list(tmp_path.rglob("*.part"))


def test_content_keys_name_pictures(table):
    keys = {table.content_key(at) for at in range(len(table))}
    assert len(keys) == len(table)
    assert {len(key) for key in keys} == {32}


def test_a_linear_model_on_pixels_does_badly(tmp_path):
    small = build_table(settings(fieldmarks_train=600, fieldmarks_test=240), tmp_path)
    assert pixel_baseline(small.where("train"), small.where("test"), 32).top1 <= 0.25


def test_the_contact_sheet_is_a_picture(tmp_path):
    contact_sheet(tmp_path / "sheet.png", seed=1, pictures=1)
    assert (tmp_path / "sheet.png").stat().st_size > 10_000


def test_visible_parts_are_inside_the_frame_and_the_boxes_too(table):
    seen = table.parts_NP3[..., 2]
    assert set(np.unique(seen)) == {0.0, 1.0}
    assert 0.5 < seen.mean() < 1
    places = table.parts_NP3[seen > 0][:, :2]
    assert 0 < places.min() <= places.max() < 1
    corner_N2, extent_N2 = table.boxes_N4[:, :2], table.boxes_N4[:, 2:]
    assert corner_N2.min() >= 0
    assert (corner_N2 + extent_N2).max() <= 1 + 1e-6
    assert extent_N2.min() > 0.2


def test_a_subject_is_seen_several_times_and_never_in_two_splits(table):
    splits = {}
    for subject, split in zip(table.subjects, table.splits, strict=True):
        splits.setdefault(subject, []).append(split)
    assert all(len(set(found)) == 1 for found in splits.values())
    assert max(len(found) for found in splits.values()) == 3


def test_the_same_bird_at_another_size_is_the_same_bird():
    small, parts, box = render(1, "train", 5, 32)
    large, parts_large, box_large = render(1, "train", 5, 96)
    reduced = large.reshape(32, 3, 32, 3, 3).mean(axis=(1, 3))
    # All but the sensor's noise, which is drawn for each pixel.
    assert np.abs(reduced - small).mean() < 8
    assert (parts == parts_large).all()
    assert (box == box_large).all()


def test_a_larger_picture_than_the_cached_one_is_drawn_anew(table):
    assert table.picture(3, 48).shape == (48, 48, 3)
    assert (table.picture(3, 16) == table.picture(3)).all()
    assert (table.picture(3, 48) == render(2026, "train", 3, 48)[0]).all()


@pytest.mark.parametrize("row", [-1, 132])
def test_there_is_no_picture_beyond_the_ends(table, row):
    with pytest.raises(IndexError):
        table.source.picture(row)
    with pytest.raises(IndexError):
        table.source.content_key(row)


def draw_and_report(cache, barrier, drawn):
    import fgvc_core.data.fieldmarks.source as source

    plain = source.render

    def counted(*arguments):
        with drawn.get_lock():
            drawn.value += 1
        return plain(*arguments)

    source.render = counted
    barrier.wait(timeout=30)
    found = build_table(settings(fieldmarks_pool=0), cache)
    assert (found.picture(95) == plain(2026, "train", 95, 32)[0]).all()


def test_two_processes_at_once_draw_each_picture_once(tmp_path):
    forked = multiprocessing.get_context("fork")
    barrier, drawn = forked.Barrier(2), forked.Value("i", 0)
    both = [
        forked.Process(target=draw_and_report, args=(tmp_path, barrier, drawn)) for _ in range(2)
    ]
    for process in both:
        process.start()
    for process in both:
        process.join(timeout=60)
        assert process.exitcode == 0
    assert drawn.value == 96 + 24
    assert not list(tmp_path.rglob("*.part"))
    assert len(list(tmp_path.rglob("*-pictures.npy"))) == 2


def test_a_drawing_that_is_interrupted_leaves_no_file_that_looks_whole(tmp_path, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("fgvc_core.data.fieldmarks.drawn.np.save", stop)
        with pytest.raises(KeyboardInterrupt):
            build_table(settings(), tmp_path)
    assert not list(tmp_path.rglob("*.npy"))
    assert not list(tmp_path.rglob("*.part"))
    assert len(build_table(settings(), tmp_path)) == 132


def test_a_cache_that_cannot_be_written_is_explained(tmp_path):
    (tmp_path / "fieldmarks").write_text("no folder")
    with pytest.raises(DataError, match="cannot be kept") as caught:
        build_table(settings(), tmp_path)
    assert "FIELDMARK_CACHE" in caught.value.remedy


@pytest.fixture(scope="module")
def cached(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cached")
    build_table(settings(fieldmarks_train=12, fieldmarks_test=12), folder)
    return folder


def flip_one_bit(data):
    return data[:-5] + bytes([data[-5] ^ 1]) + data[-4:]


@pytest.mark.parametrize("kind", ["pictures", "parts", "boxes"])
@pytest.mark.parametrize(
    "damage",
    [flip_one_bit, lambda data: data[:-100], lambda data: data[:10], lambda data: b""],
    ids=["one bit", "truncated", "header", "empty"],
)
def test_a_damaged_cache_is_named_and_drawn_again_once_deleted(cached, tmp_path, kind, damage):
    folder = tmp_path / "copy"
    shutil.copytree(cached, folder)
    (path,) = folder.rglob(f"*-train-*-{kind}.npy")
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    few = settings(fieldmarks_train=12, fieldmarks_test=12)
    with pytest.raises(DataError, match=path.name) as caught:
        build_table(few, folder)
    assert "Delete that file" in caught.value.remedy
    path.unlink()
    build_table(few, folder)
    assert path.read_bytes() == whole


def test_the_contact_sheet_shows_every_species_and_other_seeds_other_birds(tmp_path):
    for seed in (1, 2):
        contact_sheet(tmp_path / "made" / f"{seed}.png", seed=seed, pictures=1, across=4)
    sheets = [np.asarray(Image.open(tmp_path / "made" / f"{seed}.png")) for seed in (1, 2)]
    assert sheets[0].shape == sheets[1].shape
    assert (sheets[0] != sheets[1]).any()
    # No part of the paper where a bird should be is left empty.
    height, width = sheets[0].shape[:2]
    for down in range(3):
        for across in range(4):
            block = sheets[0][
                down * height // 3 : (down + 1) * height // 3,
                across * width // 4 : (across + 1) * width // 4,
            ]
            assert block.std() > 15
