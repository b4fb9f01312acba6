"""A masked sum at the coordinator: two trips, one set of sites, one accumulator.

First every site of the cohort works and says that it is ready. The sites that are ready make the
set of the sum, which is written down before anything is sent. Then each of them sends its part, and
the parts are added as they come: the coordinator holds no key, and no part by itself says anything.

Both sets are on the disk before they are sent, so a run that is resumed repeats them. A site
answers one set at a place, so there is never a second one: if a site of the set stays silent, the
sum is lost, and the site is named.
"""

import json
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from flwr.app import ArrayRecord
from numpy.typing import NDArray

from fgvc_core.errors import DataError, RunFailed
from fgvc_core.files import private_folder, write_durably
from fgvc_core.protocol.keys import fingerprint
from fgvc_core.protocol.messages import CohortMember, SignedText
from fgvc_core.protocol.stages import SECURE, Stage
from fgvc_core.secure.part import NAME, Scale
from fgvc_core.secure.ready import read_ready
from fgvc_core.secure.ring import from_ring, word
from fgvc_core.wire.arrays import TensorSpec
from fgvc_core.words import counted
from fieldmark.server.rounds.stage import Work, run_stage
from fieldmark.server.screening.checks import Screened
from fieldmark.server.strategies import SoundReply

if TYPE_CHECKING:
    from collections.abc import Callable

    from fieldmark.server.rounds.context import RunContext, Updates

SOONEST_S = 2.0
"""Seconds after which silent sites are asked again at the soonest."""

FOLDER = "secure"
"""Folder of a run with one file per sum."""


@dataclass(frozen=True)
class Opened:
    """An opened sum.

    Attributes:
        values: float64 (N,).
        names: Sites of the sum.
        units: Their declared units together.
        accepted: Bodies of their answers.
    """

    values: NDArray[np.float64]
    names: tuple[str, ...]
    units: int
    accepted: list[Screened]


class SumLost(RunFailed):
    """A sum that cannot be opened now.

    Attributes:
        silent: Sites of the set that did not send their part.
        refused: Whether too few sites are left because the others refuse: only asking the same
            again helps, once their people have decided otherwise.
    """

    def __init__(
        self, what: str, why: str, remedy: str, silent: Sequence[str] = (), *, refused: bool = False
    ) -> None:
        super().__init__(what, why=why, remedy=remedy)
        self.silent = silent
        self.refused = refused


@dataclass(frozen=True)
class Wanted:
    """A sum that is to be opened.

    Attributes:
        stage: The stage whose values are summed.
        number: Of the round.
        sites: Sites to ask; if the sum was begun before, those of then are asked.
        model: Sent in the first trip.
        size: Number of values of each site.
        scale_of: Number of sites that share the noise -> scale of the sum.
        proximal_mu: Sent in the first trip.
    """

    stage: Stage
    number: int
    sites: list[str]
    model: ArrayRecord
    size: int
    scale_of: "Callable[[int], Scale]"
    proximal_mu: float = 0.0


@dataclass(frozen=True)
class Sets:
    """The two sets of one sum, as written down.

    Attributes:
        path: Of the file.
        cohort: Who is asked; its digest is bound by every site.
        ready: Who is in the sum, sorted by name; empty until it is fixed.
        units: Site -> declared units, of the sites in the sum.
    """

    path: Path
    cohort: tuple[CohortMember, ...]
    ready: tuple[SignedText, ...] = ()
    units: dict[str, int] = field(default_factory=dict)

    @property
    def names(self) -> tuple[str, ...]:
        """Sites of the sum."""
        return tuple(read_ready(signed)[0].site for signed in self.ready)

    def write(self) -> None:
        """Write both sets durably; before anything of them is sent."""
        values = {
            "cohort": [member.model_dump() for member in self.cohort],
            "ready": [signed.model_dump() for signed in self.ready],
            "units": self.units,
        }
        private_folder(self.path.parent)
        write_durably(self.path, json.dumps(values, indent=1).encode())

    @classmethod
    def read(cls, path: Path) -> "Sets | None":
        """The sets of a sum that was begun; None if there is none.

        Raises:
            DataError: if the file is damaged.
        """
        if not path.exists():
            return None
        try:
            values: dict[str, Any] = json.loads(path.read_bytes())
            return cls(
                path,
                tuple(CohortMember(**member) for member in values["cohort"]),
                tuple(SignedText(**signed) for signed in values["ready"]),
                dict(values["units"]),
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"'{path}' cannot be read: {error}.",
                why="Which sites a sum is over was written there, and no other set is possible.",
                remedy="Restore it from a copy, or start a new run.",
            ) from None


