"""How a site's pictures are read: the ``[data]`` section of its ``site.toml``.

A recipe sets class names, image size and fractions. The site alone says which files are pictures,
which column holds the label and what a subject is: a recipe that could choose a column could read
any column. Simulated sites are the exception: the recipe describes their data.
"""

import hashlib
import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, field_validator, model_validator

from fgvc_core.configuration import Settings, leads_out
from fgvc_core.data.labels import NO_CLASS
from fgvc_core.data.settings import DataSettings
from fgvc_core.errors import ConfigurationError, PeerError, PolicyRefusal

if TYPE_CHECKING:
    from fgvc_core.data.labels import LeftOut
    from fgvc_core.data.table import ExampleTable, Split
    from fgvc_core.recipe import Recipe
    from fieldmark.client.site import Site

EMBEDDED = "fieldmarks"
"""Kind of the synthetic data set that is generated from a seed, without any files."""

_UNITS = (
    "kind",
    "manifest",
    "path_column",
    "path_template",
    "subject_column",
    "site_column",
    "site_value",
)
"""Settings that decide which pictures exist and which of them form one unit."""


class SiteData(Settings):
    """Location of a site's pictures, and how they are read."""

    path: str | None = Field(None, description="Root of the data set on this machine.")
    units: int = Field(
        0,
        ge=0,
        description="The public number of protected units: about how many images or subjects this "
        "site says that it holds. Noise, sampling rate and weight are computed from it; the "
        "true number never leaves. 0: not declared, no part in a run with privacy.",
    )
    pictures: int = Field(
        0, ge=0, description="The public number of pictures; 0: as many as units."
    )
    kind: str | None = Field(
        None,
        description="How the pictures are read: aircraft, cars, coco, cub, cvat, folder, ham10000, "
        "inaturalist, label-studio, manifest, an installed part's name, or fieldmarks (the "
        "embedded ones). 'fieldmark site join' fills it in.",
    )
    manifest: str = Field(
        "manifest.csv", description="For manifest: the CSV's path, relative to path."
    )
    path_column: str = Field("path", description="For manifest: the column of picture paths.")
    path_template: str = Field(
        "{path}",
        description="For manifest: how a value of path_column becomes a path relative to path, for "
        "instance 'images/{path}.jpg'.",
    )
    label_column: str = Field("label", description="For manifest: the column of labels.")
    subject_column: str | None = Field(
        None,
        description="For manifest: the column that says which subject (patient, lesion, animal) "
        "a picture shows. Required for runs whose unit is the subject.",
    )
    split_column: str | None = Field(
        None, description="For manifest: the column that says train, test or pool."
    )
    site_column: str | None = Field(
        None,
        description="For a manifest of several sites: the column that says whose a picture is.",
    )
    site_value: str | None = Field(
        None, description="This site's value in site_column; by default its name."
    )
    level: Literal["variant", "family", "manufacturer"] = Field(
        "variant", description="For aircraft: what a class is."
    )
    split: Literal["own", "none"] = Field(
        "own",
        description="own: folders, column or lists that say train, test and pool are followed "
        "where the data have such; pictures of the test split are left out of training. none: "
        "every labeled picture is trained on.",
    )
    folders: Literal["classes", "splits"] = Field(
        "classes",
        description="For folder: whether the folders directly below path are classes or splits "
        "(train, val, test, pool).",
    )
    follow_links: bool = Field(
        False,
        description="Follow links that lead out of path, for instance to another disk. Only for "
        "trees that this site made itself: a link may lead to any file of the machine.",
    )
    max_left_out: float = Field(
        0.01,
        ge=0.0,
        le=1.0,
        description="Largest share of the pictures below path that may be lost (not listable, in a "
        "format that is not read, behind a link that leads out, in no class folder), 0 to 1. More, "
        "or a whole class, counts as a fault in a run without differential privacy.",
    )
    boxes: str | None = Field(
        None,
        description="For runs that cut subjects out (data.crop = 'box' in the recipe): a JSON of "
        "boxes relative to path, as MegaDetector or COCO write it.",
    )
    box_confidence: float = Field(
        0.2, ge=0.0, le=1.0, description="Least confidence of a detection in boxes, 0 to 1."
    )
    box_category: str | None = Field(
        None, description="The only category of boxes to take, for instance 'animal'."
    )
    label_map: dict[str, str] = Field(
        default_factory=dict,
        description="This site's own label -> the federation's class name; several may lead to "
        "one; '-> none' leaves pictures with that label out.",
    )
    faults: Literal["refuse", "leave-out"] = Field(
        "refuse",
        description="What a picture that cannot be used (damaged, unknown label, no subject) "
        "does to a run without differential privacy: refuse: the site answers 'unavailable'; "
        "leave-out: the picture counts as nothing. Under differential privacy it always counts "
        "as nothing. Either way site.log and 'site check' say how many.",
    )

    @model_validator(mode="before")
    @classmethod
    def _as_many(cls, values: Any) -> Any:
        if isinstance(values, dict) and not values.get("pictures"):
            return {**values, "pictures": values.get("units", 0)}
        return values

    @field_validator("path_template")
    @classmethod
    def _has_place(cls, value: str) -> str:
        if value.count("{path}") != 1:
            raise ValueError("it must hold '{path}' once, for instance 'images/{path}.jpg'")
        return value

    @field_validator("manifest", "path_template", "boxes")
    @classmethod
    def _stays_inside(cls, value: str | None) -> str | None:
        if value is not None and leads_out(value):
            raise ValueError("it must be a path inside data.path, without '..'")
        return value

    @field_validator("label_map")
    @classmethod
    def _leads_somewhere(cls, value: dict[str, str]) -> dict[str, str]:
        for target in value.values():
            # A misspelled '-> none' would otherwise become a class of that name.
            if not target.strip() or (target.strip().startswith("->") and target != NO_CLASS):
                raise ValueError(f"a label leads to a class name, or to '{NO_CLASS}' as it is here")
        return value

    def units_digest(self) -> str:
        """SHA-256 (hex) of the settings that decide which pictures exist and what a unit is.

        Label settings are excluded: they do not change units.
        """
        values = {name: getattr(self, name) for name in _UNITS}
        if self.follow_links:
            # Only then, so that ledgers charged before this setting existed stay valid.
            values["follow_links"] = True
        return _digest(values)


