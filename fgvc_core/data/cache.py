"""Folder of the cache of decoded and drawn pictures."""

import os
from pathlib import Path

CACHE_VARIABLE = "FIELDMARK_CACHE"


def cache_folder() -> Path:
    """``FIELDMARK_CACHE``, or ``fieldmark`` in the user's cache folder.

    See https://specifications.freedesktop.org/basedir-spec/latest/ for the latter.
    """
    named = os.environ.get(CACHE_VARIABLE)
    if named:
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fieldmark"
