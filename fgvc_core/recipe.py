"""A recipe: all settings of one experiment, read from and written to one TOML file.

A recipe is read from TOML, completed with defaults, changed by ``--set``, and written back
resolved: a run's folder states exactly what was run. Every message of the run contains the recipe's
digest.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Self, get_args

import tomli_w
from pydantic import Field, model_validator

from fgvc_core.audit.settings import AuditSettings
from fgvc_core.configuration import MAX_CHARACTERS, Settings, read_toml
from fgvc_core.data.settings import AugmentSettings, DataSettings, PartitionSettings
from fgvc_core.errors import ConfigurationError
from fgvc_core.losses.settings import LossSettings
from fgvc_core.models.settings import ModelSettings
from fgvc_core.privacy.settings import PrivacySettings
from fgvc_core.protocol.settings import FederationSettings
from fgvc_core.recipe_rules import check_sections
from fgvc_core.scenario import ScenarioSettings
from fgvc_core.secure.settings import SecureSettings
from fgvc_core.secure_rules import check_sites
from fgvc_core.training.settings import (
    EvaluateSettings,
    PersonalSettings,
    PretrainSettings,
    TrainSettings,
)
from fgvc_core.wire.settings import WireSettings


class Recipe(Settings):
    """All settings of one experiment."""

    name: str = Field(
        "run", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$", description="Name of its runs' folder."
    )
    seed: int = Field(0, ge=0, lt=2**31, description="Seed of everything that is not private.")
    data: DataSettings = DataSettings()
    partition: PartitionSettings = PartitionSettings()
    model: ModelSettings = ModelSettings()
    loss: LossSettings = LossSettings()
    augment: AugmentSettings = AugmentSettings()
    pretrain: PretrainSettings = PretrainSettings()
    train: TrainSettings = TrainSettings()
    federation: FederationSettings = FederationSettings()
    personal: PersonalSettings = PersonalSettings()
    wire: WireSettings = WireSettings()
    privacy: PrivacySettings | None = None
    secure: SecureSettings | None = None
    evaluate: EvaluateSettings = EvaluateSettings()
    audit: AuditSettings = AuditSettings()
    scenario: ScenarioSettings | None = None

    @model_validator(mode="after")
    def _sections_fit(self) -> Self:
        check_sections(self)
        if self.data.follow_links:
            raise ValueError(
                "data.follow_links is no recipe's to set: a recipe may be a stranger's. A site "
                "sets it in its site.toml, a person for one command with FIELDMARK_FOLLOW_LINKS=1"
            )
        return self

    @property
    def sharers(self) -> int:
        """Most sites that share the noise of a sum; 1 without ``[secure]``."""
        return 1 if self.secure is None else self.secure.sharers

    def with_sites(self, sites: int) -> "Recipe":
        """The recipe for a federation of so many sites: fills in ``secure.most``.

        Raises:
            ConfigurationError: if ``[secure]`` allows no sum over so many.
        """
        check_sites(self, sites)
        if self.secure is None or self.secure.most is not None:
            return self
        # model_copy() would also copy the cached digest.
        values = self.model_dump(mode="json", exclude_none=True)
        values["secure"]["most"] = sites
        return Recipe.read(values)

    def to_toml(self) -> str:
        """The resolved recipe as TOML; reading it gives an equal recipe."""
        return tomli_w.dumps(_without_none(self.model_dump(mode="json")))

    @property
    def announced(self) -> Self:
        """The recipe as a coordinator announces it, without settings that do not concern sites.

        These are the path of the coordinator's own pictures, settings of a data set that only the
        coordinator may have installed, the names of the other sites, and settings of simulations:
        the partition and the cap of simulated sites. Classes that nobody trains on
        (``partition.unseen``) stay. The digest is the same.
        """
        data = self.data.model_copy(update={"path": None})
        data.__pydantic_extra__ = {}  # On the copy only; self.data keeps its tables.
        changed: dict[str, Any] = {
            "data": data,
            "partition": PartitionSettings(unseen=self.partition.unseen),
            # A site is not told which others there are.
            "federation": self.federation.model_copy(update={"sites": ()}),
        }
        if self.privacy is not None:
            changed["privacy"] = self.privacy.model_copy(update={"simulated_cap": None})
        return self.model_copy(update=changed)

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) of the canonical JSON of :attr:`announced`, without ``[audit]``."""
        values = self.announced.model_dump(mode="json")
        values.pop("audit")
        if self.secure is None:
            # A recipe without the section has the digest that it had before there was one.
            del values["secure"]
        # The same of settings that are left as they were before there were any.
        for (section, key), before in _NEWER.items():
            if values.get(section) and values[section][key] == before:
                del values[section][key]
        canonical = json.dumps(values, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()


_NEWER = {
    ("augment", "cached_views"): 4,
    ("augment", "flip_vertical"): False,
    ("augment", "mirror_maps"): False,
    ("data", "frame"): "first",
    ("loss", "balance_prior"): 0.0,
    ("loss", "balance_shares"): "own",
    ("model", "backbones"): [],
    ("model", "until"): "",
    ("personal", "method"): "fine-tune",
    ("privacy", "scatter_share"): 0.0,
    ("train", "pass_rounds"): 1,
}
"""Settings, and the value at which a run is what it was before there was such a setting."""

_FOUND_OUT = (
    ("model", "class_groups"),
    ("model", "class_attributes"),
    ("model", "unseen_classes"),
    ("federation", "local"),
    ("secure", "most"),
)


def filled_like(recipe: Recipe, written: Recipe) -> Recipe:
    """A recipe with its derived settings taken from the recipe that a run of it has written.

    For the derived settings, see :func:`fgvc_core.experiment.completed`. The two recipes can then
    be compared by the rest.
    """
    open_ = [
        (section, key)
        for section, key in _FOUND_OUT
        if getattr(recipe, section) is not None
        and not getattr(getattr(recipe, section), key)
        and (key != "local" or recipe.model.norm == "local")
    ]
    # model_copy() would also copy the cached digest.
    values, known = (
        recipe.model_dump(mode="json", exclude_none=True),
        written.model_dump(mode="json"),
    )
    for section, key in open_:
        values[section][key] = (known[section] or {}).get(key)
    return Recipe.read(values)


def differences(old: Recipe, new: Recipe) -> list[str]:
    """Every setting in which two experiments differ, in words.

    Not compared are the path of the pictures and ``[audit]``, which change no result. A recipe's
    digest cannot stand in for this: it leaves out what sites are not told, such as the partition.

    >>> differences(Recipe(seed=1), Recipe(seed=2))
    ['seed was 1, is 2']
    """
    one, two = (_flat(r.model_dump(mode="json")) for r in (old, new))
    return [
        f"{key} was {one.get(key)!r}, is {two.get(key)!r}"
        for key in dict.fromkeys([*one, *two])
        if one.get(key) != two.get(key) and key != "data.path" and not key.startswith("audit.")
    ]


Overrides = Sequence[str] | Mapping[str, Any]
"""Changes to a recipe: texts ``section.key=value``, where the value is TOML (``0.3``, ``true``,
``["a"]``) or else plain text; or a mapping of ``section.key`` to a value."""


def load_recipe(path: Path, overrides: Overrides = ()) -> Recipe:
    """Read a recipe from a file.

    Args:
        path: A TOML file.
        overrides: Changes to it, applied in order.

    Raises:
        ConfigurationError: if the file is missing or not TOML, or has an invalid setting.
    """
    if not path.is_file():
        within = path / "recipe.toml"
        raise ConfigurationError(
            f"There is no recipe at '{path}'.",
            why="It is a folder." if path.is_dir() else "Nothing was started.",
            remedy=f"Did you mean '{within}'?"
            if within.is_file()
            else "Give the path of a .toml file; 'fieldmark recipes' lists the shipped ones.",
        )
    try:
        with path.open(encoding="utf-8-sig") as file:
            # One character more than the limit is enough to see that the file is too long.
            text = file.read(MAX_CHARACTERS + 1)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(
            f"The recipe '{path}' cannot be read as text: {error}.", remedy="Give a TOML file."
        ) from None
    return parse_recipe(text, overrides, where=str(path))


def parse_recipe(text: str, overrides: Overrides = (), where: str = "recipe") -> Recipe:
    """Read a recipe from TOML text; see :func:`load_recipe`."""
    values = read_toml(text, where)
    if isinstance(overrides, Mapping):
        for key, value in overrides.items():
            _set(values, key, os.fspath(value) if isinstance(value, os.PathLike) else value)
    else:
        for override in overrides:
            key, equals, value = override.partition("=")
            read = (
                value if _is_text(key) and not value.startswith(("'", '"')) else toml_value(value)
            )
            _set(values, key if equals else "", read, override)
    return Recipe.read(values, where)


def _is_text(key: str) -> bool:
    """Whether a setting takes text and no number: 'data.path=2024' names a folder."""
    section: Any = Recipe
    for part in key.strip().split("."):
        known = section.model_fields.get(part) if hasattr(section, "model_fields") else None
        if known is None:
            return False
        section = known.annotation
        options = [option for option in get_args(section) if option is not NoneType]
        if len(options) == 1 and isinstance(section, UnionType):
            section = options[0]
    return section is str


def toml_value(text: str) -> Any:
    """The value of a ``key=value`` override: TOML, or else the text itself."""
    try:
        return read_toml(f"v = {text}", "--set")["v"]
    except ConfigurationError:
        return text


def _set(values: dict[str, Any], key: str, value: Any, override: str = "") -> None:
    """Set ``section.key`` in nested values; ``override`` is the original text, for messages."""
    parts, override = key.strip().split("."), override or f"{key}={value}"
    if not all(parts):
        raise ConfigurationError(
            f"--set '{override}' is not section.key=value.",
            why="Nothing was started.",
            remedy="For instance: --set federation.rounds=5",
        )
    for part in parts[:-1]:
        values = values.setdefault(part, {})
        if not isinstance(values, dict):
            raise ConfigurationError(
                f"--set '{override}': '{part}' is a value, not a section.",
                why="Nothing was started.",
                remedy="Name section and key, for instance --set train.lr=0.01",
            )
    values[parts[-1]] = value


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_none(v) for k, v in value.items() if v is not None}
    return value
