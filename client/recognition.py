"""What a site's ``[data]`` settings read: shown by ``site join`` and ``site reading``, then kept.

Pictures and classes found, rows left out and why; settings are written only after confirmation.
Proposals for them are made in :mod:`.proposing`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fgvc_core.data.files import first_few
from fgvc_core.data.labels import NO_CLASS
from fgvc_core.errors import ConfigurationError, DataError, PolicyRefusal
from fgvc_core.words import counted
from fieldmark.client.privacy.ledger import Ledger
from fieldmark.client.proposing import recognize
from fieldmark.client.reading import EMBEDDED, SiteData, load_site_table
from fieldmark.client.site import Site, write_settings

if TYPE_CHECKING:
    from fgvc_core.recipe import Recipe


@dataclass(frozen=True)
class Understood:
    """Summary of how a site's data are read, for people at the site only; never part of a reply.

    Attributes:
        kind: How the pictures are read.
        pictures: Labeled training pictures, including those held out for validation.
        held_out: Number of them held out for validation.
        val_fraction: Fraction of units or subjects that is held out.
        other_splits: Pictures of the site's own test split and pool.
        classes: Class name -> number of labeled training pictures.
        left_out: Reason -> number of rows left out.
        examples_left_out: One phrase per reason, with the first few names.
        subjects: Number of subjects, if a column identifies them.
        how: Files and columns that are read, as set in ``[data]``.
        unused_labels: Labels in the label map that no picture has.
        strict_fault: Error that a strict reading (nothing left out) raises; empty if none.
        leaves_out: Whether a run without differential privacy also leaves out faulty pictures.
        unused: One phrase per reason for what lies below the data's folder and is not used.
    """

    kind: str
    pictures: int
    held_out: int
    val_fraction: float
    other_splits: dict[str, int]
    classes: dict[str, int]
    left_out: dict[str, int]
    examples_left_out: tuple[str, ...]
    subjects: int | None
    how: dict[str, str]
    unused_labels: tuple[str, ...]
    strict_fault: str
    leaves_out: bool
    unused: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """The summary as lines of text."""
        told = [
            f"{counted(self.pictures, 'picture')} of "
            f"{counted(len(self.classes), 'class', 'classes')}, read as '{self.kind}'"
            + (f", of {counted(self.subjects, 'subject')}" if self.subjects is not None else "")
        ]
        told += [f"{name}: {value}" for name, value in self.how.items()]
        told.append(
            f"{self.held_out} of them are kept for validation ({self.val_fraction:.0%} of the "
            "subjects, by a keyed hash); a run may set another share"
        )
        others = [f"{count} in '{split}'" for split, count in self.other_splits.items() if count]
        if others:
            told.append(f'not trained on: {", ".join(others)} (data.split = "none" changes that)')
        shown = [f"{name} {count}" for name, count in list(self.classes.items())[:12]]
        more = len(self.classes) - len(shown)
        told.append("classes: " + ", ".join(shown) + (f" and {more} more" if more > 0 else ""))
        total = sum(self.left_out.values())
        if total:
            told.append(f"{total} count as nothing:")
            told += [f"  {phrase}" for phrase in self.examples_left_out]
        else:
            told.append("nothing is left out")
        told += [f"not used: {phrase}" for phrase in self.unused]
        if self.unused_labels:
            told.append(f"labels in the map that no picture has: {first_few(self.unused_labels)}")
        if self.strict_fault and not self.leaves_out:
            told.append(
                "without differential privacy a run would answer 'unavailable' "
                f'(data.faults = "refuse"): {self.strict_fault}'
            )
        return told


def understand(
    site: "Site",
    recipe: "Recipe | None" = None,
    class_names: tuple[str, ...] = (),
    tell: Callable[[int, int], None] | None = None,
    *,
    keep: bool = False,
) -> Understood:
    """Read a site's data as ``site.toml`` says, opening every picture not yet known to be sound.

    Args:
        site: The site.
        recipe: Recipe of a run, for sizes and fractions; None for the defaults.
        class_names: Class names of the federation; empty for the site's own labels after its label
            map.
        tell: Called with (pictures opened, total).
        keep: Write down in the home what is left out (:mod:`.left_out`).

    Raises:
        FieldmarkError: if the data cannot be read at all.
    """
    from collections import Counter

    from fgvc_core.data.labels import LeftOut
    from fgvc_core.data.opened import open_each
    from fgvc_core.recipe import Recipe
    from fgvc_core.training.learner import UNREADABLE
    from fieldmark.client.left_out import keep_left_out
    from fieldmark.client.workspace import own_rows, split_table

    named = "" if recipe is None else recipe.name
    recipe = Recipe() if recipe is None else recipe
    left_out = LeftOut()
    own_data = site.settings.data
    table = load_site_table(site, recipe, class_names, left_out)
    faults = open_each(table, site.cache, tell)
    for position in faults:
        left_out.add(UNREADABLE, table.ids[position])
    if keep:
        keep_left_out(site, named, left_out, table.unused)
    sound = table.take([i for i in range(len(table)) if i not in faults])
    _, validation = split_table(site, recipe, sound)
    own = own_rows(site, sound)
    counts = own.class_counts_K().tolist()
    others = Counter(split for split in sound.splits if split != "train")
    column = own_data.subject_column
    fault = _strict_fault(site, recipe, class_names)
    if not fault and left_out.counts().get(UNREADABLE):
        fault = f"{counted(left_out.counts()[UNREADABLE], 'picture')} cannot be read"
    return Understood(
        kind=own_data.kind or EMBEDDED,
        pictures=len(own),
        held_out=len(validation),
        val_fraction=recipe.data.val_fraction,
        other_splits=dict(sorted(others.items())) if site.rows is None else {},
        classes=dict(zip(own.class_names, counts, strict=True)),
        left_out=left_out.counts(),
        examples_left_out=tuple(left_out.sentences()),
        subjects=len(set(own.subjects)) if column else None,
        how=_how(own_data, site.name),
        unused_labels=tuple(sorted(set(own_data.label_map) - left_out.labels)),
        strict_fault=fault,
        leaves_out=own_data.faults == "leave-out" or bool(site.settings.policy.demand),
        unused=tuple(table.unused.sentences()),
    )


def _strict_fault(site: Site, recipe: "Recipe", class_names: tuple[str, ...]) -> str:
    try:
        load_site_table(site, recipe, class_names)
    except DataError as error:
        return error.what
    return ""


def _how(data: SiteData, name: str) -> dict[str, str]:
    """Files and columns that are read, for display."""
    if data.kind == "folder":
        first = "class" if data.folders == "classes" else "split (train, val, test, pool)"
        return {"labels from": f"folders below '{data.path}'; the first level is the {first}"}
    if data.kind != "manifest":
        return {"labels from": f"the published files below '{data.path}'"}
    found = {
        "manifest": f"{data.path}/{data.manifest}",
        "pictures from": f"column '{data.path_column}' as '{data.path_template}'",
        "labels from": f"column '{data.label_column}'",
        "subjects from": "no column: each picture is one"
        if data.subject_column is None
        else f"column '{data.subject_column}'",
    }
    if data.split_column is not None:
        found["splits from"] = f"column '{data.split_column}'"
    if data.site_column is not None:
        found["lines where"] = f"'{data.site_column}' is '{data.site_value or name}'"
    return found


def passed_over(root: Path, reading: Mapping[str, Any]) -> list[str]:
    """Line that names tables beside the pictures that are not read, in case they hold labels."""
    if reading.get("kind") != "folder":
        return []
    tables = sorted(
        entry.name
        for entry in root.iterdir()
        if entry.suffix.casefold() in (".csv", ".tsv", ".xls", ".xlsx", ".json", ".parquet")
    )
    if not tables:
        return []
    return [f"not read: {first_few(tables)} (a CSV that lists the pictures: --manifest FILE)"]


def proposed_by(recipe: "Recipe") -> dict[str, Any]:
    """Settings that a recipe's ``[data]`` proposes; a person at the site has to confirm them."""
    shared = set(SiteData.model_fields) - {"path", "units", "pictures", "kind"}
    said = recipe.data.model_fields_set
    found = {name: getattr(recipe.data, name) for name in sorted(said & shared)}
    if found.get("folders") == "auto":
        del found["folders"]
    if "name" in said:
        found["kind"] = recipe.data.name
    return found


