"""Which model is the best so far: scores that came with replies, and patience."""

from collections.abc import Callable
from typing import Any

from flwr.app import ArrayRecord

from fgvc_core.protocol.messages import Reply
from fieldmark.server.run_log.checkpoint import RunState
from fieldmark.server.screening.checks import Screened
from fieldmark.server.screening.tally import share

Keep = Callable[[ArrayRecord], None]
"""Keeps a model as the best."""


def take_scores(
    state: RunState, round_: int, arrays: ArrayRecord, replies: list[Screened], keep: Keep
) -> None:
    """Scores of model ``round_``: is it the best so far?

    Args:
        state: Changed in place.
        round_: Which round's model was scored.
        arrays: That model.
        replies: What came back, with or without scores.
        keep: Called with the model if it is the best, or nobody scored it.
    """
    scores = {r.reply.site: r.reply.scores for r in replies if r.reply.scores is not None}
    _take_noisy(state, round_, [r.reply for r in replies])
    examples = sum(s.examples for s in scores.values())
    if examples == 0:
        state.best_round, state.since_best = round_, 0
        keep(arrays)
        return
    top1 = sum(s.correct for s in scores.values()) / examples
    loss = sum(s.loss_sum for s in scores.values()) / examples
    if round_ > 0:
        state.history[round_ - 1].update(val_top1=top1, val_loss=loss)
    if state.best_score is not None and [top1, -loss] <= state.best_score:
        state.since_best += 1
        return
    state.best_round, state.best_score = round_, [top1, -loss]
    state.since_best = 0
    state.best_sites = {
        site: {"top1": share(s), "macro_f1": s.macro_f1} for site, s in scores.items()
    }
    keep(arrays)


def personal_scores(replies: list[Reply]) -> dict[str, dict[str, Any]]:
    """Site -> validation ``examples``, and of them right with the best model (``global``) and with
    the site's own (``personal``); sites that keep their scores, or have no validation, are left
    out."""
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


def _take_noisy(state: RunState, round_: int, replies: list[Reply]) -> None:
    """Noisy scores add up to a figure; they choose nothing, being few and uncertain."""
    noisy = [reply.noisy_scores for reply in replies if reply.noisy_scores is not None]
    examples = sum(scores.examples for scores in noisy)
    if round_ > 0 and examples > 0:
        top1 = sum(scores.correct for scores in noisy) / examples
        state.history[round_ - 1].update(val_top1=min(max(top1, 0.0), 1.0))
