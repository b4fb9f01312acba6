"""Policy of a site: the ``[policy]`` section of its ``site.toml``, and the checks against it."""

import hashlib
import json
from datetime import date
from fnmatch import fnmatchcase
from typing import Any, Literal, Self

from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from fgvc_core.configuration import Settings
from fgvc_core.data.settings import PATIENT, WITH_PATIENTS
from fgvc_core.errors import ConfigurationError, PolicyRefusal
from fgvc_core.privacy.settings import PrivacySettings, Unit
from fgvc_core.protocol.messages import Figures
from fgvc_core.recipe import Recipe

SUBJECTS_OF_THEIR_OWN = ("fieldmarks", "ham10000")
"""Kinds of data whose published files identify subjects."""

LARGEST_CAP = 1000.0

SECURE_SETTINGS = (*("secure", "least_colluding", "least_honest", "peers", "epsilon_alone_cap"),)
"""Settings about masked sums."""

LEFT_OUT_AT_DEFAULT = (*SECURE_SETTINGS, "engines")
"""Settings newer than the first ledgers and reports, which do not name them at their defaults."""

NamedEngine = Literal["closed-form", "loop", "opacus", "batched"]


class Policy(Settings):
    """Limits that no coordinator and no recipe can loosen."""

    privacy: Literal["optional", "required"] = Field(
        "optional",
        description="required: nothing computed from the pictures leaves without differential "
        "privacy; a recipe without it is refused, or run with policy.own where that is set. "
        "own, a number for epsilon_cap, and unit each require it too. Whatever requires it needs "
        "epsilon_cap.",
    )
    own: PrivacySettings | None = Field(
        None,
        description="The protection that this site adds by itself (method = 'gradients') to a "
        "recipe that has none. It is a ceiling too: a recipe with a larger epsilon or delta, or a "
        "smaller unit, is refused.",
    )
    epsilon_cap: float | Literal["none"] | None = Field(
        None,
        description="Most epsilon that all runs together may cost a unit, 0 to 1000; without "
        "differential privacy a run costs more than any cap. none: runs are added up and never "
        "stopped for what they cost, and the privacy report says so in its first line.",
    )
    delta: float = Field(
        1e-5, gt=0.0, le=1e-2, description="The delta at which the cap holds, 0 to 0.01."
    )
    secure: Literal["never", "allowed", "required"] = Field(
        "never",
        description="Masked sums ([secure] in a recipe), in which the coordinator sees no site's "
        "part and sites share one noise: never; allowed; required: a recipe without is refused, "
        "and so is a validation kit.",
    )
    least_colluding: int = Field(
        1,
        ge=1,
        description="Fewest sites (secure.colluding) whose working together with the coordinator "
        "a recipe must allow for, 1 or more.",
    )
    least_honest: int = Field(
        2,
        ge=2,
        description="Fewest sites that have to be left in a sum after those (secure.least minus "
        "secure.colluding), 2 or more.",
    )
    peers: Literal["pinned", "first-seen"] = Field(
        "pinned",
        description="Whose keys count in a masked sum. pinned: those that a person has compared "
        "('fieldmark site peers'); first-seen: those that the coordinator named first, which holds "
        "against a coordinator that is curious, and not against one that invents sites.",
    )
    epsilon_alone_cap: float | Literal["none"] | None = Field(
        None,
        description="Most epsilon that all runs together may cost a unit if all other sites of the "
        "masked sums work with the coordinator, 0 to 1000, or none. Beside epsilon_cap it has to "
        "be given where secure is not never.",
    )
    unit: Unit | None = Field(
        None,
        description="The unit that a run must protect at least: image, or subject (which column "
        "of a manifest names it is then this site's to say: data.subject_column in site.toml).",
    )
    engines: tuple[NamedEngine, ...] = Field(
        ("closed-form", "loop", "opacus"),
        min_length=1,
        description="Ways of computing a unit's gradient (privacy.engine) that this site works "
        "with: closed-form, loop, opacus, batched. Not batched unless named: the last bits of one "
        "unit's gradient may depend on the units beside it, by weights that a coordinator chooses.",
    )
    min_units: int = Field(
        0, ge=0, description="Fewest units (as publicly declared) with which this site takes part."
    )
    min_examples: int = Field(
        0, ge=0, description="Fewest pictures (as publicly declared) with which it takes part."
    )
    tensors: tuple[str, ...] = Field(
        ("*",),
        description="Names of tensors that may leave; * stands for any characters. Closed-form "
        "releases, from which a head is computed, are head.centre and head.class-sums.",
    )
    max_update_mb: float = Field(
        1024.0, gt=0.0, description="Largest reply that may leave in one round, in MB (1e6 bytes)."
    )
    share_counts: bool = Field(
        True,
        description="Whether the number of training examples may leave; without it the site's "
        "update weighs as little as one example, its scores, loss and working time stay too "
        "(they would tell the number), and strategies whose replies tell the number of steps are "
        "refused. Under differential privacy it never leaves.",
    )
    share_scores: bool = Field(
        True,
        description="Whether the scores on the site's validation split may leave, and counts of "
        "right answers on folds of its training pictures (train.start = 'auto').",
    )
    validation: Literal["none", "overall", "per-class"] = Field(
        "overall",
        description="What an answer to an external validation kit may hold without differential "
        "privacy: nothing, figures over all pictures, or those of each class too (which say how "
        "many pictures of each there are). share_scores and share_counts must be on besides. "
        "Under it the answer is two noisy counts, whatever this says but none.",
    )
    network: Literal["none", "weights"] = Field(
        "none",
        description="Whom this site calls besides its coordinator: none, or weights (a hub of "
        "pre-trained weights, where a recipe says model.weights = 'hub').",
    )
    expires: date | None = Field(None, description="Last day on which this site takes part.")
    approval: Literal["none", "each-run"] = Field(
        "none",
        description="each-run: a person at the site says yes to each run: fieldmark site approve.",
    )
    reply_seconds: float = Field(
        0.0,
        ge=0.0,
        le=86400.0,
        description="Under differential privacy: hold each reply until this many seconds after its "
        "request, so that the time taken tells nothing; 0 holds none.",
    )

    @model_serializer(mode="wrap")
    def _as_before(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # Newer settings are left out at their defaults: digests in ledgers, and reports, stay.
        values: dict[str, Any] = handler(self)
        for name in LEFT_OUT_AT_DEFAULT:
            # The value itself: as JSON, a tuple is a list.
            if name in values and getattr(self, name) == type(self).model_fields[name].default:
                del values[name]
        return values

    @field_validator("epsilon_cap", "epsilon_alone_cap", mode="before")
    @classmethod
    def _number_or_none(cls, value: Any) -> Any:
        if value is None or value == "none":
            return value
        try:
            # float(True) would be a cap of 1.
            number = float("" if isinstance(value, bool) else value)
        except (TypeError, ValueError):
            number = 0.0
        if not 0.0 < number <= LARGEST_CAP:
            raise ValueError(f"a number above 0 and at most {LARGEST_CAP:g}, or 'none'")
        return number

    @model_validator(mode="after")
    def _own_fits(self) -> Self:
        own = self.own
        if own is None:
            return self
        if own.method != "gradients":
            raise ValueError("own.method must be 'gradients': it protects a recipe that trains")
        if own.engine != "auto" and own.engine not in self.engines:
            raise ValueError(f"own.engine = '{own.engine}' is not one of policy.engines")
        if own.delta > self.delta:
            raise ValueError(f"own.delta must be at most policy.delta = {self.delta:g}")
        if self.unit == "subject" and own.unit == "image":
            raise ValueError("own.unit must be 'subject', as policy.unit is")
        if self.cap is not None and own.epsilon > self.cap:
            raise ValueError(f"own.epsilon must be at most epsilon_cap = {self.cap:g}")
        return self

    @model_validator(mode="after")
    def _capped(self) -> Self:
        if self.demand and self.epsilon_cap is None:
            raise ValueError(
                f"{self.demand.removeprefix('policy.')} needs epsilon_cap: the most epsilon that "
                "all runs together may cost one unit (such as 8.0), or 'none' for no limit"
            )
        return self

    @model_validator(mode="after")
    def _capped_alone(self) -> Self:
        if self.secure == "never":
            if self.epsilon_alone_cap is not None:
                raise ValueError("epsilon_alone_cap is for masked sums, and secure is 'never'")
            return self
        if self.epsilon_cap is None:
            if self.alone_cap is not None:
                # Alone it would stop no run without differential privacy, which costs more than it.
                raise ValueError(
                    f"epsilon_alone_cap = {self.alone_cap:g} needs epsilon_cap: the most epsilon "
                    "that all runs together may cost one unit, at most as much"
                )
            return self
        if self.epsilon_alone_cap is None:
            raise ValueError(
                f"secure = '{self.secure}' needs epsilon_alone_cap beside epsilon_cap: what may be "
                "spent if all other sites work with the coordinator; a number, or 'none'"
            )
        alone, together = self.alone_cap, self.cap
        if alone is not None and (together is None or alone < together):
            raise ValueError(
                f"epsilon_alone_cap = {alone:g} must be at least epsilon_cap: a site's noise alone "
                "never protects more than that of all"
            )
        if self.peers == "first-seen" and together is not None and alone != together:
            raise ValueError(
                "with peers = 'first-seen' epsilon_alone_cap must be epsilon_cap: a coordinator "
                "that invents the other sites is left with this site's noise alone"
            )
        return self

    @property
    def alone_cap(self) -> float | None:
        """Largest total epsilon if all other sites work with the attacker; None if unlimited."""
        return None if self.epsilon_alone_cap == "none" else self.epsilon_alone_cap

    @property
    def cap(self) -> float | None:
        """Largest total epsilon of all runs; None if unlimited."""
        return None if self.epsilon_cap == "none" else self.epsilon_cap

    @property
    def cap_in_words(self) -> str:
        """The cap for display; distinguishes 'none' from a cap that was never set."""
        if self.cap is not None:
            return f"cap {self.cap:g}"
        return "no cap (policy.epsilon_cap = 'none')" if self.epsilon_cap else "no cap"

    @property
    def demand(self) -> str:
        """Setting that requires differential privacy; empty if none does."""
        if self.privacy == "required":
            return "policy.privacy = 'required'"
        if self.cap is not None:
            return f"policy.epsilon_cap = {self.cap:g}"
        if self.unit is not None:
            return f"policy.unit = '{self.unit}'"
        return "policy.own is set" if self.own is not None else ""

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of the policy, recorded in the ledger."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


def read_cap(text: str | None) -> float | Literal["none"] | None:
    """Parse ``epsilon_cap`` from a command line: a number, or none.

    Raises:
        ConfigurationError: if it is neither.
    """
    if text is None or text == "none":
        return None if text is None else "none"
    try:
        return float(text)
    except ValueError:
        raise ConfigurationError(
            f"--epsilon-cap {text} is neither a number nor 'none'.",
            remedy="Give the most epsilon that all runs together may cost, such as 8.0.",
        ) from None


def protection(policy: Policy, recipe: Recipe) -> PrivacySettings | None:
    """Differential privacy with which this site would take part, or None.

    That of the recipe, or ``policy.own`` for a recipe without any.

    Raises:
        PolicyRefusal: naming the policy setting that the recipe does not meet.
    """
    asked = recipe.privacy
    if asked is None:
        if not policy.demand:
            return None
        if policy.own is None:
            raise PolicyRefusal(
                f"{policy.demand}, and the recipe has no [privacy].",
                why="This site releases nothing about its pictures without it.",
                remedy="Add a [privacy] section to the recipe.",
            )
        return policy.own
    if policy.unit == "subject" and asked.unit == "image":
        raise PolicyRefusal(
            "policy.unit = 'subject', and the recipe protects single images.",
            why="A subject with many pictures would be protected less than the site promises.",
            remedy="Set privacy.unit = 'subject' in the recipe.",
        )
    if asked.delta > policy.delta:
        raise PolicyRefusal(
            f"policy.delta = {policy.delta:g}, and the recipe asks for {asked.delta:g}.",
            why="Its bound would fail more often than this site allows.",
            remedy=f"Set privacy.delta to at most {policy.delta:g}.",
        )
    if policy.own is not None:
        _check_ceiling(policy.own, asked)
    if asked.engine != "auto":
        check_engine(policy, asked)
    return asked


def check_engine(policy: Policy, privacy: PrivacySettings) -> None:
    """Check the engine of private steps; ``auto`` only once it is settled.

    Raises:
        PolicyRefusal: if this site does not work with it.
    """
    if privacy.method != "gradients" or privacy.engine in policy.engines:
        return
    allowed = ", ".join(policy.engines)
    raise PolicyRefusal(
        f"policy.engines = {allowed}, and this run's steps are computed by '{privacy.engine}'.",
        why="Engines agree to rounding, and this site accepts the rounding of those alone.",
        remedy=f"Set privacy.engine to one of them in the recipe, or add '{privacy.engine}' to "
        "policy.engines in site.toml.",
    )


def _check_ceiling(own: PrivacySettings, asked: PrivacySettings) -> None:
    """Refuse a recipe that protects less than ``policy.own``."""
    for name in ("epsilon", "delta"):
        most, wanted = getattr(own, name), getattr(asked, name)
        if wanted > most:
            raise PolicyRefusal(
                f"policy.own.{name} = {most:g}, and the recipe asks for {wanted:g}.",
                why="A recipe with its own privacy would be protected less than one without any.",
                remedy=f"Set privacy.{name} to at most {most:g}.",
            )
    if own.unit == "subject" and asked.unit == "image":
        raise PolicyRefusal(
            "policy.own.unit = 'subject', and the recipe protects single images.",
            why="A subject with many pictures would be protected less than by the site itself.",
            remedy="Set privacy.unit = 'subject' in the recipe.",
        )


def check_standing(policy: Policy, units: int, pictures: int, today: date) -> None:
    """Check that this site takes part in any run today.

    Args:
        policy: Policy of the site.
        units: The public number of units.
        pictures: The public number of pictures.
        today: The current date.

    Raises:
        PolicyRefusal: naming the policy setting.
    """
    if policy.expires is not None and today > policy.expires:
        raise PolicyRefusal(
            f"policy.expires = {policy.expires}: this site's agreement has ended.",
            remedy="Renew it in site.toml.",
        )
    for name, least, declared in (
        ("min_units", policy.min_units, units),
        ("min_examples", policy.min_examples, pictures),
    ):
        if declared < least:
            raise PolicyRefusal(
                f"policy.{name} = {least}, and {declared} are declared in site.toml.",
                why="With so few, what leaves says too much about each.",
                remedy="Take part when there are more, or lower the policy's line.",
            )


def check_subject(kind: str, column: str | None) -> None:
    """Check that the data identify subjects, for a run that protects subjects.

    Args:
        kind: Kind of the site's data.
        column: Column of subject ids, if there is one.

    Raises:
        PolicyRefusal: if they do not: each picture would count as a subject, and a person with many
            pictures would be protected less than the report says.
    """
    if kind in SUBJECTS_OF_THEIR_OWN or (kind in WITH_PATIENTS and column == PATIENT):
        return
    if kind != "manifest":
        raise PolicyRefusal(
            f"privacy.unit = 'subject', and data of kind '{kind}' do not name subjects.",
            why="Each picture would count as a subject of its own.",
            remedy="Set privacy.unit = 'image', or list the pictures in a manifest with a column "
            "of subjects (data.kind and data.subject_column in site.toml).",
        )
    if column is None:
        raise PolicyRefusal(
            "privacy.unit = 'subject', and no column is named that holds the subjects.",
            why="Each picture would count as a subject of its own.",
            remedy="Set data.subject_column in site.toml (in a simulation: in the recipe).",
        )


TELLS_STEPS = {
    "scaffold": "A control variate is the update divided by the number of steps: beside the update "
    "it tells that number, with a batch size of 1 exactly how many pictures there are.",
    "fednova": "It divides each update by its site's number of steps, which follows from how many "
    "pictures there are.",
}
"""Strategies whose replies reveal the number of training examples, and why."""


def check_counts(policy: Policy, recipe: Recipe) -> None:
    """Check that a run without differential privacy keeps withheld counts secret.

    Raises:
        PolicyRefusal: if the strategy's replies would reveal the number of steps.
    """
    strategy = recipe.federation.strategy
    if policy.share_counts or strategy not in TELLS_STEPS:
        return
    raise PolicyRefusal(
        f"policy.share_counts = false, and federation.strategy = '{strategy}' needs the count.",
        why=TELLS_STEPS[strategy],
        remedy="Set federation.strategy = 'fedavg', or an optimizer at the server (fedadam, "
        "fedavgm).",
    )


def check_secure(policy: Policy, recipe: Recipe) -> None:
    """Check a recipe's masked sums, or their absence.

    Raises:
        PolicyRefusal: naming the policy setting that forbids it.
    """
    secure = recipe.secure
    if secure is None:
        if policy.secure == "required":
            raise PolicyRefusal(
                "policy.secure = 'required', and the recipe has no [secure].",
                why="The coordinator would see this site's own answer.",
                remedy="Add a [secure] section to the recipe.",
            )
        return
    if policy.secure == "never":
        raise PolicyRefusal(
            "policy.secure = 'never', and the recipe has [secure].",
            why="Noise that is shared protects this site less if other sites work with the "
            "coordinator; its own noise does not depend on them.",
            remedy="Leave [secure] out of the recipe, or set policy.secure = 'allowed' in "
            "site.toml and compare the other sites' keys (fieldmark site peers).",
        )
    if recipe.privacy is None and policy.own is not None:
        raise PolicyRefusal(
            "policy.own is set, and the recipe has [secure] without [privacy].",
            why="In a masked sum all sites send the same; noise of this site's own would be in it "
            "for all of them, and accounted for by none.",
            remedy="Add [privacy] to the recipe, with noise that the sites share, or leave "
            "[secure] out.",
        )
    if secure.colluding < policy.least_colluding:
        raise PolicyRefusal(
            f"policy.least_colluding = {policy.least_colluding}, and the recipe allows for "
            f"secure.colluding = {secure.colluding}.",
            why="More sites might work with the coordinator than the noise allows for.",
            remedy=f"Set secure.colluding to {policy.least_colluding} at least.",
        )
    if secure.rules.honest < policy.least_honest:
        raise PolicyRefusal(
            f"policy.least_honest = {policy.least_honest}, and the recipe's sums may be over "
            f"secure.least - secure.colluding = {secure.rules.honest} honest sites.",
            why="The fewer are behind a sum, the more it says about each.",
            remedy="Raise secure.least.",
        )


def check_validation(policy: Policy, protected: bool) -> None:
    """Check that an answer to a validation kit may contain anything.

    Raises:
        PolicyRefusal: naming the policy setting that forbids it.
    """
    if policy.secure == "required":
        raise PolicyRefusal(
            "policy.secure = 'required': no figure may leave in answer to a validation kit.",
            why="It would be this site's own answer, which nobody is to see; in a masked sum only "
            "the sum is. Nothing was computed.",
            remedy="Set policy.secure = 'allowed' in site.toml, if that is what the site wants.",
        )
    line = ""
    if policy.validation == "none":
        line = "policy.validation = 'none'"
    elif not protected and not policy.share_scores:
        line = "policy.share_scores = false"
    elif not protected and not policy.share_counts:
        # Figures state the number of pictures.
        line = "policy.share_counts = false"
    if line:
        raise PolicyRefusal(
            f"{line}: no figure may leave in answer to a validation kit.",
            why="Nothing was computed.",
            remedy="Change the policy in site.toml, if that is what the site wants.",
        )


def allowed_figures(policy: Policy, figures: Figures | None) -> Figures | None:
    """Part of a validation's figures that may leave without differential privacy."""
    if figures is None or not (policy.share_scores and policy.share_counts):
        return None
    if policy.validation == "per-class":
        return figures
    return figures.model_copy(update={"classes": None}) if policy.validation == "overall" else None


CLOSED_FORM = ("centre", "class-sums")
"""Releases from which the coordinator computes a head; allowing the head's tensors allows them too.
"""


def check_tensors(policy: Policy, names: list[str]) -> None:
    """Check that all these tensors may leave; closed-form releases also match as parts of the head.

    Raises:
        PolicyRefusal: naming the first that may not.
    """
    for name in names:
        known_as = (name, f"head.{name}") if name in CLOSED_FORM else (name,)
        if not any(fnmatchcase(one, pattern) for pattern in policy.tensors for one in known_as):
            raise PolicyRefusal(
                f"policy.tensors = {list(policy.tensors)}: '{name}' may not leave.",
                remedy="Train only what may ([model] train), or widen the policy.",
            )
