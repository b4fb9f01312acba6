"""Storage of announced recipes, one file per run in the home's ``runs/`` folder.

Flower keeps no persistent client state (a SuperNode's is in memory), so announcements are written
to disk. Their number and size are bounded, because a coordinator could announce runs without end;
the oldest are deleted first. A run that has been charged and is not finished is never deleted: the
site could not answer requests that it has already paid for.
"""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from fgvc_core.configuration import read_toml
from fgvc_core.errors import (
    ConfigurationError,
    DataError,
    FieldmarkError,
    PeerError,
    PolicyRefusal,
)
from fgvc_core.files import private_folder, write_durably
from fgvc_core.protocol.messages import Request
from fgvc_core.recipe import Recipe, parse_recipe
from fgvc_core.registry import OpenSettings

MAX_ANNOUNCED = 500
"""Maximum number of runs whose announcements are kept."""

MAX_ANNOUNCED_BYTES = 50_000_000
"""Maximum total size of the announcements, in bytes."""

ANNOUNCED = "announced recipe"
"""What messages call it."""

_RUN = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]{0,63}")
"""A run's name. It is an argument of commands that people copy, so it looks like no option."""


class _Announced(BaseModel):
    recipe: str
    class_names: tuple[str, ...]


@dataclass(frozen=True)
class Announcement:
    """What a person wants to know of an announced run, read without validating its recipe.

    Attributes:
        run: Id of the run.
        announced: When, in seconds since 1970.
        recipe: Name of its recipe.
        rounds: Most rounds.
    """

    run: str
    announced: float
    recipe: str
    rounds: int


def remember(
    home: Path,
    request: Request,
    unfinished: Callable[[str], bool],
    approved: Callable[[str], bool] = lambda run: False,
    decided: Callable[[str], bool] = lambda run: False,
) -> None:
    """Store an announcement; the first one of a run is final.

    Args:
        home: Home of the site.
        request: A roll call.
        unfinished: Tells whether a run has been charged here and still has releases to make.
        approved: Tells whether a person here has approved a run.
        decided: Tells whether a person here has approved or declined a run.

    Raises:
        PeerError: if the run was announced before with another recipe or other classes, was
            approved or declined and then deleted for others, or too many runs are unfinished.
        DataError: if the stored announcement is damaged.
    """
    path = announcement(home, request.run)
    held = read_announced(home, request.run)
    if held is None:
        if approved(request.run) or decided(request.run):
            # Neither its recipe nor its classes could be compared with what was decided on.
            what = "approved" if approved(request.run) else "declined"
            raise PeerError(
                f"Run '{request.run}' was {what} here, and its announcement is gone.",
                why=f"What is announced now may not be what a person has {what}.",
                remedy="Start a new run.",
            )
        private_folder(path.parent)
        values = {"recipe": request.recipe, "class_names": request.class_names}
        data = json.dumps(values).encode()
        _make_room(path.parent, len(data), unfinished)
        write_durably(path, data)
        return
    recipe, class_names = held
    if (recipe.digest, class_names) != (request.recipe_digest, request.class_names):
        raise PeerError(f"Run '{request.run}' was announced before with another recipe.")


def _make_room(folder: Path, nbytes: int, unfinished: Callable[[str], bool]) -> None:
    """Delete the oldest announcements, with everything stored for their runs, until one more fits.

    Raises:
        PeerError: if too few may be deleted.
    """
    kept = sorted(
        (found.st_mtime, found.st_size, path)
        for path in folder.glob("*.json")
        for found in [path.stat()]
    )
    number, size = len(kept) + 1, sum(held for _, held, _ in kept) + nbytes
    going = []
    for _, held, path in kept:
        if number <= MAX_ANNOUNCED and size <= MAX_ANNOUNCED_BYTES:
            break
        if not unfinished(path.stem):
            going.append(path)
            number, size = number - 1, size - held
    if number > MAX_ANNOUNCED or size > MAX_ANNOUNCED_BYTES:
        raise PeerError(
            f"This site keeps the announcements of {len(kept)} runs, and no more fit.",
            why=f"At most {MAX_ANNOUNCED} runs and {MAX_ANNOUNCED_BYTES / 1e6:g} MB are kept; "
            "runs that were charged here and are not done stay.",
            remedy="Finish the runs that were begun, or have the site remove files from its "
            "home's folder runs/ of those that never will be.",
        )
    for path in going:
        path.unlink(missing_ok=True)
        for own in folder.glob(f"{path.stem}.*"):
            shutil.rmtree(own, ignore_errors=True)


