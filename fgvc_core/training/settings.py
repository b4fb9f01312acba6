"""Settings of ``[train]`` and ``[evaluate]``."""

from typing import Literal, Self

from pydantic import Field, model_validator

from fgvc_core.configuration import Settings


class TrainSettings(Settings):
    """Local training of one site in one round, and the learning rate over the run."""

    epochs: int = Field(1, ge=1, le=1000, description="Passes over a site's data a round.")
    pass_rounds: int = Field(
        1,
        ge=1,
        le=1000,
        description="Rounds that one pass is spread over, each with its own share of a site's "
        "examples; 1: every round is epochs passes. More: models are averaged before sites have "
        "gone far apart, for as many times the messages.",
    )
    batch_size: int = Field(32, ge=1, le=4096, description="Examples a step.")
    optimizer: Literal["adam", "adamw", "sgd"] = Field(
        "adam", description="adam, adamw or sgd; its moments start afresh each round."
    )
    lr: float = Field(1e-3, gt=0.0, le=100.0, description="Highest learning rate.")
    weight_decay: float = Field(0.0, ge=0.0, le=1.0, description="Weight decay, 0 to 1.")
    momentum: float = Field(0.9, ge=0.0, lt=1.0, description="Momentum of sgd, 0 to 1.")
    layer_decay: float = Field(
        1.0,
        gt=0.0,
        le=1.0,
        description="Each backbone stage's rate as a share of the next one's, above 0 to 1; 1: all "
        "alike.",
    )
    ema: float = Field(
        0.0,
        ge=0.0,
        lt=1.0,
        description="Decay of a moving average of the weights over a round's steps, 0 (none) to 1; "
        "the average is what a site answers.",
    )
    precision: Literal["auto", "full", "bf16"] = Field(
        "full",
        description="Of a training step: full (float32), bf16 (autocast), or auto (bf16 on a GPU "
        "that has it). Other precision, other bits: full where runs must repeat anywhere.",
    )
    schedule: Literal["constant", "one-cycle", "cyclic", "cosine"] = Field(
        "one-cycle",
        description="constant; cosine (Loshchilov and Hutter 2017, "
        "https://arxiv.org/abs/1608.03983, without restarts) after a linear "
        "warm-up; one-cycle over the whole run (Smith and Topin 2018, "
        "https://arxiv.org/abs/1708.07120); cyclic, triangular (Smith 2017, "
        "https://arxiv.org/abs/1506.01186).",
    )
    warmup: float = Field(
        0.25,
        gt=0.0,
        lt=1.0,
        description="one-cycle, cosine: share of the run in which the rate rises.",
    )
    cycle_rounds: int = Field(4, ge=1, description="cyclic: rounds from low to high and back.")
    start: Literal["none", "means", "lda", "semantic", "regression", "auto"] = Field(
        "none",
        description="The head before round 1, from class statistics that every site sends once: "
        "means (nearest class mean; counts and sums) or lda (linear discriminants of one shrunken "
        "covariance; also D x D second-order sums) or semantic (through class attributes, with the "
        "same sums as lda: also names classes that no site has a picture of). regression adds "
        "messages with summed gradients, until the head is the logistic regression of all sites' "
        "pictures. auto tries closed forms and regressions on held-out folds of every site and "
        "takes the best. The last two need model.train = 'head'. Not under [privacy]; see "
        "privacy.method = 'class-sums'.",
    )
    start_shrinkage: float = Field(
        0.1,
        gt=0.0,
        le=1.0,
        description="lda, semantic: share of the identity in the covariance, above 0 to 1.",
    )
    start_prior: float = Field(
        0.0,
        ge=0.0,
        le=1.0,
        description="lda: how far classes are taken to be as likely as their counts say, 0 (all "
        "alike, for macro-F1) to 1 (for top-1).",
    )
    start_scale: float = Field(
        1.0,
        gt=0.0,
        le=1000.0,
        description="What the start's scores are multiplied by: it changes no answer, only how "
        "sure of it the first steps of training find the head.",
    )
    start_penalty: float = Field(
        100.0,
        gt=0.0,
        le=1e9,
        description="regression: the objective is the sum of the cross-entropy over all pictures, "
        "plus half of this times the squared norm of the weights, for features of mean variance 1: "
        "scikit-learn's LogisticRegression with C = 1 / start_penalty.",
    )
    start_precision: float = Field(
        1e-4,
        ge=1e-10,
        le=0.1,
        description="regression, auto: the fit ends once the objective is expected to fall by less "
        "than this share of itself; smaller takes more messages.",
    )
    start_folds: int = Field(
        3,
        ge=2,
        le=10,
        description="auto: folds that every site deals its training pictures into; the class "
        "statistics are sent of each, so the first message grows with it.",
    )
    start_metric: Literal["top1", "macro-f1"] = Field(
        "top1", description="auto: what decides on the held-out folds, top1 or macro-f1."
    )
    clip_norm: float = Field(
        0.0, ge=0.0, description="Largest gradient norm of a step; 0 clips nothing."
    )

    @model_validator(mode="after")
    def _one_pass(self) -> Self:
        if self.pass_rounds > 1 and self.epochs > 1:
            raise ValueError(
                f"epochs = {self.epochs} passes a round and pass_rounds = {self.pass_rounds} "
                "rounds a pass contradict each other: leave one at 1"
            )
        return self


