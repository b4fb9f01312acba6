"""The coordinator as an attacker, with the key that sites trust, against a real home.

After each attack the site's ledger says what was announced, and no reply holds a number that
was not charged.
"""

import json
import sys
import time

import numpy as np
import pytest
import torch

from fgvc_core.data.fieldmarks.species import CLASS_NAMES
from fgvc_core.experiment import make_learner, make_table
from fgvc_core.privacy.planning import plan_epsilon
from fgvc_core.privacy.sampling import protected_units
from fgvc_core.privacy.settings import PrivacySettings
from fgvc_core.protocol.messages import Request, new_nonce, seal
from fgvc_core.recipe import parse_recipe
from fgvc_core.training.private import PrivateTraining
from fgvc_core.wire.arrays import pack_all
from fieldmark.client import workspace as works
from fieldmark.client.job import Incoming, answer
from fieldmark.client.privacy.policy import Policy
from fieldmark.client.provision import make_home
from fieldmark.client.site import Site, write_settings

from .protected_sites import COORDINATOR, kinds, ledger_of, opened, public_text

UNITS = 45
"""Publicly declared at every site here, whatever it holds."""

PRIVACY = (
    "privacy.epsilon=4",
    "privacy.method=gradients",
    "privacy.steps=1",
    "privacy.sampling_rate=0.4",
    "train.optimizer=sgd",
)
OWN = PrivacySettings(epsilon=4.0, method="gradients", steps=1, sampling_rate=0.4)


@pytest.fixture
def recipe(tiny):
    return parse_recipe(tiny.to_toml(), PRIVACY)


@pytest.fixture
def make(tmp_path, tiny):
    """Makes sites with some of the embedded pictures."""

    def home(name="site-1", rows=range(30), **policy):
        made = make_home(
            tmp_path / name,
            name="site-1",
            coordinator=public_text(COORDINATOR.public_key()),
            cache=tmp_path / "cache",
            units=UNITS,
            split_key=b"k" * 32,
            policy=Policy(**{"privacy": "required", "epsilon_cap": 6.0, **policy}),
            simulated=True,
        )
        (made.home / "rows.json").write_text(json.dumps(list(rows)))
        return Site.open(made.home)

    return home


@pytest.fixture
def site(make):
    return make()


def ask(site, of, kind, run="run-1", tensors=None, **changes):
    """Send a request signed by the coordinator; the reply, opened, and its tensors."""
    values = {"kind": kind, "run": run, "round": 1, "site": "site-1", "nonce": new_nonce(),
              "recipe_digest": of.digest}  # fmt: skip
    if kind == "roll_call":
        text = of.announced.to_toml()
        values |= {"recipe": text, "class_names": CLASS_NAMES, "site": "", "round": 0}
    packed = pack_all(tensors or {})
    values["tensors"] = {name: tensor.digest() for name, tensor in packed.items()}
    body = Request(**{**values, **changes})
    departure = answer(site.home, Incoming(seal(COORDINATOR, body), packed))
    return opened(site, departure), departure.tensors


def start(site, recipe, run="run-1", **changes):
    """A run that is announced and taken part in; its initial tensors."""
    assert ask(site, recipe, "roll_call", run, **changes)[0].code == "ok"
    return make_learner(recipe, len(changes.get("class_names", CLASS_NAMES))).tensors()


def values_of(packed):
    return {n: np.frombuffer(t.data, np.float32, offset=128) for n, t in packed.items()}


def spent(site):
    return ledger_of(site).total(1e-5)[0]


def check_nothing_uncharged(reply):
    """Under differential privacy a reply has no number but what was charged or is public."""
    assert (reply.loss, reply.scores, reply.seconds) == (None, None, "0000000.0000")
    assert reply.examples in (0, UNITS)


def check_refused(site, answered, before, code="refused-policy"):
    reply, tensors = answered
    assert reply.code == code
    assert (tensors, reply.noisy_scores, reply.privacy) == ({}, None, None)
    check_nothing_uncharged(reply)
    assert spent(site) == before
    assert kinds(site)[-1] == "sent"


