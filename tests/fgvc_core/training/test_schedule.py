import math

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fgvc_core.training.loop import Stretch, make_scheduler
from fgvc_core.training.settings import TrainSettings


def rates(chosen, stretch, steps, taken, optimizer=torch.optim.SGD):
    """The rate of each of the next steps of a scheduler that stands where a round starts."""
    optimizer = optimizer([torch.nn.Parameter(torch.zeros(1))], lr=chosen.lr)
    scheduler, found = make_scheduler(optimizer, chosen, stretch, steps), []
    for _ in range(taken):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


@settings(max_examples=60, deadline=None)
@given(
    rounds=st.integers(1, 7),
    steps=st.integers(1, 9),
    schedule=st.sampled_from(["one-cycle", "cyclic", "constant", "cosine"]),
    warmup=st.sampled_from([0.05, 0.2, 0.25, 0.5, 0.9]),
    cycle_rounds=st.integers(1, 4),
)
@example(rounds=1, steps=3, schedule="one-cycle", warmup=0.25, cycle_rounds=1)
@example(rounds=1, steps=1, schedule="one-cycle", warmup=0.5, cycle_rounds=1)
def test_rounds_see_exactly_the_rates_of_one_uncut_run(
    rounds, steps, schedule, warmup, cycle_rounds
):
    chosen = TrainSettings(lr=0.3, schedule=schedule, warmup=warmup, cycle_rounds=cycle_rounds)
    uncut = rates(chosen, Stretch(1, rounds), steps, rounds * steps)
    cut = [
        rate
        for number in range(1, rounds + 1)
        for rate in rates(chosen, Stretch(number, rounds), steps, steps)
    ]
    assert cut == pytest.approx(uncut, rel=1e-12)
    assert all(0 < rate <= 0.3 * (1 + 1e-12) for rate in uncut)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 200), st.floats(0.01, 0.99))
def test_any_share_of_warmup_suits_any_number_of_steps(total, warmup):
    found = rates(TrainSettings(lr=1.0, warmup=warmup), Stretch(1, 1), total, total)
    assert all(math.isfinite(rate) and 0 < rate <= 1 for rate in found)


def test_one_cycle_rises_for_its_share_and_then_falls_almost_to_nothing():
    found = rates(TrainSettings(lr=1.0, warmup=0.25), Stretch(1, 10), 10, 100)
    top = found.index(max(found))
    assert found[0] == pytest.approx(1 / 25)
    assert max(found) == pytest.approx(1.0, rel=0.01)
    assert 22 <= top <= 27
    assert found[: top + 1] == sorted(found[: top + 1])
    assert found[top:] == sorted(found[top:], reverse=True)
    assert found[-1] < 0.01


def test_cyclic_returns_to_where_it_was_after_its_rounds():
    chosen = TrainSettings(lr=1.0, schedule="cyclic", cycle_rounds=2)
    found = rates(chosen, Stretch(1, 6), 5, 30)
    assert found[:10] == pytest.approx(found[10:20])
    assert (min(found), max(found)) == pytest.approx((0.1, 1.0))


@pytest.mark.parametrize("number", [1, 3])
def test_constant_is_constant(number):
    chosen = TrainSettings(lr=0.2, schedule="constant")
    assert rates(chosen, Stretch(number, 3), 4, 4) == [0.2] * 4


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW])
@pytest.mark.parametrize("schedule", ["one-cycle", "cyclic"])
def test_adam_sees_the_same_rates_and_keeps_its_own_momentum(kind, schedule):
    chosen = TrainSettings(lr=0.2, schedule=schedule)
    assert rates(chosen, Stretch(2, 3), 4, 4, kind) == rates(chosen, Stretch(2, 3), 4, 4)
    optimizer = kind([torch.nn.Parameter(torch.zeros(1))], lr=0.2)
    make_scheduler(optimizer, chosen, Stretch(2, 3), 4).step()
    assert optimizer.param_groups[0]["betas"] == (0.9, 0.999)


@pytest.mark.filterwarnings("error")
def test_standing_in_the_middle_of_a_run_warns_of_nothing():
    assert len(rates(TrainSettings(), Stretch(3, 4), 5, 5)) == 5