def secure_sum(context: "RunContext", updates: "Updates", wanted: Wanted) -> Opened:
    """Run both trips of one sum and open it.

    Args:
        context: The run's.
        updates: Provides the screening of replies.
        wanted: The sum.

    Raises:
        SumLost: if too few sites are ready, or one of the set stays silent; names them. The same
            can be asked for again.
        RunFailed: if more sites take part than a sum is over.
        DataError: if the file with the sets is damaged.
    """
    stage, number = wanted.stage, wanted.number
    sets = Sets.read(path_of(context, stage, number)) or _cohort(context, wanted)
    if not sets.ready:
        sets = _all_ready(context, updates, wanted, sets)
    names, secure = sets.names, context.recipe.secure
    assert secure is not None
    scale = wanted.scale_of(secure.rules.adding(len(names)))
    total, accepted = _summed(context, updates, wanted, sets, scale)
    context.events.emit(
        "secure_sum",
        round=number,
        phase=stage.name,
        sites=len(names),
        asked=len(sets.cohort),
        names=list(names),
        missing=sorted({member.name for member in sets.cohort} - set(names)),
    )
    units = sum(sets.units[name] for name in names)
    return Opened(from_ring(total, scale.step), names, units, accepted)


def path_of(context: "RunContext", stage: Stage, number: int) -> Path:
    """File with the sets of one sum."""
    return context.home.run_dir / FOLDER / f"round-{number:06d}-{stage.name}.json"


def _cohort(context: "RunContext", wanted: Wanted) -> Sets:
    """Write down whom a sum may be over."""
    keys, number = context.exchange.keys, wanted.number
    members = [
        CohortMember(name=site, fingerprint=fingerprint(keys[site]))
        for site in sorted(wanted.sites)
    ]
    secure = context.recipe.secure
    assert secure is not None
    if len(members) < secure.least:
        raise _too_few(wanted, len(members), secure.least, {}, {})
    if len(members) > secure.rules.most:
        raise RunFailed(
            f"Round {number}: {len(members)} sites take part, and secure.most = "
            f"{secure.rules.most}.",
            why="Sites were registered after the run had begun; each would refuse a larger sum, "
            "whose noise alone it has not charged.",
            remedy="Name the sites of the run (federation.sites), or start a new run.",
        )
    sets = Sets(path_of(context, wanted.stage, number), tuple(members))
    sets.write()
    return sets


def _all_ready(context: "RunContext", updates: "Updates", wanted: Wanted, sets: Sets) -> Sets:
    """Ask for the work until enough are ready, and write down who is."""
    secure, exchange = context.recipe.secure, context.exchange
    assert secure is not None
    texts: dict[str, SignedText] = {}
    declined: dict[str, str] = {}
    patience = _Patience(context)
    while True:
        waiting = [m.name for m in sets.cohort if m.name not in texts and m.name not in declined]
        asked = [site for site in waiting if site in exchange.present()]
        if asked:
            work = Work(
                context.trust.in_use(asked),
                wanted.model,
                list,
                proximal_mu=wanted.proximal_mu,
                cohort=sets.cohort,
            )
            trip = SECURE[wanted.stage][0]
            found = run_stage(trip, wanted.number, context, updates, work).accepted
            texts |= {s.reply.site: s.reply.ready for s in found if s.reply.ready is not None}
            for site in _sharing_a_key(texts):
                declined[site] = "Its fresh key is another site's too."
                del texts[site]
            declined |= updates.replies.declined
            declined |= dict.fromkeys(updates.replies.unsound, "Its answer was not sound.")
        open_ = [site for site in waiting if site not in texts and site not in declined]
        if len(texts) >= secure.least:
            break
        if patience.is_over or not open_:
            silent = dict.fromkeys(open_, "No answer.")
            raise _too_few(wanted, len(texts), secure.least, declined, silent)
        patience.pause()
    ready = tuple(texts[name] for name in sorted(texts))
    units = {name: exchange.units[name] for name in sorted(texts)}
    fixed = replace(sets, ready=ready, units=units)
    fixed.write()
    return fixed


def _sharing_a_key(texts: dict[str, SignedText]) -> list[str]:
    """Sites whose fresh key another one has too: every site would refuse a set with both."""
    keys = {site: read_ready(signed)[0].key for site, signed in texts.items()}
    counts = Counter(keys.values())
    return [site for site, key in keys.items() if counts[key] > 1]


