"""Heads that know the classes, through a whole federation: who tells them, and what is scored."""

import json

import pytest
from inline_executor import Here
from tests_recipe import TINY

from fgvc_core.errors import ConfigurationError
from fgvc_core.recipe import load_recipe, parse_recipe
from fieldmark.simulations.planning import Simulation
from fieldmark.simulations.simulate import run_with

SETS = ("federation.rounds=1", "data.fieldmarks_train=96", "data.fieldmarks_test=60")
UNSEEN = ["Fox-capped thrummer", "Saffron barwing"]


def run(folder, *sets):
    recipe = parse_recipe(TINY, [*SETS, *sets])
    plan = Simulation(recipe, folder / "run")
    return run_with(plan, Here(), 1, lambda done, total: None), plan


def test_classes_that_no_site_has_are_named_and_scored_by_themselves(tmp_path):
    metrics, plan = run(tmp_path, "model.head=semantic", f"partition.unseen={json.dumps(UNSEEN)}")
    scored = metrics["zero_shot"]
    assert sorted(scored["classes"]) == sorted(UNSEEN)
    assert scored["chance"] == 0.5
    assert 0 <= scored["top1"] <= 1
    names = [entry["name"] for entry in metrics["classes"]]
    support = sum(e["support"] for e in metrics["classes"] if e["name"] in UNSEEN)
    assert scored["examples"] == support > 0
    written = load_recipe(plan.out / "recipe.toml").model
    assert [names[k] for k in written.unseen_classes] == [n for n in names if n in UNSEEN]
    assert len(written.class_attributes) == 12


def test_the_taxonomy_reaches_the_sites_and_every_level_is_scored(tmp_path):
    metrics, plan = run(tmp_path, "model.head=multilevel", "loss.hierarchy=0.5")
    order, family, one = (metrics["levels"][name] for name in ("order", "family", "species"))
    assert order >= family >= one == metrics["top1"]
    groups = load_recipe(plan.out / "recipe.toml").model.class_groups
    assert [max(level) + 1 for level in groups] == [2, 4]


def test_unseen_classes_need_a_head_that_names_them():
    with pytest.raises(ConfigurationError, match=r"model\.head = 'semantic'"):
        parse_recipe(TINY, [f"partition.unseen={json.dumps(UNSEEN)}"])
