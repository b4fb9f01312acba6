"""A federation that starts from class statistics, end to end."""

import json

import numpy as np
import pytest
from inline_executor import Here
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression

import fieldmark.client.stages.statistics
from fgvc_core.data.cache import cache_folder
from fgvc_core.errors import ConfigurationError
from fgvc_core.experiment import make_learner
from fgvc_core.models.class_statistics import (
    COUNTS,
    SCATTER,
    SUMS,
    class_statistics,
    discriminant_scores,
)
from fgvc_core.models.regression import Geometry
from fgvc_core.recipe import parse_recipe
from fgvc_core.training.start import pooled_start
from fieldmark.server.run_log.checkpoint import read_checkpoint
from fieldmark.simulations.planning import Simulation
from fieldmark.simulations.preparation import deal, split_site
from fieldmark.simulations.simulate import simulate


@pytest.fixture(scope="module")
def recipe():
    from tests_recipe import TINY

    changes = ["train.start=lda", "federation.rounds=0", "model.train=head", "model.attention=none"]
    return parse_recipe(TINY, [*changes, "partition.scheme=dirichlet", "train.start_scale=0.5"])


def test_zero_rounds_give_the_head_of_all_sites_pictures_pooled(recipe, tmp_path):
    # One of the three has more than half of all pictures.
    recipe = parse_recipe(recipe.to_toml(), ["federation.max_weight_share=1.0"])
    metrics = simulate(Simulation(recipe, tmp_path / "run"))
    assert metrics["rounds"] == 0
    assert metrics["bytes_up"] > 3 * 256 * 257 / 2 * 4
    setting = deal(recipe, cache_folder())
    learner = make_learner(recipe, 12)
    parts = [
        learner.examples(split_site(recipe, setting, s)[0], setting.cache) for s in setting.rows
    ]
    features_ND = np.concatenate([part.features_ND.numpy() for part in parts])
    labels_N = np.concatenate([part.labels_N.numpy() for part in parts])
    pooled = class_statistics(features_ND, labels_N, 12, scatter=True)
    weights_KD, biases_K = discriminant_scores(pooled, recipe.train.start_shrinkage, 0.0)
    tensors = read_checkpoint(tmp_path / "run" / "checkpoints" / "best.safetensors")[0]
    scores = features_ND @ tensors["head.weight"].T + tensors["head.bias"]
    np.testing.assert_allclose(
        scores, 0.5 * (features_ND @ weights_KD.T + biases_K), rtol=0.02, atol=0.05
    )
    assert metrics["top1"] > 0.12


def test_rounds_go_on_from_the_start(recipe, tmp_path):
    going_on = parse_recipe(recipe.to_toml(), ["federation.rounds=1", "train.lr=1e-6"])
    metrics = simulate(Simulation(going_on, tmp_path / "run"))
    start = simulate(Simulation(recipe, tmp_path / "start"))
    assert metrics["history"][0]["top1"] == pytest.approx(start["top1"], abs=0.05)
    assert all(figures["rounds"] == 1 for figures in metrics["sites"].values())


@pytest.fixture(scope="module")
def searching():
    """Few classes, so that a search in a tiny federation has something to find."""
    from tests_recipe import TINY

    changes = ["federation.rounds=0", "model.train=head", "model.attention=none"]
    return parse_recipe(TINY, [*changes, "partition.scheme=dirichlet", "train.start=auto"])


def test_the_federations_regression_is_the_pooled_one_to_the_fourth_digit(searching, tmp_path):
    sets = ["train.start=regression", "train.start_precision=1e-9", "federation.max_weight_share=1"]
    recipe = parse_recipe(searching.to_toml(), sets)
    metrics = simulate(Simulation(recipe, tmp_path / "run"))
    setting = deal(recipe, cache_folder())
    learner = make_learner(recipe, 12)
    parts = [
        learner.examples(split_site(recipe, setting, s)[0], setting.cache) for s in setting.rows
    ]
    features_ND = np.concatenate([part.features_ND.numpy() for part in parts])
    labels_N = np.concatenate([part.labels_N.numpy() for part in parts])
    geometry = Geometry(class_statistics(features_ND, labels_N, 12, scatter=True))
    standard_ND = (features_ND - geometry.mean_D) / geometry.scale
    pooled = LogisticRegression(C=1 / recipe.train.start_penalty, tol=1e-9, max_iter=9999)
    shares_NK = pooled.fit(standard_ND, labels_N).predict_proba(standard_ND)
    tensors = read_checkpoint(tmp_path / "run" / "checkpoints" / "best.safetensors")[0]
    weights_KD = tensors["head.weight"].astype(np.float64)
    found_NK = softmax(features_ND @ weights_KD.T + tensors["head.bias"], axis=1)
    np.testing.assert_allclose(found_NK, shares_NK, atol=1e-4)
    union = setting.table.take(
        np.concatenate([split_site(recipe, setting, s)[0].rows for s in setting.rows])
    )
    alone = make_learner(recipe, 12)
    pooled_start(alone, alone.examples(union, setting.cache), union.subjects, 32)
    for name, tensor in alone.tensors().items():
        np.testing.assert_allclose(tensors[name], tensor, atol=2e-4)
    assert metrics["start"]["chosen"] == "regression, penalty 100, prior 1"
    assert 5 < metrics["start"]["messages"] < 60


