"""Training under masked sums: what the coordinator computes, and what a lost round costs."""

import json

import numpy as np
import pytest
from closed_form_lab import events_of, last_model
from inline_executor import Here
from secure_runs import Run
from tests_recipe import TINY

from fgvc_core.errors import RunFailed
from fgvc_core.privacy.accountant import read_events
from fgvc_core.recipe import parse_recipe
from fieldmark.client.privacy.outbox import Outbox
from fieldmark.client.stages import masked
from fieldmark.server.report.page import render
from fieldmark.server.strategies import Aggregation, SoundReply, make_strategy
from fieldmark.simulations.planning import Simulation
from fieldmark.simulations.preparation import deal, prepare
from fieldmark.simulations.simulate import simulate

NAMES = [f"site-{number}" for number in range(1, 5)]
SECURE = ("partition.sites=4", "data.image_size=16", "data.fieldmarks_train=48",
          "data.fieldmarks_test=12", "model.train=head", "secure.least=3",
          "secure.colluding=1")  # fmt: skip
STEPS = ("privacy.epsilon=8.0", "privacy.method=gradients", "privacy.steps=1",
         "privacy.sampling_rate=1.0", "train.optimizer=sgd", "train.lr=0.5",
         "train.schedule=constant")  # fmt: skip


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Recipe's changes -> (recipe, its pictures), which are the same for all."""
    cache, made = tmp_path_factory.mktemp("cache"), {}

    def at(*changes):
        recipe = parse_recipe(TINY, (*SECURE, *changes)).with_sites(4)
        if "dealt" not in made:
            made["dealt"] = deal(recipe, cache)
            prepare(recipe, made["dealt"], Here(), lambda done, total: None)
        return recipe, made["dealt"]

    return at


def test_the_model_is_the_weighed_mean_of_what_the_sites_have_learned(
    tmp_path, pictures, monkeypatch
):
    """Whatever the strategy: it gets the mean, to the rounding of the steps, and nothing else."""
    kept, as_value = [], masked.update_as_value

    def watched(sent, trained, figures, most_change):
        kept.append((sent, trained, figures))
        return as_value(sent, trained, figures, most_change)

    monkeypatch.setattr(masked, "update_as_value", watched)
    run = Run(tmp_path, pictures("federation.strategy=fedadam", "federation.rounds=1"))
    metrics = run.go()
    assert len(kept) == 4
    sent, weights = kept[0][0], [figures.weight for _, _, figures in kept]
    mean = {
        name: np.average([new[name].astype(float) for _, new, _ in kept], axis=0, weights=weights)
        for name in sent
    }
    strategy = make_strategy(run.recipe.federation)
    replies = [SoundReply("all", 1.0, {n: a.astype(np.float32) for n, a in mean.items()})]
    expected = strategy.aggregate(replies, Aggregation(1, sent))
    model = last_model(run.out)
    for name in sent:
        # FedAdam divides by the size of a change: near zero, rounding shows.
        assert np.abs(model[name] - expected[name]).max() < 2e-3
        assert np.median(np.abs(model[name] - expected[name])) < 1e-6
    told = [figures for _, _, figures in kept]
    entry = metrics["history"][0]
    loss = np.average([f.loss / f.weight for f in told], weights=weights)
    assert entry["loss"] == pytest.approx(loss, rel=1e-6)
    assert metrics["secure"]["sums"] == [
        {"round": 1, "phase": phase, "asked": 4, "sites": NAMES} for phase in ("score", "train")
    ]
    # The coordinator knows of no site how many pictures it has, or how it did.
    replied = [e for e in events_of(run.out, "reply") if e["kind"] != "roll_call"]
    assert len(replied) == 16
    assert {(e["loss"], e["val_top1"], e["examples"]) for e in replied} == {(None, None, 0)}
    for site in metrics["sites"].values():
        assert (site.get("examples"), site["top1"]) == (None, None)
    assert "the sum over 4 sites" in render(run.out).read_text()


@pytest.mark.slow
@pytest.mark.ray
def test_ray_and_the_workers_here_open_the_same_sums_to_the_bit(tmp_path):
    """Masks differ from run to run, and vanish: whole numbers have one sum in any order."""
    pytest.importorskip("ray", reason="Ray is not installed")
    recipe, found = parse_recipe(TINY, SECURE), []
    for engine in ("inprocess", "ray"):
        metrics = simulate(Simulation(recipe, tmp_path / engine, engine=engine))
        timed = ("seconds", "bytes_up", "bytes_down")
        history = [{k: v for k, v in e.items() if k not in timed} for e in metrics["history"]]
        found.append((history, metrics["secure"], last_model(tmp_path / engine)))
    (history_a, sums_a, a), (history_b, sums_b, b) = found
    assert (history_a, sums_a) == (history_b, sums_b)
    assert all(a[name].tobytes() == b[name].tobytes() for name in a)


