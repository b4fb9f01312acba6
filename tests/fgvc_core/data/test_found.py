"""Inputs as people have them: each test stands for a kind that was found to go wrong silently."""

import contextlib
import json
import os
import re
import runpy
import subprocess
import sys
import tempfile
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result
from PIL import Image
from typer.testing import CliRunner

from fgvc_core.cli import data_app
from fgvc_core.data.catalogue import load_table
from fgvc_core.data.labels import LeftOut
from fgvc_core.data.layout import is_part, usual_split
from fgvc_core.data.settings import DataSettings
from fgvc_core.data.table import ExampleTable
from fgvc_core.errors import ConfigurationError, DataError
from fgvc_core.inference.finding import find_pictures
from fgvc_core.recipe import parse_recipe

from . import five_ways
from .picture_trees import REPOSITORY, write_folders, write_picture


def check(*arguments: object) -> Result:
    return CliRunner().invoke(data_app, ["check", *(str(a) for a in arguments)], terminal_width=100)


def findings(root: Path, *arguments: object) -> dict:
    return json.loads(check(root, "--json", *arguments).stdout)


def load(root: Path, **settings: object) -> ExampleTable:
    return load_table(DataSettings(name="folder", path=str(root), **settings), root / "cache")


@pytest.fixture
def open_folder():
    """A folder that other users can reach; pytest's own are root's alone."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        yield Path(name)


@contextlib.contextmanager
def powerless():
    """Without root's rights, for whom no folder is closed."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


# ---- nothing vanishes -----------------------------------------------------------------------


def test_a_class_folder_that_cannot_be_listed_is_a_fault_and_names_it(open_folder):
    root = open_folder / "data"
    write_folders(root, ["a", "b", "c"])
    settings = DataSettings(name="folder", path=str(root))
    os.chmod(root / "b", 0)
    try:
        with powerless():
            table = load_table(settings, root, require_pictures=False)
            with pytest.raises(DataError, match="Permission denied"):
                load_table(settings, root)
            (found,) = [one for one in find_pictures([str(root)]) if one.fault]
    finally:
        os.chmod(root / "b", 0o755)
    assert table.class_names == ("a", "c")
    assert table.unused.classes == ["b"]
    (fault,) = table.unused.faults(len(table), 0.01)
    assert fault.startswith("1 whole class is not used: 'b'. 1 in a folder that cannot be listed")
    assert "cannot be listed (Permission denied)" in found.fault


def test_a_root_without_rights_is_an_error_of_the_data(open_folder):
    (open_folder / "closed" / "data").mkdir(parents=True)
    os.chmod(open_folder / "closed", 0)
    settings = DataSettings(name="folder", path=str(open_folder / "closed" / "data"))
    try:
        with powerless(), pytest.raises(DataError, match="Permission denied"):
            load_table(settings, open_folder)
    finally:
        os.chmod(open_folder / "closed", 0o755)


def test_links_inside_the_tree_are_followed_once_and_loops_end(tmp_path):
    write_folders(tmp_path, ["a"])
    write_folders(tmp_path / ".store", ["b"])
    (tmp_path / "b").symlink_to(".store/b")
    (tmp_path / "a" / "up").symlink_to("..")
    (tmp_path / "c").symlink_to("a")
    table = load(tmp_path, folders="classes")
    assert table.class_names == ("a", "b")
    assert table.ids == tuple(f"{k}/{i}.png" for k in "ab" for i in range(3))
    assert table.picture(5).shape == (24, 30, 3)
    counts = table.unused.counts()
    assert counts["behind a link to what is read already"] >= 2
    assert table.unused.lost == 0


def test_a_linked_file_counts_once_and_serves_where_its_target_does_not(tmp_path):
    write_folders(tmp_path / "all", ["a", "b"])
    for split, numbers in (("train", (0, 1)), ("test", (2,))):
        for name in "ab":
            (tmp_path / split / name).mkdir(parents=True)
            for i in numbers:
                (tmp_path / split / name / f"{i}.png").symlink_to(
                    tmp_path / "all" / name / f"{i}.png"
                )
    with pytest.raises(DataError, match="6 outside the train, val, test and pool folders"):
        load(tmp_path)
    table = load(tmp_path, max_left_out=1.0)
    assert [table.splits.count(split) for split in ("train", "test")] == [4, 2]
    write_picture(tmp_path / "train" / "a" / "z.png", 9)
    (tmp_path / "train" / "b" / "z.png").symlink_to("../a/z.png")
    counts = load(tmp_path, max_left_out=1.0).unused.counts()
    assert counts["behind a link to what is read already"] == 1


@pytest.mark.parametrize("what", ["folder", "file"])
def test_a_link_that_leads_out_is_refused_by_name_unless_allowed(tmp_path, monkeypatch, what):
    write_folders(tmp_path / "data", ["a", "c"])
    write_folders(tmp_path / "elsewhere", ["b"])
    if what == "folder":
        (tmp_path / "data" / "b").symlink_to(tmp_path / "elsewhere" / "b")
    else:
        (tmp_path / "data" / "b").mkdir()
        for i in range(3):
            (tmp_path / "data" / "b" / f"{i}.png").symlink_to(tmp_path / f"elsewhere/b/{i}.png")
    report = findings(tmp_path / "data")
    assert report["unused"]["lost_classes"] == ["b"]
    assert any("whole class is not used: 'b'" in fault for fault in report["faults"])
    with pytest.raises(DataError, match="link that leads out"):
        load(tmp_path / "data")
    assert len(load(tmp_path / "data", follow_links=True)) == 9
    with pytest.raises(ConfigurationError, match="no recipe's to set"):
        parse_recipe("", ["data.follow_links=true"])
    monkeypatch.setenv("FIELDMARK_FOLLOW_LINKS", "1")
    table = load(tmp_path / "data")
    assert len(table) == 9
    assert table.picture(3).shape == (24, 30, 3)


def test_files_under_unusual_endings_are_read_by_their_bytes(tmp_path):
    write_folders(tmp_path, ["a", "b"], each=6)
    for name in "ab":
        for i, other in enumerate(("IMG_0.HEIC", "1", "2.jfif", "3.JPE")):
            os.rename(tmp_path / name / f"{i}.png", tmp_path / name / other)
    assert len(load(tmp_path)) == 12
    assert check(tmp_path).exit_code == 0