def test_the_whole_run_costs_what_was_announced(site, recipe):
    tensors = start(site, recipe)
    for round_ in (1, 2):
        reply, update = ask(site, recipe, "train", tensors=tensors, round=round_)
        assert reply.code == "ok"
        check_nothing_uncharged(reply)
        assert set(update) == set(tensors)
    assert plan_epsilon(recipe.privacy, 2) == reply.privacy.epsilon <= 4.0
    # The total holds at every moment, also one chosen by what was seen: it is a little more.
    assert 4.0 < spent(site) == reply.privacy.epsilon_total < 4.6


def aimed_weights(learner, examples, target):
    """Finite weights under which the target's logit overflows and no other picture's does."""
    with torch.inference_mode():
        features_ND = examples.features_ND.double()
    direction_D = features_ND[target] / features_ND[target].norm()
    along_N = features_ND @ direction_D
    others = along_N[torch.arange(len(along_N)) != target].max()
    assert along_N[target] > others > 0
    # The product alone overflows, so that it does not matter in which order a processor adds.
    scale = float(np.finfo(np.float32).max) / (along_N[target] * others).sqrt()
    tensors = learner.tensors()
    tensors["head.weight"][0] = (direction_D * scale).float().numpy()
    tensors["head.bias"][0] = 0.0
    assert np.isfinite(tensors["head.weight"]).all()
    return tensors


def test_weights_aimed_at_one_picture_tell_nothing(make, tiny, tmp_path):
    settings = (*PRIVACY, "model.train=head", "privacy.sampling_rate=1.0", "privacy.engine=loop")
    recipe = parse_recipe(tiny.to_toml(), [*settings, "data.val_fraction=0", "train.lr=0.1"])
    learner = make_learner(recipe, 12)
    table = make_table(recipe, tmp_path / "cache").where("train").take(np.arange(30))
    examples = learner.examples(table, tmp_path / "cache")
    target = int(examples.features_ND.norm(dim=1).argmax())
    aimed = aimed_weights(learner, examples, target)
    learner.load(aimed)
    logits_NK = examples.logits(learner.model, torch.arange(30), torch.Generator())
    # The attack works: of all pictures this one alone overflows.
    assert (~logits_NK.isfinite().all(dim=1)).nonzero().ravel().tolist() == [target]
    units_N = protected_units("image", [table.content_key(i) for i in range(30)], table.subjects)
    training = PrivateTraining(learner, examples, units_N, recipe.privacy)
    everyone = training.engine.clipped_sum(training.draw(1.0), 1.0)
    assert everyone.total_D.isfinite().all()
    told = []
    for name, rows in (("with", range(30)), ("without", set(range(30)) - {target})):
        site = make(name, sorted(rows))
        start(site, recipe)
        reply, update = ask(site, recipe, "train", tensors=aimed)
        assert all(np.isfinite(values).all() for values in values_of(update).values())
        check_nothing_uncharged(reply)
        assert spent(site) == reply.privacy.epsilon_total > 0
        told.append({**reply.model_dump(exclude={"nonce", "tensors", "ledger_head"})})
    assert told[0] == told[1]


def test_two_sites_that_hold_different_pictures_answer_alike_but_for_noise(make, recipe):
    """No field but noise and signature tells how many pictures there are, or which."""
    told = []
    for name, rows in (("many", range(60)), ("few", range(60, 72)), ("none", [])):
        site = make(name, rows)
        tensors = start(site, recipe)
        replies = [ask(site, recipe, "train", tensors=tensors, round=r) for r in (1, 2)]
        replies += [ask(site, recipe, "score", tensors=tensors, round=2)]
        assert [reply.code for reply, _ in replies] == ["ok"] * 3
        told.append([r.model_dump(exclude={"nonce", "tensors", "ledger_head"}) for r, _ in replies])
        lines = (site.home / "ledger.jsonl").read_text().splitlines()
        # Not even by its size: the signed heads have one width, and so has everything else.
        told[-1].append([json.loads(line).get("bytes") for line in lines])
    assert told[0] == told[1] == told[2]


