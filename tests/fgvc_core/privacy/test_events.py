import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fgvc_core.errors import DataError
from fgvc_core.privacy.accountant import PrivacyEvent, alone, merge, read_events, take

events = st.lists(
    st.builds(
        PrivacyEvent,
        st.sampled_from(["centre", "class-sums", "step", "scores"]),
        st.sampled_from([0.5, 1.0, 3.25]),
        st.sampled_from([0.01, 0.5, 1.0]),
        st.integers(1, 50),
        st.sampled_from([1, 2, 98]),
    ),
    max_size=12,
)


def releases(found):
    total = {}
    for event in found:
        key = (event.purpose, event.noise_multiplier, event.sampling_rate, event.sharers)
        total[key] = total.get(key, 0) + event.count
    return total


@given(events)
def test_merging_loses_no_release_and_has_one_order(found):
    merged = merge(found)
    assert releases(merged) == releases(found)
    assert len(merged) == len(releases(found))
    assert merge(reversed(found)) == merged
    assert merge(merged) == merged


@given(events)
def test_events_come_back_from_plain_values(found):
    assert read_events([event.as_json() for event in found]) == tuple(found)


def test_shared_noise_is_told_only_where_it_is_shared():
    """Ledgers of versions that knew no other stay readable, and this version's by those."""
    own = PrivacyEvent("class-sums", 2.0)
    assert "sharers" not in own.as_json()
    assert own.alone is own
    shared = PrivacyEvent("class-sums", 2.0, sharers=4)
    assert shared.as_json() == {**own.as_json(), "sharers": 4}
    assert shared.alone == PrivacyEvent("class-sums", 1.0)
    assert merge([own, shared]) == (own, shared)
    assert alone([own, shared]) == (PrivacyEvent("class-sums", 1.0), own)


def test_a_sampled_release_with_too_little_noise_of_its_own_promises_nothing():
    step = PrivacyEvent("step", 0.94, 0.05, 100, sharers=24)
    assert step.alone.noise_multiplier < 0.2
    assert alone([step]) is None
    assert alone([PrivacyEvent("step", 0.94, 1.0, 100, sharers=24)]) is not None
    assert alone([PrivacyEvent("step", 0.94, 0.05, 100, sharers=20)]) is not None


def test_take_keeps_all_but_the_count():
    assert take(PrivacyEvent("step", 2.0, 0.1, 100), 4) == PrivacyEvent("step", 2.0, 0.1, 4)


@pytest.mark.parametrize(
    "wrong",
    [
        {"purpose": "step", "noise_multiplier": 0.0},
        {"purpose": "step", "noise_multiplier": -1.0},
        {"purpose": "step", "noise_multiplier": math.inf},
        {"purpose": "step", "noise_multiplier": math.nan},
        {"purpose": "step", "noise_multiplier": 1.0, "sampling_rate": 0.0},
        {"purpose": "step", "noise_multiplier": 1.0, "sampling_rate": 1.5},
        {"purpose": "step", "noise_multiplier": 1.0, "count": 0},
        {"purpose": "step", "noise_multiplier": 1.0, "sharers": 0},
        {"purpose": "step", "noise_multiplier": 1.0, "sharers": 101},
        {"purpose": "step", "noise_multiplier": 1.0, "sharers": 2.0},
        {"purpose": "step", "noise_multiplier": 1.0, "count": 2.0},
        {"purpose": "step", "noise_multiplier": 1.0, "count": True},
        {"purpose": "step", "noise_multiplier": 1.0, "count": 10**12},
        {"purpose": "step", "noise_multiplier": 0.01, "sampling_rate": 0.1},
        {"purpose": "step", "noise_multiplier": "1"},
        {"purpose": "step"},
        {"noise_multiplier": 1.0, "extra": 1},
    ],
)
def test_what_cannot_be_an_event_is_refused(wrong):
    with pytest.raises(DataError, match="no privacy event"):
        read_events([wrong])
