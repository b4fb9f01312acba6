"""A strategy, or a tracker, of another distribution: one file and an entry point."""

import numpy as np
import pytest
from foreign import importable, write_distribution

from fgvc_core.components import STRATEGIES, TRACKERS
from fgvc_core.errors import ConfigurationError
from fgvc_core.recipe import parse_recipe
from fieldmark.server.strategies import Aggregation, SoundReply, make_strategy
from fieldmark.server.tracking import Choice, check_installed, read_track
from fieldmark.server.tracking.listener import open_tracker

STRATEGY = '''
"""A step of a stated length from the model towards the mean."""
from pydantic import Field

from fgvc_core.components import STRATEGIES
from fgvc_core.configuration import Settings
from fieldmark.server.strategies import Strategy


class DampedSettings(Settings):
    step: float = Field(0.5, gt=0.0, le=1.0, description="Share of the way to the mean, 0 to 1.")


@STRATEGIES.register("damped", settings=DampedSettings)
class Damped(Strategy):
    def aggregate(self, replies, round_):
        mean = super().aggregate(replies, round_)
        step = self.setup.federation.own(DampedSettings).step
        return mean and {n: round_.model[n] + step * (a - round_.model[n]) for n, a in mean.items()}
'''
TRACKER = '''
"""Appends what it is told to a list."""
from fgvc_core.components import TRACKERS

TOLD = []


@TRACKERS.register("listed")
class Listed:
    def __init__(self, where, facts):
        TOLD.append((where, facts))

    def figures(self, round_, values):
        TOLD.append((round_, values))
'''
RECIPE = "[federation]\nstrategy = 'damped'\n[federation.damped]\nstep = 0.25\n"


@pytest.fixture
def installed(tmp_path):
    write_distribution(
        tmp_path,
        "damped-fedavg",
        {"damped_fedavg": STRATEGY, "listed_tracker": TRACKER},
        {
            "fieldmark.strategies": {"damped": "damped_fedavg"},
            "fieldmark.trackers": {"listed": "listed_tracker"},
        },
    )
    with importable(tmp_path, STRATEGIES, TRACKERS):
        yield


@pytest.mark.usefixtures("installed")
def test_a_strategy_of_another_distribution_is_named_set_and_used():
    assert "damped" in STRATEGIES.names()
    recipe = parse_recipe(RECIPE)
    assert parse_recipe(recipe.to_toml()).digest == recipe.digest
    strategy = make_strategy(recipe.federation, recipe.train)
    model = {"w": np.zeros(2, np.float32)}
    replies = [SoundReply(s, 1, {"w": np.full(2, v, np.float32)}) for s, v in (("a", 2), ("b", 6))]
    assert strategy.aggregate(iter(replies), Aggregation(1, model))["w"].tolist() == [1.0, 1.0]
    with pytest.raises(ConfigurationError, match="step"):
        parse_recipe(RECIPE, ("federation.damped.step=3",))


def test_a_strategy_that_is_not_installed_is_refused_by_name():
    with pytest.raises(ConfigurationError, match="no such strategy is installed here"):
        parse_recipe(RECIPE)


@pytest.mark.usefixtures("installed")
def test_a_tracker_of_another_distribution_is_opened_with_its_place():
    choices = read_track(["listed=https://tracker.example"])
    check_installed(choices)
    assert choices == (Choice("listed", "https://tracker.example"),)
    open_tracker(choices[0], "facts").figures(1, {"top1": 0.5})
    from listed_tracker import TOLD

    assert TOLD == [("https://tracker.example", "facts"), (1, {"top1": 0.5})]


def test_a_tracker_that_is_not_installed_is_refused_by_name():
    with pytest.raises(ConfigurationError, match="track 'listed' is none of tensorboard"):
        read_track(["listed"])
