"""The report's statement of which defenses against poisoning a run used, and which it lacked.

A robust rule tolerates a share of a *round's* replies, rounded down: 0.3 of three sites is none. So
the smallest round decides how many hostile sites the run tolerated.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from fgvc_core.configuration import read_toml
from fgvc_core.errors import ConfigurationError
from fgvc_core.protocol.settings import ROBUST, FederationSettings
from fieldmark.server.rounds.cohort import wanted
from fieldmark.server.screening.releases import LEAST_DIRECTIONS, LEAST_LENGTHS

HALF = frozenset({"fedmedian", "geometric-median"})
"""Rules that tolerate fewer than half of a round as hostile, whatever the recipe says."""

KRUM = frozenset({"krum", "multi-krum"})
"""Rules that need 2 f + 3 replies against f (Blanchard et al. 2017, proposition 4.3)."""


Events = Sequence[dict[str, Any]]


class Poisoning(NamedTuple):
    """Sentences on the defenses that were used and those that were missing."""

    held: tuple[str, ...]
    missing: tuple[str, ...]


def against_poisoning(recipe: str, sites: int, events: Events = ()) -> Poisoning | None:
    """The defenses against poisoning in a run's recipe.

    Args:
        recipe: ``recipe.toml`` as text.
        sites: How many took part.
        events: The run's, which show how many accepted replies each round had.

    Returns:
        None if the recipe cannot be read, or has settings of another version.
    """
    try:
        values = read_toml(recipe, "recipe")
        federation = FederationSettings.read(values.get("federation", {}), "federation")
    except ConfigurationError:
        return None
    sums = setting_of(values, "privacy", "method") == "class-sums"
    started = setting_of(values, "train", "start") not in (None, "none")
    held: list[str] = []
    missing: list[str] = []
    if sums:
        _of_class_sums(federation, _fewest_releases(sites, events), held, missing)
    elif not federation.rounds:
        _of_start(federation, _fewest_releases(sites, events), held, missing)
    else:
        _of_screening(federation, events, held, missing)
        _of_rule(federation, sites, events, held, missing)
        frozen = setting_of(values, "model", "train") == "head"
        if federation.strategy == "least-trimmed" and not frozen:
            missing.append("a rule that was seen to hold where more than the head trains")
        if started:
            _of_start(federation, _fewest_releases(sites, events), held, missing)
    missing.append("a search of the final model for triggers")
    return Poisoning(tuple(held), tuple(missing))


def setting_of(values: dict[str, Any], section: str, name: str) -> Any:
    """A setting of an unvalidated recipe, or None."""
    found = values.get(section)
    return found.get(name) if isinstance(found, dict) else None


def _fewest_releases(sites: int, events: Events) -> int:
    """Fewest sites whose class sums or statistics were compared in any phase."""
    found: dict[tuple[int, str], set[str]] = {}
    for event in events:
        if _is_sound(event, "release"):
            key = event.get("round", 0), event.get("phase", "")
            found.setdefault(key, set()).add(event.get("site", ""))
    return min([sites, *map(len, found.values())])


def _is_sound(event: dict[str, Any], kind: str) -> bool:
    accepted = event.get("event") == "reply" and event.get("accepted") is True
    return accepted and event.get("kind") == kind


class _Round(NamedTuple):
    guarded: int
    replies: int


def _weakest_round(federation: FederationSettings, sites: int, events: Events) -> _Round:
    """The round that counted whose rule tolerated the fewest attackers.

    Excluded are replies that the rule never aggregated: those of void rounds (repeated under the
    same number), of pre-training (numbered separately) and of scoring (the last round's number).
    """
    drawn = wanted(sites, federation.fraction) if sites else 0
    rounds = [_Round(_guarded(federation, drawn), drawn)]
    sound: set[str] = set()
    for event in events:
        kind = event.get("event")
        if kind == "round_started":
            sound = set()
        elif _is_sound(event, "train") and not event.get("phase"):
            sound.add(event.get("site", ""))
        elif kind == "round_finished" and sound:
            computed = _guarded(federation, len(sound))
            # The event's number is lower if the run had already rejected some attackers.
            told = computed if federation.strategy in HALF else event.get("guarded", computed)
            rounds.append(_Round(min(told, computed), len(sound)))
    return min(rounds)


def _guarded(federation: FederationSettings, replies: int) -> int:
    if federation.strategy in HALF:
        return max(replies - 1, 0) // 2
    return int(federation.byzantine_share * replies)


def _of_class_sums(
    federation: FederationSettings, sites: int, held: list[str], missing: list[str]
) -> None:
    if not federation.screening:
        missing.append("screening of class sums")
    elif sites >= LEAST_DIRECTIONS and federation.direction_spread:
        held.append(
            "screening of each site's class sums against its declared units and the others'"
        )
    else:
        held.append("screening of each site's class sums against its declared units")
        missing.append(_no_directions("class sums", federation, sites))
    missing.append("a rule against hostile sites: class sums are added up")


def _of_start(
    federation: FederationSettings, sites: int, held: list[str], missing: list[str]
) -> None:
    what = "screening of each site's class statistics by themselves"
    if not federation.screening:
        missing.append("screening of class statistics beside the others'")
    elif sites < LEAST_LENGTHS:
        held.append(what)
        missing.append(
            f"screening of class statistics beside the others': {_of_sites(sites)}, and lengths "
            f"are compared among {LEAST_LENGTHS}"
        )
    elif sites < LEAST_DIRECTIONS or not federation.direction_spread:
        held.append(f"{what} and of their lengths beside the others'")
        missing.append(_no_directions("class statistics", federation, sites))
    else:
        held.append(f"{what} and beside the others'")
    missing.append("a rule against hostile sites for class statistics: they are added up")


def _no_directions(what: str, federation: FederationSettings, sites: int) -> str:
    if not federation.direction_spread:
        why = "federation.direction_spread = 0"
    else:
        why = f"{_of_sites(sites)}, and directions are compared among {LEAST_DIRECTIONS}"
    return f"screening of the direction of {what} beside the others': {why}"


def _of_sites(sites: int) -> str:
    return f"{sites} {'sites' if sites != 1 else 'site'} answered"


def _of_screening(
    federation: FederationSettings, events: Events, held: list[str], missing: list[str]
) -> None:
    """Norms are compared from the second round on, directions from the third."""
    if not federation.screening:
        missing.append("screening of updates")
        return
    finished = sum(event.get("event") == "round_finished" for event in events)
    rounds = finished or federation.rounds
    if rounds < 2:
        held.append("screening of each update by fixed bounds")
        missing.append("screening of updates beside those of earlier rounds: there were none")
    elif rounds < 3 or not federation.direction_spread:
        held.append("screening of each update's length beside those of earlier rounds")
        why = "federation.direction_spread = 0" if rounds > 2 else "it begins with the third round"
        missing.append(f"screening of updates' direction: {why}")
    else:
        held.append("screening of each update's length and direction beside earlier rounds'")


def _of_rule(
    federation: FederationSettings,
    sites: int,
    events: Events,
    held: list[str],
    missing: list[str],
) -> None:
    name, share = federation.strategy, federation.byzantine_share
    # A rule from another installed package is recognized by its rounds' events.
    robust = name in ROBUST or any(event.get("guarded") is not None for event in events)
    if not robust:
        missing.append(f"a rule against hostile sites: with {name} one site can teach a backdoor")
        return
    guarded, replies = _weakest_round(federation, sites, events)
    of = f"of the {replies} {'sites' if replies != 1 else 'site'} of its smallest round"
    if not guarded:
        against = "fewer than half" if name in HALF else f"a share of {share:g}"
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
