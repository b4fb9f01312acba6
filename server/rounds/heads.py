"""Heads that follow from what sites release about their pictures, without training."""

from collections.abc import Callable, Iterator

import numpy as np
from flwr.app import ArrayRecord
from numpy.typing import NDArray

from fgvc_core.flower.records import to_array_record
from fgvc_core.protocol.messages import Phase
from fgvc_core.wire.arrays import TensorSpec, pack_all
from fieldmark.server.rounds.closed_form import ClosedForm
from fieldmark.server.rounds.context import Parts
from fieldmark.server.rounds.start import FederatedStart, refused_start
from fieldmark.server.screening.checks import Screened
from fieldmark.server.screening.class_sums import too_many_units
from fieldmark.server.screening.weights import share_among
from fieldmark.server.strategies import SoundReply


def started_head(parts: Parts, sites: list[str], arrays: ArrayRecord) -> ArrayRecord:
    """The model before round 1, its head made of every site's statistics.

    Raises:
        FieldmarkError: if too few sites answered, or the start needs what there is not.
    """
    parts.books.reset()
    parts.intake.refusals = {}
    attributes_KA = parts.test.table.attributes_KA if parts.test is not None else None
    share = share_among(len(parts.exchange.keys), parts.recipe.federation.max_weight_share)
    start = FederatedStart(
        parts.recipe, parts.unpacked(arrays), attributes_KA, share, parts.state.claims,
        parts.events, parts.checkpoints.folder,
    )  # fmt: skip
    sites = parts.standing.in_use(sites)
    tensors, arrived = start.run(released(parts, 0, "statistics", sites, arrays, start.specs, []))
    for site, reason in start.refused.items():
        parts.events.emit("start_refused", site=site, reason=reason)
        parts.books.left_out(site, "statistics")
        parts.standing.leave_out(site, reason, 0)
    needed = parts.quorum(len(sites))
    if tensors is None or arrived < needed:
        raise refused_start(arrived, needed, parts.intake.refusals)
    for site, examples in start.taken.items():
        if examples:
            # What a site says first is the most that it weighs, in the rounds to come as well.
            parts.state.claims.setdefault(site, examples)
    parts.books.close()
    parts.events.emit("started", method=parts.recipe.train.start, sites=arrived)
    return to_array_record(pack_all(tensors))


def closed_head(
    parts: Parts,
    number: int,
    sites: list[str],
    arrays: ArrayRecord,
    accepted: list[Screened],
    keep: Callable[[], None],
) -> tuple[ArrayRecord | None, int]:
    """A round of two phases: noisy centre, noisy class sums, and the head from them.

    A site whose release cannot be is set aside: it is not asked again, and the run's end says so.

    Args:
        parts: The run's.
        number: Which round.
        sites: Who is asked.
        arrays: The model.
        accepted: Collects the sound bodies of the second phase.
        keep: Writes a checkpoint.

    Returns:
        The new model, or None where nothing sound came; and how many sites' did.
    """

    def ask(phase: Phase, model: ArrayRecord, specs: dict[str, TensorSpec]) -> Iterator[SoundReply]:
        accepted.clear()
        parts.intake.unsound = set()
        left = parts.standing.in_use(sites)
        yield from released(parts, number, phase, left, model, specs, accepted)
        # Asked again, a site gives the same release; asked for the other phase, it would pay for
        # sums that cannot count.
        for site in sorted(parts.intake.unsound):
            parts.standing.set_aside(site, number)

    def leave_out(phase: Phase, refused: dict[str, str]) -> None:
        for site, reason in refused.items():
            parts.books.left_out(site, phase)
            parts.standing.leave_out(site, reason, number)
        accepted[:] = [screened for screened in accepted if screened.reply.site not in refused]

    units = {site: parts.exchange.units[site] for site in sites}
    leave_out("", too_many_units(units, parts.recipe.federation.max_weight_ratio))
    needed = parts.quorum(len(sites))

    def fix(centre_P: NDArray[np.float32]) -> None:
        # As a float64 each value is the same; JSON gives it back to the bit.
        parts.state.centre = centre_P.astype(np.float64).tolist()
        keep()

    fixed_P = np.array(parts.state.centre, np.float32) if parts.state.centre else None
    share = share_among(len(parts.exchange.keys), parts.recipe.federation.max_weight_share)
    closed = ClosedForm(
        parts.recipe, parts.exchange.units, parts.class_count, needed, share, fixed_P
    )
    tensors, arrived = closed.run(parts.unpacked(arrays), ask, leave_out, fix)
    for site, factor in closed.factors([screened.reply.site for screened in accepted]).items():
        if factor < 1:
            claimed = units[site]
            parts.events.emit(
                "weight_cut", round=number, site=site, claimed=claimed,
                weight=factor * claimed, share=share,
            )  # fmt: skip
    return None if tensors is None else to_array_record(pack_all(tensors)), arrived


def released(
    parts: Parts,
    number: int,
    phase: Phase,
    sites: list[str],
    arrays: ArrayRecord,
    specs: dict[str, TensorSpec],
    accepted: list[Screened],
) -> Iterator[SoundReply]:
    """What every site releases about its pictures under a model."""
    requests = parts.asking.release(number, phase, sites, arrays)
    answers = parts.exchange.ask(requests, parts.recipe.federation.deadline_s)
    return parts.intake.sound(answers, accepted, specs)
