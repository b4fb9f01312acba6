"""``compare`` compares: on every shipped recipe, pooled and alone get what sites get."""

import json
import tomllib
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from inline_executor import Here

import fieldmark.simulations
from fgvc_core.errors import ConfigurationError
from fgvc_core.recipe import Recipe, load_recipe
from fieldmark.server.run_log.checkpoint import read_checkpoint
from fieldmark.simulations import compare as module
from fieldmark.simulations.compare import compare, refuse_incomparable
from fieldmark.simulations.comparing import others
from fieldmark.simulations.planning import Simulation

RECIPES = Path(fieldmark.simulations.__file__).parent / "recipes"
TABLES = ("backdoor", "faults")
COMPARED = sorted(path.stem for path in RECIPES.glob("*.toml") if path.stem not in TABLES)


@pytest.fixture(autouse=True)
def _no_workers(monkeypatch):
    monkeypatch.setattr(module, "hired", lambda count: nullcontext(Here()))


def shrunk(name, **changes):
    """A shipped recipe on few small embedded pictures, with at most two rounds and three sites."""
    values = tomllib.loads((RECIPES / f"{name}.toml").read_text())
    data = values["data"]
    values["data"] = {
        "name": "fieldmarks", "image_size": 32, "fieldmarks_train": 96, "fieldmarks_test": 24,
        "val_fraction": data.get("val_fraction", 0.1),
    }  # fmt: skip
    if data.get("fieldmarks_pool"):
        values["data"]["fieldmarks_pool"] = 60
    # Two sites where each row is a run of its own, with noise.
    sites = 2 if "privacy" in values and "secure" not in values else 3
    values["partition"] |= {"scheme": "iid", "sites": sites}
    if "secure" in values:
        values["secure"] = {"least": 3, "colluding": 1}
    values["partition"].pop("min_examples", None)
    values["partition"].pop("alpha", None)
    if "pretrain" in values:
        values["pretrain"]["rounds"] = 1
    if values.get("privacy", {}).get("steps"):
        values["privacy"]["steps"] = 2
    values.setdefault("federation", {})
    values["federation"]["rounds"] = min(values["federation"].get("rounds", 10), 2)
    values.setdefault("evaluate", {})
    values["evaluate"] |= {"pixel_baseline": False, "unit_price": False, "explained_pairs": 0}
    for key, value in changes.items():
        section, _, field = key.partition("__")
        values.setdefault(section, {})[field] = value
    return Recipe.read(values)


def compared(recipe, tmp_path, **options):
    result = compare(Simulation(recipe, tmp_path / "run", quiet=True), **options)
    assert json.loads((tmp_path / "run" / "compare.json").read_text()) == result
    return result


SAME_KIND = {
    "cub50-dp": "demo-dp", "ham10000-dp": "demo-dp", "cub50-secure": "demo-secure",
    "camera-traps": "cub50", "thousand": "cub50", "learner": "demo",
}  # fmt: skip
"""Recipes that, made small, differ in figures only from one that every run of the tests compares
(``cub50-dp`` also in its two networks, its whitening and the sites' own heads, which have tests).
The others of this file compare ``learner`` as well, at one site and over seeds."""


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.slow if n in SAME_KIND else ()) for n in COMPARED],
)
def test_every_shipped_recipe_gives_all_rows_the_same_start(name, tmp_path):
    recipe = shrunk(name)
    result = compared(recipe, tmp_path)
    rows = [result["pooled"], *result["local"].values()]
    assert len(rows) == 1 + recipe.partition.sites
    for row in rows:
        assert [made["start"] for made in row["made"]] == [recipe.train.start]
        if recipe.privacy is None:
            rounds = recipe.pretrain.rounds if recipe.pretrain.method != "none" else 0
            assert row["made"][0]["pretraining"] == rounds
            full = recipe.federation.fraction == 1
            assert row["made"][0]["passes"] == (result["passes"] if full else recipe.train.epochs)
        else:
            assert row["made"][0]["epsilon"] == recipe.privacy.epsilon
            run = tmp_path / "run" / row["made"][0]["run_dir"]
            costs = json.loads((run / "metrics.json").read_text())["privacy"]
            assert ("pooled_open" in result) == (recipe.privacy.method == "class-sums")
            assert ("local_open_mean" in result) == ("pooled_open" in result)
            assert [cost["epsilon"] <= recipe.privacy.epsilon for cost in costs.values()] == [True]
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert result["federated"]["top1"] == pytest.approx(metrics["top1"], abs=1e-12)
    if not recipe.federation.rounds:
        assert result["pooled"]["top1"] == result["federated"]["top1"]
    assert (result["plain"] is None) == bool(result["no_plain"])
    assert (result["plain"] is None) == (recipe.model.train != "head")


def test_no_round_makes_the_federation_and_pooled_one_model(tmp_path, monkeypatch):
    kept = {}
    answers = others._answers

    def keep(recipe, setting, learner):
        test = learner.examples(setting.table.where("test"), setting.cache)
        with torch.inference_mode():
            found = test.logits(learner.model, torch.arange(len(test)), None)
        kept[len(kept)] = found.double().numpy()
        return answers(recipe, setting, learner)

    monkeypatch.setattr(others, "_answers", keep)
    changes = {"model__backbone": "fieldmark_nano", "model__weights": "none", "model__until": ""}
    # Less shrinkage leaves more of the rounding of float32 sums in the inverse.
    changes["train__start_shrinkage"] = 0.4
    result = compared(shrunk("ham10000", **changes), tmp_path)
    # Pooled is trained first, and the federation's checkpoint scored last.
    pooled_NK, federated_NK = kept[0], kept[len(kept) - 1]
    spread = np.ptp(federated_NK)
    np.testing.assert_allclose(federated_NK / spread, pooled_NK / spread, rtol=0, atol=1e-6)
    assert result["federated"]["top1"] == pytest.approx(result["pooled"]["top1"], abs=1e-6)
    for metric in ("top1", "macro_f1"):
        difference = result["differences"]["pooled"][metric]
        assert difference["told"] == "no difference"
        assert difference["low"] < difference["value"] == 0 < difference["high"]


