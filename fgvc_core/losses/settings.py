"""Settings of ``[loss]``."""

from typing import Literal

from pydantic import Field

from fgvc_core.components import LOSSES
from fgvc_core.registry import OpenSettings


class LossSettings(OpenSettings):
    """The training objective: a cross-entropy plus weighted terms."""

    added = LOSSES

    label_smoothing: float = Field(
        0.1,
        ge=0.0,
        lt=1.0,
        description="Share of each target spread evenly over all classes, 0 to 1 "
        "(Szegedy et al. 2016, section 7, https://arxiv.org/abs/1512.00567).",
    )
    balance: Literal["none", "weights", "logits"] = Field(
        "none",
        description="For classes of unequal size: weights (by the effective number of examples, "
        "Cui et al. 2019, https://arxiv.org/abs/1901.05555) or logits (adjusted in training by "
        "the log of each class's share, Menon et al. 2021, https://arxiv.org/abs/2007.07314; with "
        "label_smoothing = 0, which else asks for large logits of a site's missing classes).",
    )
    balance_beta: float = Field(
        0.999, ge=0.0, lt=1.0, description="weights: 0 (none) to below 1 (inverse counts, nearly)."
    )
    balance_strength: float = Field(
        1.0, ge=0.0, le=4.0, description="logits: what the log share is multiplied by, 0 to 4."
    )
    balance_shares: Literal["own", "all"] = Field(
        "own",
        description="logits: whose shares of the classes adjust them. own: each site's, for rounds "
        "of many steps, in which a site without a class would unlearn it. all: those over all "
        "sites (from where balance_prior has them), for rounds of a step or two, which then add "
        "up to the training of all pictures in one place.",
    )
    balance_prior: float = Field(
        0.0,
        ge=0.0,
        le=1.0,
        description="logits: how far the model takes classes to be as likely as they are over all "
        "sites, 0 (all alike, for the balanced error) to 1 (for top-1). Their shares are those of "
        "loss.class_counts, or else of the counts that train.start has released, which the "
        "coordinator then sends to every site.",
    )
    class_counts: tuple[int, ...] = Field(
        (),
        description="balance: public numbers of examples, one a class in the order of "
        "data.classes; without them each site uses its own counts (not under [privacy]).",
    )
    triplet: float = Field(
        0.0,
        ge=0.0,
        le=100.0,
        description="Weight of the batch-hard triplet loss (Hermans et al. 2017, "
        "https://arxiv.org/abs/1703.07737); couples examples; 0: none.",
    )
    triplet_margin: float = Field(
        0.2, ge=0.0, le=2.0, description="triplet: margin between unit vectors, 0 to 2."
    )
    proxy: float = Field(
        0.0,
        ge=0.0,
        le=100.0,
        description="Weight of the proxy-anchor loss (Kim et al. 2020, "
        "https://arxiv.org/abs/2003.13991) with the head's class vectors as proxies; couples "
        "examples; 0: none.",
    )
    proxy_margin: float = Field(
        0.1, ge=-1.0, le=1.0, description="proxy: margin of the cosine, -1 to 1."
    )
    proxy_alpha: float = Field(
        32.0, gt=0.0, le=256.0, description="proxy: inverse temperature, 0 to 256."
    )
    hierarchy: float = Field(
        0.0,
        ge=0.0,
        le=100.0,
        description="Weight of the cross-entropy at the taxonomy's coarser levels; 0: none.",
    )
    semantic: float = Field(
        0.0,
        ge=0.0,
        le=100.0,
        description="Weight of the cross-entropy against targets spread by the likeness of the "
        "classes' attributes; 0: none.",
    )
    semantic_temperature: float = Field(
        0.2, gt=0.0, le=10.0, description="semantic: temperature of the likeness, 0 to 10."
    )
    diversity: float = Field(
        0.0,
        ge=0.0,
        le=100.0,
        description="Weight of what keeps the maps of model.pooling = 'parts' apart; 0: none.",
    )

    @property
    def uses_released_shares(self) -> bool:
        """Whether sites need the shares of the classes over all sites from the coordinator."""
        of_all = self.balance_prior > 0 or self.balance_shares == "all"
        return of_all and not self.class_counts
