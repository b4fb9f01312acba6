"""Federated learning for fine-grained visual classification where images must stay at their sites.

    import fieldmark as fm

    recipe = fm.load_recipe("cub.toml", set={"federation.rounds": 3})
    run = fm.simulate(recipe, out="runs/a")
    model = fm.load_model("runs/a")

Importing is cheap: each name imports its dependencies on first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fgvc_core.errors import (
        ConfigurationError,
        DataError,
        FieldmarkError,
        PeerError,
        PolicyRefusal,
        RunFailed,
    )
    from fgvc_core.recipe import Recipe
    from fieldmark.library import (
        Run,
        compare,
        evaluate,
        load_model,
        load_recipe,
        load_table,
        predict,
        simulate,
    )

__all__ = [
    "ConfigurationError",
    "DataError",
    "FieldmarkError",
    "PeerError",
    "PolicyRefusal",
    "Recipe",
    "Run",
    "RunFailed",
    "compare",
    "evaluate",
    "load_model",
    "load_recipe",
    "load_table",
    "predict",
    "simulate",
]


_ROOMS = {
    "Recipe": "fgvc_core.recipe",
    "ConfigurationError": "fgvc_core.errors",
    "DataError": "fgvc_core.errors",
    "FieldmarkError": "fgvc_core.errors",
    "PeerError": "fgvc_core.errors",
    "PolicyRefusal": "fgvc_core.errors",
    "RunFailed": "fgvc_core.errors",
}


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


if not TYPE_CHECKING:
    # Hidden from type checkers, which would otherwise accept any attribute name.
    def __getattr__(name):
        if name not in __all__:
            raise AttributeError(f"module 'fieldmark' has no attribute '{name}'")
        found = getattr(import_module(_ROOMS.get(name, "fieldmark.library")), name)
        globals()[name] = found
        return found
