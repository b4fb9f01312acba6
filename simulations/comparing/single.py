"""Federations of one site: what stands beside a federation that only a real run can do.

Under ``[privacy]`` a pooled model means something only with the same guarantee, so its pictures
become one site, which releases by the same mechanism at the same epsilon and delta; a site alone is
such a federation of its own. The same way serves stages that are not done outside a run.
"""

from collections.abc import Callable
from concurrent.futures import Executor

import numpy as np

from fgvc_core.recipe import Recipe
from fieldmark.simulations.comparing.others import budget
from fieldmark.simulations.planning import Simulation
from fieldmark.simulations.preparation import Setting
from fieldmark.simulations.simulate import run_dealt

FOLDER = "compared"
"""Folder of these runs inside the federation's."""

Dealt = tuple[Simulation, Setting]


def run_single(
    plan: Simulation, setting: Setting, name: str, sites: list[str], pool: Executor, workers: int
) -> Dealt:
    """Run a federation of one site that holds the pictures of some of a federation's sites.

    Args:
        plan: The federation's, with its completed recipe.
        setting: The federation's.
        name: Of the one site and of its run's folder.
        sites: All sites for the pooled model, or one.
        pool: Workers.
        workers: How many.

    Returns:
        The run that was made, and its distribution.

    Raises:
        FieldmarkError: if the run failed.
    """
    rows = {name: np.sort(np.concatenate([setting.rows[site] for site in sites]))}
    own = [setting.pool[site] for site in sites if site in setting.pool]
    spare = {name: np.sort(np.concatenate(own))} if own else {}
    single = Setting(setting.table, rows, setting.cache, spare)
    recipe = single_recipe(plan.recipe, len(setting.rows))
    run = Simulation(recipe, plan.out / FOLDER / name, quiet=True)
    run_dealt(run, single, pool, workers, _silent)
    return run, single


def single_recipe(recipe: Recipe, sites: int) -> Recipe:
    """The recipe for one site: without rules between sites and faults, with a site's budget."""
    values = recipe.model_dump(mode="json", exclude_none=True)
    federation = recipe.federation
    values["federation"] |= {
        "strategy": "fedavg",
        "mix_nearest": False,
        "fraction": 1.0,
        "rounds": budget(federation.rounds, sites, federation.fraction),
        "max_weight_share": 1.0,
    }
    values["pretrain"]["rounds"] = budget(recipe.pretrain.rounds, sites, federation.fraction)
    values["evaluate"] |= {
        "every": 0, "pixel_baseline": False, "unit_price": False, "explained_pairs": 0,
    }  # fmt: skip
    values.pop("scenario", None)
    # One site has nobody to add up with: it adds all of the noise, at the same epsilon.
    values.pop("secure", None)
    return Recipe.read(values)


_silent: Callable[[int, int], None] = lambda done, total: None  # noqa: E731
