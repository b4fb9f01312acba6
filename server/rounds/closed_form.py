"""A round without training: noisy sums from every site, and the head that follows from them.

It has two stages, and each site's part of the first is judged before any pays for the second. First
every site releases a noisy sum of its vectors, whose mean over all sites is the center; noisy class
sums around that center come second. Both are tiny. A site whose second reply is missing has paid
for the first all the same; its classes are then learned from the others. A site releases class sums
around one center, once. So the center stays as it is once it is known, also where a site is found
out in the second stage, or is away when a run goes on: around another one everybody would have paid
for sums that nobody can use.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from flwr.app import ArrayRecord
from numpy.typing import NDArray

from fgvc_core.flower.records import to_array_record
from fgvc_core.privacy.class_sums import sums_bound, sums_deviation
from fgvc_core.privacy.noise import make_grid
from fgvc_core.privacy.planning import plan_for
from fgvc_core.privacy.posterior import infer_means, linear_scores
from fgvc_core.protocol.stages import CENTRE, CLASS_SUMS, Stage
from fgvc_core.recipe import Recipe
from fgvc_core.wire.arrays import TensorSpec, pack_all
from fieldmark.server.rounds.stage import StageResult, Work, run_stage
from fieldmark.server.screening.checks import Screened
from fieldmark.server.screening.releases import (
    SumsScreening,
    too_many_units,
)
from fieldmark.server.screening.trust import cut_to_share, share_among
from fieldmark.server.strategies import SoundReply, Tensors

if TYPE_CHECKING:
    from fieldmark.server.rounds.context import RunContext, Updates

HEAD = ("head.centre", "head.weight", "head.bias")

Ask = Callable[[Stage, ArrayRecord, dict[str, TensorSpec]], Iterable[SoundReply]]
"""Sends one stage's request with a model and returns the sound replies."""

LeaveOut = Callable[[Stage, dict[str, str]], None]
"""Told which sites' releases cannot be, and why: they are asked nothing more."""

Fix = Callable[[NDArray[np.float32]], None]
"""Keeps the center, on the disk, before any class sums are asked for."""


def closed_head(
    context: "RunContext",
    updates: "Updates",
    number: int,
    sites: list[str],
    arrays: ArrayRecord,
    keep: Callable[[], None],
) -> tuple[StageResult[ArrayRecord], int]:
    """A round of two stages: noisy center, noisy class sums, and the head from them.

    A site whose release cannot be is set aside: it is not asked again, and the run's end says so.

    Args:
        context: The run's.
        updates: Whose screening the replies pass.
        number: Of the round.
        sites: Who is asked.
        arrays: The model.
        keep: Writes a checkpoint.

    Returns:
        The new model, with the sound bodies of the last stage; and how many sites' releases
        it is made of.
    """
    recipe, state = context.recipe, context.state
    accepted: list[Screened] = []

    def ask(stage: Stage, model: ArrayRecord, specs: dict[str, TensorSpec]) -> list[SoundReply]:
        work = Work(context.trust.in_use(sites), model, list, specs=specs)
        result = run_stage(stage, number, context, updates, work)
        accepted[:] = result.accepted
        # Asked again, a site gives the same release; asked for the other stage, it would pay for
        # sums that cannot count.
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
    needed = context.quorum(len(sites))

    def fix(centre_P: NDArray[np.float32]) -> None:
        # As a float64 each value is the same; JSON gives it back to the bit.
        state.centre = centre_P.astype(np.float64).tolist()
        keep()

    fixed_P = np.array(state.centre, np.float32) if state.centre else None
    classes = len(context.home.class_names)
    share = share_among(len(context.exchange.keys), recipe.federation.max_weight_share)
    closed = ClosedForm(recipe, context.exchange.units, classes, needed, share, fixed_P)
    tensors, arrived = closed.run(updates.unpacked(arrays), ask, leave_out, fix)
    for site, factor in closed.factors([screened.reply.site for screened in accepted]).items():
        if factor < 1:
            cut = {"claimed": units[site], "weight": factor * units[site], "share": share}
            context.events.emit("weight_cut", round=number, site=site, **cut)
    value = None if tensors is None else to_array_record(pack_all(tensors))
    return StageResult(value, accepted, needed), arrived


