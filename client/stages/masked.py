"""Handler of the stages of a masked sum: the site's value goes into a sum, and nowhere else.

With differential privacy the value is what a release would be before its noise: class sums, the
clipped gradients of one step, counts of the scores. Without it, it is the weighed change of the
model and the figures beside it (:mod:`fgvc_core.secure.plain`).
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fgvc_core.errors import PeerError, PolicyRefusal
from fgvc_core.privacy.accountant import PrivacyEvent
from fgvc_core.privacy.settings import PrivacySettings
from fgvc_core.protocol.messages import Scores
from fgvc_core.protocol.stages import SCORE, SECURE, TRAIN_READY
from fgvc_core.secure.plain import (
    SCORES,
    Figures,
    exact_scale,
    scores_as_value,
    size_of_update,
    update_as_value,
)
from fgvc_core.training.compatibility import validate_private
from fgvc_core.training.private import (
    SCORES_BOUND,
    PrivateTraining,
    clear_scores,
    clear_sums,
    sums_bound_of,
)
from fgvc_core.wire.codec import decode_model
from fieldmark.client.job import Job, echo
from fieldmark.client.privacy.gate import Departure, Gate
from fieldmark.client.privacy.masked import Asked, Summand, say_ready, send_part
from fieldmark.client.privacy.outbox import Payload
from fieldmark.client.stages.private import Tensors, checked, event_of, specs_of_answer
from fieldmark.client.stages.train import answer_round
from fieldmark.client.workspace import learner_and_examples, learner_of

READY, SUM = ({trips[at] for trips in SECURE.values()} for at in (0, 1))


def is_masked(job: Job) -> bool:
    """Whether a request of a run with ``[secure]`` is about a masked sum.

    A request for its values without a cohort is, too: it is refused, because a single answer is not
    what this run asks for.
    """
    if job.stage is SCORE and job.privacy is not None:
        # Costs nothing and says nothing: the scores stay at the site unless the plan has them.
        return bool(job.privacy.score_share)
    return job.stage in READY | SUM | SECURE.keys()


def answer_masked(gate: Gate, job: Job) -> Departure:
    """Answer one trip of a masked sum.

    Raises:
        PolicyRefusal: if policy, pins, plan or budget do not allow it.
        PeerError: if the request is not one of this run.
    """
    protected = job.privacy is not None
    asked = Asked(job.site, job.request, job.recipe, job.class_names, protected)
    if job.stage in SUM:
        return send_part(gate, asked)
    if job.stage not in READY:
        raise PeerError(
            "The run's recipe has [secure], and the request names no sites to add up over.",
            why="This site's answer would be seen by itself.",
            remedy="Ask with the sites of the sum.",
        )
    summand, work = _plain(job) if job.privacy is None else _protected(job, job.privacy)
    fields: dict[str, Any] = {**echo(job.site, job.request), "code": "ok", "examples": 0}
    return say_ready(gate, asked, summand, fields, work)


Work = Callable[[], NDArray[np.float64]]


def _protected(job: Job, privacy: PrivacySettings) -> tuple[Summand, Work]:
    """What a request asks for under differential privacy; no picture is read yet."""
    event = event_of(job, privacy)
    if event is None:
        raise PeerError("The scores of this run stay at the sites.")
    received = checked(job, privacy)
    specs = specs_of_answer(privacy, event, received)
    size, bound = sum(spec.size for spec in specs.values()), privacy.clipping_norm
    if event.purpose == "scores":
        size, bound = 2, SCORES_BOUND
    elif event.purpose != "step":
        bound = sums_bound_of(event.purpose, privacy)
    return Summand(specs, size, event, bound), lambda: _value(job, privacy, received, event)


def _value(
    job: Job, privacy: PrivacySettings, received: Tensors, event: PrivacyEvent
) -> NDArray[np.float64]:
    """The clear sums: they stay here until their part is masked."""
    with learner_and_examples(job) as (learner, _, examples):
        units_N, held_N = examples.train_units, examples.validation_units
        assert units_N is not None
        assert held_N is not None
        learner.load(received)
        if event.purpose == "scores":
            return clear_scores(learner, examples.validation, held_N)
        if event.purpose == "step":
            # With the engine that has passed the experiments, which are not run again.
            settled = validate_private(learner, privacy)
            return PrivateTraining(learner, examples.train, units_N, settled).summed(event)
        return clear_sums(learner, examples.train, units_N, event.purpose, privacy)


def _plain(job: Job) -> tuple[Summand, Work]:
    """What a request asks for without differential privacy; no picture is read yet.

    Raises:
        PeerError: if it is not what the recipe says.
        PolicyRefusal: if this site has no weight to tell.
    """
    recipe, request, policy = job.recipe, job.request, job.site.settings.policy
    federation = recipe.federation
    pull = federation.proximal_mu if federation.strategy == "fedprox" else 0.0
    trains = job.stage is TRAIN_READY
    # Sent to one site alone, a pull without bound would make the sum that of the others.
    if request.proximal_mu != (pull if trains else 0.0):
        raise PeerError(
            f"The request pulls by {request.proximal_mu:g}, and the recipe by {pull:g}."
        )
    if not int(trains) <= request.round <= federation.rounds:
        raise PeerError(f"Round {request.round} is not one of this run.")
    if not policy.share_counts and job.site.settings.data.units < 1:
        raise PolicyRefusal(
            "policy.share_counts = false, and data.units in site.toml is 0.",
            why="In a masked sum a site weighs its own update, and has no other number for it.",
            remedy="Declare in site.toml about how many units these data hold.",
        )
    with learner_of(job) as (_, specs):
        sent = decode_model(job.received, specs, recipe.wire)
    # The same work as without sums, which needs no cohort.
    alone = replace(job, request=request.model_copy(update={"cohort": ()}))
    summand = Summand(specs, size_of_update(specs)) if trains else Summand({}, SCORES)
    return summand, lambda: _clear(alone, sent, answer_round(alone))


def _clear(job: Job, sent: Tensors, done: Payload) -> NDArray[np.float64]:
    """The value of a finished round, with what the policy shares."""
    policy, secure = job.site.settings.policy, job.recipe.secure
    assert secure is not None
    counts = policy.share_counts
    examples = done.fields["examples"] if counts else job.site.settings.data.units
    weight = min(examples / secure.most_examples, 1.0)
    figures = Figures(weight, weight * done.fields.get("loss", 0.0) if counts else 0.0)
    scored: Scores = done.fields["scores"]
    if counts and policy.share_scores:
        told = {name: getattr(scored, name) for name in ("examples", "correct", "loss_sum")}
        figures = replace(figures, **told)
    if not done.tensors:
        return scores_as_value(figures, exact_scale(SCORES).step)
    return update_as_value(sent, done.tensors, figures, secure.range)
