"""The folder for a hub: timm gives the model's logits, and the card says what the run says."""

import json
import re

import pytest
import torch
from huggingface_hub import ModelCard
from typer.testing import CliRunner

import fieldmark.cli
from fgvc_core.errors import DataError, RunFailed
from fgvc_core.export import folder as folders
from fgvc_core.export.card import model_card
from fgvc_core.inference.trained import load_trained

from .conftest import noise, write_run

PLAIN = """
[data]
image_size = 64
[model]
backbone = "mobilenetv2_035"
attention = "none"
"""

METRICS = {
    "rounds": 7, "best_round": 5, "wall_s": 75.0, "bytes_up": 7_000_000, "bytes_down": 14_000_000,
    "top1": 0.9, "macro_f1": 0.88, "test_examples": 100,
    "sites": {"lyon": {"examples": 111, "top1": 0.5, "rounds": 7, "refused": 2},
              "oslo | x": {"top1": None, "rounds": 7, "refused": 0}},
    "classes": [{"name": "c", "support": 40, "top1": 0.7, "f1": 0.65}],
    "versions": {"fieldmark": "0.1.0"},
}  # fmt: skip


def load_as_documented(path, native, images_NCHW):
    """What the documented lines give for normalised pictures."""
    text = folders.snippet(str(path), native)
    assert len(text.splitlines()) <= 10
    said = {"images_NCHW": images_NCHW}
    with torch.no_grad():
        exec(compile(text, "snippet", "exec"), said)
    return said["logits_NK"]


@pytest.mark.parametrize(("recipe", "native"), [(None, False), (PLAIN, True)], ids=["ours", "timm"])
def test_timm_loads_the_folder_through_the_documented_lines_with_equal_logits(
    recipe, native, tmp_path
):
    run = write_run(tmp_path / "run", recipe) if recipe else write_run(tmp_path / "run")
    trained = load_trained(run)
    parts, alone = folders.make_folder(trained)
    assert alone is native
    out = tmp_path / "hub"
    folders.write(trained, parts, model_card(trained, "hub", alone), out)
    size = trained.model.input.size
    images_NCHW = trained.model.normalise(torch.from_numpy(noise(3, size)).permute(0, 3, 1, 2))
    with torch.no_grad():
        expected_NK = trained.model(images_NCHW)
    assert torch.allclose(
        load_as_documented(out, native, images_NCHW), expected_NK, rtol=1e-5, atol=1e-4
    )
    assert ("fgvc_core" in folders.snippet("hub", alone)) is not native


def test_the_configuration_says_classes_and_how_pictures_have_to_look(run, trained):
    parts, _ = folders.make_folder(trained)
    config = json.loads(parts["config.json"])
    assert config["label_names"] == list(trained.class_names)
    told = config["pretrained_cfg"]
    assert (told["input_size"], told["crop_pct"]) == ([3, 32, 32], 1.0)
    assert (told["mean"], told["std"]) == ([0.5] * 3, [0.25] * 3)


def test_the_card_says_where_pictures_lie_to_nobody(tmp_path):
    recipe = "[data]\nimage_size=32\nname='folder'\npath='/secret/place'\nclasses=['a','b','c']\n"
    trained = load_trained(write_run(tmp_path / "run", recipe))
    parts, native = folders.make_folder(trained)
    assert b"secret" not in parts["config.json"]
    assert "secret" not in model_card(trained, "hub", native)


def test_the_card_is_one_of_hugging_face_and_states_what_the_run_states(tmp_path):
    trained = load_trained(write_run(tmp_path / "run", **METRICS))
    text = model_card(trained, "hub", False, "cc-by-4.0")
    card = ModelCard(text)
    assert card.data.license == "cc-by-4.0"
    assert card.data.library_name == "timm"
    results = {r.metric_type: r.metric_value for r in card.data.eval_results}
    assert results == {"accuracy": 0.9, "f1": 0.88}
    assert "| Top-1 | 0.900 | 0.826 to 0.945 |" in text
    assert "| lyon | 111 | 0.500 | 7 |" in text
    assert "| oslo \\| x | not stated | not stated | 7 |" in text
    assert "the run refused 2 replies" in text
    assert "no epsilon bounds" in text
    assert "Crow \\| raven" in text
    assert "<b>" not in text.replace("\\<b\\>", "")
    for heading in ("Use", "Data", "Metrics", "Privacy", "Robustness", "Energy", "Limits",
                    "Licence of the weights"):  # fmt: skip
        assert re.search(rf"^## {heading}$", text, re.M)


