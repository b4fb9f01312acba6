import ast
import math
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

import fgvc_core.privacy
from fgvc_core.privacy import noise, sampling
from fgvc_core.privacy.sampling import draw_units, fresh_seed, random_bits
from fgvc_core.training import private

NEVER = 1e-9


def both_tails(successes, trials, rate):
    return stats.binomtest(int(successes), trials, rate).pvalue


@pytest.mark.parametrize("rate", [0.5, 0.1, 1 / 3, 0.003, 1e-5])
def test_each_unit_is_drawn_at_the_rate(rate):
    units, draws = 20_000, 40
    drawn = sum(len(draw_units(units, rate)) for _ in range(draws))
    assert both_tails(drawn, units * draws, rate) > NEVER


def test_units_are_drawn_independently_of_each_other_and_of_the_last_step():
    units, draws = 300, 4000
    taken = np.zeros((draws, units), dtype=bool)
    for row in taken:
        row[draw_units(units, 0.3)] = True
    # How many are drawn varies as a binomial does: a fixed batch size would not.
    sizes = taken.sum(axis=1)
    variance = units * 0.3 * 0.7
    assert abs(sizes.var() / variance - 1) < stats.norm.isf(NEVER) * math.sqrt(2 / draws)
    for one, other in ((taken[:, :-1], taken[:, 1:]), (taken[:-1], taken[1:])):
        assert both_tails((one & other).sum(), one.size, 0.09) > NEVER


@pytest.mark.parametrize("rate", [2.0**-70, 0.5 + 2.0**-53, 1 - 2.0**-53, 1e-18])
def test_every_bit_of_the_rate_counts(rate, monkeypatch):
    # The two words at which a draw turns: all 128 bits just below the rate, and the rate itself.
    border = int(rate * 2.0**64) * 2**64 + int((rate * 2.0**64 % 1) * 2.0**64)
    for words, expected in ((border - 1, [0]), (border, [])):
        halves = iter(divmod(words, 1 << 64))
        monkeypatch.setattr(
            sampling, "random_bits", lambda n, kind, h=halves: np.array([next(h)], dtype=kind)
        )
        assert draw_units(1, rate).tolist() == expected


def test_a_rate_of_one_draws_everyone_and_nobody_is_drawn_of_none():
    assert draw_units(5, 1.0).tolist() == [0, 1, 2, 3, 4]
    assert draw_units(0, 0.5).tolist() == []
    assert draw_units(0, 1.0).tolist() == []


def test_seeding_every_generator_changes_no_draw(monkeypatch):
    import random

    import torch

    def all_draws():
        random.seed(0)
        np.random.seed(0)
        torch.manual_seed(0)
        return (
            draw_units(200, 0.5).tolist(),
            noise.discrete_gaussian(20, 1).tolist(),
            fresh_seed(),
            random_bits(4, np.uint64).tolist(),
        )

    one, other = all_draws(), all_draws()
    assert all(a != b for a, b in zip(one, other, strict=True))


def test_nothing_of_the_mechanism_takes_a_seed():
    files = [*Path(fgvc_core.privacy.__file__).parent.glob("*.py"), Path(private.__file__)]
    assert len(files) > 10
    for file in files:
        tree = ast.parse(file.read_text(encoding="utf-8"))
        imported = {
            alias.name
            for node in ast.walk(tree)
            if isinstance(node, ast.Import | ast.ImportFrom)
            for alias in node.names
        } | {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
        assert not imported & {"random", "fgvc_core.seeds", "derive_seed", "Generator"}, file
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                names = {a.arg for a in [*node.args.args, *node.args.kwonlyargs]}
                assert not any("seed" in n or n in ("rng", "generator") for n in names), file
            if isinstance(node, ast.Call):
                name = ast.unparse(node.func)
                if "manual_seed" in name:
                    # Views and dropout alone, and with the operating system's own number.
                    assert [ast.unparse(a) for a in node.args] == ["fresh_seed()"], file
                assert "default_rng" not in name, file
                assert not name.endswith((".rand", ".randn", ".normal", ".random")), file


def test_no_draw_is_logged():
    for module in (sampling, noise, private):
        source = Path(module.__file__).read_text(encoding="utf-8")
        assert "logging" not in source
        assert "print(" not in source