def test_a_start_from_attributes_names_unseen_classes_in_every_row(tmp_path):
    unseen = ["Fox-capped thrummer", "Monocled wandtail"]
    recipe = shrunk(
        "cub50-best", model__backbone="fieldmark_nano", model__weights="none",
        train__start="semantic", partition__unseen=unseen,
    )  # fmt: skip
    result = compared(recipe, tmp_path)
    assert result["pooled"]["made"][0]["start"] == "semantic"
    assert result["pooled"]["top1"] == result["federated"]["top1"]
    assert any("partition.unseen" in note for note in result["notes"])


ONE_SITE = {
    "rounds": {"name": "learner"},
    "best of several by validation": {"name": "learner", "data__val_fraction": 0.3},
    "a start, and a round that spoils it": {
        "name": "ham10000", "federation__rounds": 1, "train__lr": 10.0, "train__optimizer": "sgd",
        "data__val_fraction": 0.3,
    },
    "pretraining": {"name": "few-labels"},
    "patience": {"name": "learner", "federation__patience": 1, "data__val_fraction": 0.3,
                 "federation__rounds": 4, "train__lr": 1e-9},
    "fine-tuning": {"name": "learner", "personal__epochs": 2, "data__val_fraction": 0.3},
}  # fmt: skip


@pytest.mark.parametrize("case", ONE_SITE)
def test_a_federation_of_one_site_is_that_site_alone_and_pooled(case, tmp_path, monkeypatch):
    kept = []
    train = others.train_alone

    def keep(*arguments):
        kept.append(train(*arguments))
        return kept[-1]

    monkeypatch.setattr(others, "train_alone", keep)
    changes = dict(ONE_SITE[case])
    result = compared(shrunk(changes.pop("name"), partition__sites=1, **changes), tmp_path)
    best = read_checkpoint(tmp_path / "run" / "checkpoints" / "best.safetensors")[0]
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert len(kept) == 2
    for trained in kept:
        assert trained.best_round == metrics["best_round"]
        assert trained.passes == metrics["rounds"]
        assert trained.tensors.keys() == best.keys()
        for name, tensor in trained.tensors.items():
            np.testing.assert_allclose(tensor, best[name], rtol=0, atol=1e-6, err_msg=name)
    assert result["local"]["site-1"]["top1"] == result["pooled"]["top1"]
    assert result["federated"]["top1"] == result["pooled"]["top1"]
    if "personal" in result:
        personal = result["personal"]
        assert personal["federated"] == personal["pooled"] == personal["local"]
        assert personal["examples"] > 10


def test_one_site_under_privacy_has_a_run_of_its_own_for_each_row(tmp_path):
    result = compared(shrunk("audit", partition__sites=1), tmp_path)
    folders = {row["made"][0]["run_dir"] for row in (result["pooled"], result["local"]["site-1"])}
    assert folders == {"compared/pooled", "compared/site-1"}


def test_the_other_models_are_counted(tmp_path):
    told = []
    recipe = shrunk("demo", federation__rounds=1, partition__sites=2)
    compared(recipe, tmp_path, beside=lambda *at: told.append(at))
    assert told == [(1, 3), (2, 3), (3, 3)]


def test_seeds_repeat_the_whole_comparison(tmp_path):
    said = []
    result = compared(shrunk("learner"), tmp_path, seeds=2, say=said.append)
    seed = load_recipe(RECIPES / "learner.toml").seed
    assert result["seeds"] == [seed, seed + 1]
    assert said == [f"seed {number}: pooled, and 3 sites alone" for number in result["seeds"]]
    runs = [tmp_path / "run", tmp_path / "run" / "seeds" / f"seed={seed + 1}"]
    top1 = [json.loads((run / "metrics.json").read_text())["top1"] for run in runs]
    assert result["federated"]["top1"] == pytest.approx(np.mean(top1))
    assert [made["seed"] for made in result["pooled"]["made"]] == result["seeds"]
    low, high = result["federated"]["top1_interval"]
    assert low <= result["federated"]["top1"] <= high
    assert not any(note.startswith("One seed") for note in result["notes"])


def test_refused_replies_are_in_the_result(tmp_path):
    recipe = shrunk("learner", scenario__attack="not-a-number", scenario__attackers=0.34)
    result = compared(recipe, tmp_path)
    hostile = json.loads((tmp_path / "run" / "scenario.json").read_text())["attackers"]
    assert [group["sites"] for group in result["refusals"]] == [hostile]
    assert [group["count"] for group in result["refusals"]] == [2]
    assert not result["refusals"][0]["missing"]
    assert any("[scenario]" in note for note in result["notes"])


@pytest.mark.parametrize("name", TABLES)
def test_a_table_of_trials_is_refused_with_the_way_out(name):
    with pytest.raises(ConfigurationError) as caught:
        refuse_incomparable(load_recipe(RECIPES / f"{name}.toml"))
    assert "table of trials" in caught.value.what
    assert "fieldmark simulate" in caught.value.remedy


def test_models_that_stay_at_their_sites_are_refused():
    recipe = shrunk("learner", federation__local=["head.*"])
    with pytest.raises(ConfigurationError, match=r"federation\.local cannot be compared"):
        refuse_incomparable(recipe)
    with pytest.raises(ConfigurationError, match=r"--seeds 0 is not between 1 and 100"):
        refuse_incomparable(shrunk("learner"), seeds=0)
