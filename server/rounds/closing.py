"""Stages after the last round: scores of the last model, and personal models from the best one."""

from collections.abc import Iterator
from typing import Any

from flwr.app import ArrayRecord

from fgvc_core.flower.records import to_array_record
from fgvc_core.protocol.messages import Reply
from fgvc_core.protocol.stages import PERSONAL, SCORE, Stage
from fgvc_core.wire.arrays import pack_all
from fieldmark.server.rounds.cohort import draw_cohort
from fieldmark.server.rounds.context import RunContext, Updates
from fieldmark.server.rounds.stage import Work, run_stage
from fieldmark.server.screening.checks import Screened
from fieldmark.server.strategies import SoundReply

CLOSING_SITES = 100
"""Most sites that score the last model; a sample of a hundred is enough."""


def closing_scores(
    context: RunContext, updates: Updates, sites: list[str], arrays: ArrayRecord
) -> list[Screened]:
    """Scores of the last model from every site, or from a random sample if there are very many."""
    asked = closing_sites(context, sites)
    return _scores(SCORE, context.state.round, context, updates, asked, arrays)


def closing_sites(context: RunContext, sites: list[str]) -> list[str]:
    """The sites that score the last model: all, or a random sample if there are very many."""
    asked = context.trust.in_use(sites)
    if len(asked) <= CLOSING_SITES:
        return asked
    share, number = CLOSING_SITES / len(asked), context.state.round
    return draw_cohort(asked, share, context.recipe.seed, number + 1)


def personalise(
    context: RunContext, updates: Updates, sites: list[str], arrays: ArrayRecord
) -> None:
    """Have each site fine-tune the best model for itself and report the gain."""
    number = context.state.round
    if not context.local:
        # Tensors that stay at the sites match the last round's model only.
        best, _ = context.checkpoints.read("best")
        number, arrays = context.state.best_round, to_array_record(pack_all(best))
    asked = context.trust.in_use(sites)
    replies = _scores(PERSONAL, number, context, updates, asked, arrays)
    context.state.personal = personal_scores([screened.reply for screened in replies])
    context.events.emit("personalised", sites=len(context.state.personal))


def _scores(
    stage: Stage,
    number: int,
    context: RunContext,
    updates: Updates,
    asked: list[str],
    arrays: ArrayRecord,
) -> list[Screened]:
    work = Work(asked, updates.outgoing(arrays), _heard)
    result = run_stage(stage, number, context, updates, work)
    context.tally.close()
    return result.accepted


def _heard(replies: Iterator[SoundReply]) -> int:
    """Count replies and ignore their tensors: a score carries no update."""
    return sum(1 for _ in replies)


def personal_scores(replies: list[Reply]) -> dict[str, dict[str, Any]]:
    """Validation results by site, without sites that lack either score.

    Each has ``examples``, and correct ones with the best model (``global``) and with the site's
    personal model (``personal``).
    """
    found = {}
    for reply in replies:
        before, after = reply.scores, reply.personal
        if before and after and before.examples == after.examples > 0:
            found[reply.site] = {
                "examples": after.examples,
                "global": before.correct,
                "personal": after.correct,
            }
    return found
