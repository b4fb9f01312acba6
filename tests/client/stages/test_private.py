"""A site under differential privacy, from the request to the reply, with a real model."""

import json
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fgvc_core.data.fieldmarks.species import CLASS_NAMES
from fgvc_core.data.table import ExampleTable
from fgvc_core.errors import DataError
from fgvc_core.experiment import make_learner
from fgvc_core.privacy.settings import PrivacySettings
from fgvc_core.protocol.messages import seal
from fgvc_core.recipe import parse_recipe
from fgvc_core.wire.arrays import pack_all
from fieldmark.client.job import Incoming, answer
from fieldmark.client.privacy.policy import Policy
from fieldmark.client.site import Site
from fieldmark.client.workspace import Workspace, split_examples

from ..protected_sites import COORDINATOR, kinds, ledger_of, make_site, with_policy
from ..protected_sites import opened as reply_of
from ..protected_sites import request as request_for

PRIVATE = ["privacy.epsilon=8.0", "privacy.method=gradients", "privacy.sampling_rate=0.5",
           "privacy.steps=1", "model.attention=none"]  # fmt: skip


@pytest.fixture
def private(tiny):
    return parse_recipe(tiny.to_toml(), PRIVATE)


@pytest.fixture
def site(tmp_path):
    made = make_site(tmp_path, units=50)
    (made.home / "rows.json").write_text(json.dumps(list(range(20))))
    return Site.open(made.home)


def ask(site, recipe, kind="train", tensors=None, **changes):
    if kind == "roll_call":
        changes |= {"recipe": recipe.to_toml(), "class_names": CLASS_NAMES, "site": ""}
        changes |= {"round_": 0}
    packed = pack_all(tensors or {})
    body = request_for(recipe, kind, **changes)
    body = body.model_copy(update={"tensors": {n: t.digest() for n, t in packed.items()}})
    return answer(site.home, Incoming(seal(COORDINATOR, body), packed))


def spent(site):
    return ledger_of(site).total(1e-5)[0]


def test_a_private_round_says_nothing_of_the_pictures_but_what_is_charged(site, private):
    assert reply_of(site, ask(site, private, "roll_call")).code == "ok"
    tensors = make_learner(private, 12).tensors()
    departure = ask(site, private, tensors=tensors)
    reply = reply_of(site, departure)
    assert (reply.code, reply.examples, reply.loss, reply.scores) == ("ok", 50, None, None)
    assert set(departure.tensors) == set(tensors)
    assert 0 < spent(site) <= 8.0


def test_an_engine_that_the_site_does_not_work_with_costs_nothing(site, private):
    asked = parse_recipe(private.to_toml(), ["privacy.engine=batched"])
    assert reply_of(site, ask(site, asked, "roll_call")).code == "refused-policy"
    site = with_policy(site, privacy="required", engines=("closed-form",))
    # 'auto' is this model's loop, which is known before the first charge.
    assert reply_of(site, ask(site, private, "roll_call", run="run-2")).code == "ok"
    tensors = make_learner(private, 12).tensors()
    reply = reply_of(site, ask(site, private, tensors=tensors, run="run-2"))
    assert reply.code == "refused-policy"
    assert (spent(site), kinds(site)[-2:]) == (0, ["refused", "sent"])


@pytest.mark.parametrize("fault", ["nan", "shape", "missing", "proximal", "round"])
def test_a_request_that_does_not_fit_costs_nothing(site, private, fault):
    ask(site, private, "roll_call")
    tensors, changes = make_learner(private, 12).tensors(), {}
    name = sorted(tensors)[0]
    if fault == "nan":
        tensors[name] = tensors[name] * np.nan
    elif fault == "shape":
        tensors[name] = np.zeros(tensors[name].size + 1, np.float32)
    elif fault == "missing":
        del tensors[name]
    else:
        changes = {"proximal_mu": 0.1} if fault == "proximal" else {"round_": 3}
    reply = reply_of(site, ask(site, private, tensors=tensors, **changes))
    assert reply.code in ("refused-request", "refused-policy")
    assert spent(site) == 0
    # And the right one is answered all the same.
    good = ask(site, private, tensors=make_learner(private, 12).tensors())
    assert reply_of(site, good).code == "ok"