@pytest.mark.slow
def test_two_runs_with_other_masks_have_the_same_model_to_the_bit(tmp_path, pictures):
    models = []
    for number in range(2):
        run = Run(tmp_path / str(number), pictures("federation.rounds=1"))
        run.go()
        models.append(last_model(run.out))
    assert all(models[0][name].tobytes() == models[1][name].tobytes() for name in models[0])


@pytest.mark.slow
def test_in_a_scenario_silent_sites_lose_sums_and_the_run_goes_on(tmp_path):
    changes = ("federation.rounds=3", "scenario.silent=0.15", "seed=28")
    metrics = simulate(Simulation(parse_recipe(TINY, (*SECURE, *changes)), tmp_path / "run"))
    told = json.loads((tmp_path / "run" / "scenario.json").read_text())["rounds"]
    lost = {e["round"]: e["silent"] for e in events_of(tmp_path / "run", "round_spent")}
    assert 0 < len(lost) < 3
    assert ["spent" in entry for entry in metrics["history"]] == [n in lost for n in (1, 2, 3)]
    for number, silent in lost.items():
        assert [s for s, fate in told[str(number)].items() if fate == "silent"] == silent


def test_scores_of_the_sum_select_the_best_model_and_stop_the_run(tmp_path, pictures):
    run = Run(tmp_path, pictures("federation.patience=1", "federation.rounds=9", "train.lr=1e-6"))
    metrics = run.go()
    # Hardly anything changes: the second model is no better, and the run ends.
    assert metrics["stopped"] == "patience"
    assert 2 <= metrics["rounds"] <= 4
    assert all(entry["val_loss"] > 1 for entry in metrics["history"])
    assert all(0 <= entry["val_top1"] <= 1 for entry in metrics["history"])


@pytest.mark.slow
def test_the_pull_of_fedprox_is_sent_to_all_and_refused_if_it_is_another(
    tmp_path, pictures, monkeypatch
):
    seen, plain = [], masked._plain

    def watched(job):
        seen.append(job.request.proximal_mu)
        return plain(job)

    monkeypatch.setattr(masked, "_plain", watched)
    changes = ("federation.strategy=fedprox", "federation.proximal_mu=0.25", "federation.rounds=1")
    Run(tmp_path, pictures(*changes)).go()
    assert sorted(seen) == [0.0] * 4 + [0.25] * 4


def test_a_site_that_is_silent_again_and_again_is_set_aside_and_the_others_go_on(
    tmp_path, pictures, away
):
    away.add(("site-3", "send", "train"))
    run = Run(tmp_path, pictures("federation.rounds=3", "federation.set_aside_after=2"))
    metrics = run.go()
    spent = events_of(run.out, "round_spent")
    assert [(e["round"], e["silent"]) for e in spent] == [(1, ["site-3"]), (2, ["site-3"])]
    assert [entry["accepted"] for entry in metrics["history"]] == [0, 0, 3]
    assert "lacks 1 parts" in metrics["sites"]["site-3"]["set_aside"]
    last = next(s for s in metrics["secure"]["sums"] if (s["round"], s["phase"]) == (3, "train"))
    assert last["sites"] == ["site-1", "site-2", "site-4"]
    page = render(run.out).read_text()
    assert "2 rounds of 3 had no sum" in page
    assert "no site's part of them. They have no noise" in page.replace("&#39;", "'")


@pytest.mark.slow
def test_three_lost_rounds_in_a_row_end_the_run_and_resume_goes_on_behind_them(
    tmp_path, pictures, away
):
    away.add(("site-3", "send", "train"))
    run = Run(tmp_path, pictures("federation.rounds=4", "federation.set_aside_after=0"))
    with pytest.raises(RunFailed, match=r"Round 3: .* lacks 1 parts\. site-3: no part"):
        run.go()
    away.clear()
    metrics = run.go()
    assert [entry["accepted"] for entry in metrics["history"]] == [0, 0, 0, 4]
    assert ["spent" in entry for entry in metrics["history"]] == [True] * 3 + [False]


def test_of_a_lost_round_nothing_clear_is_left_once_the_next_one_is_asked_for(
    tmp_path, pictures, away, monkeypatch
):
    away.add(("site-3", "send", "train"))
    store = Outbox.store

    def back(self, request, payload):
        store(self, request, payload)
        if json.loads(payload.fields["text"])["round"] == 2:
            away.clear()

    monkeypatch.setattr(Outbox, "store", back)
    run = Run(tmp_path, pictures("federation.rounds=2"))
    metrics = run.go()
    first, second = metrics["history"]
    assert "lacks 1 parts. site-3" in first["spent"]
    assert (first["accepted"], second["accepted"]) == (0, 4)
    assert first["model"] != second["model"]
    trained = [s["round"] for s in metrics["secure"]["sums"] if s["phase"] == "train"]
    assert trained == [1, 2]
    (named,) = events_of(run.out, "secure_sum_lost")
    assert (named["site"], named["phase"], named["round"]) == ("site-3", "train", 1)
    for home in run.homes:
        outbox = Outbox(home)
        kept = [outbox.find(key).fields for key, _ in outbox.stored("sum-")]
        assert kept
        assert not any("secret" in fields or "noise" in fields for fields in kept)
    assert run.counted("site-3") == ["ready", "ready", "view", "ready", "view"]