def _summed(
    context: "RunContext", updates: "Updates", wanted: Wanted, sets: Sets, scale: Scale
) -> tuple[NDArray[Any], list[Screened]]:
    """Ask for the parts until every one has come; each is added once, as it comes."""
    exchange, names, size = context.exchange, sets.names, wanted.size
    total: NDArray[Any] = np.zeros(size, word(scale.bits))
    accepted: list[Screened] = []
    added: set[str] = set()
    specs = {NAME: TensorSpec(f"uint{scale.bits}", (size,))}

    def add(replies: Iterator[SoundReply]) -> int:
        nonlocal total
        for reply in replies:
            total += np.asarray(reply.tensors[NAME])
            added.add(reply.site)
            # Free the memory before the next one is fetched.
            del reply
        return len(added)

    patience = _Patience(context)
    while True:
        asked = [site for site in names if site not in added and site in exchange.present()]
        if asked:
            work = Work(asked, ArrayRecord(), add, specs=specs, ready=sets.ready)
            trip = SECURE[wanted.stage][1]
            accepted += run_stage(trip, wanted.number, context, updates, work).accepted
        silent = [site for site in names if site not in added]
        if not silent:
            return total, accepted
        declined = {s: r for s, r in updates.replies.declined.items() if s in silent}
        if patience.is_over or len(declined) == len(silent):
            raise _lost(context, wanted, silent, declined)
        patience.pause()


class _Patience:
    """How long silent sites are waited for, and how often they are asked again.

    Each request costs a site lines in its ledger, so the pauses grow.
    """

    def __init__(self, context: "RunContext") -> None:
        self._exchange = context.exchange
        self._most_s = context.home.settings.wait_for_sites_s
        # A simulation's clock stands still while nothing is pulled, and the machine's does not.
        self._began, self._really = self._exchange.seconds(), time.monotonic()

    @property
    def is_over(self) -> bool:
        """Whether nobody is waited for any longer."""
        return self._left() <= 0

    def pause(self) -> None:
        """Wait before the sites are asked again."""
        elapsed = time.monotonic() - self._really
        time.sleep(max(min(max(SOONEST_S, elapsed / 4), self._left()), 0.0))

    def _left(self) -> float:
        simulated = self._exchange.seconds() - self._began
        return self._most_s - max(simulated, time.monotonic() - self._really)


def _too_few(
    wanted: Wanted, found: int, least: int, declined: dict[str, str], silent: dict[str, str]
) -> SumLost:
    missing = declined | silent
    said = [f"{site}: {why.rstrip('.')}" for site, why in sorted(missing.items())[:5]]
    more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
    named = f" Missing: {'; '.join(said)}{more}." if said else ""
    return SumLost(
        f"Round {wanted.number}: {counted(found, 'site is', 'sites are')} ready for the sum of "
        f"{wanted.stage.name}, and secure.least = {least}.{named}",
        "Nothing was opened. Sites that were ready are not charged again.",
        "Go on when the others are back: --resume asks for the same again.",
        # Even if every silent one came, they would be too few.
        refused=found + len(silent) < least,
    )


def _lost(
    context: "RunContext", wanted: Wanted, silent: list[str], declined: dict[str, str]
) -> SumLost:
    """The error of a sum that cannot be opened, after naming who is missing."""
    for site in silent:
        why = declined.get(site, "No part of the sum.")
        context.events.emit(
            "secure_sum_lost", round=wanted.number, phase=wanted.stage.name, site=site, reason=why
        )
    said = "; ".join(f"{site}: {declined.get(site, 'no part of the sum came')}" for site in silent)
    return SumLost(
        f"Round {wanted.number}: the sum of {wanted.stage.name} lacks {len(silent)} parts. {said}.",
        "It opens only with the part of every site that was ready, and no other set is possible: a "
        "site answers one.",
        "Bring the site back, and go on with --resume: the others send the same bytes again. If it "
        "never comes back, start a new run; what was charged is spent.",
        silent,
    )


def sums_of(run_dir: Path) -> list[dict[str, Any]]:
    """Every sum of a run that was fixed: its file's name, sites asked, and sites in it."""
    found = []
    for path in sorted((run_dir / FOLDER).glob("round-*.json")):
        sets = Sets.read(path)
        if sets is not None and sets.ready:
            number, _, phase = path.stem.removeprefix("round-").partition("-")
            found.append(
                {
                    "round": int(number),
                    "phase": phase,
                    "asked": len(sets.cohort),
                    "sites": list(sets.names),
                }
            )
    return found
