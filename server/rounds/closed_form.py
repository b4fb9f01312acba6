"""A private round without training, which computes the head from noisy sums of every site.

It has two stages. First every site releases a noisy sum of its feature vectors; their mean over all
sites is the center. Then every site releases noisy class sums around that center. The first stage's
releases are checked before any site pays for the second. A site whose second reply is missing has
still paid for the first; its classes are then learned from the other sites.

A site releases class sums only once. So the center stays fixed once it is known, even if a site is
refused in the second stage or is away when a run resumes: around another center, every site would
have to pay again.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from flwr.app import ArrayRecord
from numpy.typing import NDArray

from fgvc_core.flower.records import to_array_record
from fgvc_core.privacy.class_sums import sums_bound, sums_deviation
from fgvc_core.privacy.noise import make_grid
from fgvc_core.privacy.posterior import head_of_sums
from fgvc_core.privacy.settings import PrivacySettings
from fgvc_core.privacy.whitening import first_bound, first_length, first_tensors, scatter_weight
from fgvc_core.protocol.stages import CENTRE, CLASS_SUMS, Stage
from fgvc_core.recipe import Recipe
from fgvc_core.wire.arrays import TensorSpec, pack_all
from fieldmark.server.rounds.noise import noise_of
from fieldmark.server.rounds.own_sums import Keep, Released, hand_out
from fieldmark.server.rounds.secure_head import secure_head
from fieldmark.server.rounds.stage import HeadRound, StageResult, Work, run_stage
from fieldmark.server.screening.checks import Screened
from fieldmark.server.screening.releases import (
    SumsScreening,
    too_many_units,
)
from fieldmark.server.screening.trust import cut_to_share, share_among
from fieldmark.server.strategies import SoundReply, Tensors

HEAD = ("head.centre", "head.weight", "head.bias")
"""Tensors of a subspace head; a whitened one also has ``head.whitening``."""

Ask = Callable[[Stage, ArrayRecord, dict[str, TensorSpec]], Iterable[SoundReply]]
"""Sends one stage's request with a model and returns the accepted replies."""

LeaveOut = Callable[[Stage, dict[str, str]], None]
"""Called with the sites whose releases are implausible, and why; they are not asked again."""

Fix = Callable[[NDArray[np.float64]], None]
"""Saves the first message's mean to disk, before any class sums are requested."""


def closed_head(asked: HeadRound) -> tuple[StageResult[ArrayRecord], int]:
    """Run the two stages, noisy center and noisy class sums, and compute the head.

    A site whose release is implausible is set aside: it is not asked again, and the results say so.

    Returns:
        The new model, with the accepted bodies of the last stage; and how many sites' releases went
        into it.
    """
    context, updates, number, sites = asked.context, asked.updates, asked.number, asked.sites
    if context.recipe.secure is not None:
        return secure_head(asked)
    recipe, state = context.recipe, context.state
    accepted: list[Screened] = []

    def ask(stage: Stage, model: ArrayRecord, specs: dict[str, TensorSpec]) -> list[SoundReply]:
        work = Work(context.trust.in_use(sites), model, list, specs=specs)
        result = run_stage(stage, number, context, updates, work)
        accepted[:] = result.accepted
        # Asking again is useless: a site repeats the same release, and in the other stage it would
        # pay for sums that cannot be used.
        for site in sorted(updates.replies.unsound):
            context.trust.set_aside(site, number)
        return result.value or []

    def leave_out(stage: Stage | None, refused: dict[str, str]) -> None:
        for site, reason in refused.items():
            context.tally.left_out(site, stage)
            context.trust.leave_out(site, reason, number)
        accepted[:] = [screened for screened in accepted if screened.reply.site not in refused]

    units = {site: context.exchange.units[site] for site in sites}
    leave_out(None, too_many_units(units, recipe.federation.max_weight_ratio))
    needed = context.exchange.quorum()

    def fix(first_Q: NDArray[np.float64]) -> None:
        # JSON round-trips float64 bit for bit.
        state.centre = first_Q.tolist()
        asked.keep()

    fixed_Q = np.array(state.centre) if state.centre else None
    classes = len(context.home.class_names)
    share = share_among(len(context.exchange.keys), recipe.federation.max_weight_share)
    closed = ClosedForm(recipe, context.exchange.units, classes, needed, share, fixed_Q)
    kept: list[Released] = []
    tensors, arrived = closed.run(updates.unpacked(asked.arrays), ask, leave_out, fix, kept.append)
    for site, factor in closed.factors([screened.reply.site for screened in accepted]).items():
        if factor < 1:
            cut = {"claimed": units[site], "weight": factor * units[site], "share": share}
            context.events.emit("weight_cut", round=number, site=site, **cut)
    if tensors is not None and arrived >= needed:
        hand_out(asked, sites, tensors, kept[0])
    value = None if tensors is None else to_array_record(pack_all(tensors))
    return StageResult(value, accepted, needed), arrived


