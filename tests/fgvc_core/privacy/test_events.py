import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fgvc_core.errors import DataError
from fgvc_core.privacy.accountant import PrivacyEvent, merge, read_events, take

events = st.lists(
    st.builds(
        PrivacyEvent,
        st.sampled_from(["centre", "class-sums", "step", "scores"]),
        st.sampled_from([0.5, 1.0, 3.25]),
        st.sampled_from([0.01, 0.5, 1.0]),
        st.integers(1, 50),
    ),
    max_size=12,
)


def releases(found):
    total = {}
    for event in found:
        key = (event.purpose, event.noise_multiplier, event.sampling_rate)
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
