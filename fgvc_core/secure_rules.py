"""Refusals of recipes with ``[secure]``: each names the setting, the reason and the replacement.

A coordinator that sees sums alone cannot weigh, compare or repeat a site's reply. What needs that
is refused here, when the recipe is read; :mod:`fgvc_core.recipe_rules` runs these checks.
"""

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
        return
    for check in (_mechanism, _strategy, _rest, _simulation):
        check(recipe)


def _mechanism(recipe: "Recipe") -> None:
    privacy = recipe.privacy
    if privacy is None:
        raise _refusal(
            "[secure] without [privacy]",
            "Sums without noise protect one round only: subtracting the sums of two rounds gives "
            "away what a site that was away has changed.",
            "Add [privacy] with method = 'class-sums', or leave [secure] out.",
        )
    if privacy.method != "class-sums":
        raise _refusal(
            f"privacy.method = '{privacy.method}'",
            "Masked sums carry class sums, and not yet the clipped gradients of a step.",
            "Set privacy.method = 'class-sums', or leave [secure] out.",
        )
    if privacy.score_share:
        raise _refusal(
            f"privacy.score_share = {privacy.score_share:g}",
            "Noisy scores of each site are a reply of its own, which masked sums do not carry yet.",
            "Set privacy.score_share = 0; the coordinator's test split scores the model.",
        )


def _strategy(recipe: "Recipe") -> None:
    federation = recipe.federation
    if federation.strategy != "fedavg" or federation.mix_nearest:
        raise _refusal(
            f"federation.strategy = '{federation.strategy}', mix_nearest = "
            f"{str(federation.mix_nearest).lower()}",
            f"{ONE_BY_ONE} It cannot choose among replies or weigh them.",
            "Leave both out.",
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
            "Leave the attack out; faults (dropout, crash, straggle) are simulated in the first of "
            "the two trips.",
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
