"""Handlers of the stages that a head is computed from before round 1, without differential privacy.

These are class statistics, gradients of heads, and counts on folds of the training pictures.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from fgvc_core.data.table import fold_numbers
from fgvc_core.errors import PeerError, PolicyRefusal
from fgvc_core.models.head_stack import (
    BIAS,
    MOST_HEADS,
    MOST_VARIANTS,
    HeadStack,
    Tensors,
    read_stack,
    site_counts,
    site_gradients,
    stack_specs,
)
from fgvc_core.training.start import folds_of, site_statistics, vectors
from fgvc_core.wire.codec import decode_model
from fieldmark.client.job import Job
from fieldmark.client.privacy.outbox import Payload
from fieldmark.client.workspace import SiteExamples, learner_and_examples

Answer = Callable[[NDArray[np.float32], NDArray[np.int64], NDArray[np.int64], HeadStack], Tensors]
"""Answers about heads from the site's vectors, labels and folds."""


def answer_statistics(job: Job) -> Payload:
    """Counts, sums and scatter matrices of the site's training features under the received model.

    Raises:
        PeerError: if the tensors do not match the model.
        PolicyRefusal: if the policy does not share counts.
        DataError: if this site's pictures or labels are invalid.
    """
    _check_counts(job, "class statistics hold how many pictures there are")
    with learner_and_examples(job) as (learner, specs, examples):
        learner.load(decode_model(job.received, specs, job.recipe.wire))
        batch = job.recipe.evaluate.batch_size
        statistics = site_statistics(learner, examples.train, batch, _folds(job, examples))
        return Payload({"examples": len(examples.train)}, statistics)


def answer_gradients(job: Job) -> Payload:
    """Loss and gradient of each received head, summed over the training pictures it learns from.

    Raises:
        PeerError: if the recipe has no such start, or the tensors are no heads of its model.
        PolicyRefusal: if the policy does not share counts.
        DataError: if this site's pictures or labels are invalid.
    """
    if job.recipe.train.start not in ("regression", "auto"):
        raise PeerError("The recipe has no regression: gradients of heads are not part of it.")
    _check_counts(job, "gradients of biases hold how many pictures of each class there are")
    return _about_heads(job, site_gradients)


def answer_fold_counts(job: Job) -> Payload:
    """How often each received head is right on the fold that it has not learned from.

    Raises:
        PeerError: if the recipe has no such start, or the tensors are no heads of its model.
        PolicyRefusal: if the policy does not share counts, or scores.
        DataError: if this site's pictures or labels are invalid.
    """
    if job.recipe.train.start != "auto":
        raise PeerError("The recipe chooses no head: counts on folds are not part of it.")
    _check_counts(job, "counts on folds hold how many pictures of each class there are")
    if not job.site.settings.policy.share_scores:
        raise PolicyRefusal(
            "policy.share_scores = false: counts on folds are scores.",
            why="The site keeps these numbers.",
            remedy="Name a train.start that chooses nothing, for instance regression.",
        )
    return _about_heads(job, site_counts)


def _check_counts(job: Job, what: str) -> None:
    if not job.site.settings.policy.share_counts:
        raise PolicyRefusal(
            f"policy.share_counts = false: {what}.",
            why="The site keeps these numbers.",
            remedy="Set train.start = 'none', or privacy.method = 'class-sums'.",
        )


def _folds(job: Job, examples: SiteExamples) -> NDArray[np.int64]:
    """The fold of each training picture; 0 where the recipe has none."""
    labels_N, folds = examples.train.labels_N.numpy(), folds_of(job.recipe.train)
    if not folds:
        return np.zeros(len(labels_N), np.int64)
    return fold_numbers(examples.train_subjects, labels_N, folds, job.site.split_key)


def _about_heads(job: Job, answer: Answer) -> Payload:
    """Answer about the received heads. The backbone is frozen, so it does not come with them."""
    shape = tuple(job.received[BIAS].shape) if BIAS in job.received else ()
    if len(shape) != 3 or not 1 <= shape[0] <= MOST_HEADS or not 1 <= shape[1] <= MOST_VARIANTS:
        raise PeerError("The request holds no heads to answer about.")
    with learner_and_examples(job) as (learner, _, examples):
        wanted = stack_specs(shape[0], shape[1], learner.num_classes, learner.model.feature_dim)
        heads = read_stack(
            decode_model(job.received, wanted, job.recipe.wire), folds_of(job.recipe.train)
        )
        features_ND = vectors(learner, examples.train, job.recipe.evaluate.batch_size)
        fold_N = _folds(job, examples)
        tensors = answer(features_ND, examples.train.labels_N.numpy(), fold_N, heads)
        return Payload({"examples": len(examples.train)}, tensors)