HEIC = bytes([0, 0, 0, 24]) + b"ftypheic" + bytes(200)


def test_a_format_that_needs_an_extra_is_a_fault_that_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr("fgvc_core.data.file_kinds.find_spec", lambda name: None)
    write_folders(tmp_path, ["a", "b"], each=3)
    for ending in ("HEIC", "cr2", "svs", "mp4", "dcm"):
        (tmp_path / "a" / f"x.{ending}").write_bytes(HEIC if ending == "HEIC" else bytes(64))
    result = check(tmp_path)
    assert result.exit_code == 3
    told = " ".join(result.stdout.split())
    for words in (
        "(HEIC)",
        "'fieldmark[formats]'",
        "(camera raw)",
        "(whole slide)",
        "vips dzsave",
        "(video)",
        "5 of 11 pictures",
    ):
        assert words in told
    with pytest.raises(DataError, match=r"are not used, and data\.max_left_out allows 1\.0%"):
        load(tmp_path)
    left_out = LeftOut()
    settings = DataSettings(name="folder", path=str(tmp_path), folders="classes")
    assert len(load_table(settings, tmp_path, left_out=left_out)) == 6
    assert left_out.total == 5
    assert len([one for one in find_pictures([str(tmp_path)]) if one.fault]) == 5


@pytest.mark.parametrize("orientation", [1, 6])
def test_a_phones_heic_is_read_upright_where_the_extra_is_installed(tmp_path, orientation):
    heif = pytest.importorskip("pillow_heif", reason="needs the 'formats' extra")
    write_folders(tmp_path, ["a", "b"], each=2)
    lit = Image.new("RGB", (64, 40), "black")
    lit.paste("white", (0, 0, 32, 40))
    exif = Image.Exif()
    exif[0x0112] = orientation
    heif.from_pillow(lit).save(tmp_path / "a" / "IMG_1.HEIC", quality=90, exif=exif.tobytes())
    table = load(tmp_path)
    picture = table.picture(list(table.ids).index("a/IMG_1.HEIC"))
    # Orientation 6: to be turned a quarter clockwise, so that the left half is then the top.
    bright, dark = (picture[:, :24], picture[:, -24:]) if orientation == 1 else (
        picture[:24], picture[-24:])  # fmt: skip
    assert picture.shape == ((40, 64, 3) if orientation == 1 else (64, 40, 3))
    assert bright.min() > 200
    assert dark.max() < 55
    assert check(tmp_path).exit_code == 0


def test_a_burst_under_an_ending_of_heic_is_read_where_the_extra_is_installed(tmp_path):
    heif = pytest.importorskip("pillow_heif", reason="needs the 'formats' extra")
    write_folders(tmp_path, ["a", "b"])
    made = heif.from_pillow(Image.new("RGB", (64, 64), (200, 20, 20)))
    for name in ("x.heics", "x.heifs"):
        made.save(tmp_path / "a" / name, format="HEIF")
    table = load(tmp_path)
    assert {"a/x.heics", "a/x.heifs"} <= set(table.ids)
    assert table.source.picture(table.ids.index("a/x.heics")).shape == (64, 64, 3)


@pytest.mark.parametrize(("content", "what", "remedy"), [
    (b"", "it is empty", "Copy it again"), (bytes(500), "zero bytes alone", "cloud drive"),
    (b"version https://git-lfs.github.com/spec/v1\n", "pointer of Git LFS", "git lfs pull"),
    (b"\n<!DOCTYPE html>", "web page", "Download"),
    (bytes(4) + b"jP  \r\n\x87\n", "it is JPEG 2000", "Convert"),
])  # fmt: skip
def test_what_is_no_picture_is_told_by_its_bytes(tmp_path, content, what, remedy):
    from fgvc_core.data.files import FileSource

    (tmp_path / "x.jpg").write_bytes(content)
    with pytest.raises(DataError, match=what) as caught:
        FileSource(tmp_path, ["x.jpg"]).picture(0)
    assert remedy in caught.value.remedy


def test_a_damaged_heic_is_a_fault_of_its_own(tmp_path):
    pytest.importorskip("pillow_heif", reason="needs the 'formats' extra")
    write_folders(tmp_path, ["a", "b"], each=2)
    (tmp_path / "a" / "x.heic").write_bytes(HEIC)
    result = check(tmp_path)
    assert result.exit_code == 3
    assert "'a/x.heic'" in " ".join(result.stdout.split())


@pytest.mark.parametrize("folder", [
    "@eaDir", "#recycle", "$RECYCLE.BIN", "__MACOSX/a", "lost+found", ".thumbnails", "@Recycle",
    "System Volume Information", ".@__thumb", ".Trash-1000/files", "Temporary Items", "found.000",
    "@appstore", "@__thumb", "_gsdata_", "Thumbnail",
])  # fmt: skip
def test_thumbnails_and_recycle_bins_are_no_examples_and_are_counted(tmp_path, folder):
    write_folders(tmp_path, ["a", "b"])
    write_picture(tmp_path / folder / "old.png", 7)
    write_picture(tmp_path / "a" / folder / "SYNOPHOTO_THUMB_M.png", 7)
    (tmp_path / "a" / "Thumbs.db").write_bytes(b"x")
    table = load(tmp_path)
    assert table.class_names == ("a", "b")
    assert len(table) == 6
    assert sum(table.unused.counts().values()) == 3
    assert table.unused.lost == 0
    # The same walk serves 'predict DIR'.
    assert len(find_pictures([str(tmp_path)])) == 6


def test_a_pipe_without_an_ending_does_not_hold_the_walk_up(tmp_path):
    write_folders(tmp_path, ["a", "b"])
    for name in ("pipe", "pipe.cr2", "pipe.odd"):
        os.mkfifo(tmp_path / "a" / name)
    assert load(tmp_path).unused.counts() == {"pipes, sockets or devices": 3}
    assert len([one for one in find_pictures([str(tmp_path)]) if not one.fault]) == 6


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: os.symlink("nowhere.png", path)])
def test_what_is_there_and_no_file_is_not_guessed_to_be_misspelt(tmp_path, make):
    write_folders(tmp_path, ["a", "b"])
    make(tmp_path / "a" / "x.png")
    faults = " ".join(findings(tmp_path)["faults"])
    assert "'a/x.png'" in faults
    assert "there is 'a/x.png'" not in faults


