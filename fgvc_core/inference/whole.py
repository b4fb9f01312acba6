"""Whether a checkpoint holds a whole model."""

from fgvc_core.errors import ConfigurationError
from fgvc_core.recipe import Recipe


def refuse_partial(recipe: Recipe) -> None:
    """Refuse a checkpoint some of whose tensors stayed at the sites.

    Raises:
        ConfigurationError: naming which.
    """
    if recipe.federation.local:
        raise ConfigurationError(
            f"The checkpoint holds no whole model: {list(recipe.federation.local)} stayed at the "
            "sites (federation.local).",
            why="In their place are the tensors that training began with.",
            remedy="Use the model at a site, with its own tensors.",
        )
