"""Federated averaging that takes a part of each round's step."""

from pydantic import Field

from fgvc_core.components import STRATEGIES
from fgvc_core.configuration import Settings
from fieldmark.server.strategies import Strategy


class DampedSettings(Settings):
    """The table [federation.damped] of a recipe."""

    step: float = Field(0.5, gt=0.0, le=1.0, description="Share of the way, above 0 to 1.")


@STRATEGIES.register("damped", settings=DampedSettings)
class Damped(Strategy):
    """From the round's model towards the mean of the replies, by a share of the way."""

    def aggregate(self, replies, round_):
        """The next model, by tensor name; see the base class for what is given."""
        mean = super().aggregate(replies, round_)
        step = self.setup.federation.own(DampedSettings).step
        return mean and {n: round_.model[n] + step * (a - round_.model[n]) for n, a in mean.items()}