@dataclass(frozen=True)
class ClosedForm:
    """Computes a head from noisy releases.

    Attributes:
        recipe: Its ``privacy.method`` is ``class-sums``.
        units: Site name -> its declared units, as its roll-call answer states them.
        classes: K.
        needed: Fewest sites whose releases make a head.
        share: Largest share of all units that one site counts for, 0.5 to 1 (no bound).
        first: float64 (Q + 1,), if it is known from an earlier attempt: the mean over all units of
            what the first message released, and the deviation of its noise; else None.
    """

    recipe: Recipe
    units: dict[str, int]
    classes: int
    needed: int = 1
    share: float = 1.0
    first: NDArray[np.float64] | None = None

    def run(
        self,
        tensors: Tensors,
        ask: Ask,
        leave_out: LeaveOut,
        fix: Fix = lambda first: None,
        released: Keep = lambda sums: None,
    ) -> tuple[Tensors | None, int]:
        """Run both stages.

        Args:
            tensors: The current model; only its head is replaced.
            ask: Sends the requests.
            leave_out: Called with releases that are implausible.
            fix: Saves the first message's mean once it is known.
            released: Called with the sums that the head is computed from.

        Returns:
            The new tensors, or None if no site's sums arrived; and how many sites' sums arrived.
        """
        directions = len(tensors["head.centre"])
        first_Q = self.first
        if first_Q is None:
            first_Q, arrived = self._first(tensors, ask, leave_out, directions)
            if first_Q is None:
                return None, arrived
            fix(first_Q)
        weight = scatter_weight(self.privacy)
        found_first = first_tensors(first_Q[:-1], directions, weight, float(first_Q[-1]))
        centred = {**tensors, **found_first}
        specs = {CLASS_SUMS.name: TensorSpec("float32", (self.classes, directions + 1))}
        found = self._asked(CLASS_SUMS, centred, ask, specs, leave_out)
        if not found:
            return None, 0
        return {**centred, **self._head(found, directions, released)}, len(found)

    def factors(self, sites: list[str]) -> dict[str, float]:
        """Factors that scale down the releases of sites with too many units.

        Scaling also shrinks the release's noise. Treating that noise as full-sized only gives the
        site less weight than it could have.
        """
        return cut_to_share({site: self.units[site] for site in sites}, self.share)

    @property
    def privacy(self) -> PrivacySettings:
        """``[privacy]``, which class sums have."""
        assert self.recipe.privacy is not None
        return self.recipe.privacy

    def _first(
        self, tensors: Tensors, ask: Ask, leave_out: LeaveOut, directions: int
    ) -> tuple[NDArray[np.float64] | None, int]:
        """Run the first stage: :attr:`first`, or None; and how many sites' releases arrived."""
        length = first_length(directions, scatter_weight(self.privacy))
        specs = {CENTRE.name: TensorSpec("float32", (length,))}
        centres = self._asked(CENTRE, tensors, ask, specs, leave_out)
        if len(centres) < self.needed:
            # No site should pay for class sums that cannot make a head.
            return None, len(centres)
        # float64 sums in a fixed order of sites make the center reproducible.
        first_Q, units = np.zeros(length), 0.0
        factors = self.factors(list(centres))
        for site, found_Q in centres.items():
            first_Q += factors[site] * found_Q
            units += factors[site] * self.units[site]
        one = self._screening(CENTRE, (length,)).deviation
        noise = one * float(np.sqrt(sum(factors[site] ** 2 for site in centres)))
        return np.append(first_Q, noise) / units, len(centres)

    def _asked(
        self,
        stage: Stage,
        model: Tensors,
        ask: Ask,
        specs: dict[str, TensorSpec],
        leave_out: LeaveOut,
    ) -> dict[str, NDArray[np.float64]]:
        """One stage's releases by site, without implausible ones."""
        found = {
            reply.site: np.array(reply.tensors[stage.name], dtype=np.float64)
            for reply in ask(stage, to_array_record(pack_all(model)), specs)
        }
        refused = self._screening(stage, specs[stage.name].shape).refused(found)
        if refused:
            leave_out(stage, refused)
        return {site: values for site, values in found.items() if site not in refused}

    def _screening(self, stage: Stage, shape: tuple[int, ...]) -> SumsScreening:
        privacy = self.recipe.privacy
        assert privacy is not None
        noise = noise_of(self.recipe, stage)
        spread = self.recipe.federation.direction_spread
        if stage is CENTRE:
            bound = first_bound(scatter_weight(privacy))
            deviation = make_grid(bound, shape[0], noise).deviation
            return SumsScreening(self.units, bound, deviation, spread)
        count = privacy.count_coordinate
        deviation = sums_deviation(self.classes, shape[1] - 1, count, noise)
        return SumsScreening(self.units, sums_bound(count), deviation, spread, count)

    def _head(
        self, found: dict[str, NDArray[np.float64]], directions: int, released: Keep
    ) -> Tensors:
        privacy = self.recipe.privacy
        assert privacy is not None
        noise = noise_of(self.recipe, CLASS_SUMS)
        deviation = sums_deviation(self.classes, directions, privacy.count_coordinate, noise)
        factors = self.factors(list(found))
        sums_SKQ = np.stack([factors[site] * sums_KQ for site, sums_KQ in found.items()])
        units_S = np.array([factors[site] * self.units[site] for site in found])
        released(Released(tuple(found), sums_SKQ, units_S, deviation))
        return head_of_sums(sums_SKQ, deviation, units_S, privacy)
