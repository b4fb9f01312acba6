"""The pages on explaining and exporting, command by command, as a person would type them."""

import json
import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

import fieldmark.cli
import fieldmark.simulations

DOCS = Path(__file__).parents[2] / "docs"
# Large enough for its graph to be tried in int8, small enough for seconds.
SMALL = ("federation.rounds=1", "partition.sites=2", "data.image_size=32",
         "data.fieldmarks_train=120", "data.fieldmarks_test=36", "partition.min_examples=10",
         "evaluate.pixel_baseline=false")  # fmt: skip


def steps(page):
    found = re.findall(r"^(fieldmark .*?)  # step (\d+)$", (DOCS / page).read_text(), re.M)
    return sorted((int(number), shlex.split(command)[1:]) for command, number in found)


def test_the_steps_of_explain_and_export_are_numbered_without_a_gap():
    assert [number for number, _ in steps("explaining.md")] == [1, 2, 3]
    assert [number for number, _ in steps("exporting.md")] == [1, 2, 3, 4, 5, 6]


def test_the_limits_that_the_page_states_are_those_of_the_code():
    from fgvc_core.explain.pointing import TOLERANCE
    from fgvc_core.export import checks

    said = (DOCS / "exporting.md").read_text()
    assert (checks.MAX_DIFFERENCE, checks.MAX_TOP1_LOSS, checks.MAX_SIZE_RATIO) == (1e-4, 0.01, 0.3)
    for limit in ("1e-4", "0.01 of top-1", "0.30 of the float file"):
        assert limit in said
    assert pytest.approx(15 / 224) == TOLERANCE
    assert "15/224" in (DOCS / "explaining.md").read_text()


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        recipe = Path(fieldmark.simulations.__file__).parent / "recipes" / "demo.toml"
        sets = [word for change in SMALL for word in ("--set", change)]
        run(["simulate", str(recipe), "--out", "runs/demo", *sets])
        run(["data", "make", "card", "--size", "32", "--train", "24", "--test", "12"])
    return folder


@pytest.mark.slow
def test_explain_works_as_the_page_says(home, monkeypatch):
    pytest.importorskip("pytorch_grad_cam", reason="needs the 'explain' extra")
    monkeypatch.chdir(home)
    said = {number: run(words) for number, words in steps("explaining.md")}
    assert Path("why.html").read_text().count("<img") == 8 * 6
    assert len(json.loads(said[2])["pictures"]) == 8
    found = json.loads(said[3])
    assert found["pictures"] == 36
    assert set(found) >= {"trained", "random_weights", "centre", "rank_correlation"}


@pytest.mark.slow
def test_export_works_as_the_page_says(home, monkeypatch):
    for extra in ("onnx", "onnxruntime", "onnxscript"):
        pytest.importorskip(extra, reason="needs the 'export' extra")
    monkeypatch.chdir(home)
    runtime = Path("node_modules/onnxruntime-web/dist")
    runtime.mkdir(parents=True)
    (runtime / "ort.wasm.bundle.min.mjs").write_text("export const env = {};")
    (runtime / "ort-wasm-simd-threaded.wasm").write_bytes(b"\0asm")
    for number, words in steps("exporting.md"):
        if number == 1:
            words[2] = "other"
        # One round on 120 pictures leaves ties that int8 breaks: what is tested is the command.
        printed = run([*words, "--force"] if "--int8" in words else words)
        if number == 5:
            Path("evaluation.json").write_text(printed)
    assert {p.name for p in Path("phone").iterdir()} == {
        "model.onnx",
        "model.int8.onnx",
        "preprocessing.json",
        "export.json",
        "read_picture.py",
        "run_onnx.py",
    }
    assert Path("demo.html").stat().st_size > 100_000
    card = Path("hub/demo/README.md").read_text()
    assert "bootstrap over subjects" in card
    assert "### Subgroups" in card


def run(words):
    done = CliRunner().invoke(fieldmark.cli.app, words, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout
