"""Handlers of the stages of a run, at a site.

A handler scores, trains or computes, and returns fields and tensors for the reply. The caller
(:mod:`fieldmark.client.job`) adds the fields that repeat the request and decides whether the reply
may leave. With differential privacy, :mod:`.private` handles all stages.
"""

from collections.abc import Callable

from fgvc_core.protocol.stages import (
    FOLD_COUNTS,
    GRADIENTS,
    PERSONAL,
    PRETRAIN,
    SCORE,
    STATISTICS,
    TRAIN,
)
from fieldmark.client.job import Job
from fieldmark.client.privacy.outbox import Payload
from fieldmark.client.stages.personal import answer_personal
from fieldmark.client.stages.pretrain import answer_pretraining
from fieldmark.client.stages.statistics import (
    answer_fold_counts,
    answer_gradients,
    answer_statistics,
)
from fieldmark.client.stages.train import answer_round

HANDLERS: dict[str, Callable[[Job], Payload]] = {
    PRETRAIN.name: answer_pretraining,
    STATISTICS.name: answer_statistics,
    GRADIENTS.name: answer_gradients,
    FOLD_COUNTS.name: answer_fold_counts,
    TRAIN.name: answer_round,
    SCORE.name: answer_round,
    PERSONAL.name: answer_personal,
}
"""Stage name -> handler without differential privacy."""
