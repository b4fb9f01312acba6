"""Guess where a picture lies that a table names and that is not there."""

import os
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from fgvc_core.data.file_kinds import litter

_MOST_FILES = 200_000
QUOTES = "'\"`\u2018\u2019\u201c\u201d"
"""Marks around a path that a CSV takes as part of it."""


def where_they_are(root: Path, missing: Sequence[str]) -> str:
    """A sentence that says where missing pictures seem to be; empty if nothing resembles them.

    Compared are names without folder, case, Unicode form and ending, of the first few that are
    missing.

    Args:
        root: The data root.
        missing: Paths relative to it, in any spelling.
    """
    if all(re.match("(https?|s3|gs|ftp):/", path, re.IGNORECASE) for path in missing):
        return "They are addresses: download the pictures, and list where they lie."
    wanted = {_key(path): path for path in missing[:20]}
    stems = {os.path.splitext(key)[0]: path for key, path in wanted.items()}
    seen = 0
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(n for n in folders if not litter(n) and not n.startswith("."))
        for name in sorted(names):
            seen += 1
            if not os.path.isfile(os.path.join(folder, name)):
                # A broken link or a pipe: it is there, and no picture is.
                continue
            key = _key(name)
            path = wanted.get(key) or stems.get(os.path.splitext(key)[0])
            if path is not None:
                found = os.path.relpath(os.path.join(folder, name), root)
                return _said(path, found)
        if seen > _MOST_FILES:
            break
    return ""


def _said(path: str, found: str) -> str:
    """How the path in the table and the file differ, and what to write."""
    wrote, there = path.replace("\\", "/").strip(QUOTES), found
    if wrote != path.replace("\\", "/"):
        how = "the table has quotation marks around it that a CSV does not know; take them out"
    elif unicodedata.normalize("NFC", wrote) == unicodedata.normalize("NFC", there):
        how = "they differ in their Unicode form; write it as the file's"
    elif wrote.casefold() == there.casefold():
        how = "the case differs; write it as the file's"
    elif there.casefold().endswith(f"/{wrote.casefold()}"):
        how = (
            f"it lies in another folder: set data.path_template, for instance "
            f"'{there[: -len(wrote)]}{{path}}', or data.path"
        )
    elif os.path.basename(wrote).casefold() == os.path.basename(there).casefold():
        how = "it lies in another folder: write it as the file's, relative to data.path"
    else:
        ending = os.path.splitext(there)[1]
        how = f"the ending differs: set data.path_template, for instance '{{path}}{ending}'"
    return f"For '{path}' there is '{found}': {how}."


def _key(path: str) -> str:
    name = path.replace("\\", "/").rsplit("/", 1)[-1].strip(QUOTES)
    return unicodedata.normalize("NFC", name).casefold()
