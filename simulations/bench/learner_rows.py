"""The rows of the learner ablation: one changed part each, and the row to compare with.

A new part is one entry of ``ROWS``. If a part needs its own setup (few labels, classes that no site
has), the setup is a row, too, and the part is compared with it.
"""

from dataclasses import dataclass

PLAIN = "plain"
FEW = "few-labels"


@dataclass(frozen=True)
class Row:
    """One run of the ablation.

    Attributes:
        what: Description.
        sets: Changes to ``simulations/recipes/learner.toml``.
        against: The row to compare with; None: this row is itself a reference.
        score: Path of its score in a run's metrics.
    """

    what: str
    sets: tuple[str, ...] = ()
    against: str | None = PLAIN
    score: tuple[str, ...] = ("top1",)


_FEW = ("data.fieldmarks_train=150", "data.fieldmarks_pool=1350")
_SMALL = ("model.pooling_channels=32",)

ROWS: dict[str, Row] = {
    PLAIN: Row("no attention, maximum pooling, cross-entropy", against=None),
    "attention-spatial": Row("spatial attention", ("model.attention=spatial",)),
    "attention-se": Row("squeeze-and-excitation", ("model.attention=se",)),
    "attention-eca": Row("ECA behind the last map", ("model.attention=eca",)),
    "attention-cbam": Row("channels, then positions", ("model.attention=cbam",)),
    "attention-nonlocal": Row("positions that resemble each other", ("model.attention=nonlocal",)),
    "attention-dual": Row("nonlocal, and channels likewise", ("model.attention=dual",)),
    "pooling-avg": Row("mean instead of maximum", ("model.pooling=avg",)),
    "pooling-both": Row("mean and maximum", ("model.pooling=both",)),
    "pooling-gem": Row("generalised mean", ("model.pooling=gem",)),
    "pooling-bilinear": Row("pairs of 32 channels", ("model.pooling=bilinear", *_SMALL)),
    "pooling-mpncov": Row("their matrix square root", ("model.pooling=mpncov", *_SMALL)),
    "pooling-parts": Row("four learned parts, not kept apart", ("model.pooling=parts",)),
    "parts": Row(
        "four learned parts, kept apart with weight 0.5",
        ("model.pooling=parts", "loss.diversity=0.5"),
    ),
    "transformer": Row("spatial transformer", ("model.spatial_transformer=true",)),
    "head-cosine": Row("cosine head", ("model.head=cosine",)),
    "head-multilevel": Row("a part for each level of the taxonomy", ("model.head=multilevel",)),
    "levels": Row("the same, with loss.hierarchy", ("model.head=multilevel", "loss.hierarchy=0.5")),
    "head-semantic": Row("classes by their attributes", ("model.head=semantic",)),
    "triplet": Row("batch-hard triplets, weight 0.5", ("loss.triplet=0.5",)),
    "proxy": Row("proxy anchors, weight 0.1", ("loss.proxy=0.1",)),
    "hierarchy": Row("families and orders, weight 0.5", ("loss.hierarchy=0.5",)),
    "semantic": Row("targets from attributes, weight 0.5", ("loss.semantic=0.5",)),
    "no-smoothing": Row("no label smoothing", ("loss.label_smoothing=0",)),
    "mixup": Row("half of the batches mixed", ("augment.mix=mixup",)),
    "cutmix": Row("half of the batches pasted", ("augment.mix=cutmix",)),
    "no-augmentation": Row(
        "no random views at all",
        ("augment.rotation=0", "augment.zoom=0", "augment.flip=false", "augment.color=0"),
    ),
    "erasing": Row("a rectangle erased in a quarter", ("augment.erasing=0.25",)),
    "trivial": Row("TrivialAugment", ("augment.trivial=true",)),
    "closer": Row("a closer look at each picture", ("model.closer=1.5",)),
    "ema": Row("moving average of the weights, 0.9", ("train.ema=0.9",)),
    "cosine-schedule": Row("cosine instead of one cycle", ("train.schedule=cosine",)),
    "layer-decay": Row("rates by depth, 0.8 a stage", ("train.layer_decay=0.8",)),
    FEW: Row("150 labeled pictures, 1,350 without", _FEW, against=None),
    "simclr": Row("learnt from without labels first", (*_FEW, "pretrain.method=simclr"), FEW),
    "vicreg": Row("the same, without negatives", (*_FEW, "pretrain.method=vicreg"), FEW),
}
