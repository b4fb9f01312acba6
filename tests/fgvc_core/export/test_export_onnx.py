"""An ONNX graph gives PyTorch's answers, or is not written."""

import json
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import fieldmark.cli
from fgvc_core.errors import ConfigurationError, DataError, PolicyRefusal, RunFailed
from fgvc_core.export import onnx_export
from fgvc_core.export.checks import GraphCheck, compare, refuse_lossy, refuse_unfaithful
from fgvc_core.export.graph import ExportedGraph, multiply_adds
from fgvc_core.export.judging import Judges, held_out
from fgvc_core.export.onnx_export import SAMPLE, make_onnx, write_onnx
from fgvc_core.export.onnx_graph import OnnxModel, to_onnx
from fgvc_core.inference.finding import find_pictures
from fgvc_core.inference.predicting import judge_of, predict
from fgvc_core.inference.trained import load_trained

from .conftest import NAMES, noise, write_run


def test_the_float_graph_gives_pytorchs_logits_for_any_number_of_pictures(files, trained):
    import onnx

    running = OnnxModel(onnx.load_from_string(files.float_bytes))
    for count in (1, 7):
        views_NHWC = noise(40)[:count]
        expected_NK = trained.logits(views_NHWC).numpy()
        assert np.abs(running.logits(views_NHWC) - expected_NK).max() <= 1e-4


def test_both_graphs_say_their_classes_and_how_a_picture_becomes_a_square(files):
    import onnx

    for content in (files.float_bytes, files.int8_bytes):
        proto = onnx.load_from_string(content)
        onnx.checker.check_model(proto)
        facts = {entry.key: entry.value for entry in proto.metadata_props}
        assert tuple(json.loads(facts["class_names"])) == NAMES
        assert json.loads(facts["preprocessing"])["size"] == 32
        assert not proto.doc_string
        (given,) = proto.graph.input
        sides = [d.dim_value for d in given.type.tensor_type.shape.dim][1:]
        assert (given.name, sides) == ("pictures", [32, 32, 3])


def test_int8_computes_in_int8_and_is_smaller(files):
    import onnx

    operations = {node.op_type for node in onnx.load_from_string(files.int8_bytes).graph.node}
    assert "QLinearConv" in operations
    # A nano with three classes and two heads in one: names and scales weigh as well.
    assert len(files.int8_bytes) < 0.35 * len(files.float_bytes)
    assert files.figures["models"]["int8"]["agreement"] >= 0.9


def test_the_table_has_accuracy_size_latency_and_multiply_adds_of_all_three(files, trained):
    figures = files.figures
    assert set(figures["models"]) == {"pytorch", "float", "int8"}
    for row in figures["models"].values():
        assert row["latency_ms"] > 0
        assert row["bytes"] > 0
    assert figures["models"]["float"]["agreement"] == 1
    assert figures["models"]["float"]["top1"] == pytest.approx(23 / 24)
    assert figures["multiply_adds"] == multiply_adds(trained.model)
    assert figures["int8"]["pictures"] == 16


def test_a_mirrored_view_doubles_the_multiply_adds_of_all_but_the_head():
    from fgvc_core.experiment import make_learner
    from fgvc_core.recipe import parse_recipe

    once, twice = (
        multiply_adds(
            make_learner(parse_recipe(f"[data]\nimage_size=32\n[model]\nmirrored={m}\n"), 3).model
        )
        for m in ("false", "true")
    )
    head = 256 * 3
    assert twice - head == 2 * (once - head)


def test_folding_standardised_weights_changes_no_logit(trained):
    views_NHWC = torch.from_numpy(noise(4))
    with torch.no_grad():
        found_NK = ExportedGraph(trained.model)(views_NHWC)
    assert torch.allclose(found_NK, trained.logits(views_NHWC.numpy()), atol=1e-4)


