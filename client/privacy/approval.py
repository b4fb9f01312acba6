"""A person at the site says yes to a run."""

import json

from client.privacy.ledger import Ledger
from client.site import Site
from client.state import announcement
from fgvc_core.errors import ConfigurationError
from fgvc_core.recipe import parse_recipe


def approve_run(site: Site, run: str) -> str:
    """Write the approval of an announced run into the ledger.

    It holds for the recipe that was announced, not for another under the same name.

    Returns:
        What was approved, in words.

    Raises:
        ConfigurationError: if no such run was announced here.
    """
    path = announcement(site.home, run)
    if not path.is_file():
        known = sorted(p.stem for p in path.parent.glob("*.json"))
        raise ConfigurationError(
            f"Run '{run}' was never announced to this site.",
            why="Only what a coordinator has announced can be approved.",
            remedy=f"Announced so far: {', '.join(known) or 'none'}.",
        )
    recipe = parse_recipe(json.loads(path.read_text(encoding="utf-8"))["recipe"])
    Ledger(site.home, site.data_binding, site.name).note(
        "approved", {"run": run, "recipe_digest": recipe.digest, "name": recipe.name}
    )
    protected = (
        "without differential privacy"
        if recipe.privacy is None
        else f"at epsilon {recipe.privacy.epsilon:g}, delta {recipe.privacy.delta:g}, "
        f"unit {recipe.privacy.unit}"
    )
    return f"approved: run {run}, recipe '{recipe.name}', {protected}"
