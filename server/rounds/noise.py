"""Noise multiplier of what the sites of a stage send, by the recipe's plan."""

from fgvc_core.privacy.planning import plan_for
from fgvc_core.protocol.stages import Stage
from fgvc_core.recipe import Recipe


def noise_of(recipe: Recipe, stage: Stage) -> float:
    """Noise multiplier of a stage in a recipe's plan; of a masked sum, of all its sites together.

    Args:
        recipe: Has ``[privacy]``.
        stage: Has a purpose that is in the plan.
    """
    privacy = recipe.privacy
    assert privacy is not None
    plan = plan_for(privacy, recipe.federation.rounds, recipe.sharers)
    return next(event.noise_multiplier for event in plan if event.purpose == stage.privacy)