@dataclass(frozen=True)
class ClosedForm:
    """Makes a head out of releases.

    Attributes:
        recipe: Its ``privacy.method`` is ``class-sums``.
        units: Site name -> its public number of units, as its roll-call answer states it.
        classes: K.
        needed: Fewest sites whose releases make a head.
        share: Most of all units that one site's releases count for, 0.5 to 1 (no bound).
        centre: float32 (P,), if it is known from an earlier try; else None.
    """

    recipe: Recipe
    units: dict[str, int]
    classes: int
    needed: int = 1
    share: float = 1.0
    centre: NDArray[np.float32] | None = None

    def run(
        self,
        tensors: Tensors,
        ask: Ask,
        leave_out: LeaveOut,
        fix: Fix = lambda centre: None,
    ) -> tuple[Tensors | None, int]:
        """Both stages.

        Args:
            tensors: The model as it is; only its head is replaced.
            ask: Carries the requests.
            leave_out: Told of releases that cannot be.
            fix: Keeps the centre, once it is known.

        Returns:
            The new tensors, or None where no site's sums arrived; and how many sites' did.
        """
        directions = len(tensors["head.centre"])
        centre_P = self.centre
        if centre_P is None:
            centre_P, arrived = self._centre(tensors, ask, leave_out, directions)
            if centre_P is None:
                return None, arrived
            fix(centre_P)
        centred = {**tensors, "head.centre": centre_P}
        specs = {CLASS_SUMS.name: TensorSpec("float32", (self.classes, directions + 1))}
        found = self._asked(CLASS_SUMS, centred, ask, specs, leave_out)
        if not found:
            return None, 0
        return {**centred, **self._head(found, directions)}, len(found)

    def factors(self, sites: list[str]) -> dict[str, float]:
        """What each of these sites' releases are multiplied by, so that none counts for too much.

        The noise of a release is made smaller with it; taking it for as large as the others'
        errs on the side of believing that site less.
        """
        return cut_to_share({site: self.units[site] for site in sites}, self.share)

    def _centre(
        self, tensors: Tensors, ask: Ask, leave_out: LeaveOut, directions: int
    ) -> tuple[NDArray[np.float32] | None, int]:
        """The first stage: the centre, or None; and how many sites' releases arrived."""
        specs = {CENTRE.name: TensorSpec("float32", (directions,))}
        centres = self._asked(CENTRE, tensors, ask, specs, leave_out)
        if len(centres) < self.needed:
            # Nobody pays for class sums that could not make a head.
            return None, len(centres)
        # Float64 sums in order of sites: the same replies, the same centre.
        centre_P, units = np.zeros(directions), 0.0
        factors = self.factors(list(centres))
        for site, found_P in centres.items():
            centre_P += factors[site] * found_P
            units += factors[site] * self.units[site]
        return (centre_P / units).astype(np.float32), len(centres)

    def _asked(
        self,
        stage: Stage,
        model: Tensors,
        ask: Ask,
        specs: dict[str, TensorSpec],
        leave_out: LeaveOut,
    ) -> dict[str, NDArray[np.float64]]:
        """One stage's releases by site, without those that cannot be."""
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
        noise = self._noise(stage)
        spread = self.recipe.federation.direction_spread
        if stage is CENTRE:
            deviation = make_grid(1.0, shape[0], noise).deviation
            return SumsScreening(self.units, 1.0, deviation, spread)
        count = privacy.count_coordinate
        deviation = sums_deviation(self.classes, shape[1] - 1, count, noise)
        return SumsScreening(self.units, sums_bound(count), deviation, spread, count)

    def _noise(self, stage: Stage) -> float:
        """The noise multiplier of a stage, as the recipe's plan has it."""
        privacy = self.recipe.privacy
        assert privacy is not None
        plan = plan_for(privacy, self.recipe.federation.rounds)
        return next(event.noise_multiplier for event in plan if event.purpose == stage.privacy)

    def _head(self, found: dict[str, NDArray[np.float64]], directions: int) -> Tensors:
        privacy = self.recipe.privacy
        assert privacy is not None
        noise = self._noise(CLASS_SUMS)
        deviation = sums_deviation(self.classes, directions, privacy.count_coordinate, noise)
        factors = self.factors(list(found))
        sums_SKQ = np.stack([factors[site] * sums_KQ for site, sums_KQ in found.items()])
        means = infer_means(
            sums_SKQ[:, :, :-1],
            sums_SKQ[:, :, -1] / privacy.count_coordinate,
            deviation,
            deviation / privacy.count_coordinate,
            privacy.within_spread,
            np.array([factors[site] * self.units[site] for site in found]),
        )
        weights_KP, biases_K = linear_scores(
            means, privacy.within_spread, privacy.class_prior == "counts"
        )
        return {
            "head.weight": weights_KP.astype(np.float32),
            "head.bias": biases_K.astype(np.float32),
        }
