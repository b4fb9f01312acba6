"""Registries of all kinds of components, with the modules that register Fieldmark's own.

A new component of Fieldmark is its file and its line here; one of another distribution is its
file and an entry point (:mod:`fgvc_core.registry`).
"""

from typing import Any

from fgvc_core.registry import Registry, Weighted


def _all_in(module: str, *names: str) -> dict[str, str]:
    return dict.fromkeys(names, module)


LOSSES: Registry[Any] = Registry("loss", "fieldmark.losses", base=Weighted)

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