def test_a_few_lost_pictures_pass_and_more_than_the_share_do_not(tmp_path):
    write_folders(tmp_path, ["a", "b"], each=100)
    write_picture(tmp_path / "stray.png", 7)
    table = load(tmp_path)
    assert table.unused.counts() == {"in no class folder": 1}
    assert "Not used: 1 in no class folder: 'stray.png'" in check(tmp_path).stdout
    with pytest.raises(DataError, match=r"1 of 201 pictures \(0.5%\)"):
        load(tmp_path, max_left_out=0.001)


# ---- layouts --------------------------------------------------------------------------------


@pytest.mark.parametrize(("train", "test"), [
    ("Train", "Test"), ("TRAINING", "Validation"), ("train_images", "test-images"),
    ("train2017", "val2017"), ("images_train", "images_val"), ("Training set", "Holdout"),
])  # fmt: skip
def test_split_folders_are_told_under_their_usual_names(tmp_path, train, test):
    write_folders(tmp_path / train, ["a", "b"], each=6)
    write_folders(tmp_path / test, ["a", "b"], each=2)
    table = load(tmp_path)
    assert table.class_names == ("a", "b")
    assert [table.splits.count(split) for split in ("train", "test")] == [12, 4]
    assert f"'{train}' is training" in " ".join(check(tmp_path).stdout.split())


def test_wrapping_and_part_folders_are_looked_through(tmp_path):
    for part, names in (("pics_part_1", ["a", "b"]), ("pics_part_2", ["b", "c"])):
        write_folders(tmp_path / "unpacked" / "data" / part, names)
    table = load(tmp_path)
    assert table.class_names == ("a", "b", "c")
    assert "parts of one whole" in table.how
    assert load(tmp_path, folders="classes").class_names == ("unpacked",)


@pytest.mark.parametrize(("train", "test"), [
    ("birds_train", "birds_test"), ("train-birds", "TEST-birds"), ("x train", "x validation"),
])  # fmt: skip
def test_split_folders_may_share_another_word(tmp_path, train, test):
    write_folders(tmp_path / train, ["a", "b"], each=3)
    write_folders(tmp_path / test, ["a", "b"], each=2)
    table = load(tmp_path)
    assert table.class_names == ("a", "b")
    assert [table.splits.count(split) for split in ("train", "test")] == [6, 4]


def test_split_folders_below_each_class_are_splits(tmp_path):
    for name in ("a", "b"):
        for split, each in (("train", 4), ("Val", 2), ("test", 3)):
            write_folders(tmp_path / name, [split], each=each)
    table = load(tmp_path)
    assert table.class_names == ("a", "b")
    tested = [path for path, split in zip(table.ids, table.splits, strict=True) if split == "test"]
    assert len(tested) == 6
    assert all("/test/" in path for path in tested)
    assert "below the classes are splits" in table.how


def test_folds_and_batches_are_parts_where_they_hold_class_folders(tmp_path):
    for fold in ("Fold 0", "Fold 1"):
        write_folders(tmp_path / "x" / fold, ["a", "b"], each=2)
    write_folders(tmp_path / "y", ["batch1", "batch2"], each=3)
    assert load(tmp_path / "x").class_names == ("a", "b")
    assert load(tmp_path / "y").class_names == ("batch1", "batch2")


def test_classes_that_sound_like_splits_or_parts_stay_classes(tmp_path):
    assert [usual_split(n) for n in ("trainer", "Tester", "valley", "737-200", "a1", "7")] == [
        None
    ] * 6
    assert not is_part(["part_1", "other_2"])
    assert not is_part(["737-100", "737-200"])
    write_folders(tmp_path, ["test", "wren"])
    assert load(tmp_path).class_names == ("test", "wren")


def test_a_test_folder_alone_is_a_split_if_it_holds_folders(tmp_path):
    write_folders(tmp_path / "both" / "test", ["a", "b"])
    (tmp_path / "both" / "train").mkdir()
    for root in (tmp_path / "both", tmp_path):
        table = load(root)
        assert set(table.splits) == {"test"}
        assert table.class_names == ("a", "b")


def test_an_empty_training_folder_makes_its_neighbours_splits(tmp_path):
    write_folders(tmp_path / "set" / "test", ["a", "b"])
    write_folders(tmp_path / "set" / "masks", ["m"])
    (tmp_path / "set" / "train" / "a").mkdir(parents=True)
    table = load(tmp_path, max_left_out=1.0)
    assert table.class_names == ("a", "b")
    assert table.splits == ("test",) * 6
    assert table.unused.counts() == {"outside the train, val, test and pool folders": 3}


def test_vehicles_may_be_trains_and_flat_splits_are_refused_with_what_to_set(tmp_path):
    write_folders(tmp_path / "vehicles", ["bus", "car", "train"])
    assert load(tmp_path / "vehicles").class_names == ("bus", "car", "train")
    write_folders(tmp_path / "flat", ["testing", "training"])
    with pytest.raises(DataError) as caught:
        load(tmp_path / "flat")
    assert "data.folders = 'classes'" in caught.value.remedy
    assert load(tmp_path / "flat", folders="classes").class_names == ("testing", "training")


def test_one_class_is_noted_with_the_table_beside_it_and_a_simulation_refuses_it(tmp_path):
    from fieldmark.simulations.preparation import deal

    write_folders(tmp_path, ["images"], each=8)
    (tmp_path / "labels.tsv").write_text("path\tlabel\n")
    note = next(one for one in findings(tmp_path)["notes"] if "one class" in one)
    assert "'images'" in note
    assert "'labels.tsv'" in note
    recipe = parse_recipe("", ["data.name=folder", f"data.path={tmp_path}"])
    with pytest.raises(DataError, match="nothing to tell apart"):
        deal(recipe, tmp_path / "cache")


def test_names_of_classes_and_pictures_stay_on_one_line(tmp_path):
    write_folders(tmp_path, ["a\nb", "c"])
    told = check(tmp_path).stdout
    assert r"a\nb" in told
    assert "'a\n" not in told