def test_a_demand_for_scores_that_were_not_planned_gets_none(site, recipe):
    tensors = start(site, recipe)
    for round_ in (0, 1, 2, 99):
        reply, update = ask(site, recipe, "score", tensors=tensors, round=round_)
        assert (reply.code, reply.noisy_scores, update) == ("ok", None, {})
        check_nothing_uncharged(reply)
    assert spent(site) == 0.0


def test_planned_scores_are_noisy_charged_once_and_never_a_count(site, recipe):
    scored = parse_recipe(recipe.to_toml(), ["privacy.score_share=0.1"])
    tensors = start(site, scored)
    first, _ = ask(site, scored, "score", tensors=tensors, round=2)
    check_nothing_uncharged(first)
    assert first.noisy_scores.examples != round(first.noisy_scores.examples)
    cost = spent(site)
    again, _ = ask(site, scored, "score", tensors=tensors, round=2)
    assert again.noisy_scores == first.noisy_scores
    # Averaging the noise away would need other requests for the same: there are none.
    check_refused(site, ask(site, scored, "score", tensors=tensors, round=1), cost)
    other = {name: values * 2 for name, values in tensors.items()}
    check_refused(site, ask(site, scored, "score", tensors=other, round=2), cost)


def test_a_replayed_round_gets_the_same_bytes_and_the_same_round_with_other_weights_none(
    site, recipe
):
    tensors = start(site, recipe)
    _, update = ask(site, recipe, "train", tensors=tensors)
    cost = spent(site)
    for _ in range(3):
        reply, again = ask(site, recipe, "train", tensors=tensors)
        assert again == update
        assert reply.code == "ok"
    other = {name: values + 1 for name, values in tensors.items()}
    check_refused(site, ask(site, recipe, "train", tensors=other), cost)
    assert spent(site) == cost


@pytest.mark.parametrize("round_", [0, 3, 10**6])
def test_a_round_that_was_not_planned_is_refused(site, recipe, round_):
    tensors = start(site, recipe)
    answered = ask(site, recipe, "train", tensors=tensors, round=round_)
    check_refused(site, answered, 0.0)
    assert "not one of the 2 of this run" in answered[0].reason


@pytest.mark.parametrize("phase", ["", "centre", "class-sums"])
def test_a_phase_that_is_not_in_the_plan_is_refused(site, recipe, phase):
    tensors = start(site, recipe)
    answered = ask(site, recipe, "release", tensors=tensors, phase=phase)
    check_refused(site, answered, 0.0)
    assert "not part of this run's plan" in answered[0].reason


def test_a_run_that_was_never_announced_or_refused_gets_nothing(make, site, recipe):
    tensors = make_learner(recipe, 12).tensors()
    for kind in ("train", "score", "release"):
        answered = ask(site, recipe, kind, tensors=tensors)
        assert answered[0].code == "refused-request"
    strict = make("strict", epsilon_cap=3.9)
    reply, _ = ask(strict, recipe, "roll_call")
    assert (reply.code, "policy.epsilon_cap = 3.9" in reply.reason) == ("refused-policy", True)
    check_refused(strict, ask(strict, recipe, "train", tensors=tensors), 0.0, "refused-request")


def test_a_recipe_without_privacy_gets_nothing(site, tiny):
    reply, _ = ask(site, tiny, "roll_call")
    assert reply.code == "refused-policy"
    assert "policy.privacy = 'required'" in reply.reason
    tensors = make_learner(tiny, 12).tensors()
    for kind in ("train", "score"):
        check_refused(site, ask(site, tiny, kind, tensors=tensors), 0.0)


def test_a_recipe_without_privacy_is_trained_with_the_sites_own_noise(make, tiny):
    site = make(own=OWN)
    tensors = start(site, tiny)
    for round_ in (1, 2):
        reply, update = ask(site, tiny, "train", tensors=tensors, round=round_)
        assert reply.code == "ok"
        check_nothing_uncharged(reply)
        assert set(update) == set(tensors)
    assert plan_epsilon(OWN, 2) == reply.privacy.epsilon
    assert reply.privacy.epsilon < spent(site) < 1.2 * reply.privacy.epsilon
    reply, _ = ask(site, tiny, "score", tensors=tensors, round=2)
    check_nothing_uncharged(reply)


