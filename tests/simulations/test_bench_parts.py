"""The parts of the benchmarks that a wrong figure could come from."""

import numpy as np
import pytest

from fieldmark.simulations.bench import wire
from fieldmark.simulations.bench.aggregation import DISTINCT, NumpyFloor, main, write_updates
from fieldmark.simulations.bench.scale import measure


@pytest.fixture(scope="module")
def updates(tmp_path_factory):
    folder = tmp_path_factory.mktemp("updates")
    write_updates(folder, 1)
    return folder


def test_the_floor_reads_and_adds_what_the_sites_send(updates):
    floor = NumpyFloor(updates)
    for number in range(DISTINCT):
        floor.add(number)
    wanted = sum(np.load(updates / str(n) / "layer3.npy") for n in range(DISTINCT))
    np.testing.assert_allclose(floor._sum["layer3"], wanted, rtol=1e-5, atol=1e-5)
    assert floor.seconds > 0
    assert floor.hash_seconds > 0


@pytest.mark.parametrize("strategy", ["fedavg", "fedmedian"])
def test_every_stand_ins_update_is_sound_and_aggregated(updates, strategy):
    assert main("memory", strategy, 12, updates)["peak"] >= 0
    timed = main("time", strategy, 12, updates)
    assert 0 < timed["numpy"] < timed["hashed"]
    assert timed["ours"] > 0


def test_without_the_photographs_the_wire_bench_says_that_it_was_skipped(monkeypatch, tmp_path):
    monkeypatch.setenv("FIELDMARK_DATA", str(tmp_path))
    figures = wire.bench_wire()
    assert list(figures) == ["skipped"]
    assert "FIELDMARK_DATA" in figures["skipped"]["how"]


@pytest.mark.slow
def test_scale_is_measured_of_a_sampled_cohort():
    found = measure(4, 2, 2)
    assert (found["sites"], found["cohort"], len(found["memory_mb"])) == (4, 2, 2)
    assert found["round_cpu_s"] > 0
    assert 0 < found["home_kb"] < 1000