def test_a_model_that_couples_pictures_is_refused_and_costs_nothing(site, private):
    recipe = parse_recipe(private.to_toml(), ["model.backbone=resnet10t"])
    ask(site, recipe, "roll_call")
    reply = reply_of(site, ask(site, recipe, tensors=make_learner(recipe, 12).tensors()))
    assert reply.code == "refused-policy"
    assert "running_mean" in reply.reason
    assert spent(site) == 0


@pytest.mark.parametrize(("term", "known"), [("hierarchy", "taxonomy"), ("semantic", "attributes")])
def test_a_loss_that_asks_more_than_the_kind_of_data_says_costs_nothing(
    site, private, term, known, monkeypatch
):
    """Decided by the kind alone: nothing of the data is read for it."""
    recipe = parse_recipe(private.to_toml(), [f"loss.{term}=0.5"])
    assert reply_of(site, ask(site, recipe, "roll_call")).code == "ok"
    tensors = make_learner(recipe, 12).tensors()
    with monkeypatch.context() as patched:
        patched.setattr("fgvc_core.data.catalogue._KNOWS", {})
        patched.setattr(Workspace, "table", None)
        reply = reply_of(site, ask(site, recipe, tensors=tensors))
        assert reply.code == "refused-policy"
        assert f"loss.{term} > 0 needs the classes' {known}" in reply.reason
    assert spent(site) == 0
    assert "reserved" not in kinds(site)
    # And where the data do say it, the same request is answered, and charged.
    assert reply_of(site, ask(site, recipe, tensors=tensors)).code == "ok"
    assert spent(site) > 0
    assert "reserved" in kinds(site)


@pytest.mark.parametrize("term", ["hierarchy", "semantic"])
def test_nothing_of_the_data_is_read_before_the_cost_is_on_the_disk(
    site, private, term, monkeypatch
):
    recipe = parse_recipe(private.to_toml(), [f"loss.{term}=0.5"])
    ask(site, recipe, "roll_call")

    def gone(*_, **__):
        raise DataError("There is no such folder.")

    monkeypatch.setattr(Workspace, "table", gone)
    tensors = make_learner(recipe, 12).tensors()
    assert reply_of(site, ask(site, recipe, tensors=tensors)).code == "unavailable"
    assert spent(site) > 0


def test_no_picture_is_opened_before_the_model_is_found_fit(site, private, monkeypatch):
    recipe = parse_recipe(private.to_toml(), ["model.backbone=resnet10t"])
    ask(site, recipe, "roll_call")
    monkeypatch.setattr("fieldmark.client.stages.private.learner_and_examples", None)
    reply = reply_of(site, ask(site, recipe, tensors=make_learner(recipe, 12).tensors()))
    assert reply.code == "refused-policy"


def test_a_sites_own_protection_refuses_what_private_steps_leave_out(site, tiny):
    own = Policy(privacy="required", epsilon_cap="none", own=parse_recipe("", PRIVATE).privacy)
    site = with_policy(site, **own.model_dump())
    recipe = parse_recipe(tiny.to_toml(), ["federation.strategy=fedprox"])
    ask(site, recipe, "roll_call")
    reply = reply_of(site, ask(site, recipe, tensors=make_learner(recipe, 12).tensors()))
    assert reply.code == "refused-policy"
    assert "fedprox" in reply.reason
    assert spent(site) == 0


# --- which side of the split a unit is on -----------------------------------------------------


@dataclass
class Contents:
    """A source of pictures that are never looked at."""

    contents: list

    def picture(self, row, size=None):
        raise AssertionError(f"picture {row} was opened")

    def content_key(self, row):
        return bytes([self.contents[row]]) * 32


class Asis:
    """A learner whose examples are the table itself."""

    def examples(self, table, cache):
        return table


