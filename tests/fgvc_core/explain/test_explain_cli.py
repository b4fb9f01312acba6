"""``fieldmark explain`` as it is typed."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from extras import needs
from PIL import Image, ImageFont
from typer.testing import CliRunner

import fieldmark.cli
from fgvc_core.data.fieldmarks.species import CLASS_NAMES
from fgvc_core.errors import ConfigurationError, DataError
from fgvc_core.experiment import make_learner
from fgvc_core.explain.explaining import explain
from fgvc_core.explain.pointing import randomised
from fgvc_core.explain.sheet import _wrap, overlay
from fgvc_core.inference.taxonomy import Taxonomy
from fgvc_core.inference.trained import load_trained
from fgvc_core.inference.verdict import Judge
from fgvc_core.recipe import parse_recipe
from fieldmark.server.run_log.checkpoint import Checkpoints, RunState

needs("pytorch_grad_cam", "needs the 'explain' extra")

RECIPE = "[data]\nimage_size=32\nfieldmarks_train=24\nfieldmarks_test=12\n"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    recipe = parse_recipe(RECIPE)
    learner = make_learner(recipe, len(CLASS_NAMES))
    with torch.no_grad():
        learner.model.head.weight.normal_(generator=torch.Generator().manual_seed(0))
    Checkpoints(folder, recipe, CLASS_NAMES).write("best", learner.tensors(), RunState("r"), {})
    return folder


def said(*words):
    return CliRunner().invoke(fieldmark.cli.app, ["explain", *map(str, words)])


def test_a_sheet_and_a_page_show_each_picture_with_its_five_maps(run, tmp_path):
    sheet = said(run, "--examples", 2, "--out", tmp_path / "why.png", "--json")
    assert sheet.exit_code == 0, sheet.exception
    first = json.loads(sheet.stdout)["pictures"][0]
    best, second = first["best"]["class"], first["second"]["class"]
    assert list(first["maps"]) == [
        f"for {best}", f"for {second}", f"{best}, not {second}", f"{second}, not {best}",
        "the model's own attention"]  # fmt: skip
    assert first["best"]["share"] >= first["second"]["share"]
    assert Image.open(tmp_path / "why.png").size[0] > 6 * 176
    page = said(run, "--examples", 2, "--out", tmp_path / "why.html")
    assert page.exit_code == 0, page.exception
    text = (tmp_path / "why.html").read_text()
    assert text.count("<img") == 2 * 6
    assert "http" not in text.replace("http-equiv", "")
    # The house's page: it follows the reader's theme, and fits a phone.
    assert "prefers-color-scheme: dark" in text
    assert "var(--paper)" in text
    assert "width=device-width" in text
    assert "Confidences are uncalibrated" in text


def test_what_is_named_wrongly_is_red_and_what_is_not_sure_is_not(run):
    chains = {
        "jay": ("crows", "jay"),
        "wren": ("songbirds", "wren"),
        "robin": ("songbirds", "robin"),
    }
    taxonomy = Taxonomy(("family", "species"), tuple(chains.values()))
    judge = Judge(tuple(chains), taxonomy, top_k=2)
    shares = {"jay": [0.9, 0.05, 0.05], "songbirds": [0.1, 0.5, 0.4], "not sure": [0.4, 0.3, 0.3]}
    model = SimpleNamespace(
        class_names=tuple(chains),
        model=load_trained(run).model,
        logits=lambda views_NHWC: torch.log(torch.tensor(list(shares.values()))),
    )
    views_NHWC = np.zeros((3, 32, 32, 3), dtype=np.uint8)
    told = []
    for truth, wrong in (
        ("jay", [False, True, False]),
        ("robin", [True, False, False]),
        (None, [False, False, False]),
        ("owl", [True, True, False]),
    ):
        found = explain(
            model, "abc", views_NHWC, [truth] * 3, lambda *_: np.zeros((3, 32, 32), "f4"), judge,
            lambda *at: told.append(at),
        )  # fmt: skip
        assert [one.verdict.answer for one in found] == list(shares)
        assert [one.wrong for one in found] == wrong
    assert told == [(3, 3)] * 4


def test_named_pictures_are_explained_and_their_names_escaped(run, tmp_path):
    folder = tmp_path / "card"
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "<b>.png")
    done = said(run, folder, "--out", tmp_path / "why.html")
    assert done.exit_code == 0, done.exception
    text = (tmp_path / "why.html").read_text()
    assert "&lt;b&gt;.png" in text
    assert "<b>.png" not in text
    assert "true:" not in text


def test_a_damaged_picture_is_named_and_the_others_are_explained(run, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "whole.png")
    (tmp_path / "empty.png").write_bytes(b"")
    names = [tmp_path / name for name in ("empty.png", "whole.png", "nosuch.png")]
    done = said(run, *names, "--out", tmp_path / "why.html")
    assert done.exit_code == 3
    for word in ("empty.png", "nosuch.png", "1 picture explained"):
        assert word in done.output
    assert "whole.png" in (tmp_path / "why.html").read_text()
    assert isinstance(said(run, names[0]).exception, DataError)


def test_the_pointing_game_prints_all_three_rows_and_the_correlation(run):
    done = said(run, "--pointing", "--draws", 1)
    assert done.exit_code == 0, done.exception
    for word in ("this model", "random weights", "the centre", "Rank correlation"):
        assert word in done.stdout


def test_mistakes_are_told(run, tmp_path):
    for words, kind in (
        ((run, "--out", tmp_path / "why.gif"), ConfigurationError),
        ((run, "--out", tmp_path / "no" / "why.png"), ConfigurationError),
        ((run, "--stage", "stage9"), ConfigurationError),
        ((run, tmp_path / "nothing.png"), DataError),
        ((run, run, "--pointing"), ConfigurationError),
    ):
        assert isinstance(said(*words).exception, kind), words


def test_random_weights_are_other_weights_everywhere_and_see_what_the_model_sees(run):
    trained = load_trained(run)
    one, two = randomised(trained, 0), randomised(trained, 1)
    learnt = dict(trained.model.named_parameters())
    for (name, first), second in zip(one.named_parameters(), two.parameters(), strict=True):
        if name.endswith("weight"):
            assert not torch.equal(first, second), name
            assert not torch.equal(first, learnt[name]), name
    assert one.input == trained.model.input
    assert torch.equal(one._mean, trained.model._mean)


def test_a_long_note_is_wrapped_within_the_sheet():
    font = ImageFont.load_default(12)
    note = "Confidences are uncalibrated: not improved on held-out folds. " * 6
    lines = _wrap(note, font, 300)
    assert " ".join(lines) == note.strip()
    assert len(lines) > 3
    assert all(font.getlength(line) <= 300 for line in lines)


def test_an_overlay_is_grey_where_the_map_is_silent_and_bright_where_it_speaks():
    view_HWC = np.full((32, 32, 3), 128, dtype=np.uint8)
    map_HW = np.zeros((32, 32), dtype=np.float32)
    map_HW[:, 16:] = 1
    pixels_HWC = np.asarray(overlay(view_HWC, map_HW)).astype(int)
    silent, speaking = pixels_HWC[88, 20], pixels_HWC[88, 160]
    assert np.ptp(silent) < 40
    assert speaking[:2].min() > speaking[2] + 60
