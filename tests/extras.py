"""Skips a file of tests whose optional package is not installed, without importing it.

Each worker of the suite collects every file: what a file imports above its tests, all of them pay.
"""

from importlib.util import find_spec

import pytest


def needs(package: str, reason: str) -> None:
    """Skip the calling file unless a package is installed; its tests import it themselves."""
    if find_spec(package) is None:
        pytest.skip(reason, allow_module_level=True)
