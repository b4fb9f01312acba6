"""A grid in which nodes fail and attack: what the server sees, and what becomes of the model."""

import json

import numpy as np
import pytest
from inline_executor import Here
from tests_recipe import TINY

from fgvc_core.errors import ConfigurationError, RunFailed
from fgvc_core.recipe import parse_recipe
from fgvc_core.scenario import ON_SUMS, STRENGTHS
from fieldmark.server.run_log.checkpoint import read_checkpoint
from fieldmark.simulations.engines import run_inprocess
from fieldmark.simulations.folders import lay_out, site_homes
from fieldmark.simulations.planning import Simulation
from fieldmark.simulations.preparation import deal, prepare
from fieldmark.simulations.scenarios import draw
from fieldmark.simulations.trials import UNGUARDED, contenders, count_replies

SETS = (
    *("partition.sites=10", "data.fieldmarks_train=300", "data.fieldmarks_test=24"),
    *("model.train=head", "train.optimizer=sgd", "train.lr=0.05", "train.schedule=constant"),
    *("evaluate.every=0", "train.batch_size=8", "federation.direction_spread=0"),
    *("federation.rounds=3", "federation.deadline_s=3600", "federation.quorum=0.2"),
    *("federation.max_rms=0.2", "federation.max_norm_ratio=4", "federation.max_weight=100"),
)


@pytest.fixture(scope="module")
def simulated(tmp_path_factory):
    """Runs TINY under a scenario, in this process; no waiting for deadlines of an hour."""
    folder = tmp_path_factory.mktemp("scenarios")
    settings = {}

    def run(name, *overrides):
        recipe = parse_recipe(TINY, [*SETS, *overrides])
        if "setting" not in settings:
            settings["setting"] = deal(recipe, folder / "cache")
            prepare(recipe, settings["setting"], Here(), lambda done, total: None)
        plan = Simulation(recipe, folder / name)
        lay_out(plan, settings["setting"])
        homes = site_homes(plan, settings["setting"])
        run_inprocess(plan.out, homes, Here(), 1, quiet=True)
        return plan.out

    return run


def events(out, kind="reply"):
    lines = (out / "events.jsonl").read_text().splitlines()
    found = [json.loads(line) for line in lines]
    return [e for e in found if e["event"] == kind and e.get("kind", "train") == "train"]


def model(out):
    return read_checkpoint(out / "checkpoints" / "last.safetensors")[0]


def test_dropouts_stragglers_and_crashes_are_recorded_and_the_rounds_go_on(simulated):
    faults = [f"scenario.{k}=0.2" for k in ("dropout", "straggle", "crash")]
    out = simulated("faults", *faults)
    told = json.loads((out / "scenario.json").read_text())["rounds"]
    for round_ in (1, 2, 3):
        fates = told[str(round_)]
        assert sorted(fates.values()) == ["crash"] * 2 + ["dropout"] * 2 + ["straggle"] * 2
        refused = {e["site"]: e["reason"] for e in events(out)
                   if e["round"] == round_ and not e["accepted"]}  # fmt: skip
        assert set(refused) == set(fates)
        for site, fate in fates.items():
            assert ("error code" if fate == "crash" else "No reply within") in refused[site]
    late = events(out, "late_reply")
    # The last round's stragglers find nobody who waits for another round.
    assert {(e["round"], e["site"]) for e in late} == {
        (r, site) for r in (1, 2) for site, fate in told[str(r)].items() if fate == "straggle"
    }
    assert all("after round" in e["reason"] and not e["accepted"] for e in late)


def test_late_updates_can_be_mixed_in_and_change_the_model(simulated):
    dropped = simulated("dropped", "scenario.straggle=0.3")
    mixed = simulated("mixed", "scenario.straggle=0.3", "federation.late=mix")
    late = events(mixed, "late_reply")
    assert len(late) == 6
    assert sum(e["accepted"] and e["figures"]["norm"] > 0 for e in late) >= 4
    assert any((model(dropped)[n] != a).any() for n, a in model(mixed).items())


