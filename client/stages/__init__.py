"""What a site does in each stage of a run: one handler of one signature each.

A handler scores, trains or computes, and returns fields and tensors of its reply; what a reply
repeats of its request, and whether it may leave, is the caller's (:mod:`fieldmark.client.job`).
Under differential privacy all stages are :mod:`.private`'s.
"""

from collections.abc import Callable

from fgvc_core.protocol.stages import PERSONAL, PRETRAIN, SCORE, STATISTICS, TRAIN
from fieldmark.client.job import Job
from fieldmark.client.privacy.outbox import Payload
from fieldmark.client.stages.personal import answer_personal
from fieldmark.client.stages.pretrain import answer_pretraining
from fieldmark.client.stages.statistics import answer_statistics
from fieldmark.client.stages.train import answer_round

HANDLERS: dict[str, Callable[[Job], Payload]] = {
    PRETRAIN.name: answer_pretraining,
    STATISTICS.name: answer_statistics,
    TRAIN.name: answer_round,
    SCORE.name: answer_round,
    PERSONAL.name: answer_personal,
}
"""Name of a stage -> its handler without differential privacy."""
