"""Handler of a training or scoring round: score the received model, train it, keep local state."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fgvc_core.errors import PeerError
from fgvc_core.protocol.messages import Scores
from fgvc_core.protocol.ranges import stated_loss, stated_sum
from fgvc_core.protocol.stages import TRAIN
from fgvc_core.protocol.tensor_names import as_control, controlled, local, shared, split_control
from fgvc_core.training.examples import Evaluation, Examples
from fgvc_core.training.learner import Learner
from fgvc_core.training.loop import ControlVariates, Stretch
from fgvc_core.wire.arrays import TensorSpec
from fgvc_core.wire.codec import decode_model
from fieldmark.client.job import Job
from fieldmark.client.kept import KeptTensors, Tensors
from fieldmark.client.privacy.outbox import Payload
from fieldmark.client.workspace import fresh_local, learner_and_examples


def answer_round(job: Job) -> Payload:
    """Score the received model and, in a training round, train it.

    Raises:
        PeerError: if the received tensors do not match the recipe's model.
        DataError: if this site's pictures or labels are invalid.
    """
    with learner_and_examples(job) as (learner, specs, examples):
        work = RoundWork(job, learner)
        work.load(decode_model(job.received, work.expected(specs), job.recipe.wire))
        scored, _ = learner.evaluate(examples.validation, job.recipe.evaluate.batch_size)
        fields: dict[str, Any] = {"examples": len(examples.train), "scores": scores_of(scored)}
        if job.stage is not TRAIN:
            return Payload(fields, {})
        loss, outgoing = work.train(examples.train)
    return Payload({**fields, "loss": stated_loss(loss)}, outgoing)


def scores_of(scored: Evaluation) -> Scores:
    """Evaluation as the scores of a reply."""
    return Scores(
        examples=scored.examples,
        correct=scored.correct,
        loss_sum=stated_sum(scored.loss_sum),
        macro_f1=scored.macro_f1,
    )


def received_shares(job: Job) -> NDArray[np.float64] | None:
    """Shares of the classes over all sites, (K,), where the recipe uses them.

    Raises:
        PeerError: if they are missing, do not fit the classes, or are not asked for.
    """
    shares = job.request.class_shares
    if not job.recipe.loss.uses_released_shares:
        if shares:
            raise PeerError("The request has shares of the classes, which the recipe does not use.")
        return None
    if len(shares) != len(job.class_names) or min(shares) <= 0 or abs(sum(shares) - 1) > 0.01:
        raise PeerError(
            f"The request has {len(shares)} shares of {len(job.class_names)} classes, with a sum "
            f"of {sum(shares):g}: each must be above 0, and their sum 1."
        )
    return np.array(shares)


class RoundWork:
    """One round on a learner, including the tensors that a site keeps between rounds.

    Args:
        job: The request to work on.
        learner: Loaded and trained in place.
    """

    def __init__(self, job: Job, learner: Learner) -> None:
        self._job = job
        self._learner = learner
        self._local = job.recipe.federation.local
        self._scaffold = job.recipe.federation.strategy == "scaffold"
        self._keeps = self._scaffold or bool(self._local)
        self._kept: Tensors = {}
        self._control: Tensors = {}

    def expected(self, specs: Mapping[str, TensorSpec]) -> dict[str, TensorSpec]:
        """Specs of the tensors that have to arrive, given those that the model trains."""
        travelling = shared(specs, self._local)
        if self._scaffold and self._job.stage is TRAIN:
            return travelling | as_control({n: travelling[n] for n in controlled(travelling)})
        return travelling

    def load(self, received: Mapping[str, NDArray[np.float32]]) -> None:
        """Load the received tensors and those that this site keeps.

        Raises:
            PeerError: if the kept tensors are missing.
            DataError: if they are damaged.
        """
        tensors, self._control = split_control(received)
        if self._keeps:
            kept = KeptTensors(self._job.site.home, self._job.request.run)
            self._kept = kept.read(self._job.request.base_round)
        own, _ = split_control(self._kept)
        self._learner.load({**fresh_local(), **own, **tensors})

    def train(self, examples: Examples) -> tuple[float, Tensors]:
        """Train, save local state, and return (mean loss, tensors to send)."""
        _, own = split_control(self._kept)
        variates = (
            ControlVariates(self._learner.model, own, self._control) if self._scaffold else None
        )
        outcome = self._learner.train_round(
            examples,
            Stretch(self._job.request.round, self._job.recipe.federation.rounds),
            self._job.site.name,
            self._job.request.proximal_mu,
            variates,
            shares_K=received_shares(self._job),
        )
        tensors = self._learner.tensors()
        outgoing = shared(tensors, self._local)
        keep = local(tensors, self._local)
        if variates is not None:
            fresh = {n: a for n, a in variates.fresh().items() if n in self._control}
            keep |= as_control(fresh)
            # SCAFFOLD: a site sends the change of its control variate.
            outgoing |= as_control({n: a - own[n] if n in own else a for n, a in fresh.items()})
        if self._keeps:
            request = self._job.request
            kept = KeptTensors(self._job.site.home, request.run)
            kept.commit(request.round, keep, request.base_round)
        return outcome.loss, outgoing