def test_one_class_in_two_unicode_forms_is_one_class(tmp_path):
    for k, form in enumerate(("NFC", "NFD")):
        for i in range(3):
            write_picture(tmp_path / unicodedata.normalize(form, "Bécasse") / f"{k}{i}.png", k + i)
    write_folders(tmp_path, ["Pie"])
    table = load(tmp_path)
    assert table.class_names == ("Bécasse", "Pie")
    assert table.class_counts_K().tolist() == [6, 3]
    nfd = unicodedata.normalize("NFD", "Bécasse")
    assert load(tmp_path, classes=(nfd, "Pie")).class_names == (nfd, "Pie")


def test_a_class_folder_whose_name_is_no_text_is_refused_by_check_and_run(tmp_path):
    write_folders(tmp_path, ["a"], each=6)
    folder = os.fsencode(tmp_path) + b"/B\xe9casse"
    os.mkdir(folder)
    for i in range(6):
        write_picture(tmp_path / "x.png", 50 + i)
        os.rename(os.fsencode(tmp_path / "x.png"), folder + b"/%d.png" % i)
    with pytest.raises(DataError, match=r"not UTF-8: 'B\\udce9casse'") as caught:
        load(tmp_path)
    assert "convmv" in caught.value.remedy
    assert isinstance(check(tmp_path).exception, DataError)
    # Nothing of it ends a site's tolerant reading, with or without announced classes.
    for classes in (None, ("a", "b")):
        left_out = LeftOut()
        settings = DataSettings(name="folder", path=str(tmp_path), classes=classes)
        assert len(load_table(settings, tmp_path, left_out=left_out)) == 6
        assert left_out.total == 6


def test_class_names_are_utf_8_in_any_locale(tmp_path):
    write_folders(tmp_path / "data", ["Bécasse", "🐦"])
    code = (
        "from fgvc_core.data.catalogue import load_table\n"
        "from fgvc_core.data.settings import DataSettings\n"
        f"table = load_table(DataSettings(name='folder', path={str(tmp_path / 'data')!r}), None)\n"
        "print(ascii(table.class_names), table.picture(0).shape)\n"
    )
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, env=environment, text=True
    )
    assert done.stdout == f"{('Bécasse', '🐦')!a} (24, 30, 3)\n", done.stderr


# ---- check = run ----------------------------------------------------------------------------


def test_a_class_without_training_pictures_is_a_fault_of_the_check_too(tmp_path):
    write_folders(tmp_path / "train", ["a", "b", "c"], each=6)
    write_folders(tmp_path / "test", ["b", "d"])
    report = findings(tmp_path)
    assert report["untrained"] == ["d"]
    assert check(tmp_path).exit_code == 3


def test_class_names_that_differ_in_case_or_blanks_are_noted(tmp_path):
    write_folders(tmp_path, ["Robin", "robin ", "wren"], each=6)
    assert findings(tmp_path)["alike"] == [["Robin", "robin "]]
    write_folders(tmp_path / "hidden", ["wren", "wren\u200b"], each=6)
    assert findings(tmp_path / "hidden")["alike"] == [["wren", "wren\u200b"]]


def test_further_frames_are_counted(tmp_path):
    write_folders(tmp_path, ["a", "b"])
    frames = [Image.fromarray(np.full((20, 20, 3), v, np.uint8)) for v in (0, 90, 200)]
    for name in ("a.gif", "a.webp", "a.tif", "a.png"):
        frames[0].save(tmp_path / "a" / name, save_all=True, append_images=frames[1:])
    frames[0].save(tmp_path / "a" / "phone.jpg", "MPO", save_all=True, append_images=frames[1:])
    words = "further frames of files, of which one is read (data.frame)"
    assert findings(tmp_path)["unused"]["counts"] == {words: 10}


# ---- nothing falls over ---------------------------------------------------------------------


def test_each_odd_argument_has_its_own_row_and_the_rest_goes_on(open_folder):
    write_picture(open_folder / "a.png", 1)
    (open_folder / "closed").mkdir()
    write_picture(open_folder / "closed" / "b.png", 2)
    os.chmod(open_folder / "closed", 0)
    names = [
        "~nosuchuser/x.png", "x" * 300 + ".png", str(open_folder / "closed" / "b.png"), "a\0b.png",
        str(open_folder / "nothing.png"), str(open_folder / "a.png" / "x.png"), "[", "**[",
        str(open_folder / "a.png"),
    ]  # fmt: skip
    try:
        with powerless():
            found = find_pictures(names)
    finally:
        os.chmod(open_folder / "closed", 0o755)
    assert [bool(one.fault) for one in found] == [True] * 8 + [False]
    assert "name too long" in found[1].fault
    assert found[2].fault == "Permission denied"


@pytest.mark.parametrize(("key", "value"), [
    ("data.path", "2024"), ("data.path", "true"), ("data.path", "2024-01-02"), ("name", "7"),
    ("data.path", "1e3"), ("data.manifest", "2024"), ("data.label_column", "0"),
])  # fmt: skip
def test_a_text_that_looks_like_a_number_stays_a_text(key, value):
    recipe = parse_recipe("", [f"{key}={value}"])
    section, _, name = key.rpartition(".")
    assert getattr(recipe.data if section else recipe, name) == value


def test_a_recipe_with_a_byte_order_mark_is_read(tmp_path):
    from fgvc_core.recipe import load_recipe

    (tmp_path / "a.toml").write_bytes(b"\xef\xbb\xbfseed = 3\r\n[data]\r\nimage_size = 32\r\n")
    assert load_recipe(tmp_path / "a.toml").data.image_size == 32


