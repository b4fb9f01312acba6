"""What was left out of a site's data, as it was last read: for the site's people, in its home.

Names and numbers of pictures are private: the file has mode 0600, and nothing of it leaves.
"""

import logging
import time
from pathlib import Path
from typing import Any

from fgvc_core.data.labels import LeftOut
from fgvc_core.data.unused import Unused
from fgvc_core.files import private_folder, read_json, replace_private_json
from fieldmark.client.site import Site

FILE = "left-out.json"
NAMES_KEPT = 10
"""First names kept for each reason."""


def keep_left_out(site: Site, recipe: str, left_out: LeftOut, unused: Unused) -> None:
    """Write down what a reading of the site's data has left out; nothing for a simulated site.

    Must not raise: what a site answers never depends on this file.

    Args:
        site: The site.
        recipe: Name of the recipe that the data were read for.
        left_out: Rows that count as nothing.
        unused: What lies below the data's folder and is not used.
    """
    if site.rows is not None:
        return
    names = left_out.names
    found = {
        "time": round(time.time(), 1),
        "recipe": recipe,
        "left_out": [
            {"reason": reason, "count": count, "names": _plain(names[reason])}
            for reason, count in left_out.counts().items()
        ],
        "unused": [
            {"reason": reason, "count": count, "names": _plain(unused.names[reason])}
            for reason, count in unused.counts().items()
        ],
    }
    try:
        replace_private_json(private_folder(site.home / "state") / FILE, found)
    except OSError as error:
        log = logging.getLogger(f"fieldmark.site.{site.home}")
        log.warning("state/%s cannot be written: %s", FILE, error.strerror)


def read_left_out(home: Path) -> dict[str, Any] | None:
    """What :func:`keep_left_out` has written last; None if nothing was read yet."""
    found = read_json(home / "state" / FILE)
    return found if isinstance(found, dict) and "left_out" in found else None


def _plain(names: list[str]) -> list[str]:
    # A file name may contain bytes that are not UTF-8.
    return [name.encode("utf-8", "backslashreplace").decode()[:300] for name in names[:NAMES_KEPT]]
