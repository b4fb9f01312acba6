"""What a run had in place against poisoned updates, and what it had not: one line of its page.

A rule guards against a share of a *round's* replies, rounded down: of three sites drawn out of
ten, 0.3 is none. So it is the smallest round that says what was in place.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from fgvc_core.errors import ConfigurationError
from fgvc_core.protocol.settings import ROBUST, FederationSettings
from fgvc_core.toml_text import read_toml
from fieldmark.server.rounds.cohort import wanted

HALF = frozenset({"fedmedian", "geometric-median"})
"""Rules that guard against fewer than half of a round, whatever the recipe says."""

KRUM = frozenset({"krum", "multi-krum"})
"""Rules that need 2 f + 3 replies against f (Blanchard et al. 2017, proposition 4.3)."""


class Poisoning(NamedTuple):
    """Sentences on what was in place and what was not."""

    held: tuple[str, ...]
    missing: tuple[str, ...]


def against_poisoning(
    recipe: str, sites: int, events: Sequence[dict[str, Any]] = ()
) -> Poisoning | None:
    """What a run's recipe put in place.

    Args:
        recipe: ``recipe.toml`` as text.
        sites: How many took part.
        events: Of the run: how many sound replies its rounds had.

    Returns:
        None where the recipe cannot be read, or holds settings of another version.
    """
    try:
        values = read_toml(recipe, "recipe")
        federation = FederationSettings.read(values.get("federation", {}), "federation")
    except ConfigurationError:
        return None
    sums = _set(values, "privacy", "method") == "class-sums"
    started = _set(values, "train", "start") not in (None, "none")
    held: list[str] = []
    missing: list[str] = []
    if sums:
        _of_class_sums(federation, held, missing)
    elif not federation.rounds:
        _of_start(federation, held, missing)
    else:
        _of_updates(federation, _smallest_round(federation, sites, events), held, missing)
        frozen = _set(values, "model", "train") == "head"
        if federation.strategy == "least-trimmed" and not frozen:
            missing.append("a rule that was seen to hold where more than the head trains")
        if started:
            _of_start(federation, held, missing)
    missing.append("a search of the final model for triggers")
    return Poisoning(tuple(held), tuple(missing))


def _set(values: dict[str, Any], section: str, name: str) -> Any:
    """A setting of a recipe that nobody has checked, or None."""
    found = values.get(section)
    return found.get(name) if isinstance(found, dict) else None


def _smallest_round(
    federation: FederationSettings, sites: int, events: Sequence[dict[str, Any]]
) -> int:
    """Sound replies of the round that had the fewest, of those that counted."""
    sound: dict[int, int] = {}
    for event in events:
        if event.get("event") == "reply" and event.get("accepted") is True:
            sound[event.get("round", 0)] = sound.get(event.get("round", 0), 0) + 1
    counted = [
        sound[event["round"]]
        for event in events
        if event.get("event") == "round_finished" and event.get("round") in sound
    ]
    drawn = wanted(sites, federation.fraction) if sites else 0
    return min([drawn, *counted])


def _of_class_sums(federation: FederationSettings, held: list[str], missing: list[str]) -> None:
    if federation.screening:
        held.append(
            "screening of each site's class sums against its declared units and the others'"
        )
    else:
        missing.append("screening of class sums")
    missing.append("a rule against hostile sites: class sums are added up")


def _of_start(federation: FederationSettings, held: list[str], missing: list[str]) -> None:
    if federation.screening:
        held.append(
            "screening of each site's class statistics by themselves and beside the others'"
        )
    else:
        missing.append("screening of class statistics beside the others'")
    missing.append("a rule against hostile sites for class statistics: they are added up")


def _of_updates(
    federation: FederationSettings, replies: int, held: list[str], missing: list[str]
) -> None:
    if federation.screening:
        held.append("screening of each update's length and direction")
    else:
        missing.append("screening of updates")
    name, share = federation.strategy, federation.byzantine_share
    half = name in HALF
    guarded = max(replies - 1, 0) // 2 if half else int(share * replies)
    of = f"of the {replies} {'sites' if replies != 1 else 'site'} of its smallest round"
    if name not in ROBUST:
        missing.append(f"a rule against hostile sites: with {name} one site can teach a backdoor")
        return
    if not guarded:
        against = "fewer than half" if half else f"a share of {share:g}"
        missing.append(
            f"a rule against hostile sites: {name} guards against {against}, which is none {of}"
        )
    elif name in KRUM and replies < 2 * guarded + 3:
        missing.append(
            f"a rule against hostile sites: against {guarded} {of} {name} needs "
            f"{2 * guarded + 3} replies"
        )
    else:
        held.append(f"the rule {name}, against {guarded} {of}")
    if name != "least-trimmed":
        missing.append(f"a rule that was seen to hold against backdoors: {name} was not")