def test_the_same_seed_chooses_the_same_head_to_the_bit(searching, tmp_path, monkeypatch):
    monkeypatch.setattr("fieldmark.simulations.workers.make_pool", lambda *count: Here())
    found = []
    for name in ("one", "two"):
        metrics = simulate(Simulation(searching, tmp_path / name))
        tensors = read_checkpoint(tmp_path / name / "checkpoints" / "best.safetensors")[0]
        found.append((metrics["start"], {n: a.tobytes() for n, a in tensors.items()}))
    assert found[0] == found[1]
    assert len(found[0][0]["tried"]) == 40
    assert {one["examples"] for one in found[0][0]["tried"]} != {0}


def test_rounds_that_make_it_worse_do_not_take_the_place_of_the_start(
    searching, tmp_path, monkeypatch
):
    monkeypatch.setattr("fieldmark.simulations.workers.make_pool", lambda *count: Here())
    spoilt = ["federation.rounds=2", "train.lr=100", "train.optimizer=sgd", "data.val_fraction=0.3"]
    recipe = parse_recipe(searching.to_toml(), [*spoilt, "train.start_folds=2"])
    metrics = simulate(Simulation(recipe, tmp_path / "run"))
    start = parse_recipe(recipe.to_toml(), ["federation.rounds=0"])
    simulate(Simulation(start, tmp_path / "start"))
    kept, first = (
        json.loads((tmp_path / name / "checkpoints" / "best.json").read_text())["best_score"]
        for name in ("run", "start")
    )
    # Top-1 on the sites' validation pictures, and minus the loss.
    assert kept >= first
    assert metrics["stopped"] == "rounds"


@pytest.mark.parametrize(
    ("lie", "said"),
    [
        (lambda name, array: array * np.float32(1e12), "that of no head"),
        (lambda name, array: array * np.float32("nan"), "is not finite"),
        (lambda name, array: array[..., :-1], "expected float32[1, 2]"),
    ],
)
def test_who_lies_about_a_gradient_is_named_and_left_out(
    searching, tmp_path, monkeypatch, lie, said
):
    honest, asked = fieldmark.client.stages.statistics.site_gradients, []

    def lying(*args):
        found = honest(*args)
        asked.append(found)
        # The second site's third answer.
        return {n: lie(n, a) for n, a in found.items()} if len(asked) == 8 else found

    monkeypatch.setattr("fieldmark.simulations.workers.make_pool", lambda *count: Here())
    monkeypatch.setattr(fieldmark.client.stages.statistics, "site_gradients", lying)
    run = tmp_path / "run"
    sets = ["train.start=regression", "partition.scheme=iid"]
    metrics = simulate(Simulation(parse_recipe(searching.to_toml(), sets), run))
    events = [json.loads(x) for x in (run / "events.jsonl").read_text().splitlines()]
    (gone,) = [e for e in events if e["event"] in ("start_refused", "start_left_out")]
    assert gone["site"] == "site-2"
    reasons = [str(e.get("reason")) for e in events if e.get("site") == "site-2"]
    assert any(said in reason for reason in reasons)
    (done,) = [e for e in events if e["event"] == "started"]
    assert done["sites"] == 2
    assert metrics["start"] == {k: done[k] for k in metrics["start"]}
    tensors = read_checkpoint(run / "checkpoints" / "best.safetensors")[0]
    assert all(np.isfinite(array).all() for array in tensors.values())
    assert tensors["head.weight"].any()
    answered = [e for e in events if e.get("phase") == "gradients" and e["site"] == "site-2"]
    assert len(answered) == 3


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["ray", "superlink"])
def test_every_engine_finds_the_same_head(searching, tmp_path, engine):
    if engine == "ray":
        pytest.importorskip("ray", reason="Ray is not installed")
    sets = ["train.start=regression", "train.start_precision=0.01"]
    recipe = parse_recipe(searching.to_toml(), sets)
    found = []
    for name in ("inprocess", engine):
        simulate(Simulation(recipe, tmp_path / name, engine=name))
        tensors = read_checkpoint(tmp_path / name / "checkpoints" / "best.safetensors")[0]
        found.append({n: a.tobytes() for n, a in tensors.items()})
    assert found[0] == found[1]