def label_map_of(pairs: list[str]) -> dict[str, str]:
    """Label map from ``OWN=CLASS`` strings; several labels may map to one class.

    Raises:
        ConfigurationError: if a string has no equals sign or names no class.
    """
    found = {}
    for pair in pairs:
        own, equals, target = pair.partition("=")
        if not equals or not target.strip():
            raise ConfigurationError(
                f"--map-label '{pair}' is not OWN=CLASS.",
                remedy="For instance --map-label 'Parus major=Great tit', or 'unknown=-> none' to "
                "leave pictures with that label out.",
            )
        target = target.strip()
        if target.startswith("->"):
            if target[2:].strip().casefold() != "none":
                raise ConfigurationError(
                    f"--map-label '{pair}' leads nowhere.",
                    remedy=f"What begins with '->' is '{NO_CLASS}' and nothing else.",
                )
            target = NO_CLASS
        found[own.strip()] = target
    return found


def with_reading(site: Site, said: Mapping[str, Any]) -> Site:
    """Site with changed ``[data]`` settings; the layout is recognized if it was not set before.

    Raises:
        ConfigurationError: if a setting is invalid, or the site is simulated.
    """
    if site.rows is not None:
        raise ConfigurationError(
            f"'{site.home}' is the home of a simulated site.",
            why="How its data are read is the simulation's recipe to say.",
            remedy="Change [data] of the recipe.",
        )
    own = site.settings.data
    values = own.model_dump(exclude_unset=True)
    label_map = {**own.label_map, **said.get("label_map", {})}
    values |= {**said, "label_map": label_map}
    if own.path is not None and (own.kind is None or "kind" in said):
        values = recognize(Path(own.path), {k: v for k, v in values.items() if v is not None})
    data = SiteData.read({**values, "path": own.path, "units": own.units}, "[data]")
    return replace(site, settings=site.settings.model_copy(update={"data": data}))


def save_reading(site: Site, changed: Site) -> None:
    """Write the changed ``[data]`` into ``site.toml``.

    Raises:
        PolicyRefusal: if the ledger was charged with units defined in another way.
    """
    ledger = Ledger(site.home, site.data_binding, site.name)
    ledger.check_reading(changed.settings.data.units_digest())
    before, after = site.settings.data, changed.settings.data
    unknown = any(plan.charged[1] and not plan.reading for plan in ledger.plans())
    if unknown and before.kind is not None and before.units_digest() != after.units_digest():
        raise PolicyRefusal(
            "This ledger was charged by an earlier version, which did not write down how units "
            "were told apart.",
            why="Whether the change makes other units of the pictures cannot be told.",
            remedy="Keep kind, manifest, path, subject and site columns; labels may change.",
        )
    write_settings(site.home, changed.settings)