@pytest.mark.parametrize(
    ("attack", "said"),
    [
        ("not-a-number", "not finite"),
        ("random", "root mean square"),
        ("scaled", "above"),
        ("claim", "claims 1000000000"),
        ("free-rider", "hardly differs"),
    ],
)
def test_a_crude_attack_is_refused_with_its_reason_and_its_sites_set_aside(simulated, attack, said):
    out = simulated(attack, f"scenario.attack={attack}", "scenario.attackers=0.2",
                    "federation.set_aside_after=2", "federation.rounds=4")  # fmt: skip
    counts = count_replies(out)
    hostile = set(json.loads((out / "scenario.json").read_text())["attackers"])
    assert len(hostile) == 2
    # Some can be told apart only once there are earlier rounds to compare with.
    first = 2 if attack in ("free-rider", "scaled") else 1
    refused = [e for e in events(out) if not e["accepted"]]
    assert {e["site"] for e in refused} == hostile
    assert all(said in e["reason"] for e in refused)
    assert sorted({e["round"] for e in refused}) == [first, first + 1]
    assert counts["honest_refused"] == 0
    aside = events(out, "site_set_aside")
    assert {(e["site"], e["round"]) for e in aside} == {(site, first + 1) for site in hostile}
    metrics = json.loads((out / "metrics.json").read_text())
    assert all(metrics["sites"][site]["set_aside"] for site in hostile)
    for site in hostile:
        assert said in (out / "sites" / site / "site.log").read_text()


@pytest.fixture(scope="module")
def honest(simulated):
    return model(simulated("honest", *UNBOUNDED))


UNBOUNDED = (
    *("federation.rounds=1", "federation.max_norm_ratio=1000", "federation.max_rms=1000"),
    *("federation.max_weight=10000000", "federation.max_weight_ratio=1e9"),
)


@pytest.mark.parametrize("attack", sorted(set(STRENGTHS) - {"scaled", "claim", "random", *ON_SUMS}))
def test_an_attack_is_signed_validly_and_moves_the_model(simulated, honest, attack):
    sets = (f"scenario.attack={attack}", "scenario.attackers=0.3")
    out = simulated(f"all-{attack}", *UNBOUNDED, *sets)
    assert all(e["accepted"] for e in events(out))
    assert any((honest[n] != a).any() for n, a in model(out).items())


def test_a_claim_within_all_bounds_has_at_most_half_of_a_round(simulated):
    sets = ("scenario.attack=claim", "scenario.strength=5000", "scenario.attackers=0.1",
            "federation.max_weight=10000", "federation.rounds=1")  # fmt: skip
    out = simulated("claims", *sets)
    (liar,) = json.loads((out / "scenario.json").read_text())["attackers"]
    honest = sum(e["examples"] for e in events(out) if e["site"] != liar)
    (cut,) = [e for e in map(json.loads, (out / "events.jsonl").read_text().splitlines())
              if e["event"] == "weight_cut"]  # fmt: skip
    assert (cut["site"], cut["claimed"], cut["share"]) == (liar, 5000, 0.5)
    assert cut["weight"] == honest < 5000
    unbounded = simulated("claims-unbounded", *sets, "federation.max_weight_share=1.0")
    assert any((model(out)[n] != a).any() for n, a in model(unbounded).items())


def test_a_replay_sends_the_first_update_for_ever(simulated):
    sets = ("scenario.attack=replay", "scenario.attackers=0.3", *UNBOUNDED[1:])
    replay = simulated("replay", *sets, "federation.rounds=2")
    norms = {}
    hostile = json.loads((replay / "scenario.json").read_text())["attackers"]
    for event in events(replay):
        if event["site"] in hostile:
            norms.setdefault(event["site"], []).append(event["figures"]["norm"])
    # Their second update is the first one as seen from a model that has moved on.
    assert all(len(n) == 2 and n[0] != n[1] for n in norms.values())