@pytest.mark.parametrize("down", ["bfloat16", "float32"])
def test_a_start_goes_with_every_encoding_of_the_model(recipe, tmp_path, monkeypatch, down):
    monkeypatch.setattr("fieldmark.simulations.workers.make_pool", lambda *count: Here())
    encoded = parse_recipe(recipe.to_toml(), [f"wire.down={down}"])
    metrics = simulate(Simulation(encoded, tmp_path / "run"))
    assert metrics["top1"] > 0.12


def test_who_lies_about_its_statistics_is_named_and_set_aside(recipe, tmp_path, monkeypatch):
    honest, asked = fieldmark.client.stages.statistics.site_statistics, []

    def lying(*args):
        found = honest(*args)
        asked.append(found)
        if len(asked) > 1:
            return found
        factors = {COUNTS: 1.0, SUMS: 1e5, SCATTER: 1e10}
        return {name: a * np.float32(factors[name]) for name, a in found.items()}

    monkeypatch.setattr("fieldmark.simulations.workers.make_pool", lambda *count: Here())
    monkeypatch.setattr(fieldmark.client.stages.statistics, "site_statistics", lying)
    run = tmp_path / "run"
    five = ["partition.sites=5", "partition.scheme=iid", "federation.rounds=1"]
    metrics = simulate(Simulation(parse_recipe(recipe.to_toml(), five), run))
    events = [json.loads(x) for x in (run / "events.jsonl").read_text().splitlines()]
    (refused,) = [e for e in events if e["event"] == "start_refused"]
    (aside,) = [e for e in events if e["event"] == "site_set_aside"]
    liar = refused["site"]
    assert "times the median over the sites" in refused["reason"]
    assert (aside["site"], aside["reason"]) == (liar, refused["reason"])
    (done,) = [e for e in events if e["event"] == "started"]
    assert done["sites"] == 4
    assert metrics["sites"][liar]["set_aside"] == refused["reason"]
    assert [e["site"] for e in events if e.get("kind") == "train" and e["site"] == liar] == []
    assert "times the median over the sites" in (run / "report.html").read_text()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["federation.rounds=0"], "nothing would be learned"),
        (["train.start=lda", "model.head=cosine"], "needs model.head = 'linear'"),
        (["train.start=auto", "model.train=head", "model.head=cosine"], "model.head = 'linear'"),
        (["train.start=regression", "model.train=all"], "needs model.train = 'head'"),
        (
            ["train.start=auto", "model.train=head", "federation.local=['head.*']"],
            "does not go with federation.local",
        ),
        (
            ["train.start=auto", "model.train=head", "data.val_fraction=0"],
            "needs data.val_fraction above 0",
        ),
    ],
)
def test_a_start_that_cannot_be_is_refused_in_the_recipe(changes, said):
    with pytest.raises(ConfigurationError, match=said):
        parse_recipe("", changes)


def test_unseen_classes_are_named_by_their_attributes_and_reported_apart(tmp_path):
    from tests_recipe import TINY

    from fgvc_core.data.fieldmarks.species import CLASS_NAMES

    unseen = [CLASS_NAMES[2], CLASS_NAMES[7]]
    changes = ["train.start=semantic", "federation.rounds=0", "model.train=head"]
    recipe = parse_recipe(TINY, [*changes, f"partition.unseen={unseen}"])
    setting = deal(recipe, cache_folder())
    held = sum(setting.site_table(site).class_counts_K() for site in setting.rows)
    assert [CLASS_NAMES[k] for k in np.flatnonzero(held == 0)] == unseen
    metrics = simulate(Simulation(recipe, tmp_path / "run"))
    shot = metrics["zero_shot"]
    assert shot["classes"] == unseen
    assert shot["examples"] == 8
    assert shot["chance"] == 0.5
    assert 0 <= shot["top1"] <= 1
    assert shot["generalised_unseen"] <= shot["top1"]
    assert metrics["levels"]["species"] == pytest.approx(metrics["top1"])
    assert list(metrics["levels"].values()) == sorted(metrics["levels"].values(), reverse=True)


def test_a_class_is_unseen_only_where_something_can_name_it():
    with pytest.raises(ConfigurationError, match=r"needs train\.start = 'semantic'"):
        parse_recipe("", ['partition.unseen=["x"]'])
    recipe = parse_recipe("", ['partition.unseen=["x"]', "train.start=semantic"])
    with pytest.raises(ConfigurationError, match="names 'x', which is no class"):
        deal(recipe, cache_folder())
