"""Subjects cut out by boxes: a manifest's, COCO's, MegaDetector's, and published ones."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fgvc_core.data.boxes import read_boxes, sound_box
from fgvc_core.data.catalogue import load_table
from fgvc_core.data.files import FileSource, cut
from fgvc_core.data.settings import DataSettings
from fgvc_core.data.table import ExampleTable
from fgvc_core.errors import DataError
from fgvc_core.inference.finding import find_pictures, with_boxes
from fgvc_core.privacy.sampling import protected_units

from .picture_trees import noise, write_cub, write_picture

RED, BLUE = (220, 30, 30), (30, 30, 220)


def scene(path: Path, count: int = 2) -> None:
    """A grey picture of 200 x 100 with a red square at (20, 30) and a blue one at (120, 30)."""
    picture_HWC = np.full((100, 200, 3), 128, dtype=np.uint8)
    picture_HWC[30:70, 20:60] = RED
    picture_HWC[30:70, 120:160] = BLUE
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture_HWC).save(path)


def load(root: Path, **settings: object) -> ExampleTable:
    values = {"path": str(root), "crop": "box", "crop_margin": 0.0, "test_fraction": 0.0}
    return load_table(DataSettings(**{**values, **settings}), root / "cache")


def colours(table: ExampleTable) -> list[tuple[int, ...]]:
    return [tuple(np.median(table.picture(i), axis=(0, 1))) for i in range(len(table))]


@pytest.mark.parametrize("unit", ["pixels", "fractions"])
def test_a_manifests_boxes_make_several_examples_of_one_subject(tmp_path, unit):
    scale = (1, 1) if unit == "pixels" else (200, 100)
    rows = ["path,label,x,y,width,height"]
    for k in range(3):
        scene(tmp_path / f"{k}.png")
        for label, x in (("red", 20), ("blue", 120)):
            box = (x / scale[0], 30 / scale[1], 40 / scale[0], 40 / scale[1])
            rows.append(f"{k}.png,{label},{','.join(map(str, box))}")
    (tmp_path / "manifest.csv").write_text("\n".join(rows) + "\n")
    table = load(tmp_path, name="manifest")
    assert table.ids[:2] == ("0.png", "0.png#2")
    assert table.subjects == tuple(f"{k}.png" for k in range(3) for _ in range(2))
    assert colours(table) == [RED, BLUE] * 3
    assert all(table.picture(i).shape == (40, 40, 3) for i in range(6))
    # The bank of decoded pictures tells them apart; the unit of privacy is the whole picture.
    assert len({table.view_key(i) for i in range(2)}) == 2
    contents = [table.content_key(i) for i in range(2)]
    assert protected_units("image", contents, table.subjects[:2]).tolist() == [0, 0]
    with pytest.raises(DataError, match="lists 3 pictures twice"):
        load(tmp_path, name="manifest", crop="none")


def camera_traps(root: Path, pixels: bool = True) -> None:
    """A COCO Camera Traps JSON: two animals on each of four pictures of two bursts."""
    images, annotations = [], []
    for k in range(4):
        scene(root / "pics" / f"{k}.png")
        size = {"width": 200, "height": 100} if pixels else {}
        name = {"file_name": f"pics/{k}.png", "seq_id": f"s{k // 2}", "location": k % 2}
        images.append({"id": f"i{k}", **name, **size})
        for category, x in ((3, 20), (7, 120)):
            annotations.append({"id": f"{k}{x}", "image_id": f"i{k}", "category_id": category,
                                "bbox": [x, 30, 40, 40]})  # fmt: skip
    names = [{"id": 3, "name": "fox"}, {"id": 7, "name": "deer"}]
    made = {"images": images, "annotations": annotations, "categories": names}
    (root / "metadata.json").write_text(json.dumps(made))


@pytest.mark.parametrize("pixels", [True, False])
def test_coco_camera_traps_with_boxes(tmp_path, pixels):
    camera_traps(tmp_path, pixels)
    table = load(tmp_path, name="coco")
    assert table.class_names == ("deer", "fox")
    assert colours(table) == [RED, BLUE] * 4
    assert [table.class_names[k] for k in table.labels_N] == ["fox", "deer"] * 4
    assert len(set(table.subjects)) == 2
    assert set(table.columns["location"]) == {"0", "1"}
    # Without boxes a picture of two classes has no one label.
    with pytest.raises(DataError, match="no labeled picture"):
        load(tmp_path, name="coco", crop="none")


def megadetector(root: Path) -> Path:
    detections = [
        {"category": "1", "conf": 0.9, "bbox": [0.1, 0.3, 0.2, 0.4]},
        {"category": "2", "conf": 0.8, "bbox": [0.6, 0.3, 0.2, 0.4]},
        {"category": "1", "conf": 0.1, "bbox": [0.6, 0.3, 0.2, 0.4]},
    ]
    images = [{"file": f"a/{k}.png", "detections": detections} for k in range(2)]
    images += [{"file": "b/0.png", "detections": []}, {"file": "b/1.png", "failure": "no"}, 7]
    made = {"images": images, "detection_categories": {"1": "animal", "2": "person"}}
    (root / "md.json").write_text(json.dumps(made))
    return root / "md.json"


def test_megadetectors_output_is_taken_as_it_is(tmp_path):
    for name in ("a/0", "a/1", "b/0", "b/1"):
        scene(tmp_path / f"{name}.png")
    megadetector(tmp_path)
    table = load(tmp_path, name="folder", boxes="md.json")
    assert table.ids == ("a/0.png", "a/0.png#2", "a/1.png", "a/1.png#2")
    assert colours(table) == [RED, BLUE] * 2
    assert table.unused.counts() == {"without a box": 2, "not pictures by their names": 1}
    animals = load(tmp_path, name="folder", boxes="md.json", box_category="animal")
    assert colours(animals) == [RED, RED]
    sure = load(tmp_path, name="folder", boxes="md.json", box_confidence=0.85)
    assert len(sure) == 2
    with pytest.raises(DataError, match="no category 'anmal'"):
        load(tmp_path, name="folder", boxes="md.json", box_category="anmal")
    with pytest.raises(DataError, match="None of the pictures has a box"):
        load(tmp_path, name="folder", boxes="md.json", box_confidence=0.99)


def test_predict_takes_the_same_boxes(tmp_path):
    for name in ("a/0", "b/0"):
        scene(tmp_path / f"{name}.png")
    found = with_boxes(find_pictures([str(tmp_path)]), megadetector(tmp_path), 0.2, None)
    assert [Path(one.name).name for one in found] == ["0.png#1", "0.png#2", "0.png"]
    assert "no box of it" in found[2].fault
    source = FileSource(found[0].root, [found[0].relative], crops=[found[0].box])
    assert tuple(np.median(source.picture(0), axis=(0, 1))) == RED


def test_published_boxes_cut_the_bird_out(tmp_path):
    write_cub(tmp_path)
    table = load(tmp_path, name="cub")
    assert len(table) == 12
    # Boxes are 15 x 12 pixels at (3, 6): the square around them.
    assert table.picture(0).shape == (15, 15, 3)
    assert table.boxes_N4 is None
    assert table.parts_NP3 is None


@pytest.mark.parametrize(("box", "margin", "shape"), [
    ((0.1, 0.3, 0.2, 0.4), 0.0, (40, 40)), ((0.1, 0.3, 0.2, 0.4), 0.25, (60, 60)),
    ((0.0, 0.0, 0.5, 0.1), 0.0, (100, 100)), ((0.0, 0.0, 1.0, 1.0), 0.5, (100, 200)),
    ((190.0, 90.0, 50.0, 50.0), 0.0, (50, 50)), ((0.5, 0.5, 1e-9, 1e-9), 0.0, (1, 1)),
    ((5000.0, 5000.0, 10.0, 10.0), 0.0, (10, 10)),
])  # fmt: skip
def test_the_square_around_a_box_stays_inside_the_picture(box, margin, shape):
    assert cut(noise(1, 100, 200), box, 200, margin).shape[:2] == shape


def test_a_large_jpeg_decoded_smaller_shows_the_same_subject(tmp_path):
    write_picture(tmp_path / "a.png", 1)
    picture_HWC = np.full((1600, 2400, 3), 128, dtype=np.uint8)
    picture_HWC[400:800, 600:1000] = RED
    Image.fromarray(picture_HWC).save(tmp_path / "a.jpg", quality=95)
    for box in ((600.0, 400.0, 400.0, 400.0), (0.25, 0.25, 1 / 6, 0.25)):
        shown_HWC = FileSource(tmp_path, ["a.jpg"], crops=[box]).picture(0, 64)
        assert 64 <= min(shown_HWC.shape[:2]) < 400
        assert np.abs(shown_HWC.mean(axis=(0, 1)) - RED).max() < 8


@pytest.mark.parametrize(("box", "words"), [
    ((900.0, 10.0, 50.0, 50.0), "lies outside"), ((-60.0, 5.0, 50.0, 50.0), "lies outside"),
    ((0.5, 0.5, 1.2, 0.9), "less than 2 pixels"), ((0.1, -0.6, 0.5, 0.5), "lies outside"),
])  # fmt: skip
def test_a_box_that_shows_nothing_of_the_picture_is_refused_and_named(tmp_path, box, words):
    scene(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"a\.png") as caught:
        FileSource(tmp_path, ["a.png"], crops=[box]).picture(0)
    assert words in caught.value.what


def test_a_box_counts_in_the_upright_picture(tmp_path):
    """A picture stored lying, 200 x 100, is 100 x 200 upright: y may be 150, and x may not."""
    exif = Image.Exif()
    exif[0x0112] = 6
    for name in ("a.jpg", "a.tif", "a.png"):
        Image.fromarray(noise(1, 100, 200)).save(tmp_path / name, exif=exif)
        assert FileSource(tmp_path, [name], crops=[(10, 150, 40, 40)]).picture(0).shape[0] == 40
        with pytest.raises(DataError, match="100 x 200"):
            FileSource(tmp_path, [name], crops=[(150, 10, 40, 40)]).picture(0)


@pytest.mark.parametrize("content", [
    "", "[]", "{}", '{"images": 3}', '{"images": [', "[" * 100_000, '{"images": [{"file": 3}]}',
    '{"images": [{"file": "a", "detections": [{"conf": "x", "bbox": [1]}]}]}', "\ud800",
    '{"images": [{"file": "a", "detections": {"conf": 1}}], "annotations": [3, null]}',
    '{"images": [{"id": [1], "file": "file://["}], "categories": {"1": [2]}}',
])  # fmt: skip
def test_a_damaged_file_of_boxes_is_no_traceback(tmp_path, content):
    (tmp_path / "a.json").write_bytes(content.encode("utf-8", "surrogatepass"))
    try:
        assert read_boxes(tmp_path, tmp_path / "a.json", 0.2, None) == {}
    except DataError as error:
        told = error.what
        assert "a.json" in told


def test_boxes_of_four_finite_numbers_with_a_size_are_sound():
    assert sound_box(["0.1", 0, 1, 2]) == (0.1, 0.0, 1.0, 2.0)
    assert sound_box(["0,1", "0,25", "1", "2"]) == (0.1, 0.25, 1.0, 2.0)
    for bad in (None, [], [1, 2, 3], [1, 2, 0, 4], [1, 2, float("nan"), 4], ["x", 1, 1, 1], "abcd"):
        assert sound_box(bad) is None