def read_announcement(request: Request) -> Recipe:
    """Recipe that a roll call carries.

    Raises:
        PeerError: if the recipe does not match its digest.
        PolicyRefusal: if it names a component that is not installed here.
        ConfigurationError: if it is not a valid recipe.
    """
    try:
        recipe = _parse(request.recipe)
    except ConfigurationError:
        _refuse_missing(read_toml(request.recipe, ANNOUNCED))
        raise
    if recipe.digest != request.recipe_digest:
        raise PeerError("The announced recipe is not the one that its digest names.")
    return recipe


def _refuse_missing(values: dict[str, Any]) -> None:
    """Refuse a recipe that names a component that this installation lacks.

    The names of installed components are not listed: they are private to the site.

    Raises:
        PolicyRefusal: naming the component, and how to install it.
    """
    for section, field in Recipe.model_fields.items():
        kind, given = field.annotation, values.get(section)
        if not (isinstance(kind, type) and issubclass(kind, OpenSettings)):
            continue
        for registry, name in kind.missing(given if isinstance(given, dict) else {}):
            raise PolicyRefusal(
                f"The recipe's {registry.noun} '{name[:64]}' is not installed at this site: it "
                f"comes with a distribution that has the entry point '{name[:64]}' in "
                f"'{registry.group}'.",
                why="A site computes with what its own people have installed, and nothing else.",
                remedy=f"Install that distribution at the site, or name another {registry.noun}.",
            )


def recall(home: Path, request: Request) -> tuple[Recipe, tuple[str, ...]]:
    """Recipe and class names of an announced run.

    Raises:
        PeerError: if the run was never announced here, or with another recipe.
    """
    held = read_announced(home, request.run)
    if held is None:
        raise PeerError(f"Run '{request.run}' was never announced to this site.")
    if held[0].digest != request.recipe_digest:
        raise PeerError(f"Run '{request.run}' was announced with another recipe.")
    return held


def read_announced(home: Path, run: str) -> tuple[Recipe, tuple[str, ...]] | None:
    """Recipe and class names of a run; None if it was not announced.

    Raises:
        PeerError: if the run's name is invalid.
        DataError: if the file is damaged.
    """
    path = announcement(home, run)
    try:
        held = _Announced.model_validate_json(path.read_bytes())
        return _parse(held.recipe), held.class_names
    except FileNotFoundError:
        return None
    except (OSError, ValidationError, ConfigurationError) as error:
        raise DataError(
            f"The announcement '{path}' cannot be read: {error}.",
            why="What this run is to do is not known.",
            remedy="Restore it from a copy, or start a new run.",
        ) from None


def last_announced(home: Path) -> tuple[str, float, Recipe] | None:
    """The last announced run: (run, seconds since 1970, recipe).

    None if there is none, or if its file is damaged; its messages are refused in that case.
    """
    found = [(path.stat().st_mtime, path.stem) for path in (home / "runs").glob("*.json")]
    if not found:
        return None
    when, run = max(found)
    try:
        held = read_announced(home, run)
    except FieldmarkError:
        return None
    return None if held is None else (run, when, held[0])


def last_announcement(home: Path) -> Announcement | None:
    """The last announced run, as :func:`last_announced`; validating a recipe imports torch."""
    found = [(path.stat().st_mtime, path) for path in (home / "runs").glob("*.json")]
    if not found:
        return None
    when, path = max(found)
    try:
        values = read_toml(_Announced.model_validate_json(path.read_bytes()).recipe, "recipe")
        name, rounds = values["name"], values["federation"]["rounds"]
    except (FieldmarkError, OSError, ValueError, LookupError, TypeError):
        return None
    if not (isinstance(name, str) and isinstance(rounds, int)):
        return None
    return Announcement(path.stem, when, name, rounds)


# A worker reads the same announcement for every site and round.
@lru_cache(maxsize=16)
def _parse(text: str) -> Recipe:
    return parse_recipe(text, where=ANNOUNCED)


def announcement(home: Path, run: str) -> Path:
    """Path of a run's announcement.

    Raises:
        PeerError: if the run's name is invalid.
    """
    if not _RUN.fullmatch(run):
        raise PeerError(f"'{run[:64]}' is no name of a run.")
    return home / "runs" / f"{run}.json"
