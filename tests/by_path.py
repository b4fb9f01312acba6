"""Modules that are in no package: scripts of the repository, loaded by their path."""

import importlib.util


def module_at(path):
    """The module of a file."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