def test_a_private_runs_card_states_its_cost_and_no_sites_counts(tmp_path):
    cost = {"epsilon": 4.0, "epsilon_total": 6.5, "delta": 1e-5, "unit": "subject"}
    sites = {"lyon": {"top1": None, "rounds": 3, "refused": 0}}
    claim = {"holds": True, "sites": {"lyon": ""}}
    trained = load_trained(
        write_run(
            tmp_path / "run", sites=sites, privacy={"lyon": cost}, privacy_claim=claim, rounds=3
        )
    )
    text = model_card(trained, "hub", False)
    assert "| lyon | 4 | 6.5 | 1.0e-05 | subject |" in text
    assert "| lyon | not stated | not stated | 3 |" in text
    assert "replace-one" in text
    assert "differential-privacy" in ModelCard(text).data.tags


def test_a_card_calls_a_model_private_only_if_every_sites_part_is(tmp_path):
    cost = {"epsilon": 4.0, "epsilon_total": 6.5, "delta": 1e-5, "unit": "subject"}
    sites = {name: {"top1": None, "rounds": 3, "refused": 0} for name in ("lyon", "oslo")}
    why = "its replies left without differential privacy"
    claim = {"holds": False, "sites": {"lyon": "", "oslo": why}}
    run = write_run(
        tmp_path / "run", sites=sites, privacy={"lyon": cost}, privacy_claim=claim, rounds=3
    )
    text = model_card(load_trained(run), "hub", False)
    assert "Learned under differential privacy" not in text
    assert "Not learned under differential privacy as a whole: it holds for 1 of 2 sites" in text
    assert f"- oslo: {why}." in text
    assert "differential-privacy" not in ModelCard(text).data.tags
    assert "no site states" not in text


def test_without_the_runs_files_the_card_says_what_is_not_known(run, trained):
    text = model_card(trained, "hub", False)
    assert "Not known: the run left no score" in text
    assert "Nothing was found beside the checkpoint" in text
    assert "Not stated by whoever exported it" in text


def test_an_evaluation_takes_the_place_of_the_runs_figures(trained):
    span = {"value": 0.8, "low": 0.7, "high": 0.9}
    group = {"name": "f", "examples": 12, "top1": span}
    evaluation = {
        "data": "ham10000", "split": "test", "examples": 50, "top1": span, "ece": 0.04,
        "interval": "95 %, bootstrap", "groups": [{"column": "sex", "groups": [group]}],
        "robustness": {"clean": 0.8, "mean": 0.5,
                       "corruptions": {"fog": {"mean": 0.3}, "blur": {"mean": 0.7}}},
    }  # fmt: skip
    text = model_card(trained, "hub", False, evaluation=evaluation)
    assert "On ham10000, test (50 pictures)" in text
    assert "| Top-1 | 0.800 | 0.700 to 0.900 |" in text
    assert "| sex: f | 12 | 0.800 | 0.700 to 0.900 |" in text
    assert "top-1 0.500 on average against 0.800 on clean ones; worst fog, 0.300" in text


def test_a_folder_that_timm_loads_as_another_model_is_told(trained, tmp_path):
    parts, _ = folders.make_folder(trained)
    from safetensors.torch import load, save

    state = load(parts["model.safetensors"])
    state["head.bias"] = state["head.bias"] + 1
    broken = {**parts, "model.safetensors": save(state)}
    with pytest.raises(RunFailed, match="other logits"):
        folders.write(trained, broken, "card", tmp_path / "hub")


def test_the_command_writes_the_folder_and_refuses_what_is_no_evaluation(run, tmp_path):
    words = ["export", "folder", str(run), "--out", str(tmp_path / "hub"), "--license", "mit"]
    result = CliRunner().invoke(fieldmark.cli.app, [*words, "--json"])
    assert result.exit_code == 0, result.exception
    assert json.loads(result.stdout)["timm_alone"] is False
    assert sorted(p.name for p in (tmp_path / "hub").iterdir()) == [
        "README.md", "config.json", "model.safetensors"]  # fmt: skip
    (tmp_path / "list.json").write_text("[]")
    for name in ("list.json", "missing.json"):
        result = CliRunner().invoke(
            fieldmark.cli.app, [*words, "--evaluation", str(tmp_path / name)]
        )
        assert isinstance(result.exception, DataError)


def test_a_card_counts_who_contributed_and_calls_one_site_no_federation(tmp_path):
    sites = {
        "lyon": {"top1": 0.5, "rounds": 3},
        "riga": {"top1": None, "rounds": 0},
    }
    missing = {"riga": "set aside: far away.", "oslo | x": "away"}
    run = write_run(tmp_path / "run", sites=sites, not_contributed=missing, rounds=3)
    text = model_card(load_trained(run), "hub", False)
    assert "at one site of three, which is no federation" in text
    assert "in a federation of" not in text
    assert "- riga: set aside: far away.\n" in text
    assert "- oslo \\| x: away.\n" in text
