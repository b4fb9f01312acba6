import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fgvc_core.data.catalogue import load_table
from fgvc_core.data.settings import DataSettings
from fgvc_core.data.table import ExampleTable
from fgvc_core.errors import ConfigurationError, DataError

from .picture_trees import real_data, write_cub


def load(root: Path, **settings: object) -> ExampleTable:
    values = {"name": "cub", "path": str(root), **settings}
    return load_table(DataSettings.read(values), root / "cache")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "birds"
    write_cub(root)
    return root


def replace_line(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_the_published_layout_gives_names_labels_and_splits(tree: Path) -> None:
    table = load(tree)
    assert table.class_names == ("Small Bird 1", "Small Bird 2", "Small Bird 3")
    assert table.class_counts_K().tolist() == [4, 4, 4]
    assert table.splits == ("train", "test") * 6
    assert table.ids[5] == "002.Small_Bird_2/Bird_2_1.jpg"
    assert table.picture(5).shape == (24, 30, 3)


def test_boxes_and_parts_are_fractions_of_the_picture(tree: Path) -> None:
    table = load(tree)
    assert table.boxes_N4 is not None
    assert table.parts_NP3 is not None
    assert table.boxes_N4[0].tolist() == pytest.approx([0.1, 0.25, 0.5, 0.5])
    assert table.parts_NP3[0].tolist() == [pytest.approx([0.5, 0.25, 1.0]), [0.0, 0.0, 0.0]]
    assert table.part_names == ("left wing", "tail")


def test_original_sizes_rule_over_the_sizes_of_shrunken_pictures(tree: Path) -> None:
    lines = ["image_id,path,orig_w,orig_h,w,h"]
    lines += [f"{i},x,300,240,30,24" for i in range(1, 13)]
    (tree / "original_sizes.csv").write_text("\n".join(lines))
    table = load(tree)
    assert table.boxes_N4 is not None
    assert table.boxes_N4[3].tolist() == pytest.approx([0.01, 0.025, 0.05, 0.05])


def test_attributes_are_fractions_and_a_merged_class_has_their_mean(tree: Path) -> None:
    table = load(tree)
    assert table.attributes_KA is not None
    assert table.attributes_KA[2].tolist() == pytest.approx([0.3, 0.97])
    assert table.attribute_names == ("has_bill::long", "has_tail::red")
    merged = load(tree, label_map={"Small Bird 1": "Bird", "Small Bird 2": "Bird"})
    assert merged.class_names == ("Bird", "Small Bird 3")
    assert merged.class_counts_K().tolist() == [8, 4]
    assert merged.attributes_KA is not None
    assert merged.attributes_KA[0].tolist() == pytest.approx([0.15, 0.985])


def test_a_tree_cut_to_some_classes_works_with_the_whole_annotation_files(tree: Path) -> None:
    keep = (tree / "images.txt").read_text().splitlines()[4:]
    (tree / "images.txt").write_text("\n".join(keep))
    (tree / "classes.txt").write_text("2 002.Small_Bird_2\n3 003.Small_Bird_3\n")
    table = load(tree)
    assert table.class_names == ("Small Bird 2", "Small Bird 3")
    assert table.labels_N.tolist() == [0] * 4 + [1] * 4
    assert table.attributes_KA is not None
    assert table.attributes_KA[:, 0].tolist() == pytest.approx([0.2, 0.3])


def test_the_recipe_names_the_classes_in_its_own_order(tree: Path) -> None:
    names = ["Small Bird 3", "Small Bird 1", "Small Bird 2"]
    table = load(tree, classes=names)
    assert table.class_names == tuple(names)
    assert table.labels_N.tolist() == [1] * 4 + [2] * 4 + [0] * 4
    assert table.attributes_KA is not None
    assert table.attributes_KA[:, 0].tolist() == pytest.approx([0.3, 0.1, 0.2])


def test_a_label_out_of_range_names_the_pictures_and_the_range(tree: Path) -> None:
    replace_line(tree / "image_class_labels.txt", "2 1\n", "2 9\n")
    with pytest.raises(DataError, match=r"1 of 12 labels are out of range.*Bird_1_1") as caught:
        load(tree)
    assert "1 to 3" in caught.value.why


def test_a_picture_listed_twice_is_refused(tree: Path) -> None:
    replace_line(tree / "images.txt", "Bird_1_1.jpg", "Bird_1_0.jpg")
    with pytest.raises(DataError, match=r"lists 1 picture twice.*Bird_1_0"):
        load(tree)


def test_missing_pictures_are_counted_and_named(tree: Path) -> None:
    for i in range(4):
        (tree / "images" / "001.Small_Bird_1" / f"Bird_1_{i}.jpg").unlink()
    with pytest.raises(DataError, match=r"4 of 12 pictures are missing: .*Bird_1_0.* and 1 more"):
        load(tree)


@pytest.mark.parametrize(
    ("file", "old", "new", "said"),
    [
        ("train_test_split.txt", "3 1\n", "", "no line for 1 images: '3'"),
        ("image_class_labels.txt", "3 1\n", "4 1\n", "more than one line for image '4'"),
        ("image_class_labels.txt", "3 1\n", "3 one\n", "not a table of numbers"),
        ("bounding_boxes.txt", "3 3.0 6.0 15.0 12.0", "3 3.0 nan 15.0 12.0", "not finite"),
        ("images.txt", "3 001", "x 001", "line 3"),
        ("parts/part_locs.txt", "1 1 15.0", "1 7 15.0", "names parts"),
    ],
)
def test_a_damaged_text_file_is_named(tree: Path, file: str, old: str, new: str, said: str) -> None:
    replace_line(tree / file, old, new)
    with pytest.raises(DataError, match=said) as caught:
        load(tree)
    assert Path(file).name in caught.value.what


def test_a_missing_text_file_is_named(tree: Path) -> None:
    (tree / "classes.txt").unlink()
    with pytest.raises(DataError, match=r"classes\.txt' does not exist"):
        load(tree)


def test_a_missing_path_is_bad_data_and_no_path_is_a_wrong_recipe(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist") as missing:
        load(tmp_path / "nowhere")
    assert missing.value.exit_code == 3
    with pytest.raises(ConfigurationError, match=r"data\.path is missing") as absent:
        load_table(DataSettings(name="cub"), tmp_path)
    assert absent.value.exit_code == 2


def test_an_unknown_data_set_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="Did you mean 'folder'"):
        load_table(DataSettings(name="foldr"), tmp_path)


def test_the_real_tree_of_fifty_classes_has_the_published_split() -> None:
    root = real_data("cub50")
    table = load(root)
    assert (len(table.where("train")), len(table.where("test"))) == (1500, 1389)
    assert table.class_names[0] == "Black footed Albatross"
    assert table.num_classes == 50
    assert table.attributes_KA is not None
    assert table.attributes_KA.shape == (50, 312)
    assert table.parts_NP3 is not None
    assert table.boxes_N4 is not None
    assert table.parts_NP3.shape == (2889, 15, 3)
    # What is visible lies in the picture, and nearly always in its box.
    visible_NP = table.parts_NP3[..., 2] > 0
    xy_NP2, box_N4 = table.parts_NP3[..., :2], table.boxes_N4
    low_N12, high_N12 = box_N4[:, None, :2], box_N4[:, None, :2] + box_N4[:, None, 2:]
    inside_NP = ((xy_NP2 >= low_N12 - 0.01) & (xy_NP2 <= high_N12 + 0.01)).all(axis=-1)
    assert inside_NP[visible_NP].mean() > 0.98
    assert (box_N4 >= 0).all()
    assert (box_N4[:, :2] + box_N4[:, 2:] <= 1 + 1e-6).all()


def test_sizes_in_the_real_tree_fit_the_pictures() -> None:
    root = real_data("cub50")
    with (root / "original_sizes.csv").open() as file:
        for line in list(csv.DictReader(file))[::400]:
            with Image.open(root / "images" / line["path"]) as image:
                assert image.width / image.height == pytest.approx(
                    float(line["orig_w"]) / float(line["orig_h"]), rel=0.02
                )


def test_the_real_annotations_have_the_published_counts_and_no_pictures() -> None:
    root = real_data("cub200_annotations")
    settings = DataSettings(name="cub", path=str(root))
    table = load_table(settings, root, require_pictures=False)
    assert (len(table), table.num_classes) == (11788, 200)
    assert (table.splits.count("train"), table.splits.count("test")) == (5994, 5794)
    assert table.boxes_N4 is not None
    assert np.isnan(table.boxes_N4).all()
    with pytest.raises(DataError, match="11788 of 11788 pictures are missing"):
        load_table(settings, root)