class PretrainSettings(Settings):
    """Self-supervised pretraining of the backbone, before round 1."""

    method: Literal["none", "simclr", "vicreg"] = Field(
        "none",
        description="Two random views of a picture shall have one vector. simclr (Chen et al. "
        "2020, https://arxiv.org/abs/2002.05709): and other pictures' another; vicreg (Bardes et "
        "al. 2022, https://arxiv.org/abs/2105.04906): and its entries shall vary, each on its own. "
        "Both couple the examples of a batch: not under [privacy]. Needs the extra 'pretraining'.",
    )
    rounds: int = Field(10, ge=1, le=100_000, description="Rounds, before those of training.")
    epochs: int = Field(1, ge=1, le=1000, description="Passes over a site's pictures a round.")
    batch_size: int = Field(
        64, ge=2, le=4096, description="Pictures a step; each has two views. simclr wants many."
    )
    lr: float = Field(
        1e-3, gt=0.0, le=100.0, description="Highest learning rate of Adam; cosine, with warm-up."
    )
    weight_decay: float = Field(0.0, ge=0.0, le=1.0, description="Weight decay, 0 to 1.")
    temperature: float = Field(
        0.2, gt=0.0, le=10.0, description="simclr: what similarities are divided by."
    )
    hidden: int = Field(
        256, ge=1, le=16_384, description="Width of the projector's middle; it travels, too."
    )
    projection: int = Field(
        128, ge=2, le=16_384, description="Length of the vectors that are compared."
    )
    crop: float = Field(
        0.4,
        gt=0.0,
        le=1.0,
        description="Smallest share of a picture's area that a view shows, above 0 to 1.",
    )
    rotation: float = Field(
        10.0, ge=0.0, le=180.0, description="Largest rotation of a view either way, in degrees."
    )
    color: float = Field(
        0.3,
        ge=0.0,
        le=1.0,
        description="Largest relative change of a view's brightness, contrast and saturation. "
        "What views may differ in, the backbone learns not to see: little, where color tells.",
    )
    grey: float = Field(0.0, ge=0.0, le=1.0, description="Share of views without color, 0 to 1.")


class PersonalSettings(Settings):
    """Personal models, which stay at their sites."""

    method: Literal["fine-tune", "own-sums"] = Field(
        "fine-tune",
        description="fine-tune: epochs of training from the best model (not under [privacy]). "
        "own-sums: with privacy.method = 'class-sums' each site gets the others' noisy sums and "
        "puts its own exact ones beside them; the head and its scores are internal to the site, "
        "and nothing more leaves it.",
    )

    epochs: int = Field(
        0,
        ge=0,
        le=1000,
        description="Passes over its own pictures with which each site fine-tunes the best model; "
        "the result stays there. 0: none. Not under [privacy].",
    )
    lr: float | None = Field(
        None,
        gt=0.0,
        le=100.0,
        description="Highest learning rate; cosine, with warm-up. Left out: a tenth of train.lr.",
    )

    def steps(self, train: TrainSettings) -> TrainSettings:
        """``[train]`` changed to the settings of fine-tuning."""
        lr = train.lr / 10 if self.lr is None else self.lr
        changed = {"epochs": self.epochs, "pass_rounds": 1, "lr": lr, "schedule": "cosine"}
        return train.model_copy(update=changed)


class EvaluateSettings(Settings):
    """Evaluation of the global model."""

    gone = {  # noqa: RUF012
        "zoom": (0.0, "Set model.closer, which looks closer at every picture.")
    }

    batch_size: int = Field(128, ge=1, le=8192, description="Pictures scored at once.")
    every: int = Field(
        1, ge=0, description="Score the held-out test split every n-th round; 0: only at the end."
    )
    pixel_baseline: bool = Field(
        True, description="Also fit a linear model on raw pixels, as the report's floor."
    )
    explained_pairs: int = Field(
        0,
        ge=0,
        le=6,
        description="For this many of the most confused pairs, 0 to 6, the report shows where the "
        "model saw either class (Grad-CAM; the 'explain' extra; pictures that may be shown).",
    )
    unit_price: bool = Field(
        False,
        description="In a simulation of class-sums: also say what protecting subjects costs in "
        "accuracy against protecting images, on the same split.",
    )