def test_sites_that_refuse_do_not_spend_the_round(tmp_path, pictures, monkeypatch):
    from fgvc_core.errors import PolicyRefusal
    from fieldmark.client.privacy.peers import Peers

    check, closed = Peers.check, {"site-1", "site-2"}

    def refusing(self, cohort):
        if self.site.name in closed:
            raise PolicyRefusal("Nobody here has compared the keys.")
        check(self, cohort)

    monkeypatch.setattr(Peers, "check", refusing)
    run = Run(tmp_path, pictures("federation.rounds=1"))
    with pytest.raises(RunFailed, match=r"2 sites are ready.*site-1: Nobody here has compared"):
        run.go()
    assert events_of(run.out, "round_spent") == []
    closed.clear()
    metrics = run.go()
    assert [s["sites"] for s in metrics["secure"]["sums"]] == [NAMES, NAMES]


def test_an_impossible_sum_spends_the_round_and_nobody_is_blamed(tmp_path, pictures, monkeypatch):
    as_value, rounds = masked.update_as_value, []

    def huge(sent, trained, figures, most_change):
        value = as_value(sent, trained, figures, most_change)
        rounds.append(1)
        return np.where(np.arange(value.size) < 5, 1.0, value) if len(rounds) == 3 else value

    monkeypatch.setattr(masked, "update_as_value", huge)
    run = Run(tmp_path, pictures("federation.rounds=2"))
    metrics = run.go()
    assert "is impossible. A value of the sum has changed by" in metrics["history"][0]["spent"]
    assert "site-" not in metrics["history"][0]["spent"]
    assert metrics["history"][1]["accepted"] == 4
    assert events_of(run.out, "site_set_aside") == []


@pytest.mark.slow
def test_a_coordinator_that_dies_repeats_the_sum_to_the_bit(tmp_path, pictures, monkeypatch):
    from fieldmark.server.rounds.loop import Rounds

    class Killed(BaseException):
        pass

    finish, models = Rounds._finish, []

    def dying(self, number, arrays, *rest):
        models.append(self._updates.unpacked(arrays))
        if len(models) == 1:
            raise Killed
        finish(self, number, arrays, *rest)

    monkeypatch.setattr(Rounds, "_finish", dying)
    run = Run(tmp_path, pictures("federation.rounds=1"))
    with pytest.raises(Killed):
        run.go()
    run.go()
    assert all(models[0][name].tobytes() == models[1][name].tobytes() for name in models[0])
    assert run.counted("site-1") == ["ready", "view"] * 2


def test_private_steps_share_the_noise_of_one_gradient(tmp_path, pictures, monkeypatch):
    """One step along the mean clipped gradient, with the noise of the stated size."""
    clear, store = [], Outbox.store

    def kept(self, request, payload):
        if "value" in payload.tensors:
            clear.append(payload.tensors["value"])
        store(self, request, payload)

    monkeypatch.setattr(Outbox, "store", kept)
    engines, training = [], masked.PrivateTraining

    def with_engine(learner, examples, units_N, privacy):
        engines.append(privacy.engine)
        return training(learner, examples, units_N, privacy)

    monkeypatch.setattr(masked, "PrivateTraining", with_engine)
    run = Run(tmp_path, pictures(*STEPS, "privacy.score_share=0.2", "federation.rounds=1"))
    before = {}
    from fieldmark.server.rounds import secure_updates

    stepped = secure_updates._stepped

    def watched(context, privacy, number, model, opened):
        before.update(model=model, opened=opened.values, units=opened.units)
        return stepped(context, privacy, number, model, opened)

    monkeypatch.setattr(secure_updates, "_stepped", watched)
    metrics = run.go()
    # Not what the recipe leaves open, but what has passed the experiments.
    assert set(engines) == {"closed-form"}
    events = read_events(metrics["privacy"]["site-1"]["events"])
    (step,) = (event for event in events if event.purpose == "step")
    assert (step.sharers, step.count, step.sampling_rate) == (3, 1, 1.0)
    noise = before["opened"] - np.sum(clear[:4], axis=0)
    # Of four, three have to add up to the whole.
    expected = step.noise_multiplier * np.sqrt(4 / 3)
    assert 0.95 * expected < noise.std() < 1.05 * expected
    model, at = last_model(run.out), 0
    for name in sorted(model):
        size = model[name].size
        moved = -0.5 * before["opened"][at : at + size] / before["units"]
        found = (model[name].astype(float) - before["model"][name]).reshape(-1)
        assert np.abs(found - moved).max() < 1e-5
        at += size
    assert before["units"] == 4 * 12
    # Noisy scores came as a sum, too.
    assert 0.0 <= metrics["history"][0]["val_top1"] <= 1.0
    for stated in metrics["privacy"].values():
        assert stated["epsilon"] <= 8.0
        assert stated.get("epsilon_alone", np.inf) > stated["epsilon"]
    assert run.counted("site-2") == ["reserved", "ready", "view"] * 2
