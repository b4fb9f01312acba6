"""``fieldmark predict``: every way to name pictures, every form of answer, nothing silent."""

import csv
import inspect
import io
import json
import os
import re
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy.special import softmax
from typer.testing import CliRunner

import fieldmark.cli
from fgvc_core.commands.predict import predict as command
from fgvc_core.errors import ConfigurationError, DataError
from fgvc_core.experiment import make_learner
from fgvc_core.inference.calibration import (
    Calibration,
    confidence_of,
    file_digest,
    write_calibration,
)
from fgvc_core.inference.confidence import SURE, Confidence
from fgvc_core.inference.contact_sheet import contact_sheet
from fgvc_core.inference.finding import find_pictures
from fgvc_core.inference.predicting import Prediction, predict
from fgvc_core.inference.taxonomy import Taxonomy, flat, read_taxonomy
from fgvc_core.inference.trained import load_trained
from fgvc_core.inference.verdict import NONE_OF_THESE, Judge
from fgvc_core.recipe import parse_recipe
from fieldmark import library
from fieldmark.server.run_log.checkpoint import Checkpoints, RunState

RECIPE = parse_recipe("[data]\nimage_size = 32\n[model]\nbackbone = 'fieldmark_nano'\n")
NAMES = ("jay", "wren", "robin")
TAXONOMY = Taxonomy(
    ("family", "species"), (("crows", "jay"), ("songbirds", "wren"), ("songbirds", "robin"))
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    tensors = make_learner(RECIPE, 3).tensors()
    checkpoints = Checkpoints(folder, RECIPE, NAMES, TAXONOMY)
    return checkpoints.write("best", tensors, RunState("run"))


@pytest.fixture
def card(tmp_path):
    """A memory card: five pictures, one of them cut short, one a bomb, and other files."""
    folder = tmp_path / "card"
    (folder / "deep").mkdir(parents=True)
    rng = np.random.default_rng(1)
    for name in ("a.jpg", "b.png", "deep/c [wet].jpg"):
        pixels = rng.integers(0, 256, (40, 60, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)
    whole = (folder / "a.jpg").read_bytes()
    (folder / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "bomb.png").write_bytes(_bomb())
    (folder / "notes.txt").write_text("seen at dusk")
    (folder / ".hidden.jpg").write_bytes(whole)
    return folder


def _bomb():
    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", 12_000, 12_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def run(*arguments, stdin=None):
    return CliRunner().invoke(
        fieldmark.cli.app, ["predict", *map(str, arguments)], input=stdin, catch_exceptions=False
    )


def test_a_pattern_that_matches_folders_alone_stands_for_the_pictures_in_them(tmp_path):
    for name in ("012.a/x.png", "012.b/y.png", "013.c/z.png"):
        (tmp_path / name).parent.mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    found = find_pictures([str(tmp_path / "012*")])
    assert [(one.relative, one.fault) for one in found] == [("x.png", ""), ("y.png", "")]


def test_files_folders_patterns_and_standard_input_name_pictures_once(card, monkeypatch):
    monkeypatch.chdir(card.parent)
    listed = ["card/b.png\n", "\n"]
    found = find_pictures(["card/a.jpg", "card", "card/**/*.jpg", "-"], listed)
    assert [one.name for one in found] == [
        "card/a.jpg", "card/b.png", "card/bomb.png", "card/cut.jpg", "card/deep/c [wet].jpg",
    ]  # fmt: skip
    # A file whose own name looks like a pattern is that file.
    assert find_pictures(["card/deep/c [wet].jpg"])[0].fault == ""
    (one,) = find_pictures(["-"], ["card/b.png\n"])
    assert one.name == "card/b.png"


def test_names_that_lead_nowhere_are_said_to(tmp_path):
    (tmp_path / "empty").mkdir()
    names = [str(tmp_path / "none.jpg"), str(tmp_path / "*.jpg"), str(tmp_path / "empty")]
    assert [one.fault for one in find_pictures(names)] == [
        "there is no such file", "the pattern matches nothing", "the folder holds no pictures",
    ]  # fmt: skip


def test_a_link_that_a_person_names_is_followed_and_one_in_a_folder_is_not(
    checkpoint, card, tmp_path
):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "link.jpg").symlink_to(card / "a.jpg")
    trained = load_trained(checkpoint)
    judge = Judge(NAMES, TAXONOMY)
    (named,) = predict(trained, judge, find_pictures([str(tmp_path / "elsewhere/link.jpg")]))
    (inside,) = predict(trained, judge, find_pictures([str(tmp_path / "elsewhere")]))
    assert named.verdict is not None
    assert inside.verdict is None
    assert "leads out of" in inside.fault


def test_damaged_files_and_bombs_are_named_passed_over_and_in_the_exit_code(checkpoint, card):
    result = run(checkpoint, card, "--csv")
    assert result.exit_code == 3
    rows = list(csv.DictReader(io.StringIO(result.stdout)))
    by_name = {row["path"].rpartition("/")[2]: row for row in rows}
    assert set(by_name) == {"a.jpg", "b.png", "bomb.png", "cut.jpg", "c [wet].jpg"}
    assert "12,000 x 12,000" in by_name["bomb.png"]["fault"]
    assert "cannot be read" in by_name["cut.jpg"]["fault"]
    assert "Copy it again or remove it" in by_name["cut.jpg"]["fault"]
    assert by_name["cut.jpg"]["answer"] == ""
    assert by_name["a.jpg"]["fault"] == ""
    assert {by_name["a.jpg"][f"class{n}"] for n in (1, 2, 3)} == set(NAMES)
    assert "2 of 5 could not be read" in result.stderr


def test_further_frames_of_a_file_with_several_boxes_are_counted_once(checkpoint, tmp_path):
    frames = [Image.new("RGB", (40, 40), (60 * k, 0, 0)) for k in range(3)]
    frames[0].save(tmp_path / "x.gif", save_all=True, append_images=frames[1:])
    boxes = [{"category": "1", "conf": 0.9, "bbox": [0.1 * k, 0, 0.5, 0.5]} for k in range(3)]
    (tmp_path / "md.json").write_text(
        json.dumps({"images": [{"file": "x.gif", "detections": boxes}], "detection_categories": {}})
    )
    done = run(checkpoint, tmp_path / "x.gif", "--boxes", tmp_path / "md.json", "--csv")
    assert done.exit_code == 0, done.stderr
    assert len(done.stdout.splitlines()) == 4
    assert "Not used: 2 further frames" in done.stderr


def test_json_lines_state_every_level_and_add_up(checkpoint, card):
    result = run(checkpoint, card / "a.jpg", card / "b.png", "--jsonl", "--sure", "0.5")
    assert result.exit_code == 0
    for line in result.stdout.splitlines():
        one = json.loads(line)
        assert one["unknown"] is False
        assert sum(rank["probability"] for rank in one["top"]) == pytest.approx(1, abs=1e-4)
        assert [level["level"] for level in one["levels"]] == ["family", "species"]
        assert one["levels"][0]["probability"] >= one["levels"][1]["probability"] - 1e-6


def test_the_table_says_that_confidences_are_uncalibrated_until_they_are_not(
    checkpoint, card, tmp_path
):
    assert "uncalibrated" in run(checkpoint, card / "a.jpg").stdout
    copy = tmp_path / "best.safetensors"
    copy.write_bytes(checkpoint.read_bytes())
    fitted = Calibration(
        checkpoint=file_digest(copy), temperature=2.0, examples=40, subjects=40, errors=9,
        on="validation", score="probability", threshold=0.99, false_refusals=0.05, refused=0.04,
    )  # fmt: skip
    write_calibration(fitted, copy)
    told = run(copy, card / "a.jpg").stdout
    assert "temperature 2, fitted on 40" in told
    assert NONE_OF_THESE in told
    assert NONE_OF_THESE not in run(copy, card / "a.jpg", "--unknown-below", "0").stdout


def test_a_calibration_of_another_checkpoint_is_refused(checkpoint, card, tmp_path):
    copy = tmp_path / "best.safetensors"
    copy.write_bytes(checkpoint.read_bytes())
    fitted = Calibration(
        checkpoint="0" * 64, temperature=2.0, examples=40, subjects=40, errors=9,
        on="validation", score="logit", threshold=0.0, false_refusals=0.05, refused=0.04,
    )  # fmt: skip
    write_calibration(fitted, copy)
    with pytest.raises(DataError, match="fitted for another checkpoint"):
        run(copy, card / "a.jpg")


def judged(rule, logits, taxonomy=TAXONOMY):
    return Judge(NAMES, taxonomy, rule)(np.array([logits], dtype=np.float64))[0]


def test_an_answer_is_never_a_class_where_the_model_is_not_sure_and_says_why():
    shares = np.log([0.30, 0.47, 0.23])
    unsure = judged(Confidence(), shares)
    assert (unsure.answer, unsure.sure, unsure.level) == ("not sure", False, "")
    assert unsure.reason == "largest share 0.47 below 0.80"
    assert unsure.top[0][0] == "wren"
    assert unsure.confidence == pytest.approx(0.47)
    coarse = judged(Confidence(), np.log([0.1, 0.5, 0.4]))
    assert (coarse.answer, coarse.sure, coarse.level) == ("songbirds", True, "family")
    assert coarse.reason == "species open: largest share 0.50 below 0.80"
    fine = judged(Confidence(), np.log([0.02, 0.95, 0.03]))
    assert (fine.answer, fine.sure, fine.level, fine.reason) == ("wren", True, "species", "")
    strange = judged(Confidence(threshold=0.99), np.log([0.02, 0.95, 0.03]))
    assert (strange.answer, strange.sure, strange.level) == (NONE_OF_THESE, False, "")
    assert strange.reason == "unlike the training pictures: largest share 0.95 below 0.99"
    energy = judged(Confidence(score="energy", threshold=3.5), [1.0, 2.0, 1.0], flat(NAMES))
    assert energy.reason == "unlike the training pictures: energy of the logits 2.55 below 3.50"


def test_a_name_has_to_be_sure_without_the_calibration_too():
    # A temperature of a half makes 0.72 of 0.62: no picture is named that was not before.
    logits = np.log([0.02, 0.62, 0.36])
    sharper = judged(Confidence(temperature=0.5, sure=0.7), logits, flat(NAMES))
    assert sharper.confidence == pytest.approx(0.747, abs=1e-3)
    assert (sharper.answer, sharper.sure) == ("not sure", False)
    assert sharper.reason == "largest share 0.62 without the calibration, below 0.70"


@given(
    st.lists(st.floats(-12, 12), min_size=3, max_size=3),
    st.floats(0.25, 8.0),
    st.floats(0.34, 1.0),
    st.none() | st.floats(0.0, 1.0),
)
def test_calibration_names_nothing_that_was_not_named_before(logits, temperature, sure, threshold):
    before = judged(Confidence(sure=sure), logits)
    after = judged(Confidence(temperature=temperature, sure=sure, threshold=threshold), logits)
    levels = ["", *TAXONOMY.levels]
    assert levels.index(after.level) <= levels.index(before.level)
    if sure > 0.5 and after.level == before.level != "":
        assert after.answer == before.answer


def test_the_default_of_predict_is_the_rules():
    assert confidence_of(None) == Confidence(sure=SURE)
    assert inspect.signature(library.predict).parameters["sure"].default == SURE
    assert inspect.signature(command).parameters["sure"].default == SURE


def test_csv_and_json_lines_say_the_same_of_a_picture(checkpoint, card):
    table = run(checkpoint, card / "a.jpg", "--csv").stdout
    (row,) = csv.DictReader(io.StringIO(table))
    one = json.loads(run(checkpoint, card / "a.jpg", "--json").stdout)
    keys = ("answer", "level", "reason")
    assert [row[key] for key in keys] == [one[key] for key in keys]
    assert (row["sure"], row["unknown"]) == (str(one["sure"]).lower(), str(one["unknown"]).lower())
    # An untrained model of three classes is sure of nothing.
    assert (one["answer"], one["sure"], one["level"]) == ("not sure", False, "")
    assert one["reason"].startswith("largest share 0.")


def test_the_contact_sheet_shows_the_least_sure_first_not_the_alphabet(checkpoint):
    trained = load_trained(checkpoint)
    judge = Judge(NAMES, flat(NAMES), Confidence(threshold=0.4))
    shares = {
        "a": [0.96, 0.02, 0.02], "b": [0.01, 0.98, 0.01], "c": [0.01, 0.88, 0.11],
        "d": [0.5, 0.3, 0.2], "e": [0.6, 0.2, 0.2], "f": [0.34, 0.33, 0.33],
        "g": [0.05, 0.05, 0.90],
    }  # fmt: skip
    verdicts = judge(np.log(np.array(list(shares.values()))))
    seen = [Prediction(name, one) for name, one in zip(shares, verdicts, strict=True)]
    page = contact_sheet(trained, judge, seen)
    assert re.findall(r'class="file" title="(.)"', page) == list("fdecbga")
    assert re.findall(r"<h2>([a-z ]+) <small>", page) == [
        "none of these", "not sure", "wren", "robin", "jay",
    ]  # fmt: skip


def test_the_contact_sheet_is_one_file_that_asks_for_nothing(checkpoint, card, tmp_path):
    page = tmp_path / "sheet.html"
    odd = card / "<img src=x onerror=alert(1)>.jpg"
    odd.write_bytes((card / "a.jpg").read_bytes())
    assert run(checkpoint, card, "--html", page).exit_code == 3
    text = page.read_text()
    assert text.count("data:image/jpeg;base64,") == 4
    assert "http" not in text.replace("http-equiv", "")
    assert "<script" not in text
    assert "<img src=x" not in text
    assert "cut.jpg" in text


def test_threads_and_chunks_change_no_answer_and_no_order(checkpoint, tmp_path):
    rng = np.random.default_rng(2)
    for number in range(37):
        Image.fromarray(rng.integers(0, 256, (33, 33, 3), dtype=np.uint8)).save(
            tmp_path / f"{number:02d}.png"
        )
    trained, judge = load_trained(checkpoint), Judge(NAMES, TAXONOMY)
    found = find_pictures([str(tmp_path)])
    told = []
    one, three = (list(predict(trained, judge, found, threads=n)) for n in (1, 3))
    list(
        predict(trained, judge, found, threads=3, tell=lambda done, all_: told.append((done, all_)))
    )
    assert [p.name for p in one] == [p.name for p in three] == [f.name for f in found]
    assert [p.verdict for p in one] == [p.verdict for p in three]
    assert told[-1] == (37, 37)


@given(st.lists(st.floats(-8, 8), min_size=3, max_size=3), st.floats(0.34, 1.0))
def test_an_answer_is_the_finest_name_with_enough_probability(logits, sure):
    verdict = Judge(NAMES, TAXONOMY, Confidence(sure=sure))(np.array([logits]))[0]
    p = dict(zip(NAMES, softmax(logits), strict=True))
    families = {"crows": p["jay"], "songbirds": p["wren"] + p["robin"]}
    if max(p.values()) >= sure:
        assert (verdict.level, verdict.answer) == ("species", max(p, key=p.get))
    elif max(families.values()) >= sure:
        assert verdict.level == "family"
        assert verdict.confidence == pytest.approx(families[verdict.answer])
    else:
        assert (verdict.level, verdict.answer) == ("", "not sure")
    assert verdict.sure == (verdict.level != "")
    assert (verdict.reason == "") == (verdict.level == "species")
    assert verdict.top[0][1] == pytest.approx(max(p.values()))


def test_a_checkpoint_carries_its_taxonomy_and_older_ones_read_without(checkpoint):
    trained = load_trained(checkpoint)
    assert read_taxonomy(trained.metadata, NAMES) == TAXONOMY
    assert read_taxonomy({}, NAMES) == flat(NAMES)
    embedded = read_taxonomy({}, ("Gilded wandtail", "Russet lancet"))
    assert embedded.chains[0] == ("Spearbills", "wandtail", "Gilded wandtail")
    birds = read_taxonomy({}, ("Sooty Albatross", "Laysan Albatross", "Frigatebird"), "cub")
    assert birds.names(0) == ("Albatross", "Frigatebird")
    with pytest.raises(DataError, match="not one of its own classes"):
        read_taxonomy(TAXONOMY.as_metadata(), ("jay", "wren", "owl"))


def test_csv_and_json_lines_exclude_each_other(checkpoint, card):
    with pytest.raises(fieldmark.FieldmarkError, match="exclude each other"):
        run(checkpoint, card, "--csv", "--jsonl")


def test_names_that_are_no_utf8_come_through_standard_input_and_are_escaped(checkpoint, card):
    odd = os.fsencode(card) + b"/\xff.jpg"
    with open(odd, "wb") as file:
        file.write((card / "a.jpg").read_bytes())
    result = run(checkpoint, "-", "--csv", stdin=odd + b"\n")
    assert result.exit_code == 0
    assert "\\xff.jpg," in result.stdout


def test_a_model_whose_parts_stayed_at_the_sites_is_refused(card, tmp_path):
    recipe = parse_recipe(RECIPE.to_toml(), ["federation.local=['head.*']"])
    tensors = make_learner(recipe, 3).tensors()
    Checkpoints(tmp_path, recipe, NAMES).write("best", tensors, RunState("run"))
    with pytest.raises(ConfigurationError, match=r"head\.\*"):
        run(tmp_path, card)
