"""One experiment: every room's frozen settings in one TOML file.

A recipe is read from TOML, completed with defaults, changed by ``--set``, and
written back resolved, so that a run's folder says exactly what was run. Its
digest names it in every message of the run.
"""

import hashlib
import json
import tomllib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import tomli_w
from pydantic import Field, model_validator

from fgvc_core.configuration import Settings
from fgvc_core.data.settings import AugmentSettings, DataSettings, PartitionSettings
from fgvc_core.errors import ConfigurationError, PolicyRefusal
from fgvc_core.losses.settings import LossSettings
from fgvc_core.models.settings import ModelSettings
from fgvc_core.privacy.settings import PrivacySettings
from fgvc_core.protocol.settings import FederationSettings
from fgvc_core.training.settings import EvaluateSettings, TrainSettings
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
    train: TrainSettings = TrainSettings()
    federation: FederationSettings = FederationSettings()
    wire: WireSettings = WireSettings()
    privacy: PrivacySettings | None = None
    evaluate: EvaluateSettings = EvaluateSettings()

    @model_validator(mode="after")
    def _start_fits(self) -> Self:
        start, head = self.train.start, self.model.head
        if start == "none" and not self.federation.rounds:
            raise ConfigurationError(
                "federation.rounds = 0 and train.start = 'none': nothing would be learnt.",
                remedy="Set train.start to means or lda, or federation.rounds to 1 at least.",
            )
        if start == "none":
            return self
        if self.privacy is not None:
            raise ConfigurationError(
                f"train.start = '{start}' is not possible with [privacy].",
                why="Class statistics without noise would be a release of their own.",
                remedy="Set privacy.method = 'class-sums', which starts from noisy ones.",
            )
        if head != "linear":
            raise ConfigurationError(
                f"train.start = '{start}' needs model.head = 'linear', not '{head}'.",
                why="Weights and biases are what class statistics determine.",
                remedy="Set model.head = 'linear', or train.start = 'none'.",
            )
        return self

    @model_validator(mode="after")
    def _unseen_can_be_named(self) -> Self:
        if self.partition.unseen and self.train.start != "semantic":
            raise ConfigurationError(
                f"partition.unseen = {list(self.partition.unseen)} needs train.start = 'semantic'.",
                why="A class without a training picture can only be named by its attributes.",
                remedy="Set train.start = 'semantic', or deal all classes.",
            )
        return self

    @model_validator(mode="after")
    def _steps_can_be_private(self) -> Self:
        if self.privacy is None or self.privacy.method != "gradients":
            return self
        loss = self.loss
        coupling = {
            "loss.triplet": loss.triplet > 0,
            "loss.proxy": loss.proxy > 0,
            "augment.mix": self.augment.mix != "none",
        }
        for name, couples in coupling.items():
            if couples:
                raise PolicyRefusal(
                    f"{name} is refused under [privacy].",
                    why="It couples the examples of a batch: no single one's part can be bounded.",
                    remedy="Leave it out.",
                )
        if loss.balance != "none" and not loss.class_counts:
            raise PolicyRefusal(
                f"loss.balance = '{loss.balance}' with a site's own counts is refused under "
                "[privacy].",
                why="Class weights computed from private counts are a release of their own.",
                remedy="Give public numbers in loss.class_counts, or set loss.balance = 'none'.",
            )
        return self

    def to_toml(self) -> str:
        """The resolved recipe as TOML; reading it gives an equal recipe."""
        return tomli_w.dumps(_without_none(self.model_dump(mode="json")))

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) over the canonical JSON of what a site is asked to do.

        ``data.path`` is left out: it says where one machine keeps its pictures.
        """
        values = self.model_dump(mode="json")
        values["data"].pop("path")
        canonical = json.dumps(values, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe from a file.

    Args:
        path: A TOML file.
        overrides: ``section.key=value`` strings, applied in order; the value is
            TOML (``0.3``, ``true``, ``["a"]``), anything else is taken as text.

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
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(
            f"The recipe '{path}' cannot be read as text: {error}.", remedy="Give a TOML file."
        ) from None
    return parse_recipe(text, overrides, where=str(path))


def parse_recipe(text: str, overrides: Sequence[str] = (), where: str = "recipe") -> Recipe:
    """Read a recipe from TOML text; see :func:`load_recipe`."""
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(
            f"{where} is not TOML: {error}.",
            why="Nothing was started.",
            remedy="Mend the line it names; text values need quotes.",
        ) from None
    for override in overrides:
        _apply(values, override)
    return Recipe.read(values, where)


def _apply(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise ConfigurationError(
            f"--set '{override}' is not section.key=value.",
            why="Nothing was started.",
            remedy="For instance: --set federation.rounds=5",
        )
    try:
        value = tomllib.loads(f"v = {text}")["v"]
    except tomllib.TOMLDecodeError:
        value = text
    for part in parts[:-1]:
        values = values.setdefault(part, {})
        if not isinstance(values, dict):
            raise ConfigurationError(
                f"--set '{override}': '{part}' is a value, not a section.",
                why="Nothing was started.",
                remedy="Name section and key, for instance --set train.lr=0.01",
            )
    values[parts[-1]] = value


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_none(v) for k, v in value.items() if v is not None}
    return value
