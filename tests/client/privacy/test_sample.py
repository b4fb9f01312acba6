"""A sample of a data set: alike where the pictures are, bounded in cost, never leaving."""

import os
import shutil

import pytest

import fieldmark.client.privacy.sample as sampling
from fieldmark.client.privacy.sample import KEPT, Sample, take_sample

KEY = b"k" * 32


def fill(folder, count, start=0, size=200):
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(start, start + count):
        (folder / f"{number:06d}.png").write_bytes(os.urandom(size))
    return folder


@pytest.fixture
def data(tmp_path):
    return fill(tmp_path / "data", 300)


def test_a_sample_of_the_same_pictures_is_the_same_wherever_they_lie(data, tmp_path):
    sample = take_sample(data, KEY)
    assert len(sample.marks) == KEPT
    shutil.copytree(data, tmp_path / "copy" / "deeper")
    assert take_sample(tmp_path / "copy" / "deeper", KEY) == sample
    assert take_sample(tmp_path / "copy", KEY).is_like(sample)


@pytest.mark.parametrize("changed", [1, 30, 100])
def test_it_stays_alike_when_pictures_come_and_go(data, changed):
    sample = take_sample(data, KEY)
    for path in sorted(data.iterdir())[:changed]:
        path.unlink()
    fill(data, changed, 1000)
    assert take_sample(data, KEY).is_like(sample)


def test_a_part_is_alike_and_other_pictures_are_not(data, tmp_path):
    sample = take_sample(data, KEY)
    part = tmp_path / "part"
    part.mkdir()
    for path in sorted(data.iterdir())[::10]:
        shutil.copy(path, part / f"renamed-{path.name}")
    assert take_sample(part, KEY).is_like(sample)
    assert not take_sample(fill(tmp_path / "other", 300), KEY).is_like(sample)
    fill(part, 300, 1000)
    assert not take_sample(part, KEY).is_like(sample)


def test_a_large_set_is_read_in_part_and_is_known_by_its_names_and_content(
    data, tmp_path, monkeypatch
):
    monkeypatch.setattr(sampling, "MOST_READ", 50)
    sample = take_sample(data, KEY)
    assert sample.level >= 2
    assert 0 < len(sample.marks) <= 50
    shutil.copytree(data, tmp_path / "copy")
    fill(tmp_path / "copy", 60, 5000)
    assert take_sample(tmp_path / "copy", KEY).is_like(sample)
    monkeypatch.setattr(sampling, "MOST_READ", 10_000)
    assert take_sample(data, KEY).is_like(sample)
    assert sample.is_like(take_sample(data, KEY))
    assert not take_sample(fill(tmp_path / "other", 300), KEY).is_like(sample)


def test_it_opens_no_more_than_it_says(data, monkeypatch):
    opened = []
    mark = sampling._mark
    monkeypatch.setattr(sampling, "MOST_READ", 40)
    monkeypatch.setattr(sampling, "_mark", lambda path, key: opened.append(path) or mark(path, key))
    take_sample(data, KEY)
    assert 0 < len(opened) <= 40


def test_subjects_with_pictures_of_one_name_are_told_apart(tmp_path, monkeypatch):
    monkeypatch.setattr(sampling, "MOST_READ", 40)
    for subject in range(200):
        folder = tmp_path / "data" / f"patient-{subject}"
        folder.mkdir(parents=True)
        (folder / "1.png").write_bytes(os.urandom(100))
    sample = take_sample(tmp_path / "data", KEY)
    assert 10 <= len(sample.marks) <= 40


def test_what_cannot_be_read_is_left_out_and_nothing_waits_for_a_pipe(data):
    sample = take_sample(data, KEY)
    os.mkfifo(data / "pipe.png")
    (data / "gone.png").symlink_to("nowhere")
    (data / "labels.csv").write_text("path,label")
    (data / ".hidden.png").write_bytes(b"x")
    assert take_sample(data, KEY) == sample


def test_an_empty_or_missing_folder_has_no_marks_and_is_like_nothing(tmp_path):
    empty = take_sample(tmp_path / "nowhere", KEY)
    assert empty == Sample(level=0, marks={})
    assert not empty.is_like(empty)


def test_marks_under_another_key_say_nothing(data):
    assert not take_sample(data, b"other").marks.keys() & take_sample(data, KEY).marks.keys()
