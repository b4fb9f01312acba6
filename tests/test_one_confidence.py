"""One picture, one model: the same shares and the same answer wherever the model is used."""

import json
import re
import shutil
import subprocess

import numpy as np
import pytest
import torch
from extras import needs
from PIL import Image
from typer.testing import CliRunner

import fieldmark as fm
import fieldmark.cli
from fgvc_core.data.fieldmarks.species import CLASS_NAMES
from fgvc_core.data.table import ExampleTable
from fgvc_core.experiment import make_learner
from fgvc_core.export.browser import make_page
from fgvc_core.export.folder import make_folder, snippet, write
from fgvc_core.export.kit import open_kit, write_kit
from fgvc_core.export.onnx_graph import describe, to_onnx
from fgvc_core.export.run_onnx import decide
from fgvc_core.inference.calibration import Calibration, file_digest, sidecar, write_calibration
from fgvc_core.inference.evaluating import evaluate
from fgvc_core.inference.predicting import judge_of
from fgvc_core.inference.trained import load_trained
from fgvc_core.inference.verdict import Judge
from fgvc_core.protocol.keys import new_key
from fgvc_core.protocol.messages import KitPrivacy
from fgvc_core.recipe import parse_recipe
from fieldmark.server.run_log.checkpoint import Checkpoints, RunState

for extra in ("onnx", "onnxruntime", "onnxscript", "pytorch_grad_cam"):
    needs(extra, "needs the 'export' and 'explain' extras")

SIDE, COUNT = 32, 12
FITTED = {
    "uncalibrated": None,
    "softer": {"temperature": 2.0, "score": "probability", "threshold": 0.3},
    "sharper": {"temperature": 0.6, "score": "energy", "threshold": 4.5},
    "threshold alone": {"temperature": None, "why_not": "too few errors", "score": "logit",
                        "threshold": 3.5},
}  # fmt: skip


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    recipe = parse_recipe(f"[data]\nimage_size = {SIDE}\n[model]\nbackbone = 'fieldmark_nano'\n")
    learner = make_learner(recipe, len(CLASS_NAMES))
    with torch.no_grad():
        learner.model.head.weight.normal_(0, 0.7, generator=torch.Generator().manual_seed(4))
    return Checkpoints(folder, recipe, CLASS_NAMES).write("best", learner.tensors(), RunState("r"))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("card")
    rng = np.random.default_rng(3)
    for number in range(COUNT):
        coarse = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((SIDE, SIDE)).save(folder / f"{number:02d}.png")
    return folder


@pytest.fixture(scope="module")
def graph(checkpoint):
    return to_onnx(load_trained(checkpoint))


@pytest.fixture(params=FITTED)
def rule(request, checkpoint):
    """The calibration that lies beside the checkpoint for one test."""
    fitted = FITTED[request.param]
    if fitted is not None:
        common = {"checkpoint": file_digest(checkpoint), "examples": 90, "subjects": 90,
                  "errors": 9, "on": "made up", "false_refusals": 0.05}  # fmt: skip
        write_calibration(Calibration(**common, **fitted), checkpoint)
    yield request.param
    sidecar(checkpoint).unlink(missing_ok=True)


@pytest.fixture
def expected(rule, checkpoint, pictures):
    """(answer, share of each class) of each picture, as ``fieldmark predict`` says."""
    found = fm.predict(checkpoint, pictures, top=len(CLASS_NAMES))
    return [(one.verdict, dict(one.verdict.top)) for one in found]


def views(trained, pictures):
    paths = sorted(pictures.glob("*.png"))
    return np.stack([trained.view(trained.read(pictures, path.name)) for path in paths])


def same(found, expected, names=CLASS_NAMES):
    """Answers and shares, (answer, shares_K) each, are those expected, to 1e-4."""
    assert len(found) == len(expected)
    for (answer, shares_K), (verdict, shares) in zip(found, expected, strict=True):
        assert answer == verdict.answer
        assert np.abs(np.array([shares[name] for name in names]) - shares_K).max() <= 1e-4


def test_the_pictures_show_every_kind_of_answer(expected, rule):
    kinds = {verdict.level or verdict.answer for verdict, _ in expected}
    assert "not sure" in kinds
    if rule == "uncalibrated":
        assert {"species", "family"} & kinds
    else:
        assert "none of these" in kinds
    assert len(kinds) >= 2


def test_explain_says_what_predict_says(rule, expected, checkpoint, pictures, tmp_path):
    words = ["explain", str(checkpoint), str(pictures), "--examples", str(COUNT), "--json"]
    for suffix in ("html", "png"):
        out = tmp_path / f"why.{suffix}"
        done = CliRunner().invoke(fieldmark.cli.app, [*words, "--out", str(out)])
        assert done.exit_code == 0, done.exception
    told = json.loads(done.stdout)["pictures"]
    assert len(told) == len(expected)
    for one, (verdict, shares) in zip(told, expected, strict=True):
        for key in ("answer", "sure", "level", "reason"):
            assert one[key] == getattr(verdict, key)
        for rank in ("best", "second"):
            assert one[rank]["share"] == pytest.approx(shares[one[rank]["class"]], abs=1e-4)
    page = (tmp_path / "why.html").read_text()
    assert page.count("<h2>not sure ") == sum(v.answer == "not sure" for v, _ in expected)
    assert ("Confidences are calibrated: temperature" in page) == (rule in ("softer", "sharper"))


