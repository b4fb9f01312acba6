from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fgvc_core.data.catalogue import load_table
from fgvc_core.data.settings import DataSettings
from fgvc_core.data.table import ExampleTable
from fgvc_core.errors import DataError

from .picture_trees import noise, real_data

PLANES = {
    "747-100": ("Boeing 747", "Boeing"),
    "747-200": ("Boeing 747", "Boeing"),
    "A320": ("A320", "Airbus"),
}


def write_aircraft(
    root: Path, levels: tuple[str, ...] = ("variant", "family", "manufacturer")
) -> Path:
    (root / "images").mkdir(parents=True)
    lists: dict[tuple[str, str], list[str]] = {}
    number = 0
    for variant, (family, maker) in PLANES.items():
        for part in ("trainval", "trainval", "test"):
            number += 1
            picture = noise(number, 60, 50)
            # White rows stand for the credit.
            picture[-20:] = 255
            Image.fromarray(picture).save(root / "images" / f"{number:07d}.jpg", quality=95)
            names = {"variant": variant, "family": family, "manufacturer": maker}
            for level in levels:
                lists.setdefault((level, part), []).append(f"{number:07d} {names[level]}")
    for (level, part), lines in lists.items():
        (root / f"images_{level}_{part}.txt").write_text("\n".join(lines) + "\n")
    return root


def load(root: Path, **settings: object) -> ExampleTable:
    return load_table(DataSettings.read({"name": "aircraft", "path": str(root), **settings}), root)


def test_the_published_lists_give_splits_and_a_hierarchy(tmp_path: Path) -> None:
    table = load(write_aircraft(tmp_path))
    assert table.class_names == ("747-100", "747-200", "A320")
    assert table.splits.count("train") == 6
    assert table.splits.count("test") == 3
    assert table.taxonomy_levels == ("manufacturer", "family", "variant")
    assert table.taxonomy[1] == ("Boeing", "Boeing 747", "747-200")


def test_the_class_is_what_the_level_says(tmp_path: Path) -> None:
    write_aircraft(tmp_path / "archive" / "data")
    families = load(tmp_path / "archive", level="family")
    assert families.class_names == ("A320", "Boeing 747")
    assert families.taxonomy == (("Airbus", "A320"), ("Boeing", "Boeing 747"))
    makers = load(tmp_path / "archive", level="manufacturer")
    assert makers.class_counts_K().tolist() == [3, 6]
    assert makers.taxonomy == ()


@pytest.mark.parametrize("size", [None, 20])
def test_the_credit_is_cut_off_also_from_a_draft(tmp_path: Path, size: int | None) -> None:
    picture_HWC = load(write_aircraft(tmp_path)).picture(0, size)
    ratio = picture_HWC.shape[1] / 50
    assert picture_HWC.shape[0] == round(40 * ratio)
    assert picture_HWC[-2:].mean() < 200


def test_boxes_are_fractions_of_what_is_left(tmp_path: Path) -> None:
    write_aircraft(tmp_path)
    (tmp_path / "images_box.txt").write_text("0000001 6 5 25 20\n")
    boxes_N4 = load(tmp_path).boxes_N4
    assert boxes_N4 is not None
    assert boxes_N4[0].tolist() == pytest.approx([0.1, 0.1, 0.4, 0.4])
    assert np.isnan(boxes_N4[1]).all()


def test_a_list_that_contradicts_another_is_an_error(tmp_path: Path) -> None:
    write_aircraft(tmp_path)
    path = tmp_path / "images_family_test.txt"
    path.write_text(path.read_text().replace("0000003 Boeing 747", "0000003 Boeing 757"))
    with pytest.raises(DataError, match="give '747-100' no single family"):
        load(tmp_path)


def test_a_picture_in_both_splits_is_an_error(tmp_path: Path) -> None:
    write_aircraft(tmp_path)
    with (tmp_path / "images_variant_test.txt").open("a") as file:
        file.write("0000001 747-100\n")
    with pytest.raises(DataError, match="1 picture is in both splits: '0000001'"):
        load(tmp_path)


def test_a_missing_list_is_named(tmp_path: Path) -> None:
    write_aircraft(tmp_path, ("variant",))
    assert load(tmp_path).taxonomy == ()
    with pytest.raises(DataError, match=r"images_family_trainval\.txt' does not exist"):
        load(tmp_path, level="family")


def test_the_real_lists_have_the_published_splits() -> None:
    root = real_data("aircraft_lists")
    settings = DataSettings(name="aircraft", path=str(root))
    table = load_table(settings, root, require_pictures=False)
    assert (table.splits.count("train"), table.splits.count("test")) == (6667, 3333)
    assert table.num_classes == 100
    assert set(table.class_counts_K().tolist()) == {100}
