import hashlib
import subprocess
import sys

import numpy as np
import pytest

from fgvc_core.data.fieldmarks import build_table, contact_sheet
from fgvc_core.data.fieldmarks.source import render
from fgvc_core.data.fieldmarks.species import ATTRIBUTE_NAMES, SPECIES
from fgvc_core.data.settings import DataSettings
from fgvc_core.data.table import UNLABELLED
from fgvc_core.training.baseline import pixel_baseline


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
