"""Findings of ``site check`` on a site's pictures and a run's first request, as the run decides."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from fgvc_core.errors import FieldmarkError
from fgvc_core.findings import Finding
from fgvc_core.recipe import Recipe
from fgvc_core.words import counted
from fieldmark.client.deployment.dry_run import DryRun
from fieldmark.client.site import Site

if TYPE_CHECKING:
    from fieldmark.client.recognition import Understood

Rehearse = Callable[[Site, Recipe, tuple[str, ...]], DryRun]
"""Rehearses a recipe's first request with these classes."""

_REMEDY = "Set [data] path in site.toml; 'fieldmark data check' looks at every picture."


def look_at_data(
    site: Site,
    recipe: Recipe | None,
    announced: tuple[str, ...],
    tell: Callable[[int, int], None] | None,
) -> tuple[Finding, tuple[str, ...]]:
    """Open every picture; returns what was found, and the classes of the run.

    Args:
        site: The site.
        recipe: The announced recipe, or the one to check.
        announced: Announced class names; empty if no run is announced.
        tell: Called with (pictures opened, total).
    """
    wrong = _not_there(site, recipe)
    if wrong is not None:
        return wrong, announced
    # Lazy import: a site without pictures of its own needs no torch for its check.
    from fieldmark.client.recognition import understand

    named = () if recipe is None else recipe.data.classes or ()
    try:
        found = understand(site, recipe, announced or named, tell, keep=True)
    except FieldmarkError as error:
        said = Finding("data", "failed", error.what, error.remedy or _REMEDY, error.exit_code)
        return said, announced
    return _understood(site, recipe, announced, found), announced or tuple(found.classes)


def _not_there(site: Site, recipe: Recipe | None) -> Finding | None:
    """What keeps the pictures from being looked at, or makes it needless; None if nothing does."""
    path = site.settings.data.path
    if path is not None and not (Path(path).is_dir() and os.access(path, os.R_OK | os.X_OK)):
        return Finding("data", "failed", f"'{path}' cannot be read as a folder", _REMEDY, 3)
    if recipe is not None:
        return None
    if path is None:
        return Finding("data", "note", "no path is set; only embedded pictures can be used")
    if not any(Path(path).iterdir()):
        return Finding("data", "failed", f"'{path}' is empty", _REMEDY, 3)
    if site.settings.data.kind is None and site.rows is None:
        said = "data.kind in site.toml is not set: how the pictures are read is not said"
        return Finding("data", "failed", said, f"fieldmark site reading {site.home} --save", 2)
    return None


def _understood(
    site: Site, recipe: Recipe | None, announced: tuple[str, ...], found: "Understood"
) -> Finding:
    if announced and tuple(found.classes) != announced:
        said = f"its {len(found.classes)} classes are not the {len(announced)} that were announced"
        return Finding("data", "failed", said, "Map your labels in site.toml.", 3)
    if not found.pictures:
        return Finding("data", "failed", "no picture to learn from", _REMEDY, 3)
    said = (
        f"{counted(found.pictures, 'picture')} of "
        f"{counted(len(found.classes), 'class', 'classes')}, {found.held_out} of them kept "
        "for validation"
    )
    if recipe is None:
        said += "; no run is announced: a recipe's classes were not compared (--recipe FILE)"
    gone = sum(found.left_out.values())
    if found.unused:
        said += f"; not used: {' '.join(found.unused)}"
    if not gone:
        return Finding("data", "ok", said)
    said += f"; {gone} count as nothing: {'; '.join(found.examples_left_out)}"
    private = (recipe is not None and recipe.privacy is not None) or bool(
        site.settings.policy.demand
    )
    if private or site.settings.data.faults == "leave-out" or not found.strict_fault:
        remedy = "Mend them, or leave them out: the run goes on without them either way."
        return Finding("data", "note", said, remedy)
    remedy = (
        "Mend them, map their labels (data.label_map), or set data.faults = 'leave-out' in "
        "site.toml: without differential privacy this site would answer 'unavailable'."
    )
    return Finding("data", "failed", said, remedy, 3)


def first_request(
    site: Site,
    recipe: Recipe | None,
    class_names: tuple[str, ...],
    wrong: list[str],
    rehearse: Rehearse | None,
) -> Finding:
    """Whether the run's first request would be answered: its work is done, and nothing leaves.

    Args:
        site: The site.
        recipe: The recipe; None if no run is announced.
        class_names: Classes of the run.
        wrong: Names of failed checks for which the run would be refused anyway.
        rehearse: Does the work; None leaves it out.
    """
    name = "first request"
    if recipe is None:
        return Finding(name, "note", "no run is announced; --recipe FILE rehearses one")
    if wrong:
        return Finding(name, "not reached", f"not tried, because of: {', '.join(wrong)}")
    if rehearse is None:
        return Finding(name, "note", "not rehearsed")
    tried = rehearse(site, recipe, class_names)
    if tried.values is None:
        return Finding(name, "failed", tried.fault, tried.remedy, tried.exit_code)
    values = tried.values
    return Finding(
        name,
        "ok",
        f"'{values['stage']}' rehearsed in {tried.seconds:.0f} s with at most "
        f"{tried.memory_gb:.1f} GB: {values['used']} pictures used, {values['held_out']} kept for "
        f"validation, {values['left_out']} left out; its answer of "
        f"{values['answer_bytes'] / 1e6:.2g} MB went nowhere, and nothing was charged",
    )
