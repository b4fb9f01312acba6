"""What simulated sites declare and allow under differential privacy, and what is kept of them."""

import shutil
from pathlib import Path

from fgvc_core.files import narrow, private_folder
from fgvc_core.recipe import Recipe
from fieldmark.client.privacy.ledger import FILE
from fieldmark.client.privacy.policy import Policy
from fieldmark.simulations.preparation import Setting


def public_units(recipe: Recipe, setting: Setting) -> int:
    """The public number of units that every simulated site declares: the sites' average.

    It is the same at each, so that it says nothing about any one.
    """
    if recipe.privacy is None:
        return 0
    tables = [setting.site_table(site) for site in setting.rows]
    if recipe.privacy.unit == "subject":
        units = len({subject for table in tables for subject in table.subjects})
    else:
        units = sum(len(table) for table in tables)
    return max(round(units / len(tables)), 1)


def simulated_policy(recipe: Recipe) -> Policy:
    """The policy of a fresh simulated site."""
    privacy = recipe.privacy
    if privacy is None:
        return Policy()
    return Policy(
        privacy="required",
        unit=privacy.unit,
        delta=privacy.delta,
        epsilon_cap=privacy.simulated_cap or privacy.epsilon,
    )


def extract_ledgers(out: Path, homes: list[Path]) -> None:
    """Copy the ledgers of homes that are kept elsewhere into the run's folder."""
    for home in homes:
        target = out / "sites" / home.name
        ledger = home / FILE
        if target.resolve() == home.resolve() or not ledger.is_file():
            continue
        private_folder(target)
        shutil.copyfile(ledger, target / FILE)
        narrow(target / FILE)
