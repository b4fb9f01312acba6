from pathlib import Path

import pytest

from fgvc_core.data.catalogue import load_table
from fgvc_core.data.settings import DataSettings
from fgvc_core.data.table import ExampleTable
from fgvc_core.errors import ConfigurationError, DataError

from .picture_trees import noise, write_folders, write_picture


def load(root: Path, **settings: object) -> ExampleTable:
    values = {"name": "folder", "path": str(root), **settings}
    return load_table(DataSettings.read(values), root / "cache")


def test_folder_names_become_sorted_classes(tmp_path: Path) -> None:
    write_folders(tmp_path, ["wren", "robin"])
    table = load(tmp_path)
    assert table.class_names == ("robin", "wren")
    assert table.ids[0] == "robin/0.png"
    assert table.labels_N.tolist() == [0, 0, 0, 1, 1, 1]
    assert (table.picture(3) == noise(0)).all()


def test_split_folders_are_kept_and_validation_joins_training(tmp_path: Path) -> None:
    for split in ("train", "val", "test"):
        write_folders(tmp_path / split, ["robin", "wren"], each=2)
    write_picture(tmp_path / "pool" / "a.png", 1)
    write_picture(tmp_path / "pool" / "deep" / "b.png", 2)
    table = load(tmp_path)
    assert [len(table.where(split)) for split in ("train", "test", "pool")] == [8, 4, 2]
    assert table.where("pool").labels_N.tolist() == [-1, -1]
    assert all(name.startswith("test/") for name in table.where("test").ids)


def test_validation_is_the_test_split_where_there_is_no_other(tmp_path: Path) -> None:
    for split in ("train", "val"):
        write_folders(tmp_path / split, ["robin", "wren"])
    table = load(tmp_path)
    assert {name.split("/")[0] for name in table.where("test").ids} == {"val"}


def test_a_pictures_side_does_not_depend_on_the_other_pictures(tmp_path: Path) -> None:
    write_folders(tmp_path, ["robin", "wren"], each=40)
    before = load(tmp_path, test_fraction=0.3, test_rule="hashed")
    for i in range(0, 40, 2):
        (tmp_path / "wren" / f"{i}.png").unlink()
    after = load(tmp_path, test_fraction=0.3, test_rule="hashed")
    sides = dict(zip(before.ids, before.splits, strict=True))
    assert all(sides[name] == side for name, side in zip(after.ids, after.splits, strict=True))
    assert 10 <= before.splits.count("test") <= 38


def test_a_quarter_of_each_class_is_held_out(tmp_path: Path) -> None:
    write_folders(tmp_path, ["robin"], each=40)
    write_folders(tmp_path, ["wren"], each=6)
    write_folders(tmp_path, ["dunnock"], each=2)
    write_folders(tmp_path, ["siskin"], each=1)
    test = load(tmp_path).where("test")
    counts = dict(zip(test.class_names, test.class_counts_K().tolist(), strict=True))
    assert counts == {"dunnock": 1, "robin": 10, "siskin": 0, "wren": 2}


def test_labels_go_through_the_map_to_the_recipes_classes(tmp_path: Path) -> None:
    write_folders(tmp_path, ["turdus_m", "wren"])
    table = load(tmp_path, classes=["wren", "robin"], label_map={"turdus_m": "robin"})
    assert table.class_names == ("wren", "robin")
    assert table.labels_N.tolist() == [1, 1, 1, 0, 0, 0]


def test_an_unmapped_label_names_itself_the_classes_and_the_nearest(tmp_path: Path) -> None:
    write_folders(tmp_path, ["robinn", "wren"])
    with pytest.raises(DataError, match="'robinn'") as caught:
        load(tmp_path, classes=["wren", "robin"])
    assert "'wren', 'robin'" in caught.value.why
    assert "Did you mean 'robin'?" in caught.value.remedy
    assert "label_map" in caught.value.remedy


def test_a_map_to_no_class_is_a_wrong_recipe(tmp_path: Path) -> None:
    write_folders(tmp_path, ["wren"])
    with pytest.raises(ConfigurationError, match="'wrem'"):
        load(tmp_path, classes=["wren"], label_map={"x": "wrem"})


def test_hidden_files_and_other_files_are_passed_over(tmp_path: Path) -> None:
    write_folders(tmp_path, ["wren"])
    (tmp_path / "wren" / "notes.txt").write_text("seen at dusk")
    (tmp_path / "wren" / "._0.png").write_bytes(b"resource fork")
    (tmp_path / ".git").mkdir()
    assert len(load(tmp_path)) == 3


def test_a_picture_outside_every_class_folder_is_named(tmp_path: Path) -> None:
    write_folders(tmp_path, ["wren"])
    write_picture(tmp_path / "stray.png", 1)
    with pytest.raises(DataError, match=r"in no class folder: 'stray\.png'"):
        load(tmp_path)


def test_a_folder_without_pictures_is_refused(tmp_path: Path) -> None:
    (tmp_path / "wren").mkdir()
    with pytest.raises(DataError, match="holds no pictures"):
        load(tmp_path)


def test_a_path_that_is_a_file_is_refused(tmp_path: Path) -> None:
    write_picture(tmp_path / "a.png", 1)
    with pytest.raises(DataError, match="is not a folder"):
        load(tmp_path / "a.png")