def units_digest(site: "Site", recipe: "Recipe") -> str:
    """SHA-256 (hex) of how this site defines units; see :meth:`SiteData.units_digest`."""
    if site.rows is None:
        return site.settings.data.units_digest()
    data, own = recipe.data, site.settings.data
    values = {
        "kind": data.name,
        "manifest": data.manifest,
        "path_column": data.path_column,
        "path_template": data.path_template,
        "subject_column": own.subject_column or data.subject_column,
    }
    return _digest(values)


def subject_column(site: "Site", recipe: "Recipe") -> str | None:
    """Column of subject ids; None if there is none."""
    own = site.settings.data
    kind = own.kind if site.rows is None else recipe.data.name
    if kind == "ham10000":
        return "lesion_id"
    return own.subject_column or (None if site.rows is None else recipe.data.subject_column)


def kind_of(site: "Site", recipe: "Recipe") -> str:
    """Kind of this site's data.

    Raises:
        PolicyRefusal: if the site has pictures and ``data.kind`` is not set.
    """
    own = site.settings.data
    if site.rows is not None:
        return recipe.data.name
    if own.kind is None and own.path is None:
        return EMBEDDED
    if own.kind is None:
        raise PolicyRefusal(
            "data.kind in site.toml is not set: this site does not say how its pictures are read.",
            why="A recipe that said it could choose which files and columns are read.",
            remedy="Look at what is recognized and keep it: "
            f"fieldmark site reading {site.home} --save",
        )
    return own.kind