def test_an_announcement_is_not_exchanged_for_another_under_the_same_name(site, recipe, tiny):
    tensors = start(site, recipe)
    for other, changes in (
        (tiny, {}),
        (parse_recipe(recipe.to_toml(), ["privacy.epsilon=5"]), {}),
        (parse_recipe(recipe.to_toml(), ["train.lr=0.5"]), {}),
        (recipe, {"class_names": CLASS_NAMES[::-1]}),
    ):
        reply, _ = ask(site, other, "roll_call", **changes)
        assert reply.code == "refused-request"
        if other is not recipe:
            answered = ask(site, other, "train", tensors=tensors)
            check_refused(site, answered, 0.0, "refused-request")
    assert ask(site, recipe, "train", tensors=tensors)[0].code == "ok"


def test_fewer_units_cannot_be_asked_for(site, recipe):
    """Divisor and weight come from site.toml; a recipe has no such line."""
    text = recipe.to_toml().replace("[privacy]\n", "[privacy]\nunits = 1\n")
    reply, _ = ask(site, recipe, "roll_call", recipe=text)
    assert (reply.code, reply.examples) == ("unavailable", 0)
    tensors = start(site, recipe)
    reply, _ = ask(site, recipe, "train", tensors=tensors)
    assert reply.examples == UNITS
    assert [plan.units for plan in ledger_of(site).plans()] == [UNITS]


@pytest.mark.parametrize(
    "line",
    [
        'code = "import os"\n',
        '[hooks]\non_round = "malicious_module:run"\n',
        '[model]\nmodule = "malicious_module"\n',
    ],
)
def test_code_in_a_recipe_is_an_unknown_key_and_nothing_is_imported(
    site, recipe, line, tmp_path, monkeypatch
):
    (tmp_path / "malicious_module.py").write_text(f"open({str(tmp_path / 'pwned')!r}, 'w')\n")
    monkeypatch.syspath_prepend(tmp_path)
    text = (
        recipe.to_toml().replace("[model]\n", line)
        if line.startswith("[model]")
        else line + recipe.to_toml()
        if line.startswith("code")
        else recipe.to_toml() + line
    )
    reply, _ = ask(site, recipe, "roll_call", recipe=text)
    assert (reply.code, reply.reason) == ("unavailable", "")
    assert not (tmp_path / "pwned").exists()
    assert "malicious_module" not in sys.modules
    assert "unknown key" in (site.home / "site.log").read_text()
    assert kinds(site) == ["sent"] or kinds(site) == ["founded", "sent"]