@dataclass
class Keyed:
    """All that a split reads of a site."""

    split_key: bytes = b"k" * 32
    rows: None = None
    cache: None = None


def table_of(pictures):
    count = len(pictures)
    return ExampleTable(
        source=Contents([content for content, _ in pictures]),
        rows=np.arange(count),
        ids=tuple(str(i) for i in range(count)),
        labels_N=np.zeros(count, dtype=np.int64),
        splits=tuple("train" for _ in range(count)),
        subjects=tuple(f"s{subject}" for _, subject in pictures),
        class_names=("a",),
    )


def sides(pictures, kind):
    """(content, subject) -> (side, unit on that side) of each picture, in order."""
    recipe = parse_recipe("", ["data.val_fraction=0.5"])
    split = split_examples(Keyed(), recipe, Asis(), table_of(pictures), kind)
    found = {}
    for side, table, units in (
        ("train", split.train, split.train_units),
        ("validation", split.validation, split.validation_units),
    ):
        assert len(table) == len(units)
        assert sorted(set(units.tolist())) == list(range(len(set(units.tolist()))))
        for name, unit in zip(table.ids, units.tolist(), strict=True):
            found[int(name)] = (side, unit)
    return [found[i] for i in range(len(pictures))]


collections = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 7)), min_size=1, max_size=16)


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(["image", "subject"]), collections)
def test_a_unit_is_on_one_side_as_a_whole(kind, pictures):
    found = sides(pictures, kind)
    for (content, subject), (side, unit) in zip(pictures, found, strict=True):
        for (other_content, other_subject), other in zip(pictures, found, strict=True):
            # Equal bytes are one unit, and so are a subject's pictures where subjects are.
            if content == other_content or (kind == "subject" and subject == other_subject):
                assert other == (side, unit)


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(["image", "subject"]), collections, st.integers(0, 15))
def test_no_units_side_depends_on_another_unit(kind, pictures, pick):
    found = sides(pictures, kind)
    gone = found[pick % len(found)]
    kept = [i for i, place in enumerate(found) if place != gone]
    if not kept:
        return
    again = sides([pictures[i] for i in kept], kind)
    assert [side for side, _ in again] == [found[i][0] for i in kept]


def test_units_that_a_third_on_the_other_side_links_are_one_unit():
    # Found on each side alone, subjects 1 and 3 would be two units that one removal takes.
    chain = [(1, 1), (1, 2), (2, 2), (2, 3)]
    assert len(set(sides(chain, "subject"))) == 1


HEADS = {
    **{"heads/weight": np.zeros((2, 12, 256), np.float32), "heads/fold": np.float32([0, -1])},
    **{name: np.ones((2, 1, 12), np.float32) for name in ("heads/scale", "heads/bias")},
}


@pytest.mark.parametrize("start", ["none", "auto"])
@pytest.mark.parametrize("phase", ["statistics", "gradients", "fold-counts", "pretrain"])
def test_what_no_plan_has_is_refused_and_nothing_is_read(site, tiny, monkeypatch, phase, start):
    """Also where the recipe has none of it and the site adds its own noise."""
    own = PrivacySettings(epsilon=8.0, method="gradients", sampling_rate=0.5, steps=1)
    site = with_policy(site, own=own, epsilon_cap=20.0)
    recipe = parse_recipe(
        tiny.to_toml(), ["model.attention=none", "model.train=head", f"train.start={start}"]
    )
    called = reply_of(site, ask(site, recipe, "roll_call"))
    assert called.code == ("ok" if start == "none" else "refused-policy")
    monkeypatch.setattr(Workspace, "table", None)
    departure = ask(site, recipe, "release", HEADS, phase=phase)
    reply = reply_of(site, departure)
    assert reply.code in ("refused-policy", "refused-request")
    assert (departure.tensors, reply.examples, reply.scores) == ({}, 0, None)
    assert (spent(site), "reserved" in kinds(site)) == (0, False)