def test_a_user_without_a_home_is_told_what_to_set(monkeypatch):
    from fgvc_core.data.cache import cache_folder

    for name in ("FIELDMARK_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)

    def nowhere():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", nowhere)
    with pytest.raises(ConfigurationError) as caught:
        cache_folder()
    assert "FIELDMARK_CACHE" in caught.value.remedy


@pytest.mark.parametrize(("arguments", "environment"), [
    (["data", "check", "{root}"], {"PYTHONIOENCODING": "latin-1"}),
    (["data", "check", "{root}", "--json"], {"LC_ALL": "C", "PYTHONUTF8": "0"}),
])  # fmt: skip
def test_names_in_any_bytes_and_a_latin_1_terminal(tmp_path, arguments, environment):
    write_folders(tmp_path / "data", ["a", "🐦"], each=6)
    write_picture(tmp_path / "x.png", 99)
    os.rename(tmp_path / "x.png", os.fsencode(tmp_path / "data" / "a") + b"/caf\xe9.png")
    words = [word.format(root=tmp_path / "data") for word in arguments]
    done = subprocess.run(
        [sys.executable, "-m", "fieldmark", *words],
        capture_output=True, env={**os.environ, **environment},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert b"Traceback" not in done.stderr


def test_a_full_disk_is_told_without_a_traceback(monkeypatch, capsys):
    import errno

    from fieldmark import cli

    def full(**_):
        raise OSError(errno.ENOSPC, "No space left on device", "/runs/a/checkpoints/last")

    monkeypatch.setattr(cli, "app", full)
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 6
    assert "No space left on device" in capsys.readouterr().err


def test_a_checkpoint_on_a_full_disk_says_so_and_leaves_the_one_before(tmp_path, monkeypatch):
    from safetensors import SafetensorError

    from fgvc_core.errors import RunFailed
    from fgvc_core.recipe import Recipe
    from fieldmark.server.run_log import checkpoint

    kept = checkpoint.Checkpoints(tmp_path, Recipe(), ("a", "b"))
    tensors = {"w": np.zeros(3, dtype=np.float32)}
    path = kept.write("last", tensors, checkpoint.RunState("run"))
    before = path.read_bytes()

    def full(*_):
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(RunFailed, match="No space left"):
        kept.write("last", tensors, checkpoint.RunState("run", round=1))
    assert path.read_bytes() == before


def test_shared_memory_that_cannot_be_written_is_named(monkeypatch):
    import errno

    from fieldmark.simulations import workers

    class Context:
        def Queue(self):
            raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(workers, "context", Context)
    with pytest.raises(ConfigurationError, match="Read-only file system") as caught:
        workers.make_pool(1)
    assert "Make /dev/shm writable" in caught.value.remedy


def test_a_last_batch_of_one_joins_the_one_before():
    import torch

    from fgvc_core.training.loop import batch_count, batches_of

    for size in (1, 2, 8):
        for count in range(1, 40):
            batches = batches_of(torch.arange(count), size)
            assert torch.cat(batches).tolist() == list(range(count))
            assert len(batches) == batch_count(count, size)
            assert all(len(batch) > 1 for batch in batches) or size == 1 or count == 1


def test_a_site_with_one_picture_over_whole_batches_takes_part_in_every_round(tmp_path):
    """Nine training pictures at site A, sixteen at site B, in batches of eight."""
    rows = ["path,label,split,site"]
    for i in range(31):
        write_picture(tmp_path / "data" / f"{i}.png", i, 64, 64)
        split, site = ("test" if i > 24 else "train"), ("A" if i < 9 else "B")
        rows.append(f"{i}.png,{'ab'[i % 2]},{split},{site}")
    (tmp_path / "data" / "manifest.csv").write_text("\n".join(rows) + "\n")
    whole = ["data.val_fraction=0", "partition.scheme=column", "partition.column=site",
             "data.name=manifest", f"data.path={tmp_path / 'data'}"]  # fmt: skip
    assert five_ways.simulated(parse_recipe(five_ways.RECIPE, whole), tmp_path).count == 31
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert [round_["accepted"] for round_ in metrics["history"]] == [2, 2]
    assert {site: of["examples"] for site, of in metrics["sites"].items()} == {"A": 9, "B": 16}


# ---- one picture, one answer ----------------------------------------------------------------


@pytest.fixture(scope="module")
def of_cub(tmp_path_factory):
    """A model of CUB, whose tree was once read without its pictures' orientation."""
    from fgvc_core.inference.trained import load_whole

    recipe = parse_recipe(five_ways.RECIPE, ["data.name=cub", "data.path=birds"])
    folder = tmp_path_factory.mktemp("cub") / "model"
    return load_whole(five_ways.checkpoint(folder, recipe, ("lying", "standing")))


def seen(trained, path: Path) -> np.ndarray:
    """The square that ``predict`` sees, after asserting that the exported sample sees the same."""
    run_onnx = pytest.importorskip("fgvc_core.export.run_onnx", reason="needs onnxruntime")
    spec = trained.model.input
    square_SSC = trained.view(trained.read(path.parent, path.name))
    short = round(spec.size / spec.crop)
    sample_SSC = run_onnx.square(str(path), spec.size, short, spec.interpolation)
    np.testing.assert_array_equal(square_SSC, sample_SSC)
    return square_SSC


@pytest.mark.parametrize("name", ["x.jpg", "x.png", "x.webp", "x.tif"])
def test_a_phones_picture_stands_upright_before_a_model_of_cub(tmp_path, of_cub, name):
    lit = Image.new("RGB", (40, 40), "black")
    lit.paste("white", (0, 0, 20, 40))
    exif = Image.Exif()
    exif[0x0112] = 6
    lit.save(tmp_path / name, exif=exif, quality=95)
    square_SSC = seen(of_cub, tmp_path / name)
    assert square_SSC[:5].min() > 200
    assert square_SSC[-5:].max() < 55


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_a_subject_without_a_ground_lies_on_white(tmp_path, of_cub, mode):
    cut_HW4 = np.zeros((40, 40, 4), np.uint8)
    cut_HW4[15:25, 15:25] = (240, 240, 240, 255)
    Image.fromarray(cut_HW4).convert(mode).save(tmp_path / "x.png")
    assert seen(of_cub, tmp_path / "x.png").min() >= 235


def test_a_line_scan_is_seen_without_being_resized_whole(tmp_path, of_cub):
    for name, size in (("tall.png", (1, 5000)), ("wide.png", (30_000, 1))):
        Image.new("RGB", size, (220, 30, 30)).save(tmp_path / name)
        assert (seen(of_cub, tmp_path / name) == (220, 30, 30)).all()


@pytest.mark.parametrize("block", [
    b"Exif\0\0Exif\0\0II*\0\x08\0\0\0", b"Exif\0\0II*\0", b"Exif\0\0", b"II*\0\xff\xff\xff\xff",
    b"Exif\0\0II*\0\x08\0\0\0\x01\0\x69\x87\x04\0\x01\0\0\0\x08\0\0\0\0\0\0\0",
    b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x02\0\x02\0\0\x006\0\0\0\0\0\0\0",
])  # fmt: skip
def test_whole_pixels_survive_a_damaged_exif_block(tmp_path, of_cub, block):
    Image.new("RGB", (40, 40), (220, 30, 30)).save(tmp_path / "x.jpg", quality=95)
    plain = (tmp_path / "x.jpg").read_bytes()
    length = (len(block) + 2).to_bytes(2, "big")
    (tmp_path / "x.jpg").write_bytes(plain[:2] + b"\xff\xe1" + length + block + plain[2:])
    assert abs(seen(of_cub, tmp_path / "x.jpg").astype(int) - (220, 30, 30)).max() < 6


def test_deep_pictures_are_refused_by_all_and_read_by_a_stated_rule(tmp_path, of_cub):
    from fgvc_core.data.depth import Depth
    from fgvc_core.data.files import FileSource

    run_onnx = pytest.importorskip("fgvc_core.export.run_onnx", reason="needs onnxruntime")
    almost_white = np.full((40, 40), 4000, np.uint16)
    Image.fromarray(almost_white).save(tmp_path / "x.png")
    Image.fromarray(almost_white).save(tmp_path / "x.tif")
    for name in ("x.png", "x.tif"):
        with pytest.raises(DataError, match="more than 8 bits"):
            of_cub.read(tmp_path, name)
        with pytest.raises(ValueError, match="more than 8 bits"):
            run_onnx.square(str(tmp_path / name), 16, 16, "bilinear")
        read = FileSource(tmp_path, [name], depth=Depth("scale", bits=12)).picture(0)
        assert (read == 249).all()


# ---- tables ---------------------------------------------------------------------------------

AB = ["a", "b"] * 4


def write_sheet(root: Path, text: str | bytes, separator: str = ",", count: int = 8) -> Path:
    for i in range(count):
        write_picture(root / "images" / f"{i:03}.png", i)
    content = text if isinstance(text, bytes) else text.encode()
    (root / "manifest.csv").write_bytes(content)
    return root


def lines(separator: str = ",", path: str = "images/{:03}.png", end: str = "\n") -> str:
    rows = [f"{path.format(i)}{separator}{label}" for i, label in enumerate(AB)]
    return end.join([f"path{separator}label", *rows]) + end


def manifest(root: Path, left_out: LeftOut | None = None, **settings: object) -> ExampleTable:
    made = DataSettings(name="manifest", path=str(root), **settings)
    return load_table(made, root / "cache", left_out=left_out)


@pytest.mark.parametrize("content", [
    lines(";"), lines("\t"), lines("|"), lines(";", end="\r\n"), "\ufeff" + lines(";"),
    "sep=;\n" + lines(";"), "sep=;\r\n" + lines(";", end="\r\n"), "# made by me\n\n" + lines(),
    lines() + "# the end\n", lines() + "\n,\n \n", lines("\t").encode("utf-16"),
    lines().encode("utf-32"),
    lines(path="images\\{:03}.png"), lines(path="./images/{:03}.png"),
    lines(path=".\\images\\{:03}.png"),
])  # fmt: skip
@pytest.mark.parametrize("tolerant", [False, True])
def test_tables_are_read_as_people_save_them(tmp_path, content, tolerant):
    left_out = LeftOut() if tolerant else None
    table = manifest(write_sheet(tmp_path, content), left_out)
    assert table.ids == tuple(f"images/{i:03}.png" for i in range(8))
    assert table.class_counts_K().tolist() == [4, 4]
    assert left_out is None or left_out.total == 0


@pytest.mark.parametrize("tolerant", [False, True])
def test_blanks_before_quotes_are_no_part_of_a_value(tmp_path, tolerant):
    root = write_sheet(
        tmp_path, lines().replace(",a", ', "a"').replace("path,label", "path, label")
    )
    table = manifest(root, LeftOut() if tolerant else None)
    assert table.class_names == ("a", "b")


def test_file_addresses_and_absolute_paths_are_paths(tmp_path):
    for path in (f"file://{tmp_path}/images/{{:03}}.png", f"{tmp_path}/images/{{:03}}.png"):
        table = manifest(write_sheet(tmp_path, lines(path=path)))
        assert table.ids[0] == "images/000.png"


@pytest.mark.parametrize("twin", [
    "./images/000.png", "images//000.png", "images/../images/000.png", "images\\000.png",
])  # fmt: skip
def test_one_picture_under_two_spellings_is_listed_twice(tmp_path, twin):
    root = write_sheet(tmp_path, lines() + f"{twin},b\n")
    with pytest.raises(DataError, match=r"lists 1 picture twice: 'images/000\.png'"):
        manifest(root)
    assert isinstance(check(root).exception, DataError)


@pytest.mark.parametrize(("path", "guess"), [
    ("images/{:03}.PNG", "case differs"), ("images/{:03}.jpg", "'{path}.png'"),
    ("{:03}.png", "'images/{path}'"), ("C:\\pics\\{:03}.png", "lies in another folder"),
    ("C:\\pics\\{:03}.png", "write it as the file's"), ("old/{:03}.png", "write it as the file's"),
    ("images/{:03}", "ending differs"), ("'images/{:03}.png'", "quotation marks"),
    ("https://x.org/{:03}.png", "download"),
])  # fmt: skip
def test_missing_pictures_come_with_a_guess(tmp_path, path, guess):
    root = write_sheet(tmp_path, lines(path=path))
    with pytest.raises(DataError) as caught:
        manifest(root)
    assert guess in caught.value.remedy
    assert any(guess in fault for fault in findings(root)["faults"])


@pytest.mark.parametrize(("content", "remedy"), [
    (lines().replace(",a", ',"a'), "Close the quotation mark"),
    (lines().encode("utf-16-le"), "UTF-16LE"), (lines().encode("utf-16-be"), "UTF-16LE"),
    (b"PK\x03\x04" + bytes(40), "CSV UTF-8"), (lines().partition("\n")[2], "first line"),
])  # fmt: skip
def test_what_is_no_table_is_refused_with_what_it_is(tmp_path, content, remedy):
    root = write_sheet(tmp_path, content)
    with pytest.raises(DataError) as caught:
        manifest(root)
    assert remedy in caught.value.remedy


def test_annotations_that_lead_nowhere_are_counted(tmp_path):
    write_folders(tmp_path, ["images"], each=8)
    found = {
        "images": [{"id": i, "file_name": f"images/{i}.png"} for i in range(8)],
        "annotations": [{"id": i, "image_id": i, "category_id": i % 2} for i in range(8)],
        "categories": [{"id": 0, "name": "empty"}, {"id": 1, "name": "deer"}],
    }
    found["annotations"] += [
        {"id": 8, "image_id": 1, "category_id": 42},
        {"id": 9, "image_id": 77, "category_id": 1},
    ]
    (tmp_path / "labels.json").write_text(json.dumps(found))
    told = findings(tmp_path)
    assert told["unused"]["names"] == {
        "annotations of a category that the JSON does not define": ["annotation 8 of picture 1"],
        "annotations of a picture that the JSON does not list": ["annotation 9 of picture 77"],
    }
    assert told["faults"]


def test_the_recipe_for_camera_traps_runs_on_boxes_and_places(tmp_path):
    from fgvc_core.recipe import load_recipe

    images, annotations = [], []
    for i in range(32):
        write_picture(tmp_path / "data" / "images" / f"{i}.png", i, 60, 80)
        place = f"place {i % 2}"
        images.append({"id": i, "file_name": f"images/{i}.png", "location": place})
        box = [10 + i % 5, 8, 30, 24]
        annotations.append({"id": i, "image_id": i, "category_id": i // 2 % 2, "bbox": box})
    labels = {"images": images, "annotations": annotations,
              "categories": [{"id": 0, "name": "deer"}, {"id": 1, "name": "fox"}]}  # fmt: skip
    (tmp_path / "data" / "labels.json").write_text(json.dumps(labels))
    small = ["data.image_size=16", "model.backbone=fieldmark_nano", "model.weights=none",
             "federation.rounds=2", "evaluate.pixel_baseline=false",
             f"data.path={tmp_path / 'data'}"]  # fmt: skip
    recipe = load_recipe(REPOSITORY / "simulations" / "recipes" / "camera-traps.toml", small)
    run = five_ways.simulated(recipe, tmp_path)
    assert (run.refusal, run.count) == ("", 32)
    shares = json.loads((tmp_path / "run" / "partition.json").read_text())["sites"]
    assert set(shares) == {"place-0", "place-1"}


def test_a_path_in_another_unicode_form_is_guessed(tmp_path):
    root = write_sheet(tmp_path, lines())
    write_picture(root / "images" / unicodedata.normalize("NFD", "é.png"), 1)
    (root / "manifest.csv").write_text(
        lines() + f"images/{unicodedata.normalize('NFC', 'é')}.png,a\n"
    )
    with pytest.raises(DataError) as caught:
        manifest(root)
    assert "Unicode form" in caught.value.remedy


def test_a_missing_column_is_suggested(tmp_path):
    root = write_sheet(tmp_path, lines().replace("path,label", "File Name,species"))
    with pytest.raises(DataError) as caught:
        manifest(root)
    assert "--set data.path_column=File Name" in caught.value.remedy


def test_another_encoding_is_refused_with_what_to_do(tmp_path):
    root = write_sheet(tmp_path, lines().replace(",a", ",Bécasse").encode("cp1252"))
    with pytest.raises(DataError) as caught:
        manifest(root)
    assert "iconv" in caught.value.remedy


@pytest.mark.parametrize(
    "name", ["HAM10000_metadata", "HAM10000_metadata.csv", "HAM10000_metadata.tab"]
)
def test_ham10000_is_read_as_it_is_downloaded(tmp_path, name):
    separator = "\t" if name.endswith("tab") else ","
    rows = ["lesion_id,image_id,dx,dx_type,age,sex,localization"]
    for i in range(12):
        part = tmp_path / f"HAM10000_images_part_{1 + i // 6}"
        part.mkdir(exist_ok=True)
        write_picture(part / f"ISIC_{i:07}.jpg", i)
        rows.append(f"HAM_{i // 2:07},ISIC_{i:07},{('nv', 'mel')[i // 2 % 2]},histo,50.0,male,back")
    (tmp_path / name).write_text("\n".join(rows).replace(",", separator) + "\n")
    report = findings(tmp_path)
    assert report["examples"] == 12
    assert report["subjects"] == 6
    assert not report["missing"]
    assert "HAM10000_images_part_1" in report["how"]
    settings = DataSettings(name="ham10000", path=str(tmp_path), classes=("mel", "nv"))
    table = load_table(settings, tmp_path / "cache")
    assert table.class_counts_K().tolist() == [6, 6]
    assert table.picture(11).shape == (24, 30, 3)


# ---- every case through the check and a run -------------------------------------------------

CASES = REPOSITORY.parent / "shared" / "cases" / "make_inputs.py"


def case_names() -> list[str]:
    if not CASES.is_file():
        return ["none"]
    found = re.findall(r"^def (\w+)\(root(?:, end=.*)?\)", CASES.read_text(), re.MULTILINE)
    return [name for name in found if name not in ("tree", "no_rights")]


@pytest.mark.parametrize("name", case_names())
def test_what_the_check_passes_a_run_takes_and_what_it_refuses_a_run_refuses(tmp_path, name):
    if not CASES.is_file():
        pytest.skip(f"no cases at {CASES}")
    from fgvc_core.data.check import check_table, recognise
    from fgvc_core.data.pictures import PictureBank
    from fieldmark.simulations.preparation import deal

    cases = runpy.run_path(str(CASES))
    cases[name](tmp_path)
    root = tmp_path / "data" if (tmp_path / "data").is_dir() else tmp_path
    overrides = [f"data.name={recognise(root)}", f"data.path={root}", "data.image_size=16"]
    if recognise(root) == "ham10000":
        overrides.append('data.classes=["mel", "nv"]')
    recipe = parse_recipe("", [*overrides, "partition.sites=1", "partition.min_examples=1"])

    def checked() -> list[str]:
        try:
            table = load_table(recipe.data, tmp_path / "cache", require_pictures=False)
        except DataError as error:
            return [error.what]
        return check_table(table, max_left_out=recipe.data.max_left_out).faults()

    def run() -> list[str]:
        try:
            table = deal(recipe, tmp_path / "cache").table
            PictureBank(table, 16)
        except DataError as error:
            return [error.what]
        return []

    faults, refusal = checked(), run()
    assert bool(faults) == bool(refusal), (faults, refusal)


# ---- every case in five ways ----------------------------------------------------------------

PICTURES = ("rgba_white_page", "sixteen_bit", "exif_orientations", "exif_damaged",
            "colour_models", "many_frames", "thin")  # fmt: skip
"""Cases that are files alone: they become one class of two."""

QUICK = ("rgba_white_page", "sixteen_bit", "many_frames", "linked_class", "phone_heic", "synology",
         "val_other_classes", "latin1_name", "empty_files", "csv_nul", "no_rights")  # fmt: skip
"""Cases of the default suite: one of each kind of outcome. The whole is slow."""

REASONS = {
    "encoding": r"cannot be read as a CSV",
    "picture": r"cannot be read|more than 8 bits",
    "missing": r"(?:is|are) missing",
    "link": r"leads out of the data tree",
    "rights": r"cannot be listed",
    "twice": r"lists \d+ pictures? twice",
    "column": r"has no column",
    "several": r"annotations of more than one class",
    "splits": r"unknown splits",
    "untrained": r"no training picture|No site can hold",
}

REFUSED = {
    "sixteen_bit": "picture", "colour_models": "picture", "empty_files": "picture",
    "linked_class": "link", "linked_all": "link", "no_rights": "rights",
    "val_other_classes": "untrained", "csv_cp1252": "encoding", "csv_dotslash_twins": "twice",
    "csv_duplicate_rows": "twice", "csv_two_animals": "twice", "csv_onehot": "column",
    "csv_label_studio_json": "several", "csv_nul": "missing",
    "csv_splits": "splits",
}  # fmt: skip
"""Case -> why it is refused, by everything that reads labels."""

READ = {
    "rgba_white_page": 10, "exif_orientations": 17, "exif_damaged": 26, "many_frames": 11,
    "thin": 8, "phone_heic": 12, "synology": 12, "capital_splits": 16, "nfc_nfd": 14,
    "latin1_name": 13, "odd_names": 62, "cub_phone": 48, "cub_crlf": 48, "ham_parts": 12,
    "ham_parts_csv": 12, "nine_and_sixteen": 31,
}  # fmt: skip
"""Case -> pictures that are read; 8 of other tables."""


def reason_of(refusal: str) -> str:
    return next((name for name, words in REASONS.items() if re.search(words, refusal)), refusal)


@pytest.fixture(scope="module")
def common():
    """(checkpoint, ONNX file) of an untrained model, where any user can read them."""
    pytest.importorskip("onnxruntime", reason="needs the 'onnx' extra")
    with tempfile.TemporaryDirectory() as name:
        base = Path(name)
        write_folders(base / "some", ["a", "b", "c"])
        five_ways.checkpoint(base / "model", parse_recipe(five_ways.RECIPE), ("a", "b", "c"))
        words = ("export", "onnx", base / "model", "--out", base / "onnx", "--check", base / "some")
        code, _, err = five_ways.command(*words)
        assert code == 0, err
        for path in (base, *base.rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)
        yield base / "model", base / "onnx" / "model.onnx"


@pytest.mark.parametrize("name", [
    name if name in QUICK else pytest.param(name, marks=pytest.mark.slow)
    for name in [*case_names(), *(["no_rights"] if CASES.is_file() else [])]
])  # fmt: skip
def test_five_ways_agree_on_what_was_read_and_left_out(common, open_folder, monkeypatch, name):
    if not CASES.is_file():
        pytest.skip(f"no cases at {CASES}")
    open_folder.chmod(0o777)
    for variable in ("FIELDMARK_CACHE", "FIELDMARK_STATE"):
        monkeypatch.setenv(variable, str(open_folder / variable))
    cases = runpy.run_path(str(CASES))
    with powerless() if name == "no_rights" else contextlib.nullcontext():
        where = open_folder / "case"
        if name in PICTURES:
            (where / "data" / "a").mkdir(parents=True)
            cases[name](where / "data" / "a")
            cases["tree"](where / "data", ("b",), start=700)
        else:
            where.mkdir()
            cases[name](where)
        try:
            root = where / "data" if (where / "data").is_dir() else where
            agree_on(name, root, open_folder / "out", common)
        finally:
            if name == "no_rights":
                os.chmod(where / "data" / "b", 0o755)


def agree_on(name: str, root: Path, out: Path, common: tuple[Path, Path]) -> None:
    recipe = five_ways.recipe_of(root)
    check = five_ways.checked(root, recipe)
    run = five_ways.simulated(recipe, out)
    classes, files = five_ways.files_of(recipe, out)
    judged = five_ways.evaluated(recipe, out, classes)
    named = five_ways.predicted(common[0], root)
    sample = five_ways.sampled(common[1], root, named.read | set(named.faults))

    # What reads labels: the check, a run and an evaluation.
    reason = REFUSED.get(name, "")
    assert reason_of(check.refusal) == reason_of(run.refusal) == reason
    # A model can be judged on a class that could not be learnt.
    assert reason_of(judged.refusal) == (reason if reason != "untrained" else "")
    if not reason:
        assert check.count == run.count == judged.count == READ.get(name, 8)
        assert check.unused == run.unused == judged.unused

    # What reads files: predict and the sample, on those of the table and whatever is beside them.
    listed = {files[one] for one in files if one not in check.faults}
    assert listed <= named.read
    damaged = {files[one] for one, why in check.faults.items() if why != "missing"}
    assert damaged <= set(named.faults)
    if recipe.data.name == "folder" and reason != "untrained":
        assert named.read == listed
        # What cannot be followed or listed is a fault of its own there.
        assert named.unused == ({} if reason in ("link", "rights") else check.unused)
    assert sample.read == named.read
    for one, (best, share) in named.answers.items():
        assert sample.answers[one] == (best, pytest.approx(share, abs=0.002)), one
    if reason in ("link", "rights"):
        assert any(re.search(REASONS[reason], why) for why in named.faults.values())


def test_pictures_beside_a_folder_that_wraps_the_classes_are_counted_and_change_nothing(tmp_path):
    write_folders(tmp_path / "birds", ["a", "b"])
    (tmp_path / "cover.png").write_bytes(next((tmp_path / "birds" / "a").iterdir()).read_bytes())
    with pytest.raises(DataError, match="1 of 7"):
        load(tmp_path)
    table = load(tmp_path, max_left_out=0.5)
    assert table.class_names == ("a", "b")
    assert table.unused.counts() == {"in no class folder": 1}
