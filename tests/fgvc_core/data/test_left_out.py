"""Reading row by row: what is wrong with one picture leaves that one out, counted and named."""

import os
import subprocess

import numpy as np
import pytest
from PIL import Image

from fgvc_core.data.catalogue import knowledge_by_kind, load_table
from fgvc_core.data.labels import LeftOut
from fgvc_core.data.pictures import PictureBank
from fgvc_core.data.settings import DataSettings
from fgvc_core.errors import DataError
from fgvc_core.experiment import make_learner
from fgvc_core.recipe import parse_recipe

CLASSES = ("jay", "wren")


def picture(path, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def read(tmp_path, **changes):
    left_out = LeftOut()
    settings = DataSettings(path=str(tmp_path), classes=CLASSES, test_fraction=0.0, **changes)
    return load_table(settings, tmp_path / "cache", left_out=left_out), left_out.counts()


def test_a_manifests_faulty_lines_are_left_out_each_for_its_own_reason(tmp_path):
    for name in ("a.png", "b.png", "c.png"):
        picture(tmp_path / name)
    lines = [
        b"path,label,subject,split",
        b"a.png,jay,s1,train",
        b"b.png,wren,s1,test",  # a subject in two splits is no fault here
        b"a.png,wren,s2,train",  # nor is a picture that is listed twice
        b"c.png,owl,s3,train",
        b"c.png,,s3,train",
        b"c.png,jay,,train",
        b"c.png,jay,s3,trian",
        b",jay,s3,train",
        b"gone.png,jay,s3,train",
        b'"c.png,jay,s3,train',
        b"c.png,jay",
        b"c\xff.png,jay,s3,train",
        b"c.png,,s4,pool",
    ]
    (tmp_path / "manifest.csv").write_bytes(b"\n".join(lines))
    table, counts = read(tmp_path, name="manifest")
    assert table.ids == ("a.png", "b.png", "a.png", "c.png")
    assert table.splits == ("train", "test", "train", "pool")
    assert counts == {
        "on a damaged line": 3, "in an unknown split": 1, "whose picture is missing": 1,
        "with a label that is no class of the run": 1, "without a label": 1,
        "without a path": 1, "without a subject": 1,
    }  # fmt: skip


def test_what_is_wrong_with_a_manifest_as_a_whole_still_raises(tmp_path):
    with pytest.raises(DataError, match="no manifest"):
        read(tmp_path, name="manifest")
    (tmp_path / "manifest.csv").write_text("path,kind\n")
    with pytest.raises(DataError, match="no column 'label'"):
        read(tmp_path, name="manifest")
    (tmp_path / "manifest.csv").write_text("path,label\n")
    assert len(read(tmp_path, name="manifest")[0]) == 0


def test_in_split_folders_a_picture_is_placed_by_its_own_path_alone(tmp_path):
    for path in ("train/jay/1.png", "val/wren/2.png", "pool/3.png", "train/4.png", "5.png",
                 "train/owl/6.png", "other/jay/7.png"):  # fmt: skip
        picture(tmp_path / path)
    table, counts = read(tmp_path, name="folder", folders="splits")
    assert dict(zip(table.ids, table.splits, strict=True)) == {
        "pool/3.png": "pool", "train/jay/1.png": "train", "val/wren/2.png": "train",
    }  # fmt: skip
    assert counts == {"in no class folder": 3, "with a label that is no class of the run": 1}
    # Nothing but its own path: val does not become the test split when test is empty.
    (tmp_path / "train" / "jay" / "1.png").unlink()
    again, _ = read(tmp_path, name="folder", folders="splits")
    assert set(again.splits) == {"pool", "train"}


def cub(tmp_path, **texts):
    said = {
        "classes.txt": "1 001.jay\n2 002.wren\n",
        "images.txt": "1 a.png\n2 b.png\n3 c.png\n",
        "image_class_labels.txt": "1 1\n2 2\n3 1\n",
        "train_test_split.txt": "1 1\n2 1\n3 0\n",
        **{name.replace("_txt", ".txt"): text for name, text in texts.items()},
    }
    for name, text in said.items():
        (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    for number, name in enumerate("abc"):
        picture(tmp_path / "images" / f"{name}.png", number)


@pytest.mark.parametrize(
    ("texts", "ids", "reason"),
    [
        ({}, "abc", None),
        ({"image_class_labels_txt": "1 1\n2 9\n3 1\n"}, "ac", "without a class"),
        ({"image_class_labels_txt": "1 1\n2 x\n3 1\n"}, "ac", "without a class"),
        ({"image_class_labels_txt": "1 1\n3 1\n"}, "ac", "without a class"),
        ({"train_test_split_txt": "1 1\n2 7\n3 0\n"}, "ac", "without a split"),
        ({"images_txt": b"1 a.png\n2 \xff\xfe\n3 c.png\n"}, "ac", "on a damaged line"),
        ({"images_txt": "1 a.png\ntwo b.png\n3 c.png\n"}, "ac", "on a damaged line"),
        ({"images_txt": "1 a.png\n2 z.png\n3 c.png\n"}, "ac", "whose picture is missing"),
        ({"images_txt": f"1 a.png\n{'2' * 5000} b.png\n3 c.png\n"}, "ac", "on a damaged line"),
        ({"images_txt": "1 a.png\n\u0662 b.png\n3 c.png\n"}, "ac", "on a damaged line"),
        ({"images_txt": "1 a.png\n2 b.png\x0c1 c.png\n3 c.png\n"}, "ac",
         "whose picture is missing"),
        ({"image_class_labels_txt": f"1 1\n2 {'2' * 5000}\n3 1\n"}, "ac", "without a class"),
        ({"image_class_labels_txt": "1 1\n2 \u0662\n3 1\n"}, "ac", "without a class"),
        ({"train_test_split_txt": f"1 1\n2 {'1' * 5000}\n3 0\n"}, "ac", "without a split"),
    ],
)  # fmt: skip
def test_a_cub_tree_loses_the_one_picture_that_is_at_fault(tmp_path, texts, ids, reason):
    cub(tmp_path, **texts)
    table, counts = read(tmp_path, name="cub")
    assert table.ids == tuple(f"{name}.png" for name in ids)
    assert counts == ({} if reason is None else {reason: 1})


@pytest.mark.parametrize("lines", ["2 b.png\n2 c.png\n", "2 c.png\n2 b.png\n"])
def test_of_two_cub_pictures_under_one_number_neither_pushes_the_other_out(tmp_path, lines):
    cub(tmp_path, images_txt=f"1 a.png\n{lines}")
    table, counts = read(tmp_path, name="cub")
    assert (sorted(table.ids), counts) == (["a.png", "b.png", "c.png"], {})


def test_aircraft_lists_lose_a_damaged_line_and_give_no_taxonomy(tmp_path):
    for part, lines in (
        ("trainval", "1 jay\n2 wren\nx jay\n3 wren\n"),
        ("test", "3 wren\n4 jay\n"),
    ):
        (tmp_path / f"images_variant_{part}.txt").write_text(lines)
        (tmp_path / f"images_family_{part}.txt").write_text(lines.replace("jay", "crow"))
    for number in range(1, 5):
        picture(tmp_path / "images" / f"{number}.jpg", number)
    table, counts = read(tmp_path, name="aircraft")
    assert table.ids == ("images/1.jpg", "images/2.jpg", "images/4.jpg")
    assert counts == {"in two splits": 1, "on a damaged line": 1}
    assert table.taxonomy == ()
    assert knowledge_by_kind("aircraft") == ()


@pytest.mark.parametrize("mark", ["\x0c", "\x0b", "\x1c", "\x85", "\u2028", "\u2029", "\r"])
def test_no_character_within_an_aircraft_line_makes_it_two(tmp_path, mark):
    """Else the second half could say what another picture shows, as the first to name it."""
    text = f"9 jay{mark}1 wren\n1 jay\n{'2' * 5000} jay\n"
    (tmp_path / "images_variant_trainval.txt").write_bytes(text.encode())
    (tmp_path / "images_variant_test.txt").write_text("3 wren\n")
    for number in (1, 3, 9):
        picture(tmp_path / "images" / f"{number}.jpg", number)
    table, counts = read(tmp_path, name="aircraft")
    assert table.ids == ("images/1.jpg", "images/3.jpg")
    assert table.labels_N.tolist() == [0, 1]
    assert counts == {
        "whose picture is missing": 1, "with a label that is no class of the run": 1
    }  # fmt: skip


def test_a_number_without_end_is_named_and_is_no_traceback(tmp_path):
    for name in ("images_txt", "classes_txt"):
        cub(tmp_path, **{name: f"{'1' * 5000} 001.jay\n"})
        with pytest.raises(DataError, match="is not 'number name'"):
            load_table(DataSettings(name="cub", path=str(tmp_path)), tmp_path / "cache")


def nested(top, depth):
    """A picture in folders within folders, deeper than one path can name."""
    here = os.open(top, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("d", dir_fd=here)
        below = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    picture(top / "z.png", 9)
    os.rename(top / "z.png", "z.png", dst_dir_fd=here)
    os.close(here)


@pytest.mark.parametrize(("depth", "reason"), [
    (1100, None), (2500, "in a folder that cannot be listed"),
])  # fmt: skip
def test_a_folder_tree_of_any_depth_is_read_and_what_is_too_deep_is_left_out(
    tmp_path, depth, reason
):
    for name in ("jay", "wren"):
        picture(tmp_path / "train" / name / "a.png")
    nested(tmp_path / "train" / "jay", depth)
    try:
        table, counts = read(tmp_path, name="folder", folders="splits")
        assert len(table) == (3 if reason is None else 2)
        assert counts == ({} if reason is None else {reason: 1})
        if reason is not None:
            with pytest.raises(DataError, match=r"cannot be listed: .*File name too long"):
                load_table(DataSettings(name="folder", path=str(tmp_path)), tmp_path / "cache")
    finally:
        # Python 3.11's own way of clearing up after a test cannot go that deep.
        subprocess.run(["rm", "-rf", str(tmp_path / "train")], check=True)


@pytest.mark.parametrize("name", ["folder", "manifest", "cub", "aircraft"])
def test_a_link_to_itself_takes_nothing_along(tmp_path, name):
    if name == "folder":
        for each in "abc":
            picture(tmp_path / "train" / "jay" / f"{each}.png")
        path = tmp_path / "train" / "jay" / "b.png"
        settings = {"folders": "splits"}
    elif name == "manifest":
        for each in "abc":
            picture(tmp_path / f"{each}.png")
        (tmp_path / "manifest.csv").write_text("path,label\na.png,jay\nb.png,jay\nc.png,jay\n")
        path, settings = tmp_path / "b.png", {}
    elif name == "cub":
        cub(tmp_path)
        path, settings = tmp_path / "images" / "b.png", {}
    else:
        (tmp_path / "images_variant_trainval.txt").write_text("1 jay\n2 wren\n3 jay\n")
        (tmp_path / "images_variant_test.txt").write_text("")
        for number in range(1, 4):
            picture(tmp_path / "images" / f"{number}.jpg", number)
        path, settings = tmp_path / "images" / "2.jpg", {}
    path.unlink()
    path.symlink_to(path.name)
    table, counts = read(tmp_path, name=name, **settings)
    assert len(table) == 2
    assert counts == {"whose picture is missing": 1}


def test_without_a_record_the_same_faults_raise(tmp_path):
    cub(tmp_path, image_class_labels_txt="1 1\n2 9\n3 1\n")
    with pytest.raises(DataError, match="out of range"):
        load_table(DataSettings(name="cub", path=str(tmp_path)), tmp_path / "cache")


def test_a_tolerant_bank_names_what_it_could_not_read_also_when_it_is_opened_again(tmp_path):
    cub(tmp_path)
    (tmp_path / "images" / "b.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    table, _ = read(tmp_path, name="cub")
    banks = [PictureBank(table, 16, cache=tmp_path / "cache", tolerant=True) for _ in range(2)]
    assert [sorted(bank.faults) for bank in banks] == [[1], [1]]
    assert banks[1].batch([1]).sum() == 0
    part = banks[1].take([2, 0])
    assert len(part) == 2
    assert (part.batch([0, 1]) == banks[0].batch([2, 0])).all()
    assert (part.take([1]).batch([0]) == banks[0].batch([0])).all()
    # Whoever does not expect it gets an error, not a black square.
    with pytest.raises(DataError, match=r"b\.png"):
        PictureBank(table, 16, cache=tmp_path / "cache")


@pytest.mark.parametrize("train", ["head", "all"])
def test_a_learner_gives_the_readable_examples_and_names_the_others(tmp_path, train):
    cub(tmp_path)
    (tmp_path / "images" / "b.png").write_bytes(b"no picture")
    (tmp_path / "images" / "c.png").unlink()
    (tmp_path / "images" / "c.png").symlink_to("/etc/hostname")
    table, _ = read(tmp_path, name="cub")
    recipe = parse_recipe(f"""
        [data]
        image_size = 32
        [model]
        backbone = "fieldmark_nano"
        train = "{train}"
    """)
    learner = make_learner(recipe, 2)
    for _ in range(2):
        left_out = LeftOut()
        sound, examples = learner.readable_examples(table, tmp_path / "cache", left_out)
        assert (sound.ids, len(examples)) == (("a.png",), 1)
        assert left_out.names == {"that cannot be read as pictures": ["c.png", "b.png"]}
    with pytest.raises(DataError, match=r"b\.png"):
        learner.examples(table.take([0, 1]), tmp_path / "cache")