def test_evaluate_measures_the_shares_and_decisions_of_predict(
    rule, expected, checkpoint, pictures, tmp_path, monkeypatch
):
    monkeypatch.setenv("FIELDMARK_CACHE", str(tmp_path))
    trained = load_trained(checkpoint)
    views_NHWC = views(trained, pictures)

    class Pictures:
        def picture(self, row, short_side=None):
            return views_NHWC[row]

        def content_key(self, row):
            return views_NHWC[row].tobytes()[:32]

    for n, (verdict, shares) in enumerate(expected):
        one = ExampleTable(
            Pictures(), np.array([n]), ("a",), np.array([0]), ("test",), ("a",), CLASS_NAMES
        )
        card = evaluate(trained, one, draws=100)
        (confidence,) = card.reliable.confidence_M[card.reliable.count_M > 0]
        assert confidence == pytest.approx(max(shares.values()), abs=1e-4)
        assert card.decisions.named == (verdict.level == "species")
        assert card.decisions.unknown == verdict.unknown


def test_onnx_and_its_sample_answer_like_predict(rule, expected, checkpoint, pictures, graph):
    import onnxruntime

    trained = load_trained(checkpoint)
    describe(graph, trained)
    session = onnxruntime.InferenceSession(
        graph.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    told = json.loads(session.get_modelmeta().custom_metadata_map["confidence"])
    logits_NK = session.run(["logits"], {"pictures": views(trained, pictures)})[0]
    same([decide(logits_K, told) for logits_K in logits_NK.astype(np.float64)], expected)


def page_of(trained, tmp_path):
    (tmp_path / "ort.wasm.bundle.min.mjs").write_text("export const env = {};")
    (tmp_path / "ort-wasm-simd-threaded.wasm").write_bytes(b"\0asm")
    return make_page(trained, b"graph", tmp_path)


def test_the_page_holds_the_rule_of_predict(rule, expected, checkpoint, pictures, tmp_path):
    trained = load_trained(checkpoint)
    page = page_of(trained, tmp_path)
    told = json.loads(re.search(r'id="facts">(.*?)</script>', page, re.S)[1])["confidence"]
    logits_NK = trained.logits(views(trained, pictures)).numpy().astype(np.float64)
    same([decide(logits_K, told) for logits_K in logits_NK], expected)
    assert told["told"] in page


@pytest.mark.skipif(shutil.which("node") is None, reason="no Node on this machine")
def test_the_pages_script_answers_like_predict(rule, expected, checkpoint, pictures, tmp_path):
    trained = load_trained(checkpoint)
    page = page_of(trained, tmp_path)
    told = json.loads(re.search(r'id="facts">(.*?)</script>', page, re.S)[1])["confidence"]
    logits_NK = trained.logits(views(trained, pictures)).numpy().astype(np.float64)
    script = re.search(r"// The rule of confidence.*?// The end of the rule\.", page, re.S)[0]
    script += (
        f"\nconst rule = {json.dumps(told)}, pictures = {json.dumps(logits_NK.tolist())};"
        "\nconsole.log(JSON.stringify(pictures.map((logits) => decide(logits, rule))));"
    )
    done = subprocess.run(["node", "-e", script], capture_output=True, text=True, check=True)
    same([(one["answer"], one["shares"]) for one in json.loads(done.stdout)], expected)


def test_the_folder_and_its_snippet_give_the_shares_of_predict(
    rule, expected, checkpoint, pictures, tmp_path
):
    trained = load_trained(checkpoint)
    parts, native = make_folder(trained)
    out = tmp_path / "hub"
    write(trained, parts, "card", out)
    told = json.loads((out / "config.json").read_text())["fieldmark"]["confidence"]
    views_NHWC = views(trained, pictures)
    images_NCHW = trained.model.normalise(torch.from_numpy(views_NHWC).permute(0, 3, 1, 2))
    said = {"images_NCHW": images_NCHW}
    with torch.no_grad():
        exec(compile(snippet(str(out), native, told["temperature"]), "snippet", "exec"), said)
    logits_NK = said["logits_NK"].numpy().astype(np.float64)
    found = [decide(logits_K, told) for logits_K in logits_NK]
    same(found, expected)
    same(
        [(one[0], shares) for one, shares in zip(found, said["shares_NK"].numpy(), strict=True)],
        expected,
    )


def test_a_kit_carries_the_rule_of_predict(rule, expected, checkpoint, pictures, tmp_path):
    trained = load_trained(checkpoint)
    privacy = KitPrivacy(epsilon=1.0, delta=1e-5, unit="image")
    write_kit(trained, tmp_path / "a.kit", new_key(), privacy, judge_of(trained).calibration)
    kit = open_kit(tmp_path / "a.kit")
    judge = Judge(
        kit.body.class_names, judge_of(trained).taxonomy, kit.confidence, top_k=len(CLASS_NAMES)
    )
    logits_NK = kit.trained.logits(views(trained, pictures)).numpy().astype(np.float64)
    shares_NK = kit.confidence.shares(logits_NK)
    answers = [verdict.answer for verdict in judge(logits_NK)]
    same(list(zip(answers, shares_NK, strict=True)), expected)
