"""Registries of all kinds of components, with the modules that register Fieldmark's own.

A new component of Fieldmark is its file and its line here; one of another distribution is its
file and an entry point (:mod:`fgvc_core.registry`).
"""

from typing import Any

from fgvc_core.registry import Registry, Weighted


def _all_in(module: str, *names: str) -> dict[str, str]:
    return dict.fromkeys(names, module)


LOSSES: Registry[Any] = Registry("loss", "fieldmark.losses", base=Weighted)

STRATEGIES: Registry[Any] = Registry("strategy", "fieldmark.strategies")

TRACKERS: Registry[Any] = Registry("tracker", "fieldmark.trackers")
