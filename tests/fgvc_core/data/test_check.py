from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fgvc_core.data.catalogue import load_table
from fgvc_core.data.check import CheckReport, check_table
from fgvc_core.data.recognising import recognise
from fgvc_core.data.settings import DataSettings

from .picture_trees import make_table, real_data, write_cub, write_folders, write_picture


def check(root: Path, name: str = "folder") -> CheckReport:
    settings = DataSettings(name=name, path=str(root))
    return check_table(load_table(settings, root, require_pictures=False))


def test_a_sound_tree_has_counts_and_no_fault(tmp_path: Path) -> None:
    write_folders(tmp_path / "train", ["robin", "wren"], each=6)
    write_folders(tmp_path / "test", ["robin"], each=2)
    report = check(tmp_path)
    assert report.faults() == []
    assert report.examples == report.subjects == 14
    assert report.splits == {"train": 12, "test": 2, "pool": 0}
    assert report.classes["wren"] == {"train": 6, "test": 0, "pool": 0}


def test_missing_and_cut_pictures_are_counted_and_named(tmp_path: Path) -> None:
    write_cub(tmp_path)
    images = tmp_path / "images" / "001.Small_Bird_1"
    (images / "Bird_1_0.jpg").unlink()
    cut = images / "Bird_1_1.jpg"
    cut.write_bytes(cut.read_bytes()[:-150])
    report = check(tmp_path, "cub")
    assert report.missing == ("001.Small_Bird_1/Bird_1_0.jpg",)
    assert list(report.unreadable) == ["001.Small_Bird_1/Bird_1_1.jpg"]
    missing, unreadable, why = report.faults()
    assert why.startswith("The first of those: The picture")
    assert missing.startswith("1 of 12 pictures is missing: '001.Small_Bird_1/Bird_1_0.jpg'")
    assert unreadable.startswith("1 of 12 pictures cannot be read")
    assert "truncated" in next(iter(report.unreadable.values()))


def test_equal_pictures_across_splits_are_noted_and_within_one_are_not(tmp_path: Path) -> None:
    write_folders(tmp_path / "train", ["wren"], each=5)
    write_picture(tmp_path / "train" / "wren" / "again.png", 0)
    write_picture(tmp_path / "test" / "wren" / "leak.png", 3)
    report = check(tmp_path)
    assert report.shared_pictures == (("test/wren/leak.png", "train/wren/3.png"),)
    assert report.faults() == []
    assert "1 picture is byte-equal across splits" in report.notes()[0]


def test_tiny_classes_are_noted(tmp_path: Path) -> None:
    write_folders(tmp_path / "train", ["robin"], each=5)
    write_folders(tmp_path / "train", ["wren"], each=4)
    write_folders(tmp_path / "test", ["wren"], each=1)
    report = check(tmp_path)
    assert report.tiny_classes == ("wren",)
    assert "1 class has fewer than 5 training examples: 'wren'." in report.notes()


def test_classes_with_few_test_pictures_are_noted(tmp_path: Path) -> None:
    write_folders(tmp_path / "train", ["robin", "wren"], each=5)
    write_folders(tmp_path / "test", ["robin"], each=10)
    write_folders(tmp_path / "test", ["wren"], each=9)
    (note,) = [note for note in check(tmp_path).notes() if "test examples" in note]
    assert note.startswith("1 class has fewer than 10 test examples")
    assert note.endswith("more than 10 points: 'wren'.")


def test_labels_out_of_range_and_parted_subjects_are_faults() -> None:
    table = replace(
        make_table([0, 0, 0, 0]),
        labels_N=np.array([0, 5, -1, -2]),
        subjects=("a", "b", "c", "a"),
        splits=("train", "train", "pool", "test"),
    )
    report = check_table(table)
    assert report.out_of_range == ("picture-0001", "picture-0003")
    assert report.parted_subjects == ("a",)
    assert len(report.faults()) == 2


def test_progress_ends_at_the_last_picture() -> None:
    told: list[tuple[int, int]] = []
    check_table(make_table([0] * 50), lambda done, total: told.append((done, total)))
    assert told[-1] == (50, 50)
    assert told == sorted(told)


@pytest.mark.parametrize("name", ["cub50"])
def test_the_real_birds_are_sound(name: str) -> None:
    report = check(real_data(name), "cub")
    assert report.faults() == []
    assert report.shared_pictures == ()
    assert report.examples == 2889


def test_one_picture_under_two_labels_is_a_fault(tmp_path: Path) -> None:
    write_folders(tmp_path / "train", ["robin", "wren"], each=5)
    write_picture(tmp_path / "train" / "wren" / "robin.png", 3)
    write_folders(tmp_path / "test", ["robin"], each=1)
    report = check(tmp_path)
    assert ("train/robin/3.png", "train/wren/robin.png") in report.two_labels
    assert any("has two labels: 'train/robin/3.png = " in fault for fault in report.faults())


def test_repeats_within_a_split_and_unequal_classes_are_noted(tmp_path: Path) -> None:
    write_folders(tmp_path / "train", ["robin"], each=66)
    write_folders(tmp_path / "train2", ["wren"], each=6)
    (tmp_path / "train2" / "wren").rename(tmp_path / "train" / "wren")
    write_picture(tmp_path / "train" / "robin" / "again.png", 65)
    write_folders(tmp_path / "test", ["tit"], each=1)
    report = check(tmp_path)
    assert ("train/robin/65.png", "train/robin/again.png") in report.repeated
    assert any("'robin' has 67 training examples, 'tit' has 0." in note for note in report.notes())


def test_examples_without_a_label_outside_the_pool_are_a_fault() -> None:
    table = replace(make_table([0, 0, 0]), labels_N=np.array([0, -1, -1]))
    table = replace(table, splits=("train", "pool", "test"))
    report = check_table(table)
    assert report.unlabelled == ("picture-0002",)
    assert "1 of 3 pictures outside the pool has no label" in report.faults()[0]


@pytest.mark.parametrize(
    ("folder", "name", "splits"),
    [
        ("cub50", "cub", (1500, 1389)),
        ("cub200_annotations", "cub", (5994, 5794)),
        ("cars_devkit", "cars", (8144, 8041)),
        ("aircraft_lists", "aircraft", (6667, 3333)),
        ("ham10000", "ham10000", (7455, 2560)),
    ],
)
def test_real_trees_are_recognised_with_their_published_counts(
    folder: str, name: str, splits: tuple[int, int]
) -> None:
    root = real_data(folder)
    assert recognise(root) == name
    settings = DataSettings(name=name, path=str(root))
    table = load_table(settings, root, require_pictures=False)
    assert (table.splits.count("train"), table.splits.count("test")) == splits
    if folder == "ham10000":
        assert table.class_counts_K().tolist() == [327, 514, 1099, 115, 1113, 6705, 142]
        assert len(set(table.subjects)) == 7470


@pytest.mark.parametrize("folder", ["cub200_annotations", "cars_devkit", "aircraft_lists"])
def test_annotations_without_pictures_name_how_many_are_missing(folder: str) -> None:
    root = real_data(folder)
    table = load_table(
        DataSettings(name=recognise(root), path=str(root)), root, require_pictures=False
    )
    report = check_table(table)
    assert len(report.missing) == len(table)
    assert report.faults()[0].startswith(f"{len(table)} of {len(table)} pictures are missing: '")