def test_a_graph_that_is_another_model_is_refused_before_anything_is_written(
    trained, judges, monkeypatch
):
    other = to_onnx(trained)
    weight = max(other.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    weight.raw_data = bytes(len(weight.raw_data))
    monkeypatch.setattr(onnx_export, "to_onnx", lambda trained: other)
    with pytest.raises(RunFailed, match="differs from the model"):
        make_onnx(trained, judges)
    assert make_onnx(trained, judges, force=True).figures["forced"]


def test_the_limits_of_the_checks_are_those_that_are_documented():
    good = GraphCheck(100, 9e-5, 1.0, 0.9)
    refuse_unfaithful(good)
    for bad in (GraphCheck(100, 1.1e-4, 1.0, 0.9), GraphCheck(100, 0, 0.99, 0.9)):
        with pytest.raises(RunFailed, match="differs"):
            refuse_unfaithful(bad)
    refuse_lossy(good, GraphCheck(100, 1, 0.9, 0.89), 0.30)
    with pytest.raises(RunFailed, match="costs too much"):
        refuse_lossy(good, GraphCheck(100, 1, 0.9, 0.88), 0.2)
    with pytest.raises(RunFailed, match="saves too little"):
        refuse_lossy(good, GraphCheck(100, 1, 0.9, 0.9), 0.31)
    # Without labels every answer that differs counts as lost.
    with pytest.raises(RunFailed, match="of the answers differ"):
        refuse_lossy(GraphCheck(100, 0, 1, None), GraphCheck(100, 1, 0.98, None), 0.2)


def test_a_tie_may_fall_either_way():
    expected = np.array([[1.0, 1.0 - 5e-5, 0.0]], dtype=np.float32)
    found = np.array([[1.0 - 4e-5, 1.0, 0.0]], dtype=np.float32)
    assert compare(expected, found, None).agreement == 1
    assert compare(expected, np.roll(found, 1, axis=1), None).agreement == 0


def test_ranges_of_private_pictures_are_not_put_into_a_private_model(trained, judges):
    private = SimpleNamespace(recipe=SimpleNamespace(privacy=object()))
    with pytest.raises(PolicyRefusal, match="public"):
        make_onnx(private, judges, Judges(noise(4), None, ""))


def test_the_sample_runs_it_without_torch_in_few_lines(files, trained, tmp_path):
    write_onnx(files, trained, tmp_path)
    sample = tmp_path / SAMPLE
    assert len(sample.read_text().splitlines()) <= 140
    picture = tmp_path / "wide.png"
    Image.fromarray(noise(1, 50)[0][:, 5:35]).save(picture)
    # Whoever imports one of these in the child gets an ImportError.
    blocked = ["torch", "torchvision", "timm", "fgvc_core", "safetensors", "onnx"]
    code = (
        f"import sys, runpy\nsys.modules.update(dict.fromkeys({blocked!r}))\n"
        f"sys.argv = ['{SAMPLE}', 'model.onnx', 'wide.png']\n"
        f"runpy.run_path('{SAMPLE}', run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    logits_K = trained.logits(trained.view(np.asarray(Image.open(picture)))[None])[0]
    shares_K = logits_K.softmax(dim=0)
    best = int(logits_K.argmax())
    (one,) = predict(trained, judge_of(trained), find_pictures([str(picture)]))
    assert done.stdout.split("\t")[1] == one.verdict.answer
    assert done.stdout.split("\t")[2] == f"{NAMES[best]} {shares_K[best]:.3f}"
    assert json.loads((tmp_path / "preprocessing.json").read_text())["class_names"] == list(NAMES)


def test_the_command_writes_what_it_says(run, tmp_path):
    birds = tmp_path / "birds"
    birds.mkdir()
    for n, view_HWC in enumerate(noise(6, 40)):
        Image.fromarray(view_HWC).save(birds / f"{n}.png")
    words = ["export", "onnx", str(run), "--out", str(tmp_path / "phone"), "--check", str(birds)]
    result = CliRunner().invoke(fieldmark.cli.app, [*words, "--json"])
    assert result.exit_code == 0, result.exception
    told = json.loads(result.stdout)
    assert told["pictures"] == 6
    assert told["models"]["float"]["top1"] is None
    assert sorted(p.name for p in (tmp_path / "phone").iterdir()) == [
        "export.json", "model.onnx", "preprocessing.json", "read_picture.py",
        "run_onnx.py"]  # fmt: skip


def test_mistakes_at_the_command_line_are_told(run, tmp_path):
    words = ["export", "onnx", str(run), "--out", str(tmp_path / "phone")]
    for more, kind in (
        (["--int8"], ConfigurationError),
        (["--calibrate", str(tmp_path)], ConfigurationError),
        (["--check", str(tmp_path / "nothing")], DataError),
        (["--int8", "--calibrate", str(tmp_path)], DataError),
    ):
        result = CliRunner().invoke(fieldmark.cli.app, [*words, *more])
        assert isinstance(result.exception, kind), result.exception
    assert not (tmp_path / "phone").exists()


def test_without_the_extra_the_error_names_it(trained, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ConfigurationError, match="'export' extra"):
        to_onnx(trained)


def test_an_export_is_checked_on_the_models_own_test_split_or_says_what_is_missing(tmp_path):
    text = "[data]\nimage_size=32\nfieldmarks_train=24\nfieldmarks_test=12\n"
    names = tuple(f"n{k}" for k in range(12))
    trained = load_trained(write_run(tmp_path / "other", text, names))
    with pytest.raises(DataError, match="no pictures of the model's classes"):
        held_out(trained)
    cub = load_trained(write_run(tmp_path / "cub", "[data]\nname='cub'\nimage_size=32\n"))
    with pytest.raises(DataError) as caught:
        held_out(cub, ["data.path=/nowhere"])
    assert "--set data.path" in caught.value.remedy


@pytest.mark.slow
@pytest.mark.parametrize(
    "model",
    [
        "backbone='vit_tiny_patch16_224'\nattention='none'",
        "backbone='mobilenetv3_small_050'\npooling='gem'\nattention='cbam'",
        "backbone='fieldmark_nano'\npooling='mpncov'\npooling_channels=8\nhead='cosine'",
        "backbone='resnet18'\nattention='dual'\nscaling='root-unit'\nhead='cosine'",
    ],
)
def test_networks_of_all_kinds_export(model, tmp_path):
    text = f"[data]\nimage_size=64\n[model]\n{model}\n"
    trained = load_trained(write_run(tmp_path / "run", text))
    told = []
    made = make_onnx(
        trained, Judges(noise(12, 64), None, "noise"), tell=lambda *at: told.append(at)
    )
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert made.figures["models"]["float"]["max_difference"] <= 1e-4
