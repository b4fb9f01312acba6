"""Registries of all kinds of components, with the modules that register Fieldmark's own.

To add a component to Fieldmark, write its file and name it here. One from another distribution is
found through its entry point (:mod:`fgvc_core.registry`).
"""

from typing import Any

from fgvc_core.registry import Registry, Weighted


def _all_in(module: str, *names: str) -> dict[str, str]:
    return dict.fromkeys(names, module)


LOSSES: Registry[Any] = Registry(
    "loss",
    "fieldmark.losses",
    {
        **_all_in("fgvc_core.losses.base", "cross-entropy"),
        **_all_in("fgvc_core.losses.metric", "triplet", "proxy"),
        **_all_in("fgvc_core.losses.classification", "hierarchy", "semantic", "diversity"),
    },
    base=Weighted,
)
"""Settings to a :class:`~fgvc_core.losses.base.Loss`. Losses are added up in this order."""

ATTENTIONS: Registry[Any] = Registry(
    "attention",
    "fieldmark.attentions",
    _all_in(
        "fgvc_core.models.attention",
        *("none", "spatial", "se", "eca", "cbam", "nonlocal", "dual"),
    ),
)
"""(channels, settings) to a module that maps (N, C, H, W) to the same shape, initially identity."""

POOLINGS: Registry[Any] = Registry(
    "pooling",
    "fieldmark.poolings",
    _all_in(
        "fgvc_core.models.pooling",
        *("avg", "max", "avgmax", "both", "moments", "gem", "bilinear", "mpncov", "parts"),
    ),
)
"""(channels, settings) to a module that maps (N, C, H, W) to vectors (N, D), D in ``out_dim``."""

HEADS: Registry[Any] = Registry(
    "head",
    "fieldmark.heads",
    _all_in(
        "fgvc_core.models.heads",
        *("linear", "cosine", "subspace", "whitened", "multilevel", "semantic"),
    ),
)
"""(features, classes, settings) to a module that maps vectors (N, D) to logits (N, K)."""

DATA_SETS: Registry[Any] = Registry(
    "data set",
    "fieldmark.data_sets",
    {
        "aircraft": "fgvc_core.data.aircraft",
        "cars": "fgvc_core.data.cars",
        "cub": "fgvc_core.data.cub",
        "fieldmarks": "fgvc_core.data.fieldmarks.source",
        "folder": "fgvc_core.data.folder",
        "coco": "fgvc_core.data.coco",
        "cvat": "fgvc_core.data.cvat",
        "inaturalist": "fgvc_core.data.coco",
        "label-studio": "fgvc_core.data.label_studio",
        "ham10000": "fgvc_core.data.ham10000",
        "manifest": "fgvc_core.data.manifest",
    },
)
"""Registered with :func:`fgvc_core.data.catalogue.dataset`."""

PARTITIONERS: Registry[Any] = Registry(
    "partitioner",
    "fieldmark.partitioners",
    _all_in(
        "fgvc_core.data.partition", *("iid", "dirichlet", "pathological", "quantity", "column")
    ),
)
"""(subjects, settings, seed) to one array of row numbers per site."""

AUGMENTATIONS: Registry[Any] = Registry(
    "augmentation",
    "fieldmark.augmentations",
    _all_in("fgvc_core.data.transforms", "trivial", "erasing"),
)
"""Settings to a function (uint8 (N, 3, S, S), torch.Generator) -> the same shape and dtype.

Its attribute ``couples_examples = True`` states that one picture changes another's view.
"""

_STRATEGIES = "fieldmark.server.strategies"

STRATEGIES: Registry[Any] = Registry(
    "strategy",
    "fieldmark.strategies",
    built_in=_all_in(f"{_STRATEGIES}.base", "fedavg", "fedprox")
    | _all_in(f"{_STRATEGIES}.optimisers", "fedavgm", "fedadam", "fedyogi", "fedadagrad")
    | _all_in(
        f"{_STRATEGIES}.robust",
        *("fedmedian", "trimmed-mean", "krum", "multi-krum", "geometric-median", "least-trimmed"),
    )
    | _all_in(f"{_STRATEGIES}.heterogeneous", "scaffold", "fednova"),
)

_TRACKING = "fieldmark.server.tracking"

TRACKERS: Registry[Any] = Registry(
    "tracker",
    "fieldmark.trackers",
    built_in={
        "tensorboard": f"{_TRACKING}.to_tensorboard",
        "mlflow": f"{_TRACKING}.to_mlflow",
        "wandb": f"{_TRACKING}.to_wandb",
    },
)
