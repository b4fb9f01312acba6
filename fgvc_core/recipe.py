"""One experiment: every room's frozen settings in one TOML file.

A recipe is read from TOML, completed with defaults, changed by ``--set``, and
written back resolved, so that a run's folder says exactly what was run. Its
digest names it in every message of the run.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import tomli_w
from pydantic import Field, model_validator

from fgvc_core.audit.settings import AuditSettings
from fgvc_core.configuration import Settings
from fgvc_core.data.settings import AugmentSettings, DataSettings, PartitionSettings
from fgvc_core.errors import ConfigurationError
from fgvc_core.losses.settings import LossSettings
from fgvc_core.models.settings import ModelSettings
from fgvc_core.privacy.settings import PrivacySettings
from fgvc_core.protocol.settings import FederationSettings
from fgvc_core.recipe_rules import refuse_unprotectable
from fgvc_core.scenario import ON_ANY, ON_SUMS, ScenarioSettings
from fgvc_core.toml_text import MAX_CHARACTERS, read_toml
from fgvc_core.training.settings import (
    EvaluateSettings,
    PersonalSettings,
    PretrainSettings,
    TrainSettings,
)
from fgvc_core.wire.settings import WireSettings


class Recipe(Settings):
    """Everything that defines one experiment."""

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
    evaluate: EvaluateSettings = EvaluateSettings()
    audit: AuditSettings = AuditSettings()
    scenario: ScenarioSettings | None = None

    @model_validator(mode="after")
    def _sections_fit(self) -> Self:
        if self.privacy is not None:
            refuse_unprotectable(self, self.privacy)
        if not self.federation.screening and self.scenario is None:
            raise ConfigurationError(
                "federation.screening = false is not possible without [scenario].",
                why="Without it one site with a NaN ruins the model; that is worth seeing in a "
                "simulation, and nowhere else.",
                remedy="Leave it on; its bounds are in [federation].",
            )
        if self.scenario is not None:
            for attack in (self.scenario.attack, *self.scenario.turns):
                if attack != "none":
                    self._check_attack(attack)
        return self

    def _check_attack(self, attack: str) -> None:
        if not self.wire.plain:
            raise ConfigurationError(
                f"scenario.attack = '{attack}' goes with updates that travel as they are.",
                why="A simulated attacker changes full float32 tensors.",
                remedy="Leave [wire] out of a recipe with an attack.",
            )
        if self.privacy is not None and attack in ("label-noise", "backdoor"):
            raise ConfigurationError(
                "scenario.attack = 'label-noise' and 'backdoor' do not go with [privacy].",
                why="They do a site's work twice, and under differential privacy a request is "
                "answered once.",
                remedy="Use an attack on the update, for instance sign-flip.",
            )
        sums = self.privacy is not None and self.privacy.method == "class-sums"
        if attack not in ON_ANY and sums != (attack in ON_SUMS):
            meant = (*ON_SUMS, *ON_ANY) if sums else ()
            raise ConfigurationError(
                f"scenario.attack = '{attack}' never strikes "
                + ("with" if sums else "without")
                + " privacy.method = 'class-sums'.",
                why="It changes an update, and here sites release sums."
                if sums
                else "It changes released sums, and here sites train.",
                remedy=f"Use one of: {', '.join(meant)}."
                if sums
                else "Use an attack on the update, for instance sign-flip.",
            )

    @model_validator(mode="after")
    def _pretraining_fits(self) -> Self:
        if self.pretrain.method == "none":
            return self
        what = f"pretrain.method = '{self.pretrain.method}'"
        if self.model.train == "head":
            raise ConfigurationError(
                f"{what} does not go with model.train = 'head'.",
                why="It is the backbone that learns from pictures without labels.",
                remedy="Set model.train = 'all' or a stage, or pretrain.method = 'none'.",
            )
        if self.wire.top_k:
            raise ConfigurationError(
                f"{what} does not go with wire.top_k = {self.wire.top_k:g}.",
                why="What is left out is kept by the number of a round of training.",
                remedy="Set wire.top_k = 0; wire.precision = 'int8' with wire.delta is nearly "
                "as small.",
            )
        if any(not pattern.startswith("head.") for pattern in self.federation.local):
            raise ConfigurationError(
                f"{what} does not go with federation.local = {list(self.federation.local)}.",
                why="What stays at a site is versioned by rounds of training, and would be "
                "forgotten from one round of pre-training to the next.",
                remedy="Keep tensors of the head alone local, for instance ['head.*'].",
            )
        if self.scenario is not None and self.scenario.attack != "none":
            raise ConfigurationError(
                f"{what} does not go with scenario.attack = '{self.scenario.attack}'.",
                why="Attackers are simulated in rounds of training alone.",
                remedy="Leave out one of the two.",
            )
        return self

    @model_validator(mode="after")
    def _parts_train(self) -> Self:
        trains = self.model.pooling == "parts" and self.model.train not in ("head", "norm")
        if self.loss.diversity and not trains:
            raise ConfigurationError(
                f"loss.diversity = {self.loss.diversity:g} needs maps of parts that train; "
                f"model.pooling = '{self.model.pooling}', model.train = '{self.model.train}'.",
                why="It keeps learnt parts apart.",
                remedy="Set model.pooling = 'parts' and model.train to all or a stage, or "
                "loss.diversity = 0.",
            )
        return self

    @model_validator(mode="after")
    def _zoom_fits(self) -> Self:
        if self.evaluate.zoom and self.model.spatial_transformer:
            raise ConfigurationError(
                f"evaluate.zoom = {self.evaluate.zoom:g} does not go with "
                "model.spatial_transformer.",
                why="The model looks at a turned and moved picture: where that is in the picture "
                "itself is not known.",
                remedy="Set one of the two.",
            )
        if self.evaluate.zoom and self.model.closer:
            raise ConfigurationError(
                f"evaluate.zoom = {self.evaluate.zoom:g} does not go with "
                f"model.closer = {self.model.closer:g}.",
                why="Both look closer, one at each scoring and one at each picture.",
                remedy="Set one of the two.",
            )
        return self

    @model_validator(mode="after")
    def _start_fits(self) -> Self:
        start, head = self.train.start, self.model.head
        if start == "none" and not self.federation.rounds:
            raise ConfigurationError(
                "federation.rounds = 0 and train.start = 'none': nothing would be learnt.",
                remedy="Set train.start to means or lda, or federation.rounds to 1 at least.",
            )
        rule = self.federation.strategy != "fedavg" or self.federation.mix_nearest
        if not self.federation.rounds and rule:
            raise ConfigurationError(
                f"federation.strategy = '{self.federation.strategy}', mix_nearest = "
                f"{str(self.federation.mix_nearest).lower()} do nothing with "
                "federation.rounds = 0.",
                why="Class statistics are added up; a strategy is for updates, and a run would "
                "seem guarded against hostile sites by a rule that never acted.",
                remedy="Leave both out, or set federation.rounds to 1 at least.",
            )
        if start == "none":
            return self
        if head != "linear":
            raise ConfigurationError(
                f"train.start = '{start}' needs model.head = 'linear', not '{head}'.",
                why="Weights and biases are what class statistics determine.",
                remedy="Set model.head = 'linear', or train.start = 'none'.",
            )
        return self

    @model_validator(mode="after")
    def _defences_act(self) -> Self:
        scenario = self.scenario
        sums = self.privacy is not None and self.privacy.method == "class-sums"
        if scenario is None or not (sums or not self.federation.rounds):
            return self
        table = scenario.backdoors
        tried = scenario.defences if scenario.turns else table.defences if table else ()
        if any(strategy != "fedavg" for strategy in tried):
            raise ConfigurationError(
                f"scenario defences = {list(tried)} do nothing where class sums or class "
                "statistics are added up.",
                why="A strategy is for updates: the rows of the table would all be of one rule.",
                remedy='Set defences = ["fedavg"].',
            )
        return self

    @model_validator(mode="after")
    def _unseen_can_be_named(self) -> Self:
        named = self.train.start == "semantic" or self.model.head == "semantic"
        if self.partition.unseen and not named:
            raise ConfigurationError(
                f"partition.unseen = {list(self.partition.unseen)} needs train.start = 'semantic' "
                "or model.head = 'semantic'.",
                why="A class without a training picture can only be named by its attributes.",
                remedy="Set one of the two, or deal all classes.",
            )
        return self

    def to_toml(self) -> str:
        """The resolved recipe as TOML; reading it gives an equal recipe."""
        return tomli_w.dumps(_without_none(self.model_dump(mode="json")))

    @property
    def announced(self) -> Self:
        """The recipe as a coordinator announces it: without where its own pictures are.

        The digest is the same: it leaves ``data.path`` out.
        """
        return self.model_copy(update={"data": self.data.model_copy(update={"path": None})})

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) over the canonical JSON of what a site is asked to do.

        ``data.path`` is left out: it says where one machine keeps its pictures; and
        ``[audit]``: nobody is asked for that.
        """
        values = self.model_dump(mode="json")
        values["data"].pop("path")
        values.pop("audit")
        canonical = json.dumps(values, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()


_FOUND_OUT = (
    ("model", "class_groups"),
    ("model", "class_attributes"),
    ("model", "unseen_classes"),
    ("federation", "local"),
)


def filled_like(recipe: Recipe, written: Recipe) -> Recipe:
    """A recipe with what it leaves to be found out taken from what a run of it has written.

    See :func:`fgvc_core.experiment.completed`; two recipes are then compared by the rest.
    """
    open_ = [
        (section, key)
        for section, key in _FOUND_OUT
        if not getattr(getattr(recipe, section), key)
        and (key != "local" or recipe.model.norm == "local")
    ]
    # Not model_copy: it would also copy the digest of the recipe as it was.
    values, known = (
        recipe.model_dump(mode="json", exclude_none=True),
        written.model_dump(mode="json"),
    )
    for section, key in open_:
        values[section][key] = known[section][key]
    return Recipe.read(values)


def differences(old: Recipe, new: Recipe) -> list[str]:
    """Every setting in which two recipes differ, in words; where the pictures are is left out.

    >>> differences(Recipe(seed=1), Recipe(seed=2))
    ['seed was 1, is 2']
    """
    one, two = (_flat(r.model_dump(mode="json")) for r in (old, new))
    return [
        f"{key} was {one.get(key)!r}, is {two.get(key)!r}"
        for key in dict.fromkeys([*one, *two])
        if one.get(key) != two.get(key) and key != "data.path"
    ]


Overrides = Sequence[str] | Mapping[str, Any]
"""Changes to a recipe: ``section.key=value`` texts, whose values are TOML (``0.3``, ``true``,
``["a"]``) and anything else is text; or a mapping of ``section.key`` to a value."""


def load_recipe(path: Path, overrides: Overrides = ()) -> Recipe:
    """Read a recipe from a file.

    Args:
        path: A TOML file.
        overrides: Changes to it, applied in order.

    Raises:
        ConfigurationError: if the file is missing, is not TOML, or holds a wrong setting.
    """
    if not path.is_file():
        raise ConfigurationError(
            f"There is no recipe at '{path}'.",
            why="Nothing was started.",
            remedy="Give the path of a .toml file; examples are in simulations/recipes/.",
        )
    try:
        with path.open(encoding="utf-8") as file:
            # No more than can be parsed: one character more says that it is too long.
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
            _set(values, key if equals else "", toml_value(value), override)
    return Recipe.read(values, where)


def toml_value(text: str) -> Any:
    """The value of a ``key=value`` override: TOML, and anything else as text."""
    try:
        return read_toml(f"v = {text}", "--set")["v"]
    except ConfigurationError:
        return text


def _set(values: dict[str, Any], key: str, value: Any, override: str = "") -> None:
    """Set ``section.key``; ``override`` is the text that asks for it, for the message."""
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