def data_settings(site: "Site", recipe: "Recipe", class_names: tuple[str, ...]) -> DataSettings:
    """Settings with which this site's table is read for a run.

    Args:
        site: The site.
        recipe: Sets sizes, and the fraction of subjects held out for validation.
        class_names: Class names of the federation, in label order; empty for the labels that occur.

    Raises:
        PolicyRefusal: if the site does not say how its pictures are read.
        ConfigurationError: if the kind of data needs a folder and none is set.
    """
    own, kind = site.settings.data, kind_of(site, recipe)
    if site.rows is not None or kind == EMBEDDED:
        changes: dict[str, Any] = {"path": own.path, "name": kind}
        if own.subject_column is not None:
            changes["subject_column"] = own.subject_column
        return recipe.data.model_copy(update=changes)
    if own.path is None:
        raise ConfigurationError(
            f"data.path in site.toml is not set, and data of kind '{kind}' are in a folder.",
            remedy="Set [data] path in site.toml.",
        )
    same = (
        "path",
        "manifest",
        "path_column",
        "path_template",
        "label_column",
        "subject_column",
        "split_column",
        "level",
        "folders",
        "label_map",
        "site_column",
        "follow_links",
        "max_left_out",
        "boxes",
        "box_confidence",
        "box_category",
    )
    whose = own.site_value or site.name
    return DataSettings(
        name=kind,
        classes=class_names or None,
        image_size=recipe.data.image_size,
        val_fraction=recipe.data.val_fraction,
        # How a subject is shown to the model is the recipe's, where its boxes are is the site's.
        crop=recipe.data.crop,
        crop_margin=recipe.data.crop_margin,
        depth=recipe.data.depth,
        depth_bits=recipe.data.depth_bits,
        depth_window=recipe.data.depth_window,
        frame=recipe.data.frame,
        # Only simulations hold out a test split for the coordinator.
        test_fraction=0.0,
        site_value=whose if own.site_column is not None else None,
        **{name: getattr(own, name) for name in same},
    )


def check_class_names(class_names: tuple[str, ...]) -> None:
    """Validate the announced class names, before anything is charged.

    Raises:
        PeerError: if there are none, a name occurs twice, is empty, or starts with ``->``.
    """
    wrong = ""
    if not class_names:
        wrong = "names no classes"
    elif len(set(class_names)) != len(class_names):
        wrong = "names a class twice"
    elif any(not name.strip() or name.strip().startswith("->") for name in class_names):
        wrong = "has a class without a name, or one that begins with '->'"
    if wrong:
        raise PeerError(f"The announced run {wrong}.", why="No label could be told from another.")


def check_knowledge(site: "Site", recipe: "Recipe") -> None:
    """Check that data of this site's kind provide what the run's loss needs about the classes.

    Decided by the kind alone; no data are read.

    Raises:
        PolicyRefusal: if they do not.
    """
    from fgvc_core.data.catalogue import Knowledge, knowledge_by_kind

    asked: dict[str, Knowledge] = {"loss.hierarchy": "taxonomy", "loss.semantic": "attributes"}
    weights = {"loss.hierarchy": recipe.loss.hierarchy, "loss.semantic": recipe.loss.semantic}
    kind = kind_of(site, recipe)
    for name, needed in asked.items():
        if weights[name] > 0 and needed not in knowledge_by_kind(kind):
            raise PolicyRefusal(
                f"{name} > 0 needs the classes' {needed}, which data of kind '{kind}' do not give.",
                why="Whether single pictures give it must not decide over the answer.",
                remedy=f"Set {name} = 0 in the recipe.",
            )


def _digest(values: dict[str, Any]) -> str:
    canonical = json.dumps(values, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def load_site_table(
    site: "Site", recipe: "Recipe", class_names: tuple[str, ...], left_out: "LeftOut | None" = None
) -> "ExampleTable":
    """Load this site's table as ``site.toml`` says; no picture is opened.

    Args:
        site: The site.
        recipe: See :func:`data_settings`.
        class_names: See :func:`data_settings`.
        left_out: If given, faulty rows are left out and recorded here instead of raising.

    Raises:
        PolicyRefusal: if the site does not say how its pictures are read.
        ConfigurationError: if the settings are invalid.
        DataError: if the data are missing, or, without ``left_out``, any row is faulty.
    """
    from fgvc_core.data.catalogue import load_table

    own = site.settings.data
    table = load_table(data_settings(site, recipe, class_names), site.cache, left_out=left_out)
    if site.rows is not None:
        return table
    if own.split == "none":
        labelled_N = table.labels_N >= 0
        splits: tuple[Split, ...] = tuple("train" if has else "pool" for has in labelled_N)
        table = replace(table, splits=splits)
    return table
