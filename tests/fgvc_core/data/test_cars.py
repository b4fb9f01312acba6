from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.io import savemat

from fgvc_core.data.catalogue import load_table
from fgvc_core.data.settings import DataSettings
from fgvc_core.data.table import ExampleTable
from fgvc_core.errors import DataError

from .picture_trees import real_data, write_picture

NAMES = ["AM General Hummer SUV 2000", "Audi TT RS Coupe 2012", "Audi TT RS Coupe 2011"]
_TYPES = [(name, object) for name in ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2")]


def records(rows: list[tuple[Any, ...]], labelled: bool = True) -> np.ndarray:
    kinds = [*_TYPES, *([("class", object)] if labelled else []), ("fname", object)]
    return np.array([rows], dtype=kinds)


def write_cars(root: Path, folder: str = "devkit", with_labels: bool = True) -> Path:
    kit = root / folder
    kit.mkdir(parents=True, exist_ok=True)
    savemat(kit / "cars_meta.mat", {"class_names": np.array([NAMES], dtype=object)})
    train = [(4, 7, 18, 18, 1 + i % 3, f"{i:05d}.jpg") for i in range(1, 7)]
    savemat(kit / "cars_train_annos.mat", {"annotations": records(train)})
    test = [(1, 1, 30, 24, 1 + i % 3, f"{i:05d}.jpg") for i in range(1, 4)]
    bare = [(*row[:4], row[5]) for row in test]
    savemat(kit / "cars_test_annos.mat", {"annotations": records(bare, labelled=False)})
    if with_labels:
        savemat(root / "cars_test_annos_withlabels.mat", {"annotations": records(test)})
    for split, count in (("train", 6), ("test", 3)):
        for i in range(1, count + 1):
            write_picture(root / f"cars_{split}" / f"{i:05d}.jpg", i + 10 * count)
    return root


def load(root: Path, **settings: object) -> ExampleTable:
    return load_table(DataSettings.read({"name": "cars", "path": str(root), **settings}), root)


@pytest.mark.parametrize("folder", ["devkit", "."])
def test_the_published_layout_gives_labels_splits_boxes_and_makes(
    tmp_path: Path, folder: str
) -> None:
    table = load(write_cars(tmp_path, folder))
    assert table.class_names == tuple(NAMES)
    assert table.splits == ("train",) * 6 + ("test",) * 3
    assert table.labels_N.tolist() == [1, 2, 0, 1, 2, 0, 1, 2, 0]
    assert table.ids[6] == "cars_test/00001.jpg"
    assert table.boxes_N4 is not None
    # Corners count from 1 and both belong to the box; pictures are 30 x 24.
    assert table.boxes_N4[0].tolist() == pytest.approx([0.1, 0.25, 0.5, 0.5])
    assert table.boxes_N4[6].tolist() == pytest.approx([0.0, 0.0, 1.0, 1.0])
    assert table.taxonomy_levels == ("make", "model", "year")
    assert table.taxonomy[0] == ("AM General", "AM General Hummer SUV", NAMES[0])
    assert table.taxonomy[1][:2] == table.taxonomy[2][:2] == ("Audi", "Audi TT RS Coupe")


def test_test_pictures_without_labels_are_refused_before_training(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"3 of 9 pictures have no label.*'cars_test/00001\.jpg'"):
        load(write_cars(tmp_path, with_labels=False))


def test_a_class_number_that_has_no_name_is_an_error(tmp_path: Path) -> None:
    write_cars(tmp_path)
    bad = [(1, 1, 2, 2, 4, "00001.jpg")]
    savemat(tmp_path / "devkit" / "cars_train_annos.mat", {"annotations": records(bad)})
    with pytest.raises(DataError, match=r"'00001\.jpg' has class 4; cars_meta\.mat names 1 to 3"):
        load(tmp_path)


@pytest.mark.parametrize("content", [b"", b"no matlab", b"\0" * 400])
def test_a_damaged_file_is_named(tmp_path: Path, content: bytes) -> None:
    write_cars(tmp_path)
    (tmp_path / "devkit" / "cars_meta.mat").write_bytes(content)
    with pytest.raises(DataError, match=r"cars_meta\.mat cannot be read as a MATLAB file"):
        load(tmp_path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cars_meta\.mat' does not exist"):
        load(tmp_path)


def test_the_real_devkit_has_the_published_splits() -> None:
    root = real_data("cars_devkit")
    settings = DataSettings(name="cars", path=str(root))
    table = load_table(settings, root, require_pictures=False)
    assert (table.splits.count("train"), table.splits.count("test")) == (8144, 8041)
    assert table.num_classes == 196
    assert len({makes for makes, _, _ in table.taxonomy}) == 49
    counts_K = table.where("train").class_counts_K()
    assert (counts_K.min(), counts_K.max()) == (24, 68)
    assert len(table.unlabelled()) == 8041
