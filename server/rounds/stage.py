"""The stage engine: sends one stage's requests, checks the replies and aggregates them.

Every stage has the same shape: ask, check each reply, aggregate the accepted ones, compare their
number with the quorum; then the round is void or its result is used. Differences between stages are
in :mod:`fgvc_core.protocol.stages` and in the :class:`Work` that a caller passes.
"""

import hashlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from flwr.app import ArrayRecord, Message

from fgvc_core.errors import RunFailed
from fgvc_core.flower.records import to_array_record
from fgvc_core.protocol.messages import CohortMember, Request, SignedText
from fgvc_core.protocol.stages import TRAIN, Stage
from fgvc_core.wire.arrays import TensorSpec, pack_all
from fieldmark.server.screening.checks import Screened
from fieldmark.server.screening.trust import bounded, share_among
from fieldmark.server.sites.membership import refused_by_all
from fieldmark.server.strategies import Aggregation, SoundReply

if TYPE_CHECKING:
    from fieldmark.server.rounds.context import RunContext, Updates

T = TypeVar("T")

VOID_ROUNDS_ALLOWED = 3


@dataclass(frozen=True)
class Work(Generic[T]):
    """Inputs of one stage.

    Attributes:
        sites: Sites to ask, in order.
        sent: Tensors sent with each request, encoded.
        aggregate: Consumes the accepted replies; returns None if they yield no result.
        needed: Fewest accepted replies for a quorum.
        specs: Tensors of a valid reply; None: the model's.
        proximal_mu: Weight of the proximal term that pulls toward the received model.
        cohort: Of the first trip of a masked sum: who may be in it.
        ready: Of its second trip: who is.
        sent_to: Tensors for one site, where they are not the same for all; ``sent`` is then only
            counted.
    """

    sites: list[str]
    sent: ArrayRecord
    aggregate: Callable[[Iterator[SoundReply]], T | None]
    needed: int = 0
    specs: dict[str, TensorSpec] | None = None
    proximal_mu: float = 0.0
    cohort: tuple[CohortMember, ...] = ()
    ready: tuple[SignedText, ...] = ()
    sent_to: Callable[[str], ArrayRecord] | None = None


@dataclass(frozen=True)
class StageResult(Generic[T]):
    """Result of a stage.

    Attributes:
        value: The aggregate of its replies, or None.
        accepted: Bodies of the accepted replies.
        needed: Fewest of them for a quorum.
    """

    value: T | None
    accepted: list[Screened]
    needed: int = 0

    @property
    def void(self) -> bool:
        """Whether there is no value, or too few replies for a quorum."""
        return self.value is None or len(self.accepted) < self.needed


@dataclass(frozen=True)
class HeadRound:
    """A round that computes the head from noisy sums of every site, without training.

    Attributes:
        context: The run's.
        updates: Provides the screening of replies.
        number: Of the round.
        sites: Sites to ask.
        arrays: The model.
        keep: Writes a checkpoint: the center is fixed once it is known.
    """

    context: "RunContext"
    updates: "Updates"
    number: int
    sites: list[str]
    arrays: ArrayRecord
    keep: Callable[[], None]


def run_stage(
    stage: Stage, number: int, context: "RunContext", updates: "Updates", work: Work[T]
) -> StageResult[T]:
    """Ask every site, check each reply as it comes, and aggregate the accepted ones.

    Args:
        stage: Which stage.
        number: Of the round.
        context: The run's.
        updates: Provides the screening: of training, or of pre-training.
        work: Inputs of the stage.
    """
    context.tally.open(work.sent)
    requests = [_request(stage, number, context, updates, work, site) for site in work.sites]
    accepted: list[Screened] = []
    updates.replies.begin()
    answers = context.exchange.ask(requests, context.recipe.federation.deadline_s)
    value = work.aggregate(updates.replies.sound(answers, accepted, work.specs))
    return StageResult(value, accepted, work.needed)


def _request(
    stage: Stage, number: int, context: "RunContext", updates: "Updates", work: Work[T], site: str
) -> tuple[Request, Message]:
    """A site's request, with the ledger head last seen and how its last replies were judged."""
    record = context.trust.of(site)
    return context.exchange.compose(
        stage.kind,
        number,
        site,
        work.sent if work.sent_to is None else work.sent_to(site),
        work.proximal_mu,
        phase=stage.phase,
        known_head=str(context.state.ledgers.get(site, [0, ""])[1]),
        base_round=record["folded"] if updates.keeps else 0,
        notice=record["notice"],
        cohort=work.cohort,
        ready=work.ready,
        class_shares=tuple(context.state.class_shares) if stage is TRAIN else (),
    )


