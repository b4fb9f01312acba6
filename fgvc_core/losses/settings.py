"""Settings of ``[loss]``."""

from pydantic import Field

from fgvc_core.configuration import Settings


class LossSettings(Settings):
    """The training objective."""

    label_smoothing: float = Field(
        0.1,
        ge=0.0,
        lt=1.0,
        description="Share of each target spread evenly over all classes, 0 to 1 "
        "(Szegedy et al. 2016, section 7, https://arxiv.org/abs/1512.00567).",
    )