@pytest.mark.parametrize("backbone", ["malicious_module.net", "hf-hub:evil/net", "../../net"])
def test_a_backbone_that_is_none_is_not_fetched(site, recipe, backbone, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    other = parse_recipe(recipe.to_toml(), [f"model.backbone={backbone}"])
    reply, _ = ask(site, other, "roll_call")
    assert reply.code == "ok"
    tensors = make_learner(recipe, 12).tensors()
    check_refused(site, ask(site, other, "train", tensors=tensors), 0.0, "unavailable")


def test_equal_seeds_do_not_give_equal_noise(make, recipe):
    updates = []
    for name, runs in (("one", ("run-1", "run-2")), ("two", ("run-1",))):
        site = make(name)
        for run in runs:
            tensors = start(site, recipe, run)
            updates.append(values_of(ask(site, recipe, "train", run, tensors=tensors)[1]))
    for name in tensors:
        moved = [update[name] - tensors[name].ravel() for update in updates]
        for one, other in ((0, 1), (0, 2), (1, 2)):
            assert not np.array_equal(moved[one], moved[other])
    # What is not noise is a fraction of it: it could not have come out alike by the data.
    weights = [u["head.weight"] - tensors["head.weight"].ravel() for u in updates]
    correlation = np.corrcoef(weights)
    assert np.abs(correlation[np.triu_indices(3, 1)]).max() < 0.5


@pytest.mark.parametrize("how", ["missing", "shape", "not finite", "dtype", "extra", "pull"])
def test_a_malformed_request_costs_the_site_nothing(site, recipe, how):
    tensors = start(site, recipe)
    sound, changes = dict(tensors), {}
    if how == "missing":
        tensors.pop("head.bias")
    elif how == "shape":
        tensors["head.bias"] = np.zeros(5, np.float32)
    elif how == "not finite":
        tensors["head.bias"] = np.full(12, np.nan, np.float32)
    elif how == "extra":
        tensors["secret"] = np.zeros(2, np.float32)
    elif how == "pull":
        changes = {"proximal_mu": 0.1}
    if how == "dtype":
        packed = pack_all(tensors)
        bias = packed["head.bias"]
        packed["head.bias"] = type(bias)("object", bias.shape, b"\x80\x04K\x01." * 20)
        digests = {name: tensor.digest() for name, tensor in packed.items()}
        body = Request(kind="train", run="run-1", round=1, site="site-1", nonce=new_nonce(),
                       recipe_digest=recipe.digest, tensors=digests)  # fmt: skip
        departure = answer(site.home, Incoming(seal(COORDINATOR, body), packed))
        answered = opened(site, departure), departure.tensors
    else:
        answered = ask(site, recipe, "train", tensors=tensors, **changes)
    check_refused(site, answered, 0.0, "refused-request")
    # The round is not used up by it either.
    assert ask(site, recipe, "train", tensors=sound)[0].code == "ok"


def test_a_made_up_memory_of_the_ledger_costs_the_site_nothing(site, recipe):
    tensors = start(site, recipe)
    answered = ask(site, recipe, "train", tensors=tensors, known_head="0" * 63 + "1")
    check_refused(site, answered, 0.0)


def test_a_fault_in_the_pictures_is_charged_and_tells_nothing(site, recipe, monkeypatch):
    """Who asks pays: else each recipe that fails on some data would be a free question."""
    tensors = start(site, recipe)

    def broken(*_):
        raise ValueError("Mrs Miller's left arm")

    monkeypatch.setattr(works, "split_examples", broken)
    works.WORKSPACE.forget_data()
    reply, update = ask(site, recipe, "train", tensors=tensors)
    assert (reply.code, reply.reason, update) == ("unavailable", "", {})
    assert spent(site) > 0
    cost = spent(site)
    assert ask(site, recipe, "train", tensors=tensors)[0].code == "unavailable"
    assert spent(site) == cost


@pytest.mark.parametrize("how", ["ok", "unavailable", "refused"])
def test_replies_are_held_until_the_announced_time_whatever_happened(
    make, recipe, how, monkeypatch
):
    site = make(reply_seconds=500.0)
    tensors = start(site, recipe)
    held = []
    monkeypatch.setattr(time, "sleep", held.append)
    if how == "unavailable":
        monkeypatch.setattr(
            "fieldmark.client.stages.private.learner_and_examples", lambda *_: 1 / 0
        )
    changes = {"round": 3} if how == "refused" else {}
    reply, _ = ask(site, recipe, "train", tensors=tensors, **changes)
    assert reply.code == {"refused": "refused-policy"}.get(how, how)
    assert [400 < seconds < 500 for seconds in held] == [True]


def test_a_full_disk_lets_nothing_out(site, recipe, monkeypatch):
    tensors = start(site, recipe)

    def full(*_):
        raise OSError(28, "No space left on device")

    body = Request(kind="train", run="run-1", round=1, site="site-1", nonce=new_nonce(),
                   recipe_digest=recipe.digest,
                   tensors={n: t.digest() for n, t in pack_all(tensors).items()})  # fmt: skip
    incoming = Incoming(seal(COORDINATOR, body), pack_all(tensors))
    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        assert answer(site.home, incoming) is None
    # Not even a refusal could be signed; its line is there, and counts as sent.
    assert spent(site) == 0.0
    assert ask(site, recipe, "train", tensors=tensors)[0].code == "ok"


def test_settings_of_the_site_are_the_sites(site, recipe):
    """No recipe changes a policy: the file is as it was after everything above."""
    before = (site.home / "site.toml").read_bytes()
    start(site, recipe)
    write_settings(site.home, Site.open(site.home).settings)
    assert (site.home / "site.toml").read_bytes() == before
