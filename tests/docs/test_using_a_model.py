"""The page on using a model, command by command, as a person would type them."""

import math
import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

import fieldmark.cli
import fieldmark.simulations
from fgvc_core.commands.predict import COLUMNS
from fgvc_core.export.kit import read_body
from fgvc_core.inference import calibrating, confidence
from fgvc_core.protocol.keys import fingerprint, read_public
from fieldmark.client.site import Site

PAGE = Path(__file__).parents[2] / "docs" / "using-a-model.md"
SMALL = ("federation.rounds=1", "partition.sites=2", "data.image_size=16",
         "data.fieldmarks_train=120", "data.fieldmarks_test=36", "partition.min_examples=10",
         "evaluate.pixel_baseline=false")  # fmt: skip


def steps():
    found = re.findall(r"^(fieldmark .*?)  # step (\d+)$", PAGE.read_text(), re.M)
    return sorted((int(number), shlex.split(command)[1:]) for command, number in found)


def test_the_steps_of_predict_evaluate_and_export_are_numbered_without_a_gap():
    assert [number for number, _ in steps()] == list(range(2, 12))


def test_the_limits_that_the_page_states_are_those_of_the_code():
    said = PAGE.read_text()
    assert (calibrating.FEWEST_PICTURES, calibrating.FEWEST_ERRORS) == (50, 5)
    assert (calibrating.FEWEST_SUBJECTS, calibrating.FEWEST_KNOWN) == (10, 40)
    assert "| needs | 50 pictures, 5 errors, 10 subjects | 40 pictures |" in said
    assert (confidence.COLDEST, confidence.HOTTEST) == (0.25, 8.0)
    assert "| range | 0.25 to 8 | |" in said
    assert (calibrating.CERTAIN, calibrating.FALSE_REFUSALS) == (0.99, 0.05)
    assert "99 % of resamples" in said
    assert "to refuse 5 % of pictures" in said
    assert pytest.approx(math.log(2)) == calibrating.PRIOR_WIDTH
    for column in COLUMNS:
        assert f"| `{column}` |" in said


@pytest.mark.slow
def test_predict_evaluate_and_export_work_as_the_page_says(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = Path(fieldmark.simulations.__file__).parent / "recipes" / "demo.toml"
    sets = [word for change in SMALL for word in ("--set", change)]
    run(["simulate", str(recipe), "--out", "runs/demo", *sets])
    run(["data", "make", "card", "--size", "32", "--train", "24", "--test", "12"])
    said = {}
    for number, words in steps():
        if "--issuer" in words:
            words[-1] = fingerprint(read_public(read_body(Path("demo.kit"))[0].issuer))
        if "--signer" in words:
            words[-1] = fingerprint(Site.open(Path("clinic")).key.public_key())
        said[number] = run(words)
    # So small a run keeps some twenty pictures for validation.
    assert "not calibrated on" in said[2]
    assert "too few pictures to fit a temperature" in said[2]
    assert said[4].startswith("path,answer,sure,level,reason,confidence,unknown,class1,")
    assert '"robustness"' in said[7]
    assert "36 pictures" in said[6]
    assert "36 pictures" in said[10]
    assert "the expected key" in said[11]
    for page in ("demo.html", "card.html"):
        assert Path(page).stat().st_size > 5000


def run(words):
    done = CliRunner().invoke(fieldmark.cli.app, words, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout
