"""What a site remembers of a run between messages: the recipe that was announced.

Flower keeps no state across processes that lasts (a SuperNode's is in memory), so
the announcement is on the site's disk, one file a run.
"""

import json
import os
import re
from functools import lru_cache
from pathlib import Path

from fgvc_core.errors import PeerError
from fgvc_core.protocol.messages import Request
from fgvc_core.recipe import Recipe, parse_recipe

_RUN = re.compile(r"[A-Za-z0-9-]{1,64}")


def remember(home: Path, request: Request) -> None:
    """Keep an announcement; written aside, synced, then renamed."""
    path = announcement(home, request.run)
    path.parent.mkdir(exist_ok=True)
    aside = path.with_suffix(".part")
    with aside.open("w", encoding="utf-8") as file:
        json.dump({"recipe": request.recipe, "class_names": request.class_names}, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, path)


def recall(home: Path, request: Request) -> tuple[Recipe, tuple[str, ...]]:
    """The recipe and class names of a run.

    Raises:
        PeerError: if the run was never announced here, or under another recipe.
    """
    path = announcement(home, request.run)
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        raise PeerError(f"Run '{request.run}' was never announced to this site.") from None
    recipe = _parse(held["recipe"])
    if recipe.digest != request.recipe_digest:
        raise PeerError(f"Run '{request.run}' was announced with another recipe.")
    return recipe, tuple(held["class_names"])


# A worker reads the same announcement for each site and round.
@lru_cache(maxsize=16)
def _parse(text: str) -> Recipe:
    return parse_recipe(text, where="announced recipe")


def announcement(home: Path, run: str) -> Path:
    """Where the announcement of a run is kept.

    Raises:
        PeerError: if that is no name of a run.
    """
    if not _RUN.fullmatch(run):
        raise PeerError(f"'{run[:64]}' is no name of a run.")
    return home / "runs" / f"{run}.json"
