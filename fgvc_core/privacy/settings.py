"""Settings of ``[privacy]``: the guarantee for a protected unit, and the mechanism."""

from typing import Literal, Self

from pydantic import Field, model_validator

from fgvc_core.configuration import Settings

Unit = Literal["image", "subject"]
Method = Literal["class-sums", "gradients"]
Engine = Literal["auto", "batched", "loop", "closed-form", "opacus"]


class PrivacySettings(Settings):
    """Differential privacy of one run at every site; a site's policy may only be stricter."""

    gone = {  # noqa: RUF012
        "accountant": ("pld", "Leave it out: privacy loss distributions are the one accountant.")
    }

    epsilon: float = Field(
        gt=0.0, le=100.0, description="Target of this run at each site, 0 to 100; smaller is safer."
    )
    delta: float = Field(
        1e-5, gt=0.0, le=1e-2, description="Probability that the bound does not hold, 0 to 0.01."
    )
    unit: Unit = Field(
        "image",
        description="What is protected: image (byte-equal pictures are one) or subject (all "
        "pictures of one patient, lesion or animal, whatever the manifest's column says).",
    )
    method: Method = Field(
        "class-sums",
        description="class-sums: one noisy release of class sums of features (a frozen backbone); "
        "gradients: DP-SGD (Abadi et al. 2016, https://arxiv.org/abs/1607.00133).",
    )
    centre_share: float = Field(
        0.02,
        gt=0.0,
        lt=1.0,
        description="class-sums: share of the budget (of 1 / noise multiplier squared) that buys "
        "the center of the features, 0 to 1.",
    )
    scatter_share: float = Field(
        0.0,
        ge=0.0,
        lt=1.0,
        description="class-sums, with model.head = 'whitened': share of the budget that buys the "
        "scatter of the vectors, beside the center in one message, 0 to 1. 0: not released.",
    )
    count_coordinate: float = Field(
        0.1,
        gt=0.0,
        le=1.0,
        description="class-sums: the constant that rides along with each feature vector (of "
        "length at most 1) and whose sum is the noisy count, 0 to 1.",
    )
    within_spread: float = Field(
        0.6,
        gt=0.0,
        le=1.0,
        description="class-sums: expected squared distance of a vector from its class's mean, in "
        "units of its squared length, 0 to 1; the server's prior, not computed from the data.",
    )
    class_prior: Literal["uniform", "counts"] = Field(
        "uniform",
        description="class-sums: how likely each class is taken to be beforehand: all alike (what "
        "macro-F1 asks for), or by the noisy counts (what top-1 asks for where classes are "
        "unequal).",
    )
    clipping_norm: float = Field(
        1.0, gt=0.0, le=1000.0, description="gradients: largest norm of one unit's gradient."
    )
    clipping: Literal["fixed", "adaptive"] = Field(
        "fixed",
        description="gradients: fixed, or adaptive (Andrew et al. 2021, "
        "https://arxiv.org/abs/1905.03871), whose noisy counts are charged.",
    )
    clipping_quantile: float = Field(
        0.5, gt=0.0, lt=1.0, description="adaptive: share of units whose gradient is not clipped."
    )
    sampling_rate: float = Field(
        0.1,
        gt=0.0,
        le=1.0,
        description="gradients: probability that a unit is drawn for a step, 0 to 1.",
    )
    steps: int = Field(
        10, ge=1, le=100_000, description="gradients: steps a round, fixed in advance."
    )
    lr_distance: float | None = Field(
        None,
        gt=0.0,
        le=1e6,
        description="gradients, with train.optimizer = 'sgd': choose the learning rate from the "
        "noise instead of train.lr, given how far the weights have to go: about 4.5 times the "
        "root of the number of classes for a cosine head; for other models it has to be known.",
    )
    views: int = Field(
        1,
        ge=1,
        le=64,
        description="gradients: augmented views of each picture, averaged inside its unit (De et "
        "al. 2022, https://arxiv.org/abs/2204.13650), 1 to 64.",
    )
    engine: Engine = Field(
        "auto",
        description="gradients: how one unit's gradient is computed. auto: closed-form for heads "
        "on cached features, else opacus on a GPU and a loop over units on a CPU. batched takes "
        "half the loop's time, and last bits may depend on who else is drawn.",
    )
    physical_batch: int = Field(
        32,
        ge=1,
        le=65_536,
        description="gradients: most pictures (views counted) whose activations, and with opacus "
        "or batched whose gradients, are held in memory at once; it changes no result. opacus "
        "always computes so many, in one shape; batched 16 at most, fewer of a large model; "
        "closed-form holds up to 1,024 features.",
    )
    score_share: float = Field(
        0.0,
        ge=0.0,
        lt=1.0,
        description="Share of the budget that buys noisy validation scores, 0 to 1; 0: scores "
        "stay at the site.",
    )
    simulated_cap: float | None = Field(
        None,
        gt=0.0,
        description="In a simulation: the cap of epsilon in the policy of a fresh simulated site; "
        "without it this run's epsilon, under which one such run fits and no other.",
    )

    @model_validator(mode="after")
    def _one_engine_a_method(self) -> Self:
        if self.clipping == "adaptive" and self.method != "gradients":
            raise ValueError("adaptive clipping belongs to method = 'gradients'")
        if self.scatter_share and self.method != "class-sums":
            raise ValueError("scatter_share belongs to method = 'class-sums'")
        if self.centre_share + self.scatter_share >= 1:
            raise ValueError(
                f"centre_share + scatter_share = {self.centre_share + self.scatter_share:g} "
                "leaves nothing for the class sums"
            )
        return self


PIECE = 16
"""Pictures of one pass. Of a tensor whose length is no multiple of twice a processor's vectors, the
last values are computed by other instructions, which round exp and its like differently: with 16
pictures no picture's values are among them, on processors of today and but for odd shapes."""

GRADIENT_BYTES = 1 << 28
"""Most memory for gradients by unit; a large model takes fewer pictures at once."""


def batched_pictures(trained: int, physical_batch: int) -> int:
    """Pictures of one pass of the batched engine, 1 to :data:`PIECE`.

    Args:
        trained: Number of trained values, which decides how many gradients fit.
        physical_batch: The most that the recipe allows.
    """
    return max(1, min(physical_batch, PIECE, GRADIENT_BYTES // (8 * max(trained, 1))))
