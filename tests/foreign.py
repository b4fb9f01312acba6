"""Small distributions for tests: a module, and the entry points that name it."""

import importlib
import sys
from contextlib import contextmanager


def write_distribution(folder, name, modules, entry_points):
    """Lay a distribution out in a folder as an installer does.

    Args:
        folder: Where ``import`` is going to look.
        name: Of the distribution.
        modules: Module -> source.
        entry_points: Group -> {entry point: module}.
    """
    for module, source in modules.items():
        (folder / f"{module}.py").write_text(source)
    info = folder / f"{name.replace('-', '_')}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    lines = []
    for group, points in entry_points.items():
        lines += [f"[{group}]", *(f"{key} = {value}" for key, value in points.items())]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
    return folder


@contextmanager
def importable(folder, *registries):
    """The folder's distributions are installed inside; what they registered is forgotten after."""
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        own = {
            name
            for name, module in list(sys.modules.items())
            if str(folder) in str(getattr(module, "__file__", ""))
        }
        for registry in registries:
            for name, component in list(registry._components.items()):
                if component.make.__module__ in own:
                    del registry._components[name]
        for name in own:
            del sys.modules[name]
