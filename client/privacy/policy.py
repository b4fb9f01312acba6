"""What a site allows: the ``[policy]`` section of its ``site.toml``."""

from pydantic import Field

from fgvc_core.configuration import Settings


class Policy(Settings):
    """Bounds that no coordinator and no recipe can widen."""

    max_update_mb: float = Field(
        1024.0, gt=0.0, description="Largest reply that may leave in one round, in MB (1e6 bytes)."
    )
    share_counts: bool = Field(
        True,
        description="Whether the number of training examples may leave; without it the site's "
        "update weighs as little as one example, and its scores stay too: they would tell "
        "the number.",
    )
    share_scores: bool = Field(
        True, description="Whether the scores on the site's validation split may leave."
    )
