"""Folder of the cache of decoded and drawn pictures."""

import os
from pathlib import Path

from fgvc_core.files import user_home

CACHE_VARIABLE = "FIELDMARK_CACHE"


def cache_folder() -> Path:
    """``FIELDMARK_CACHE``, or ``fieldmark`` in the user's cache folder.

    See https://specifications.freedesktop.org/basedir-spec/latest/ for the latter.
    """
    named = os.environ.get(CACHE_VARIABLE)
    if named:
        return Path(named)
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared) if shared else user_home(CACHE_VARIABLE) / ".cache") / "fieldmark"
