"""Annotation tools' files: COCO and iNaturalist by split, Label Studio, CVAT, one-hot tables."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from fgvc_core.cli import data_app
from fgvc_core.data.catalogue import knowledge_by_kind, load_table
from fgvc_core.data.labels import LeftOut
from fgvc_core.data.recognising import recognise
from fgvc_core.data.settings import DataSettings
from fgvc_core.data.table import ExampleTable
from fgvc_core.errors import DataError

from .picture_trees import write_picture

AB = ["a", "b"] * 4


def write_pictures(root: Path, folder: str = "images", count: int = 8) -> list[str]:
    for i in range(count):
        write_picture(root / folder / f"{i:03}.png", i)
    return [f"{i:03}.png" for i in range(count)]


def load(root: Path, left_out: LeftOut | None = None, **settings: object) -> ExampleTable:
    made = DataSettings(name=recognise(root), path=str(root), **settings)
    return load_table(made, root / "cache", left_out=left_out)


def findings(root: Path) -> dict:
    result = CliRunner().invoke(data_app, ["check", str(root), "--json"])
    return json.loads(result.stdout)


def labels(table: ExampleTable) -> list[str]:
    return [table.class_names[k] for k in table.labels_N.tolist()]


# ---- COCO and iNaturalist -------------------------------------------------------------------


def write_coco(path: Path, names: list[str], categories: list[dict], annotate: bool = True) -> None:
    images = [{"id": i, "file_name": name} for i, name in enumerate(names)]
    numbers = [one["id"] for one in categories]
    notes = [
        {"id": i, "image_id": i, "category_id": numbers[i % len(numbers)]}
        for i in range(len(names) if annotate else 0)
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"images": images, "annotations": notes, "categories": categories}))


PLAIN = [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}]

RANKED = [
    {"id": k, "name": name, "common_name": "x", "supercategory": "Birds", "kingdom": "Animalia",
     "phylum": "Chordata", "class": "Aves", "order": order, "family": family,
     "genus": name.split()[0], "specific_epithet": name.split()[1]}
    for k, (name, order, family) in enumerate((
        ("Parus major", "Passeriformes", "Paridae"), ("Pica pica", "Passeriformes", "Corvidae"),
        ("Pica nuttalli", "Passeriformes", "Corvidae"), ("Asio otus", "Strigiformes", "Strigidae"),
    ))
]  # fmt: skip


def test_inaturalists_jsons_are_splits_with_the_ranks_as_taxonomy(tmp_path):
    for split, count in (("train", 12), ("val", 4)):
        names = write_pictures(tmp_path, f"{split}_mini", count)
        write_coco(tmp_path / f"{split}.json", [f"{split}_mini/{n}" for n in names], RANKED)
    write_coco(tmp_path / "public_test.json", ["test/0.png"], RANKED, annotate=False)
    assert recognise(tmp_path) == "inaturalist"
    table = load(tmp_path)
    assert [table.splits.count(split) for split in ("train", "test")] == [12, 4]
    assert table.class_names == ("Asio otus", "Parus major", "Pica nuttalli", "Pica pica")
    assert table.taxonomy_levels == (
        "kingdom", "phylum", "class", "order", "family", "genus", "species")  # fmt: skip
    assert table.taxonomy[0][3:] == ("Strigiformes", "Strigidae", "Asio", "Asio otus")
    assert knowledge_by_kind("inaturalist") == ("taxonomy",)
    report = findings(tmp_path)
    assert not report["faults"]
    assert "'train.json' is train, 'val.json' is test" in report["how"]
    assert "not read: 'public_test.json'" in report["how"]
    mapped = load(tmp_path, label_map={"Pica nuttalli": "Pica pica"})
    assert mapped.num_classes == 3
    assert mapped.taxonomy[-1][-1] == "Pica pica"


def test_supercategories_are_the_taxonomy_of_older_sets(tmp_path):
    names = [f"images/{n}" for n in write_pictures(tmp_path)]
    categories = [{**one, "supercategory": "Aves"} for one in PLAIN]
    write_coco(tmp_path / "train2017.json", names, categories)
    settings = DataSettings(name="inaturalist", path=str(tmp_path))
    table = load_table(settings, tmp_path)
    assert table.taxonomy == (("Aves", "a"), ("Aves", "b"))
    assert load(tmp_path).taxonomy == ()


@pytest.mark.parametrize(("lists", "pictures"), [
    ("annotations/instances_{}2017.json", "images/{}2017"), ("{}/_annotations.coco.json", "{}"),
    ("annotations/instances_{}.json", "images/{}"), ("annotations/{}.json", "images"),
])  # fmt: skip
def test_cocos_usual_folders_are_told_from_the_names(tmp_path, lists, pictures):
    for k, split in enumerate(("train", "val")):
        for i in range(4):
            write_picture(tmp_path / pictures.format(split) / f"{split}{i}.png", 10 * k + i)
        names = [f"{split}{i}.png" for i in range(4)]
        write_coco(tmp_path / lists.format(split), names, PLAIN)
    if "instances" in lists:
        write_coco(tmp_path / "annotations/captions_train2017.json", ["x.png"], PLAIN)
    table = load(tmp_path)
    assert [table.splits.count(split) for split in ("train", "test")] == [4, 4]
    assert labels(table) == ["a", "b"] * 4
    assert not findings(tmp_path)["faults"]


def test_a_test_list_with_labels_makes_validation_training(tmp_path):
    for k, split in enumerate(("train", "val", "test")):
        for i in range(4):
            write_picture(tmp_path / "images" / f"{split}{i}.png", 10 * k + i)
        write_coco(tmp_path / f"{split}.json", [f"{split}{i}.png" for i in range(4)], PLAIN)
    table = load(tmp_path)
    assert [table.splits.count(split) for split in ("train", "test")] == [8, 4]


def test_a_picture_in_two_lists_is_refused_or_left_out(tmp_path):
    names = write_pictures(tmp_path)
    write_coco(tmp_path / "train.json", names[:6], PLAIN)
    write_coco(tmp_path / "val.json", names[5:], PLAIN)
    with pytest.raises(DataError, match=r"1 picture is in two splits: 'images/005\.png'"):
        load(tmp_path)
    left_out = LeftOut()
    assert len(load(tmp_path, left_out)) == 7
    assert left_out.counts() == {"in two splits": 1}


@pytest.mark.parametrize(("change", "message"), [
    ({"images": [{"id": 99, "file_name": "./000.png"}]}, r"twice: 'images/000\.png'"),
    ({"images": [{"id": 0, "file_name": "001.png"}]}, "picture id 0 to '000.png', '001.png'"),
    ({"categories": [{"id": 1, "name": "c"}]}, "category id 1 to 'a', 'c'"),
])  # fmt: skip
def test_what_coco_says_twice_is_refused_instead_of_misread(tmp_path, change, message):
    write_coco(tmp_path / "x.json", write_pictures(tmp_path), PLAIN)
    found = json.loads((tmp_path / "x.json").read_text())
    for key, more in change.items():
        found[key] += more
    (tmp_path / "x.json").write_text(json.dumps(found))
    with pytest.raises(DataError, match=message):
        load(tmp_path)
    assert load(tmp_path, LeftOut()).num_classes == 2


def test_jsons_that_are_no_splits_are_not_guessed(tmp_path):
    names = write_pictures(tmp_path)
    for name in ("one.json", "two.json"):
        write_coco(tmp_path / name, names, PLAIN)
    assert recognise(tmp_path) == "folder"
    with pytest.raises(DataError, match="no single COCO file") as caught:
        load_table(DataSettings(name="coco", path=str(tmp_path)), tmp_path)
    assert "data.manifest" in caught.value.remedy
    settings = DataSettings(name="coco", path=str(tmp_path), manifest="two.json")
    assert len(load_table(settings, tmp_path)) == 8


# ---- Label Studio ---------------------------------------------------------------------------


def task(name: str, *choices: str, cancelled: bool = False) -> dict:
    result = [{"type": "choices", "from_name": "c", "value": {"choices": list(choices)}}]
    note = {"id": 1, "was_cancelled": cancelled, "result": result if choices else []}
    return {"id": 1, "data": {"image": name, "note": "hello"}, "annotations": [note]}


def write_studio(root: Path, kind: str, addresses: list[str]) -> None:
    if kind == "json":
        made = [task(name, label) for name, label in zip(addresses, AB, strict=True)]
        (root / "project-1.json").write_text(json.dumps(made))
        return
    rows = [
        {"annotation_id": i, "annotator": 1, "choice": label, "id": i, "image": name,
         "lead_time": 2.5}
        for i, (name, label) in enumerate(zip(addresses, AB, strict=True))
    ]  # fmt: skip
    if kind == "json-min":
        (root / "project-1.json").write_text(json.dumps(rows))
        return
    with (root / "project-1.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


@pytest.mark.parametrize("kind", ["json", "json-min", "csv"])
@pytest.mark.parametrize("address", [
    "/data/upload/3/0a1b2c3d-{}", "/data/local-files/?d=images/{}", "images/{}",
    "https://example.org/birds/{}?sig=x", "/data/local-files/?d=images%2F{}",
])  # fmt: skip
def test_label_studios_exports_are_read_and_pictures_found(tmp_path, kind, address):
    names = write_pictures(tmp_path)
    write_studio(tmp_path, kind, [address.format(name) for name in names])
    assert recognise(tmp_path) == "label-studio"
    table = load(tmp_path)
    assert table.ids == tuple(f"images/{name}" for name in names)
    assert labels(table) == AB
    assert not findings(tmp_path)["faults"]


def test_label_studios_choices_in_a_cell_of_json_are_choices(tmp_path):
    names = write_pictures(tmp_path)
    rows = [
        f'{i},images/{name},"{{""choices"": [""{label}""]}}"'
        for i, (name, label) in enumerate(zip(names, AB, strict=True))
    ]
    (tmp_path / "manifest.csv").write_text("\n".join(["id,image,choice", *rows]) + "\n")
    table = load(tmp_path)
    assert table.class_names == ("a", "b")
    rows[0] = rows[0].replace('[""a""]', '[""a"", ""b""]')
    (tmp_path / "manifest.csv").write_text("\n".join(["id,image,choice", *rows]) + "\n")
    with pytest.raises(DataError, match=r"1 of 8 pictures .* more than one class"):
        load(tmp_path)
    assert len(load(tmp_path, LeftOut())) == 7


def test_cancelled_and_empty_annotations_are_none_and_a_lost_class_is_a_fault(tmp_path):
    names = write_pictures(tmp_path)
    tasks = [task(name, label) for name, label in zip(names, AB, strict=True)]
    tasks[0], tasks[1] = task(names[0], "a", cancelled=True), task(names[1])
    tasks[2] = task(names[2], "rare", "a")
    tasks += [{"data": {}, "annotations": []}, 7]
    (tmp_path / "export.json").write_text(json.dumps(tasks))
    report = findings(tmp_path)
    assert report["examples"] == 5
    assert report["unused"]["counts"] == {
        "in a damaged entry of the annotations": 2,
        "with annotations of more than one class": 1, "without an annotation": 2,
    }  # fmt: skip
    assert report["faults"][0].startswith("1 whole class is not used: 'rare'")


def test_rectangles_are_examples_where_subjects_are_cut_out(tmp_path):
    names = write_pictures(tmp_path)
    tasks = []
    for name in names:
        boxes = [
            {"type": "rectanglelabels", "value": {"x": x, "y": 0, "width": 50, "height": 100,
             "rectanglelabels": [label]}}
            for x, label in ((0, "a"), (50, "b"))
        ]  # fmt: skip
        tasks.append({"data": {"image": name}, "annotations": [{"result": boxes}]})
    (tmp_path / "export.json").write_text(json.dumps(tasks))
    table = load(tmp_path, crop="box", crop_margin=0.0)
    assert len(table) == 16
    assert labels(table) == ["a", "b"] * 8
    assert len(set(table.subjects)) == 8


@pytest.mark.parametrize(("kind", "value", "box"), [
    ("polygonlabels", {"points": [[20, 10], [60, 10], [40, 50]]}, (0.2, 0.1, 0.4, 0.4)),
    ("ellipselabels", {"x": 50, "y": 50, "radiusX": 20, "radiusY": 10}, (0.3, 0.4, 0.4, 0.2)),
    # A quarter turn about its corner, in a picture of 30 x 24: 12 wide and 6 high becomes 6 x 12.
    ("rectanglelabels", {"x": 50, "y": 25, "width": 40, "height": 25, "rotation": 90},
     (0.3, 0.25, 0.2, 0.5)),
    ("brushlabels", {"format": "rle", "rle": [1, 2]}, None),
    ("keypointlabels", {"x": 5, "y": 5, "width": 1}, None),
    ("polygonlabels", {"points": [[1e999, 0], "x"]}, None),
    ("taxonomy", {"taxonomy": [["animal", "a"]]}, None),
])  # fmt: skip
def test_every_kind_of_region_of_label_studio_is_a_box_or_a_label(tmp_path, kind, value, box):
    names = write_pictures(tmp_path)
    tasks = [
        {"data": {"image": name}, "annotations": [{"result": [
            {"original_width": 30, "original_height": 24, "value": {kind: [label], **value}}]}]}
        for name, label in zip(names, AB, strict=True)
    ]  # fmt: skip
    (tmp_path / "export.json").write_text(json.dumps(tasks))
    if kind == "taxonomy":
        assert labels(load(tmp_path)) == ["a"] * 8
        return
    assert labels(load(tmp_path)) == AB
    if box is None:
        with pytest.raises(DataError):
            load(tmp_path, crop="box")
        return
    table = load(tmp_path, crop="box", crop_margin=0.0)
    assert table.source.crops[0] == pytest.approx(box, abs=0.002)


def test_an_export_in_utf_16_is_recognized(tmp_path):
    names = write_pictures(tmp_path)
    tasks = [task(name, label) for name, label in zip(names, AB, strict=True)]
    (tmp_path / "export.json").write_text(json.dumps(tasks), encoding="utf-16")
    assert recognise(tmp_path) == "label-studio"
    assert labels(load(tmp_path)) == AB


# ---- CVAT -----------------------------------------------------------------------------------


def write_cvat(root: Path, names: list[str], inner: str = "", subset: str = "") -> None:
    extra = f'subset="{subset}"' if subset else ""
    images = [
        f'<image id="{i}" name="{name}" {extra} width="30" height="24">'
        f'<tag label="{label}" source="manual"></tag>{inner}</image>'
        for i, (name, label) in enumerate(zip(names, AB, strict=False))
    ]
    (root / "annotations.xml").write_text(
        "<?xml version='1.0' encoding='utf-8'?><annotations><version>1.1</version>"
        f"{''.join(images)}</annotations>"
    )


def test_cvats_tags_and_boxes_are_read(tmp_path):
    names = write_pictures(tmp_path)
    shapes = (
        '<polygon label="a" points="1,1;2,2"></polygon>'
        '<box label="fox" xtl="0" ytl="0" xbr="15.0" ybr="12.0"></box>'
    )
    write_cvat(tmp_path, names)
    assert recognise(tmp_path) == "cvat"
    assert labels(load(tmp_path)) == AB
    assert not findings(tmp_path)["faults"]
    write_cvat(tmp_path, names, shapes)
    table = load(tmp_path, crop="box", crop_margin=0.0, label_map={"a": "-> none", "b": "-> none"})
    assert labels(table) == ["fox"] * 8
    assert table.picture(0).shape == (15, 15, 3)
    assert table.unused.counts()["shapes that are neither tags nor boxes"] == 8


def test_pictures_with_polygons_alone_are_lost_and_not_called_bare(tmp_path):
    names = write_pictures(tmp_path)
    write_cvat(tmp_path, names)
    text = (tmp_path / "annotations.xml").read_text()
    tag, polygon = '<tag label="b" source="manual"></tag>', '<polygon label="b" points="1,1;2,2"/>'
    (tmp_path / "annotations.xml").write_text(text.replace(tag, polygon))
    report = findings(tmp_path)
    assert report["examples"] == 4
    assert "1 whole class is not used: 'b'. 4 annotated with polygons" in report["faults"][0]
    assert "without an annotation" not in report["unused"]["counts"]


def test_cvats_subsets_are_splits_where_they_are_called_so(tmp_path):
    names = write_pictures(tmp_path, "images/Train")
    write_cvat(tmp_path, names, subset="Train")
    assert set(load(tmp_path).splits) == {"train"}


@pytest.mark.parametrize("content", [
    "<annotations><version>1.1</version><image", "<annotations><version/></annotations>",
    '<!DOCTYPE a [<!ENTITY b "cc">]><annotations><version/><image name="&b;"/></annotations>',
])  # fmt: skip
def test_damaged_and_hostile_xml_is_an_error_of_the_data(tmp_path, content):
    write_pictures(tmp_path)
    (tmp_path / "annotations.xml").write_text(content)
    assert recognise(tmp_path) == "cvat"
    with pytest.raises(DataError):
        load(tmp_path)


def test_damaged_exports_of_label_studio_are_errors_of_the_data(tmp_path):
    settings = DataSettings(name="label-studio", path=str(tmp_path), manifest="a.json")
    for content in (b"", b"{}", b"[1, 2", b"[" * 100_000, b"\xff\xfe", b'[{"data": 3}]'):
        (tmp_path / "a.json").write_bytes(content)
        with pytest.raises(DataError):
            load_table(settings, tmp_path)


# ---- tables ---------------------------------------------------------------------------------


def test_one_column_a_class_is_refused_with_what_to_write(tmp_path):
    names = write_pictures(tmp_path)
    rows = [
        f"images/{n},{float(k == 'a')},{float(k == 'b')}" for n, k in zip(names, AB, strict=True)
    ]
    (tmp_path / "manifest.csv").write_text("\n".join(["path,MEL,NV", *rows]) + "\n")
    with pytest.raises(DataError, match="no column 'label'") as caught:
        load(tmp_path)
    assert "'MEL', 'NV' each seem to stand for a class" in caught.value.remedy
    assert "idxmax(axis=1)" in caught.value.remedy
    (tmp_path / "manifest.csv").write_text("\n".join(["image,MEL,NV", *rows]) + "\n")
    with pytest.raises(DataError, match="no column 'path'") as caught:
        load(tmp_path)
    assert "--set data.path_column=image" in caught.value.remedy
    assert "each seem to stand for a class" in caught.value.remedy


def test_subjects_and_sites_that_look_alike_are_noted(tmp_path):
    names = write_pictures(tmp_path)
    subjects = ["1", "01", "1.0", "2", "P3", "p3", "4", "10"]
    sites = ["Lyon", "lyon", "LYON", "Oslo", "Oslo", "Rome", "Rome", "Rome"]
    rows = [
        ",".join(r) for r in zip((f"images/{n}" for n in names), AB, subjects, sites, strict=True)
    ]
    (tmp_path / "manifest.csv").write_text("\n".join(["path,label,subject,site", *rows]) + "\n")
    report = findings(tmp_path)
    assert report["alike_subjects"] == [["1", "01"], ["1", "1.0"], ["P3", "p3"]]
    assert report["alike_sites"] == [["site", "Lyon", "lyon"], ["site", "Lyon", "LYON"]]
    notes = " ".join(report["notes"])
    assert "3 pairs of subjects look alike: '1' and '01'" in notes
    assert "2 pairs of names look alike in column 'site': 'Lyon' and 'lyon'" in notes


def test_pictures_are_named_as_subjects_of_their_own_without_a_note(tmp_path):
    names = write_pictures(tmp_path)
    rows = [f"images/{n},{k}" for n, k in zip(names, AB, strict=True)]
    (tmp_path / "manifest.csv").write_text("\n".join(["path,label", *rows]) + "\n")
    assert findings(tmp_path)["alike_subjects"] == []
    assert np.array_equal(load(tmp_path).class_counts_K(), [4, 4])


# ---- folders --------------------------------------------------------------------------------


def test_numbered_split_folders_are_splits(tmp_path):
    for split, count in (("01_train", 6), ("02_test", 2)):
        for name in "ab":
            write_pictures(tmp_path, f"{split}/{name}", count)
    table = load(tmp_path)
    assert table.class_names == ("a", "b")
    assert [table.splits.count(split) for split in ("train", "test")] == [12, 4]


@pytest.mark.parametrize("folder", [
    "Thumbnails.lrdata", "Catalog Previews.lrdata", "_thumbs", "thumbnails", "Recycle Bin",
    "RecycleBin", "My Photos.photoslibrary",
])  # fmt: skip
def test_more_litter_of_photo_programs_is_no_class(tmp_path, folder):
    for name in "ab":
        write_pictures(tmp_path, name)
    write_picture(tmp_path / folder / "old.png", 99)
    table = load(tmp_path)
    assert table.class_names == ("a", "b")
    assert table.unused.lost == 0
    assert table.unused.counts() == {"thumbnails, recycle bins and other litter of a system": 1}


def test_trash_stays_a_class_of_waste(tmp_path):
    for name in ("glass", "trash"):
        write_pictures(tmp_path, name)
    assert load(tmp_path).class_names == ("glass", "trash")
