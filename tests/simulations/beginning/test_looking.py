from pathlib import Path

import pytest

from fgvc_core.errors import DataError
from fieldmark.simulations.beginning.looking import look


def test_class_folders_are_read_as_they_are(trees):
    seen = look(trees["disks"], {})
    assert seen.data == {"name": "folder"}
    assert seen.table.num_classes == 3
    assert seen.short_side == 64
    assert not seen.has_subjects
    assert not seen.unequal
    assert seen.report.splits == {"train": 27, "test": 9, "pool": 0}


def test_split_folders_and_unequal_classes_are_seen(trees):
    seen = look(trees["stripes"], {})
    assert seen.report.splits["test"] == 18
    assert seen.unequal
    assert seen.short_side == 48


def test_a_tables_columns_its_subjects_and_its_sites_are_found(trees):
    seen = look(trees["patches"], {})
    assert seen.data["name"] == "manifest"
    assert seen.data["label_column"] == "species"
    assert seen.data["subject_column"] == "animal"
    assert seen.has_subjects
    assert seen.site_column == "hospital"


def test_what_a_person_said_stands(trees):
    assert look(trees["patches"], {"subject_column": "file"}).data["subject_column"] == "file"


def test_a_folder_that_is_not_there_is_named():
    with pytest.raises(DataError, match="no folder 'no/such' \\(--data\\)"):
        look(Path("no/such"), {})


def test_pictures_that_a_run_would_refuse_get_no_recipe(trees, tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        for number in range(4):
            (tmp_path / name / f"{number}.png").write_bytes(b"cut short")
    with pytest.raises(DataError, match="cannot be"):
        look(tmp_path, {})


def test_one_class_is_nothing_to_tell_apart(trees, tmp_path):
    (tmp_path / "one").symlink_to(trees["disks"] / "one")
    (tmp_path / "copy" / "one").mkdir(parents=True)
    for file in (trees["disks"] / "one").iterdir():
        (tmp_path / "copy" / "one" / file.name).write_bytes(file.read_bytes())
    with pytest.raises(DataError, match="nothing to tell apart"):
        look(tmp_path / "copy", {})
