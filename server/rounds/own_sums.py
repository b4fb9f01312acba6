"""What a site gets to infer a head of its own: the noisy sums of the others.

The last message of a round of class sums with ``personal.method = "own-sums"``. Each site puts its
exact sums beside the noisy ones of the others and keeps what follows. Nothing comes back but that
the message arrived. A site sees noisy sums of other sites, which are protected from everybody: see
``docs/threat-model.md``. Of masked sums it gets the total, which holds its own part as well.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from flwr.app import ArrayRecord
from numpy.typing import NDArray

from fgvc_core.flower.records import to_array_record
from fgvc_core.protocol.own_sums import OTHERS, with_others
from fgvc_core.protocol.stages import OWN_SUMS
from fgvc_core.wire.arrays import pack_all
from fieldmark.server.rounds.stage import HeadRound, Work, run_stage
from fieldmark.server.strategies import Tensors


@dataclass(frozen=True)
class Released:
    """The noisy class sums that a head was computed from.

    Attributes:
        names: Their sites; of a masked sum, those in it.
        sums_SKQ: float64 (S, K, P + 1), one a site; of a masked sum (1, K, P + 1).
        units_S: float64 (S,), declared units.
        deviation: Standard deviation of the noise on each value.
    """

    names: tuple[str, ...]
    sums_SKQ: NDArray[np.float64]
    units_S: NDArray[np.float64]
    deviation: float

    def without(self, site: str) -> "Released":
        """The same without one site's; a masked sum stays as it is."""
        if len(self.names) != len(self.sums_SKQ):
            return self
        others = [i for i, name in enumerate(self.names) if name != site]
        names = tuple(self.names[i] for i in others)
        return Released(names, self.sums_SKQ[others], self.units_S[others], self.deviation)


Keep = Callable[[Released], None]


def hand_out(head_round: HeadRound, sites: list[str], model: Tensors, released: Released) -> None:
    """Send every site the model and the others' sums, if the recipe says so.

    A site that does not answer goes without a head of its own; nothing else depends on it.

    Args:
        head_round: The round that computed the head.
        sites: Sites to ask.
        model: With the head that was computed.
        released: What it was computed from.
    """
    context, number = head_round.context, head_round.number
    if context.recipe.personal.method != "own-sums":
        return

    def sent_to(site: str) -> ArrayRecord:
        others = released.without(site)
        return to_array_record(
            pack_all(with_others(model, others.sums_SKQ, others.units_S, others.deviation))
        )

    asked = [
        site for site in context.trust.in_use(sites) if len(released.without(site).sums_SKQ) > 0
    ]
    if not asked:
        return
    largest = sent_to(asked[0])
    work = Work(asked, largest, lambda replies: sum(1 for _ in replies), sent_to=sent_to)
    result = run_stage(OWN_SUMS, number, context, head_round.updates, work)
    context.events.emit(OTHERS, round=number, sites=[r.reply.site for r in result.accepted])