def run_updates(
    stage: Stage,
    number: int,
    context: "RunContext",
    updates: "Updates",
    arrays: ArrayRecord,
    cohort: list[str],
    needed: int,
) -> StageResult[ArrayRecord]:
    """Run a stage whose replies are updates of the model that is sent.

    Updates are compared with earlier ones, weighted, and aggregated by the strategy. If the round
    is void, history and strategy keep their state.
    """
    strategy = updates.strategy
    sent = updates.outgoing(arrays)
    received = updates.outgoing.received(sent)
    late = updates.late.take(number, received) if updates.late is not None else []
    updates.history.begin(received, updates.rate(number))
    beside = strategy.beside()
    if beside:
        sent = ArrayRecord({**sent, **to_array_record(pack_all(beside))})
    federation, events = context.recipe.federation, context.events
    share = share_among(
        len(context.exchange.keys), federation.max_weight_share, weighs=strategy.weighs
    )
    round_ = Aggregation(number, updates.unpacked(arrays), needed, context.trust.found)

    def aggregate(replies: Iterator[SoundReply]) -> ArrayRecord | None:
        weighed = bounded(chain(late, replies), share, number, events)
        tensors = strategy.aggregate(weighed, round_)
        return None if tensors is None else to_array_record(pack_all(tensors))

    specs = strategy.expected(updates.specs)
    work = Work(cohort, sent, aggregate, needed, specs, strategy.proximal_mu)
    result = run_stage(stage, number, context, updates, work)
    context.trust.close(number)
    if not result.void:
        assert result.value is not None
        updates.history.close(updates.unpacked(result.value))
    return result


def sites_in_use(context: "RunContext", sites: list[str], number: int) -> list[str]:
    """The sites that can be asked.

    Raises:
        RunFailed: if every site has been set aside.
    """
    left = context.trust.in_use(sites)
    if not left:
        raise RunFailed(
            f"Round {number}: every site has been set aside.",
            why="Each sent unsound replies federation.set_aside_after times in a row.",
            remedy="The run's events.jsonl says what was wrong with them; the bounds are in "
            "[federation].",
        )
    return left


def void_round(
    number: int, context: "RunContext", updates: "Updates", accepted: int, needed: int
) -> None:
    """Record a round without a quorum: the model is unchanged.

    Raises:
        PolicyRefusal: if so many sites refuse by their policy that no round can find a quorum.
        RunFailed: if it is the third in a row.
    """
    state, events = context.state, context.events
    context.tally.void()
    if updates.history.void():
        events.emit("screening_reset", round=number)
    state.void_rounds += 1
    events.emit("round_void", round=number, accepted=accepted, needed=needed)
    refusing = updates.replies.refusing
    left = set(context.trust.in_use(sorted(context.exchange.nodes))) - refusing.keys()
    # Not the refusals of this round alone: its cohort may be one site.
    if not accepted and refusing and len(left) < max(needed, 1):
        raise refused_by_all(refusing)
    if state.void_rounds >= VOID_ROUNDS_ALLOWED:
        raise RunFailed(
            f"Round {number} found {accepted} sound replies of {needed} needed, "
            f"{state.void_rounds} times in a row.",
            why="The model was left as it was.",
            remedy="The run's events.jsonl says why replies were refused; "
            "--resume goes on from the last checkpoint.",
        )


def finish_round(
    number: int,
    context: "RunContext",
    arrays: ArrayRecord,
    cohort: list[str],
    accepted: list[Screened],
    started: float,
) -> dict[str, Any]:
    """Record a round that counts.

    Args:
        number: Of the round.
        context: The run's.
        arrays: The new model. Its digests are stored, so two runs can be compared bit for bit.
        cohort: Sites that were asked.
        accepted: Bodies of the accepted replies.
        started: When it began, by the monotonic clock.

    Returns:
        Its entry in ``history`` in ``metrics.json``, without scores yet.
    """
    context.state.void_rounds = 0
    received, sent = context.tally.close()
    losses = [(r.reply.loss, r.reply.examples) for r in accepted if r.reply.loss is not None]
    weight = sum(examples for _, examples in losses)
    digests = context.exchange.digests(arrays)
    lines = "".join(f"{name} {digest}\n" for name, digest in sorted(digests.items()))
    return {
        "round": number,
        "top1": None,
        "macro_f1": None,
        "loss": sum(loss * n for loss, n in losses) / weight if weight else None,
        "val_top1": None,
        "val_loss": None,
        "seconds": round(time.monotonic() - started, 3),
        "bytes_up": received,
        "bytes_down": sent,
        "cohort": len(cohort),
        "accepted": len(accepted),
        "refused": len(cohort) - len(accepted),
        "model": hashlib.sha256(lines.encode()).hexdigest(),
    }
