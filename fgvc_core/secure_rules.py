"""Refusals of recipes with ``[secure]``: each names the setting, the reason and the replacement.

A coordinator that sees sums alone cannot weigh, compare or repeat a site's reply. What needs that
is refused here, when the recipe is read; :mod:`fgvc_core.recipe_rules` runs these checks.
"""

import math
from typing import TYPE_CHECKING

from fgvc_core.errors import ConfigurationError

if TYPE_CHECKING:
    from fgvc_core.recipe import Recipe

ONE_BY_ONE = "The coordinator sees the sum of all sites, and no single reply."


def refuse_unfit_secure(recipe: "Recipe") -> None:
    """Refuse what needs a site's own reply, and what masked sums do not carry.

    Raises:
        ConfigurationError: names the first setting that is in conflict.
    """
    if recipe.secure is None:
        if recipe.scenario is not None and recipe.scenario.silent:
            raise ConfigurationError(
                f"scenario.silent = {recipe.scenario.silent:g} never strikes without [secure].",
                why="Only masked sums have a second trip that a site can miss.",
                remedy="Leave it out, or use scenario.dropout.",
            )
        return
    for check in (_mechanism, _strategy, _rest, _simulation):
        check(recipe)


def _mechanism(recipe: "Recipe") -> None:
    """Refuse more than one private step a round: between two the coordinator is asked."""
    privacy, train = recipe.privacy, recipe.train
    if privacy is None or privacy.method != "gradients":
        return
    if privacy.steps > 1:
        raise _refusal(
            f"privacy.steps = {privacy.steps}",
            "The coordinator takes the step, from the noisy gradient that all sites add up to: one "
            "a round.",
            f"Set privacy.steps = 1, with federation.rounds = {recipe.federation.rounds} steps in "
            "all, or more rounds.",
        )
    if privacy.clipping != "fixed":
        raise _refusal(
            f"privacy.clipping = '{privacy.clipping}'",
            "The next bound follows from a noisy count of each site's own.",
            "Set privacy.clipping = 'fixed'.",
        )
    plain = {"optimizer": "sgd", "weight_decay": 0.0, "layer_decay": 1.0, "ema": 0.0}
    for name, value in plain.items():
        if getattr(train, name) != value:
            raise _refusal(
                f"train.{name} = {getattr(train, name)!r}, with privacy.method = 'gradients',",
                "The coordinator takes the step: plain gradient descent, and after it an "
                "optimizer of its own.",
                f"Set train.{name} = {value!r}; federation.strategy = 'fedavgm' or 'fedadam' keeps "
                "momentum at the coordinator.",
            )


SUMMED = ("fedavg", "fedprox", "fedavgm", "fedadam", "fedyogi", "fedadagrad")
"""Strategies that need nothing of the sites but the mean of their updates."""


def _strategy(recipe: "Recipe") -> None:
    federation = recipe.federation
    if federation.strategy not in SUMMED or federation.mix_nearest:
        raise _refusal(
            f"federation.strategy = '{federation.strategy}', mix_nearest = "
            f"{str(federation.mix_nearest).lower()}",
            f"{ONE_BY_ONE} It cannot choose among replies, and sites keep nothing between rounds.",
            f"Leave both out, or set federation.strategy to one of {', '.join(SUMMED)}.",
        )
    if federation.late == "mix":
        raise _refusal(
            "federation.late = 'mix'",
            "A part that comes after its sum was given up belongs to no other sum: its masks do "
            "not cancel there.",
            "Set federation.late = 'drop'.",
        )
    if federation.local:
        raise _refusal(
            f"federation.local = {list(federation.local)}",
            "Tensors that stay start from the round in which a site's own reply counted.",
            "Leave federation.local out.",
        )


def _rest(recipe: "Recipe") -> None:
    wire = recipe.wire
    if not wire.plain or wire.top_k or wire.down != "float32":
        raise _refusal(
            "[wire] with another encoding than float32",
            "Masked parts are whole numbers of one width, and look like chance: nothing can be "
            "left out or rounded.",
            "Leave [wire] precision, delta, top_k and down out.",
        )
    if recipe.pretrain.method != "none":
        raise _refusal(
            f"pretrain.method = '{recipe.pretrain.method}'",
            "Its updates are replies of their own.",
            "Set pretrain.method = 'none'.",
        )
    if recipe.personal.epochs:
        raise _refusal(
            f"personal.epochs = {recipe.personal.epochs}",
            "The scores of personal models are replies of their own.",
            "Set personal.epochs = 0.",
        )
    if recipe.train.start != "none":
        raise _refusal(
            f"train.start = '{recipe.train.start}'",
            "Class statistics without noise are replies of their own.",
            "Set train.start = 'none'.",
        )


def _simulation(recipe: "Recipe") -> None:
    scenario = recipe.scenario
    if scenario is not None and (scenario.attack != "none" or scenario.turns or scenario.backdoors):
        raise _refusal(
            f"scenario.attack = '{scenario.attack}'",
            "Simulated attackers change a reply, and screening judges it: behind masks neither is "
            "possible.",
            "Leave the attack out; faults are simulated: dropout, crash and straggle in the first "
            "of the two trips, silent in the second.",
        )
    if recipe.evaluate.unit_price:
        raise _refusal(
            "evaluate.unit_price = true",
            "It repeats the release with each site's own noise, and would price another run.",
            "Leave evaluate.unit_price out.",
        )


def check_sites(recipe: "Recipe", sites: int) -> None:
    """Refuse a federation that is too small or too large for the recipe's sums.

    Args:
        recipe: The recipe.
        sites: Number of sites that are asked to take part.

    Raises:
        ConfigurationError: if it has fewer than ``secure.least`` or more than ``secure.most``.
    """
    secure = recipe.secure
    if secure is None:
        return
    if sites < secure.least:
        raise ConfigurationError(
            f"secure.least = {secure.least}, and the federation has {sites} sites.",
            why="No sum could ever be opened.",
            remedy="Lower secure.least, or wait until there are more sites.",
        )
    privacy, fraction = recipe.privacy, recipe.federation.fraction
    # As the coordinator draws them, 0.07 * 100 taken for 7.
    drawn = max(1, math.ceil(fraction * sites - 1e-9))
    if drawn < secure.least and (privacy is None or privacy.method != "class-sums"):
        raise ConfigurationError(
            f"federation.fraction = {fraction:g} draws {drawn} of {sites} sites for a round, and "
            f"secure.least = {secure.least}.",
            why="No sum could ever be opened.",
            remedy="Draw more sites, or lower secure.least.",
        )
    if sites > secure.rules.most:
        raise ConfigurationError(
            f"The federation has {sites} sites, and a sum is over secure.most = "
            f"{secure.rules.most} at most (100 in any case).",
            why="Every site shares a mask with every other.",
            remedy="Ask fewer sites (federation.sites; in a simulation partition.sites), or raise "
            "secure.most where it is lower than 100. Sums of sums, for more, are not built.",
        )


def _refusal(setting: str, why: str, remedy: str) -> ConfigurationError:
    return ConfigurationError(f"{setting} does not go with [secure].", why=why, remedy=remedy)