def test_without_a_guard_one_nan_ruins_the_model(simulated):
    with pytest.raises(RunFailed):
        simulated("ruined", "scenario.attack=not-a-number", "scenario.attackers=0.1",
                  "federation.screening=false", "federation.rounds=4")  # fmt: skip


def test_who_fails_is_drawn_from_the_seed(tiny):
    names = [f"site-{n}" for n in range(10)]
    one = draw(tiny, names, 0.3, "fates", 1)
    assert one == draw(tiny, names, 0.3, "fates", 1)
    assert len(one) == 3
    other = parse_recipe(tiny.to_toml(), ["seed=99"])
    assert any(draw(other, names, 0.3, "fates", r) != draw(tiny, names, 0.3, "fates", r)
               for r in range(5))  # fmt: skip


def test_an_attack_by_nobody_is_no_attack(simulated):
    with pytest.raises(ConfigurationError, match=r"0\.01 of 10 sites is nobody"):
        simulated("nobody", "scenario.attack=sign-flip", "scenario.attackers=0.01")


@pytest.mark.parametrize(
    ("sets", "said"),
    [
        (["scenario.attack=not-a-number"], "attackers above 0"),
        (["federation.screening=false"], "not possible without"),
        (
            [
                "scenario.attackers=0.2",
                'scenario.attack="backdoor"',
                "privacy.epsilon=1",
                "privacy.method=gradients",
            ],
            "privacy",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(sets, said):
    with pytest.raises(ConfigurationError, match=said) as caught:
        parse_recipe(TINY, sets)
    assert caught.value.exit_code == 2


def test_a_real_site_refuses_a_scenario(simulated):
    out = simulated("real", "federation.rounds=1")
    home = out / "sites" / "site-01"
    (home / "rows.json").unlink()
    text = (out / "recipe.toml").read_text() + "\n[scenario]\ndropout = 0.1\n"
    (out / "recipe.toml").write_text(text)
    (out / "checkpoints" / "last.safetensors").unlink()
    run_inprocess(out, sorted(out.glob("sites/*")), Here(), 1, quiet=True)
    refused = [e for e in events(out, "roll_call") if not e["accepted"]]
    assert len(refused) == 1
    assert "scenario" in refused[0]["reason"]


def test_a_turn_pits_every_defence_and_nobody_against_an_attack():
    recipe = parse_recipe(TINY, ["scenario.attackers=0.2", 'scenario.turns=["not-a-number"]'])
    found = dict(contenders(recipe, "not-a-number"))
    assert set(found) == {"fedmedian", "multi-krum", UNGUARDED}
    assert all(r.scenario.attack == "not-a-number" and not r.scenario.turns for r in found.values())
    assert found["fedmedian"].federation.screening
    assert not found[UNGUARDED].federation.screening


def test_little_is_enough_stays_inside_the_honest_spread():
    from fieldmark.simulations.attacks import Material, _inner_product, _little_is_enough

    generator = np.random.default_rng(0)
    sent = {"w": np.zeros(50, np.float32)}
    colluders = [{"w": generator.normal(1, 0.2, 50).astype(np.float32)} for _ in range(4)]
    material = Material(sent, colluders[0], colluders, sites=20, seed=1)
    stacked = np.stack([c["w"] for c in colluders])
    made = _little_is_enough(material, 0.0)["w"]
    # 20 sites, 4 hostile: s = 11 - 4 = 7 supporters of 16; z = the normal quantile of 9/16.
    np.testing.assert_allclose(made, stacked.mean(0) - 0.15731 * stacked.std(0), rtol=1e-4)
    turned = _inner_product(material, 2.0)["w"]
    assert np.dot(turned, stacked.mean(0)) < 0
