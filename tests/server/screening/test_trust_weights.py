"""No site has more than its share of a round, and who is within it counts as it would."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fgvc_core.components import STRATEGIES
from fgvc_core.protocol.settings import FederationSettings
from fgvc_core.training.settings import TrainSettings
from fgvc_core.wire.arrays import TensorSpec
from fieldmark.server.screening.trust import bounded, share_among
from fieldmark.server.strategies import Aggregation, SoundReply, make_strategy


class Told:
    """Stands for the event log."""

    def __init__(self):
        self.events = []

    def emit(self, event, **fields):
        self.events.append({"event": event, **fields})


def replies(pairs):
    return [SoundReply(site, weight, {"w": np.zeros(1, np.float32)}) for site, weight in pairs]


def weighed(pairs, share=0.5):
    told = Told()
    return [(r.site, r.weight) for r in bounded(iter(replies(pairs)), share, 3, told)], told.events


def totals(pairs):
    found = Counter()
    for site, weight in pairs:
        found[site] += weight
    return found


PAIRS = st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(1, 10_000_000)), max_size=20)


@given(PAIRS, st.floats(0.5, 1.0))
def test_no_site_has_more_than_its_share_unless_it_is_alone(pairs, share):
    found = totals(weighed(pairs, share)[0])
    everything = sum(found.values())
    if len(found) > 1:
        assert max(found.values()) <= share * everything * (1 + 1e-9)
    assert set(found) == {site for site, _ in pairs}


@given(PAIRS, st.floats(0.5, 1.0))
def test_all_but_the_heaviest_site_weigh_what_they_claim(pairs, share):
    before, after = totals(pairs), totals(weighed(pairs, share)[0])
    changed = [site for site in before if after[site] != before[site]]
    assert len(changed) <= 1
    if changed:
        assert before[changed[0]] == max(before.values())


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.just(7)), max_size=20, unique=True))
def test_equal_weights_keep_their_order_so_that_the_mean_is_the_same_to_the_bit(pairs):
    assert weighed(pairs) == (pairs, [])


def test_a_claim_beyond_the_share_is_cut_and_said():
    found, events = weighed([("a", 40), ("liar", 1_000_000), ("b", 40), ("c", 40)])
    assert dict(found) == {"a": 40, "b": 40, "c": 40, "liar": 120}
    (event,) = events
    assert event == {"event": "weight_cut", "round": 3, "site": "liar", "claimed": 1_000_000,
                     "weight": 120.0, "share": 0.5}  # fmt: skip


@pytest.mark.parametrize("name", STRATEGIES.built_in)
def test_what_a_rule_ignores_is_not_said_to_be_cut(name, tmp_path):
    federation = FederationSettings(strategy=name)
    strategy = make_strategy(federation, TrainSettings(), tmp_path)
    replies = [SoundReply(f"site-{n}", w, {"w": np.full(3, n, np.float32)})
               for n, w in enumerate((1, 1, 1, 1, 50))]  # fmt: skip
    plain = [replace(reply, weight=1.0) for reply in replies]
    results = []
    for asked in (replies, plain):
        strategy = make_strategy(federation, TrainSettings(), tmp_path)
        strategy.begin({"w": TensorSpec("float32", (3,))}, 5)
        if not strategy.weighs:
            results.append(strategy.aggregate(iter(asked), Aggregation(1, {}))["w"].tobytes())
    assert strategy.weighs == (not results)
    assert not results or results[0] == results[1]
    assert share_among(5, 0.5, weighs=strategy.weighs) == (0.5 if strategy.weighs else 1.0)


@pytest.mark.parametrize(("sites", "share"), [(1, 1.0), (2, 1.0), (3, 0.5), (20, 0.5)])
def test_two_sites_weigh_what_they_hold(sites, share):
    assert share_among(sites, 0.5) == share
    found, events = weighed([("large", 900), ("small", 100)], share_among(2, 0.5))
    assert dict(found) == {"large": 900, "small": 100}
    assert events == []


def test_late_replies_of_a_site_count_towards_its_share():
    late = [("liar", 100 / 2**0.5), ("liar", 100 / 3**0.5)]
    found = totals(weighed([*late, ("a", 50), ("b", 50), ("liar", 100)])[0])
    assert found["liar"] == pytest.approx(100)
    assert (found["a"], found["b"]) == (50, 50)


def test_a_site_that_is_alone_counts():
    assert weighed([("a", 12)]) == ([("a", 12)], [])


def test_no_more_than_one_sites_replies_are_held():
    # Of twenty sites the first claims most: the others pass at once.
    pairs = [("liar", 10**6), *((f"s{n}", 10) for n in range(19))]
    asked, taken = [], []

    def stream():
        for reply in replies(pairs):
            asked.append(reply.site)
            yield reply

    for reply in bounded(stream(), 0.5, 1, Told()):
        taken.append(reply.site)
        assert len(asked) - len(taken) <= 1
    assert taken[-1] == "liar"
