"""What a run had in place against poisoned updates, and what it had not: one line of its page."""

from typing import NamedTuple

from fgvc_core.errors import ConfigurationError
from fgvc_core.protocol.settings import FederationSettings
from fgvc_core.toml_text import read_toml

RULES = frozenset(
    {"fedmedian", "trimmed-mean", "krum", "multi-krum", "geometric-median", "least-trimmed"}
)
"""Strategies that bound what hostile sites do."""

BOUNDED_BY_SHARE = RULES - {"fedmedian", "geometric-median"}
"""Those that guard against a stated share."""


class Poisoning(NamedTuple):
    """Sentences on what was in place and what was not."""

    held: tuple[str, ...]
    missing: tuple[str, ...]


def against_poisoning(recipe: str, sites: int) -> Poisoning | None:
    """What a run's recipe put in place.

    Args:
        recipe: ``recipe.toml`` as text.
        sites: How many took part.

    Returns:
        None where the recipe cannot be read, or holds settings of another version.
    """
    try:
        values = read_toml(recipe, "recipe")
        federation = FederationSettings.read(values.get("federation", {}), "federation")
    except ConfigurationError:
        return None
    frozen = values.get("model", {}).get("train") == "head"
    held, missing = [], []
    if federation.screening:
        held.append("screening of each update's length and direction")
    else:
        missing.append("screening of updates")
    _rule(federation, sites, held, missing)
    if federation.strategy == "least-trimmed" and not frozen:
        missing.append("a rule that was seen to hold where more than the head trains")
    missing.append("a search of the final model for triggers")
    return Poisoning(tuple(held), tuple(missing))


def _rule(federation: FederationSettings, sites: int, held: list[str], missing: list[str]) -> None:
    name = federation.strategy
    guarded = int(federation.byzantine_share * sites)
    if name not in RULES:
        missing.append(f"a rule against hostile sites: with {name} one site can teach a backdoor")
    elif name in BOUNDED_BY_SHARE and not guarded:
        missing.append(
            f"a rule against hostile sites: {name} guards against a share of "
            f"{federation.byzantine_share:g}, which is none of {sites}"
        )
    elif name in BOUNDED_BY_SHARE:
        held.append(f"the rule {name}, against {guarded} of {sites} sites")
    else:
        held.append(f"the rule {name}, against fewer than half of the sites")
    if name in RULES - {"least-trimmed"}:
        missing.append(f"a rule that was seen to hold against backdoors: {name} was not")
